/**
 * What a region and this machine could do better for direct mappings, and how. Looks and changes nothing.
 *
 * Invariants:
 * - every finding that is not `good` says what to do;
 * - what cannot be found out is left out rather than guessed.
 */
import { accessSync, constants, type Stats, statfsSync, statSync } from "node:fs";
import { release } from "node:os";
import {
  type Backing,
  canDax,
  describeBacking,
  driverOf,
  namespaceOf,
  readAttribute,
} from "../region/backing.ts";
import type { RegionFacts } from "../region/region.ts";
import { formatSize } from "./sizes.ts";

/** good: nothing to do; fair: it works, and could be better; bad: something will not work, or may be lost. */
export type Verdict = "good" | "fair" | "bad";

export interface Finding {
  readonly what: string;
  readonly verdict: Verdict;
  readonly why: string;
  /** null exactly when the verdict is good. */
  readonly todo: string | null;
}

export const good = (what: string, why: string): Finding => ({ what, verdict: "good", why, todo: null });
export const fair = (what: string, why: string, todo: string): Finding => ({
  what,
  verdict: "fair",
  why,
  todo,
});
export const bad = (what: string, why: string, todo: string): Finding => ({
  what,
  verdict: "bad",
  why,
  todo,
});

/** As the daemon's INFO and the opening of a region tell it. */
export type RegionNow = Pick<
  RegionFacts,
  "path" | "kind" | "sizeBytes" | "granularity" | "mapSync" | "assumed" | "dax" | "mapAlignmentBytes"
> & { readonly flushMethod: string };

export function examine(region: RegionNow): Finding[] {
  const status = statSync(region.path);
  const wide = statSync(region.path, { bigint: true });
  const backing = describeBacking(region.path, {
    kind: region.kind === "memory" ? "file" : region.kind,
    sizeBytes: region.sizeBytes,
    dax: region.dax,
    mapSync: region.mapSync,
    mapAlignmentBytes: region.mapAlignmentBytes,
    mapSyncRefusal: "",
    device: status.isFile() ? wide.dev : wide.rdev,
    inode: status.isFile() ? wide.ino : 0n,
  });
  return [
    ...aboutBacking(region, backing, status),
    ...aboutRoom(region, status),
    ...aboutFlushing(region, backing),
    ...aboutRights(region, status),
    ...aboutKernel(),
  ];
}

/** A sparse file can take as much as is free where it lies; less than this is full. */
const ROOM_BYTES_MIN = 1024 * 1024;

function aboutRoom(region: RegionNow, status: Stats): Finding[] {
  const lacking = status.size - status.blocks * 512;
  if (!status.isFile() || lacking <= 0) return [];
  let freeBytes: number;
  try {
    const { blocks, bavail, bsize } = statfsSync(region.path);
    if (blocks === 0) return [];
    freeBytes = bavail * bsize;
  } catch {
    return [];
  }
  if (freeBytes >= ROOM_BYTES_MIN) return [];
  return [
    bad(
      "room",
      `the disk below is full: ${formatSize(freeBytes)} are free, and ${region.path} is sparse and may want ${formatSize(lacking)} more`,
      "make room where it lies, or delete files in it",
    ),
  ];
}

/** How to get to persistent memory from one namespace; everything on it is lost. */
const reconfigure = (namespace: string | null, mode: string): string =>
  `ndctl create-namespace -f -e ${namespace ?? "NAMESPACE (see 'ndctl list -N')"} -m ${mode}`;

function aboutBacking(region: RegionNow, backing: Backing, status: Stats): Finding[] {
  const what = "region";
  const loses = "save its content first, which this destroys";
  switch (backing.name) {
    case "devdax": {
      if (driverOf(region.path) === "kmem") {
        const todo = `daxctl reconfigure-device --mode=devdax ${region.path.split("/").at(-1)}`;
        return [bad(what, "the kernel uses this device as ordinary memory", todo)];
      }
      if (region.mapAlignmentBytes === 4096) return [good(what, backing.found)];
      const unit = formatSize(region.mapAlignmentBytes);
      const namespace = namespaceOf(region.path);
      return [
        fair(
          what,
          `${backing.found}: each file takes at least ${unit}, and mappings begin and end at multiples of it`,
          `fine for few large files; for many small ones '${reconfigure(namespace, "devdax -a 4096")}', ${loses}`,
        ),
      ];
    }
    case "pmem": {
      const namespace = namespaceOf(region.path);
      return [
        fair(
          what,
          `${backing.found}: ${backing.means}`,
          `for direct access '${reconfigure(namespace, "devdax")}' and use /dev/daxX.Y, or make ext4 or xfs on it, mount that with '-o dax' and use a file there; ${loses}`,
        ),
      ];
    }
    case "dax-sync":
      return [good(what, backing.found), ...aboutAllocation(region, status)];
    case "dax":
      return [
        fair(
          what,
          `${backing.found}: ${backing.means}`,
          "give the machine a real or emulated NVDIMM instead of virtio-pmem, if a CPU flush is to suffice",
        ),
        ...aboutAllocation(region, status),
      ];
    case "network":
    case "block":
      return [
        fair(
          what,
          `${backing.found}: ${backing.means}`,
          "nothing, on this device: a CPU flush suffices on persistent memory alone",
        ),
        ...aboutWriteCache(backing),
      ];
    case "hugetlbfs":
    case "memory":
      return [
        bad(
          what,
          `${backing.found}: everything is lost when the machine is switched off`,
          "use it for tests and scratch data; for others a file on a disk or persistent memory",
        ),
      ];
    case "file": {
      const device = backing.blockDevice;
      const todo =
        device !== null && canDax(device) === true
          ? `/dev/${device} can do DAX: mount its file system with '-o dax' (ext4, xfs)`
          : "nothing, on this disk: direct access needs persistent memory";
      return [fair(what, `${backing.found}: ${backing.means}`, todo), ...aboutAllocation(region, status)];
    }
  }
}

/** A store into a sparse region file for which its file system has no room is EIO for whoever made it. */
function aboutAllocation(region: RegionNow, status: Stats): Finding[] {
  const allocated = status.blocks * 512;
  if (allocated >= region.sizeBytes) return [good("allocation", "the region file has all its blocks")];
  return [
    fair(
      "allocation",
      `the region file is sparse: ${formatSize(allocated)} of ${formatSize(region.sizeBytes)} are allocated, and the file system below may be full when the rest is needed`,
      `fallocate --length ${region.sizeBytes} ${region.path}`,
    ),
  ];
}

function aboutWriteCache({ blockDevice }: Backing): Finding[] {
  const mode = readAttribute(`/sys/class/block/${blockDevice}/queue/write_cache`);
  if (mode === null) return [];
  if (mode === "write back")
    return [good("write cache", "the device is told to flush its cache at each sync")];
  return [
    fair(
      "write cache",
      `the device says that it has none (${mode}): if there is one all the same, a power cut loses what was synced`,
      "make sure that what exports the device passes flushes on (nbd-server: flush = true), or that it writes through",
    ),
  ];
}

function aboutFlushing(region: RegionNow, backing: Backing): Finding[] {
  const what = "durability";
  if (region.assumed && !backing.volatile) {
    return [
      bad(
        what,
        "the region is taken for persistent memory because the mount says so: a power cut loses what counts as durable",
        "mount it without assume_pmem",
      ),
    ];
  }
  if (region.granularity === "page") return [];
  if (region.flushMethod === "clflush") {
    return [
      fair(
        what,
        "this CPU has neither clwb nor clflushopt: flushing goes line by line",
        "nothing, with this CPU; in a virtual machine give it the host's (-cpu host)",
      ),
    ];
  }
  return [good(what, `a CPU cache flush (${region.flushMethod}) makes stores durable`)];
}

function aboutRights(region: RegionNow, status: Stats): Finding[] {
  const what = "rights";
  const mode = (status.mode & 0o777).toString(8).padStart(4, "0");
  if ((status.mode & 0o006) !== 0) {
    return [
      bad(
        what,
        `everybody may ${(status.mode & 0o002) !== 0 ? "write" : "read"} the region (mode ${mode}), and so every file on it`,
        `chmod o-rwx ${region.path}; for a device in a udev rule (docs/OPERATIONS.md)`,
      ),
    ];
  }
  const who = (status.mode & 0o060) === 0o060 ? `its owner and group ${status.gid}` : "its owner alone";
  return [
    good(
      what,
      `the region is open to ${who} (mode ${mode}): who maps directly must be one of them, or use direct_group=`,
    ),
  ];
}

const KERNEL_SHARED_MMAP = [6, 6] as const;
const KERNEL_UNPOPULATED = [6, 4] as const;

function aboutKernel(): Finding[] {
  const what = "kernel";
  const text = release();
  const [major = 0, minor = 0] = text.split(".").map((part) => Number.parseInt(part, 10));
  const since = ([wantMajor, wantMinor]: readonly [number, number]): boolean =>
    major > wantMajor || (major === wantMajor && minor >= wantMinor);
  const findings: Finding[] = [];
  try {
    accessSync("/dev/fuse", constants.R_OK | constants.W_OK);
  } catch {
    findings.push(
      bad(
        what,
        "/dev/fuse cannot be opened",
        "'modprobe fuse' as root; others than root need mode 0666 on it",
      ),
    );
  }
  if (!since(KERNEL_SHARED_MMAP)) {
    findings.push(
      fair(
        what,
        `Linux ${text}: ordinary shared mappings and uncached read and write exclude each other in FUSE files`,
        "Linux 6.6 or newer has both at once",
      ),
    );
  } else findings.push(good(what, `Linux ${text}`));
  if (!since(KERNEL_UNPOPULATED)) {
    findings.push(
      fair(
        what,
        "holes in direct mappings cost a page table entry for each page",
        "Linux 6.4 or newer needs none",
      ),
    );
  }
  const maps = Number(readAttribute("/proc/sys/vm/max_map_count") ?? Number.NaN);
  if (maps < 65_530) {
    findings.push(
      fair(
        what,
        `a process may have ${maps} mappings: fragmented files may not be mapped whole`,
        "sysctl vm.max_map_count=65530",
      ),
    );
  }
  return findings;
}
