import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { addon } from "../../src/region/addon.ts";
import { createRegionFile } from "../../src/region/create.ts";
import { MappedRegion } from "../../src/region/native-region.ts";
import { openRegion } from "../../src/region/open.ts";
import { loopUnavailable, makeLoopDevice } from "../support/loop-device.ts";

const SIZE = 1 << 20;
let directory: string;
let path: string;
const opened: MappedRegion[] = [];

const open = (...args: Parameters<typeof openRegion>): MappedRegion => {
  const region = openRegion(...args);
  opened.push(region);
  return region;
};

const failure = (body: () => unknown): FsError => {
  try {
    body();
  } catch (error) {
    expect(error).toBeInstanceOf(FsError);
    return error as FsError;
  }
  throw new Error("nothing was thrown");
};

beforeEach(() => {
  directory = mkdtempSync("/dev/shm/mapdirect-open-");
  path = join(directory, "region");
});
afterEach(() => {
  for (const region of opened.splice(0)) region.close();
  rmSync(directory, { recursive: true, force: true });
});

describe("opening a region", () => {
  test("a second open of a locked region is EBUSY and says who to look for", () => {
    createRegionFile(path, SIZE);
    const first = open(path);
    const busy = failure(() => openRegion(path));
    expect(busy.code).toBe("EBUSY");
    expect(busy.message).toContain(path);
    open(path, { lock: false });
    first.close();
    open(path);
  });

  test.skipIf(loopUnavailable() !== null)(
    `a block device opened for itself is EBUSY to others, also by another name (${loopUnavailable() ?? "loop"})`,
    () => {
      const device = makeLoopDevice(SIZE);
      const alias = join(directory, "alias");
      try {
        const { rdev } = statSync(device.path);
        execFileSync("mknod", [alias, "b", `${rdev >> 8}`, `${rdev & 0xff}`]);
        const region = openRegion(device.path);
        try {
          expect(failure(() => openRegion(device.path)).code).toBe("EBUSY");
          expect(failure(() => openRegion(alias)).code).toBe("EBUSY");
          expect(region.facts.device).toBe(BigInt(rdev));
          expect(region.facts.inode).toBe(0n);
          expect(region.facts.fallbacks.join()).toContain("page cache");
        } finally {
          region.close();
        }
      } finally {
        device.remove();
      }
    },
  );

  test("the facts name the file, and why MAP_SYNC was not granted", () => {
    createRegionFile(path, SIZE);
    const { facts } = open(path);
    const status = statSync(path, { bigint: true });
    expect([facts.device, facts.inode]).toEqual([status.dev, status.ino]);
    expect(facts).toMatchObject({ path, kind: "file", granularity: "page", mapSync: false, assumed: false });
    expect(facts.fallbacks).toHaveLength(1);
    expect(facts.fallbacks[0]).toMatch(/MAP_SYNC.*EOPNOTSUPP.*DAX/);
    expect(Object.isFrozen(facts)).toBe(true);
  });

  test("assumed pmem is cache-line granular and says that it is assumed", () => {
    createRegionFile(path, SIZE);
    const { facts } = open(path, { assumePmem: true });
    expect(facts).toMatchObject({
      granularity: "cacheline",
      assumed: true,
      flushMethod: addon().flushMethod,
    });
    expect(facts.fallbacks.at(-1)).toContain("assumed");
  });

  test("what is not a region is refused by name, with what to do", () => {
    expect(failure(() => openRegion(path))).toMatchObject({ code: "ENOENT" });
    expect(failure(() => openRegion(directory))).toMatchObject({ code: "EISDIR" });
    execFileSync("mkfifo", [path]);
    const fifo = failure(() => openRegion(path));
    expect(fifo.message).toContain("a fifo");
    expect(failure(() => openRegion("/dev/null")).code).toBe("ENODEV");
    const small = join(directory, "small");
    writeFileSync(small, "x");
    expect(failure(() => openRegion(small)).message).toMatch(/has 1 bytes, fewer than any region/);
    expect(failure(() => openRegion(join(small, "below"))).code).toBe("ENOTDIR");
  });

  test("a read-only region reads, and refuses stores with EROFS", async () => {
    writeFileSync(path, Buffer.alloc(SIZE, 7));
    const region = open(path, { readOnly: true });
    const bytes = new Uint8Array(4);
    region.read(SIZE - 4, bytes, 0, 4);
    expect([...bytes]).toEqual([7, 7, 7, 7]);
    for (const store of [
      () => region.write(0, bytes, 0, 1),
      () => region.zero(0, 1),
      () => region.copy(0, 10, 1),
    ]) {
      expect(failure(store).code).toBe("EROFS");
    }
    await region.sync();
  });

  test.each([false, true])(
    "a file truncated beneath the mapping is EIO, not the end (pmem: %s)",
    (assumePmem) => {
      createRegionFile(path, SIZE);
      const region = open(path, { assumePmem });
      const bytes = new Uint8Array(8192).fill(1);
      truncateSync(path, 4096);
      for (let round = 0; round < 3; round++) {
        region.write(0, bytes, 0, 4096);
        expect(failure(() => region.read(8192, bytes, 0, 100)).code).toBe("EIO");
        expect(failure(() => region.write(2048, bytes, 0, 8192)).code).toBe("EIO");
        expect(failure(() => region.zero(SIZE - 1, 1)).code).toBe("EIO");
        expect(failure(() => region.copy(0, 8192, 4096)).code).toBe("EIO");
      }
      truncateSync(path, SIZE);
      region.write(8192, bytes, 0, 4096);
    },
  );

  test("a failed sync is remembered, and never asked for again", async () => {
    createRegionFile(path, SIZE);
    const { native, facts } = open(path);
    let asked = 0;
    const sync = () => {
      asked++;
      const error = Object.assign(new Error("EIO: sync"), { errno: 5 });
      return asked === 1 ? Promise.reject(error) : Promise.resolve();
    };
    const failing = Object.create(native, { sync: { value: sync } });
    const region = new MappedRegion(failing, facts);
    const together = await Promise.allSettled([region.sync(), region.sync()]);
    expect(together.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    await expect(region.sync()).rejects.toBe(region.syncError);
    expect(region.syncError).toMatchObject({ code: "EIO" });
    expect(asked).toBe(2);
  });

  test("a sync under way survives close", async () => {
    createRegionFile(path, SIZE);
    const region = open(path);
    const syncing = region.sync();
    region.close();
    await syncing;
  });
});

describe("creating a region file", () => {
  test("it is sparse, zero and private", () => {
    createRegionFile(path, 1 << 30);
    const status = statSync(path);
    expect(status.size).toBe(1 << 30);
    expect(status.blocks).toBe(0);
    expect(status.mode & 0o777).toBe(0o600);
  });

  test("an existing file is kept unless forced, and then emptied", () => {
    writeFileSync(path, "precious");
    expect(failure(() => createRegionFile(path, SIZE)).code).toBe("EEXIST");
    expect(statSync(path).size).toBe(8);
    createRegionFile(path, SIZE, { force: true });
    const region = open(path);
    const bytes = new Uint8Array(8);
    region.read(0, bytes, 0, 8);
    expect(bytes.every((byte) => byte === 0)).toBe(true);
  });

  test("force does not take a region that is in use", () => {
    createRegionFile(path, SIZE);
    open(path);
    expect(failure(() => createRegionFile(path, 2 * SIZE, { force: true })).code).toBe("EBUSY");
    expect(statSync(path).size).toBe(SIZE);
  });

  test("neither a directory, a fifo nor a device is made into one", () => {
    expect(failure(() => createRegionFile(directory, SIZE, { force: true })).code).toBe("EISDIR");
    execFileSync("mkfifo", [path]);
    expect(failure(() => createRegionFile(path, SIZE, { force: true })).code).toBe("EINVAL");
    expect(failure(() => createRegionFile("/dev/null", SIZE, { force: true })).code).toBe("EINVAL");
    expect(existsSync("/dev/null")).toBe(true);
    expect(failure(() => createRegionFile(join(directory, "no", "such"), SIZE)).code).toBe("ENOENT");
    expect(failure(() => createRegionFile(path, 100)).code).toBe("EINVAL");
  });
});

test("under a limit of address space it opens, and does not grow", () => {
  createRegionFile(path, SIZE);
  const script = `
    const { openRegion } = await import(${JSON.stringify(join(import.meta.dirname, "../../dist/region/open.js"))});
    const region = openRegion(${JSON.stringify(path)});
    await region.grow(region.measure());
    await region.grow(2 * ${SIZE}).catch((error) => console.log(error.message));
    region.write(${SIZE - 1}, new Uint8Array(1).fill(7), 0, 1);`;
  const limited = 'ulimit -v 33554432 && exec "$0" "$@"';
  const args = ["-c", limited, process.execPath, "--input-type=module", "-e", script];
  const ended = spawnSync("sh", args, { encoding: "utf8", timeout: 20_000 });
  expect(ended).toMatchObject({ status: 0, stderr: "" });
  expect(ended.stdout).toMatch(/^ENOMEM: .*unmount it first/);
  expect(statSync(path).size).toBe(SIZE);
});

test("a file that cannot become so large stays as it is, and its region in use", async () => {
  createRegionFile(path, SIZE);
  const region = open(path);
  await expect(region.grow(2 ** 53 - 1)).rejects.toThrow(/ENOMEM|EFBIG/);
  region.write(SIZE - 1, new Uint8Array(1), 0, 1);
  await region.sync();
  expect(statSync(path).size).toBe(SIZE);
});

test("the lock ends with the process that held it", () => {
  createRegionFile(path, SIZE);
  const script = `
    const addon = require(${JSON.stringify(join(import.meta.dirname, "../../build/Release/mapdirect.node"))});
    globalThis.region = addon.openRegion(${JSON.stringify(path)}, { readOnly: false, lock: true, mapSync: false });
    process.kill(process.pid, "SIGKILL");`;
  expect(spawnSync(process.execPath, ["-e", script]).signal).toBe("SIGKILL");
  open(path);
});

test("a worker that ends with a region open takes nothing down, and releases the lock", () => {
  createRegionFile(path, SIZE);
  const script = `
    const { Worker } = require("node:worker_threads");
    const source = \`
      const addon = require(${JSON.stringify(join(import.meta.dirname, "../../build/Release/mapdirect.node"))});
      globalThis.region = addon.openRegion(${JSON.stringify(path)}, { readOnly: false, lock: true, mapSync: false });
      region.sync();
    \`;
    const start = (left) => new Worker(source, { eval: true })
      .on("error", (error) => { throw error; })
      .on("exit", () => left > 0 ? start(left - 1) : console.log("done"));
    start(2);`;
  const ended = spawnSync(process.execPath, ["-e", script], { encoding: "utf8", timeout: 20_000 });
  expect(ended).toMatchObject({ status: 0, stdout: "done\n", stderr: "" });
  open(path);
});
