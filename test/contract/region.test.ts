/** The region contract, over every backend that this machine can offer. */
import { closeSync, mkdtempSync, openSync, readSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createRegionFile } from "../../src/region/create.ts";
import { type OpenRegionOptions, openRegion } from "../../src/region/open.ts";
import { loopUnavailable, makeLoopDevice } from "../support/loop-device.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { type RegionBackend, type RegionUnderTest, regionContract } from "./region.contract.ts";

function readOutside(path: string, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  const descriptor = openSync(path, "r");
  try {
    for (let done = 0; done < length; ) {
      done += readSync(descriptor, bytes, done, length - done, offset + done);
    }
  } finally {
    closeSync(descriptor);
  }
  return bytes;
}

function overPath(path: string, options: OpenRegionOptions, remove: () => void): RegionUnderTest {
  let current = openRegion(path, options);
  return {
    region: current,
    outside: (offset, length) => readOutside(path, offset, length),
    reopen() {
      current.close();
      current = openRegion(path, options);
      return current;
    },
    dispose() {
      current.close();
      remove();
    },
  };
}

function fileBackend(name: string, parent: string, options: OpenRegionOptions): RegionBackend {
  return {
    name,
    kind: "file",
    granularity: options.assumePmem === true ? "cacheline" : "page",
    unavailable: null,
    make(sizeBytes) {
      const directory = mkdtempSync(join(parent, "mapdirect-region-"));
      const remove = () => rmSync(directory, { recursive: true, force: true });
      try {
        const path = join(directory, "region");
        createRegionFile(path, sizeBytes);
        return overPath(path, options, remove);
      } catch (error) {
        remove();
        throw error;
      }
    },
  };
}

function loopBackend(): RegionBackend {
  return {
    name: "a loop block device",
    kind: "block",
    granularity: "page",
    unavailable: loopUnavailable(),
    make(sizeBytes) {
      const device = makeLoopDevice(sizeBytes);
      try {
        const made = overPath(device.path, {}, () => device.remove());
        return { ...made, enlarge: (larger) => device.grow(larger) };
      } catch (error) {
        device.remove();
        throw error;
      }
    },
  };
}

function memoryBackend(granularity: "cacheline" | "page"): RegionBackend {
  return {
    name: `memory, ${granularity}`,
    kind: "memory",
    granularity,
    unavailable: null,
    make(sizeBytes) {
      const region = MemoryRegion.blank(sizeBytes, { granularity });
      return {
        region,
        outside: (offset, length) => region.image().subarray(offset, offset + length),
        reopen: () => MemoryRegion.fromImage(region.image(), { granularity }),
        dispose: () => region.close(),
      };
    },
  };
}

regionContract(fileBackend("a file on tmpfs", "/dev/shm", {}));
regionContract(fileBackend("a file on tmpfs, assumed to be pmem", "/dev/shm", { assumePmem: true }));
regionContract(fileBackend("a file on disk", tmpdir(), {}));
regionContract(fileBackend("a file on disk, assumed to be pmem", tmpdir(), { assumePmem: true }));
regionContract(loopBackend());
regionContract(memoryBackend("cacheline"));
regionContract(memoryBackend("page"));
