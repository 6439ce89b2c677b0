/**
 * What a region is made of, in words, and what that means for who maps files on it. Read from sysfs, /proc and statfs;
 * nothing here opens the region, so it needs no permission on it.
 */
import { readFileSync, readlinkSync, realpathSync, statfsSync, statSync } from "node:fs";
import { basename } from "node:path";
import type { NativeRegionInfo } from "./addon.ts";

/** What the region lies on. */
export type BackingName =
  | "devdax"
  | "pmem"
  | "network"
  | "block"
  | "dax-sync"
  | "dax"
  | "hugetlbfs"
  | "memory"
  | "file";

export interface Backing {
  readonly name: BackingName;
  readonly found: string;
  readonly means: string;
  /** Gone when the machine is switched off, whatever is flushed. */
  readonly volatile: boolean;
  /** The block device that it is, or that its file system lies on, e.g. "pmem0"; null if none. */
  readonly blockDevice: string | null;
}

/** statfs(2) f_type. */
const FILE_SYSTEMS: ReadonlyMap<number, string> = new Map([
  [0x958458f6, "hugetlbfs"],
  [0x01021994, "tmpfs"],
  [0x858458f6, "ramfs"],
  [0xef53, "ext4"],
  [0x58465342, "xfs"],
  [0x9123683e, "btrfs"],
  [0xf2f52010, "f2fs"],
  [0x6969, "nfs"],
  [0x794c7630, "overlayfs"],
  [0x2fc12fc1, "zfs"],
]);

/** The name of the file system that a file lies on; "another file system" if it is none that we know. */
export function fileSystemOf(path: string): string {
  try {
    return FILE_SYSTEMS.get(Number(statfsSync(path).type)) ?? "another file system";
  } catch {
    return "another file system";
  }
}

/** One line of sysfs; null if it is not there. */
export function readAttribute(path: string): string | null {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return null;
  }
}

/** dev_t as glibc takes it apart. */
export function deviceNumbers(device: bigint): string {
  const major = ((device >> 8n) & 0xfffn) | ((device >> 32n) & ~0xfffn);
  const minor = (device & 0xffn) | ((device >> 12n) & ~0xffn);
  return `${major}:${minor}`;
}

/** The kernel's name of a block device, e.g. "pmem0" or "sda1"; null if there is none of that number. */
function blockDeviceName(device: bigint): string | null {
  try {
    return basename(realpathSync(`/sys/dev/block/${deviceNumbers(device)}`));
  } catch {
    return null;
  }
}

/** Drivers whose bytes lie on other machines, as a rule. */
const NETWORKED = /^(nbd|rbd|drbd|etherd)/;

/** An NVMe namespace that is reached over a network (NVMe-oF). */
function isNvmeOverFabrics(name: string): boolean {
  const controller = /^(nvme\d+)(c\d+)?n\d+/.exec(name)?.[1];
  if (controller === undefined) return false;
  const transport = readAttribute(`/sys/class/nvme/${controller}/transport`);
  return transport !== null && transport !== "pcie";
}

/** A power of two from 4096, for reading. */
const inUnits = (bytes: number): string =>
  bytes < 1 << 20 ? `${bytes >> 10} KiB` : `${bytes / (1 << 20)} MiB`;

type RegionTraits = Omit<NativeRegionInfo, "uid" | "gid" | "mode" | "discards">;

export function describeBacking(path: string, info: RegionTraits): Backing {
  if (info.kind === "devdax") return devdax(path, info);
  if (info.kind === "block") return block(info);
  return file(path, info);
}

function devdax(path: string, info: RegionTraits): Backing {
  const unit = inUnits(info.mapAlignmentBytes);
  return {
    name: "devdax",
    found: `character DAX device ${basename(path)}, mapped in units of ${unit}`,
    means:
      "mappings go straight to the memory, and a CPU cache flush makes stores durable" +
      (info.mapAlignmentBytes > 4096 ? `; each file takes whole blocks of ${unit}` : ""),
    volatile: false,
    blockDevice: null,
  };
}

function block(info: RegionTraits): Backing {
  const name = blockDeviceName(info.device) ?? "unknown";
  const rest = { volatile: false, blockDevice: name };
  if (/^pmem\d+(\.\d+)?(s)?$/.test(name)) {
    return {
      name: "pmem",
      found: `persistent memory as a block device (${name})`,
      means:
        "Linux maps it through the page cache: stores become durable page by page, by msync, as on a disk; its memory is not reached directly",
      ...rest,
    };
  }
  if (NETWORKED.test(name) || isNvmeOverFabrics(name)) {
    return {
      name: "network",
      found: `block device over a network (${name})`,
      means:
        "mapped through the page cache: stores become durable by msync, where and how often the device's own engine keeps them",
      ...rest,
    };
  }
  return {
    name: "block",
    found: `block device (${name})`,
    means: "mapped through the page cache: stores become durable page by page, by msync",
    ...rest,
  };
}

function file(path: string, info: RegionTraits): Backing {
  const system = fileSystemOf(path);
  const blockDevice = blockDeviceName(info.device);
  if (info.mapSync) {
    return {
      name: "dax-sync",
      found: `file on ${system} with DAX and MAP_SYNC`,
      means: "mappings go straight to the memory, and a CPU cache flush makes stores durable",
      volatile: false,
      blockDevice,
    };
  }
  if (info.dax) {
    return {
      name: "dax",
      found: `file on ${system} with DAX, without MAP_SYNC`,
      means:
        "mappings go straight to the memory; stores become durable by msync, which asks the host to flush",
      volatile: false,
      blockDevice,
    };
  }
  if (system === "hugetlbfs") {
    return {
      name: "hugetlbfs",
      found: `file of huge pages of ${inUnits(info.mapAlignmentBytes)} (hugetlbfs)`,
      means: "memory of this machine, gone when it is switched off; mappings are the huge pages themselves",
      volatile: true,
      blockDevice: null,
    };
  }
  if (system === "tmpfs" || system === "ramfs") {
    return {
      name: "memory",
      found: `file in memory (${system})`,
      means: "memory of this machine, gone when it is switched off; mappings are the file's pages themselves",
      volatile: true,
      blockDevice: null,
    };
  }
  return {
    name: "file",
    found: `file on ${system}, in the page cache`,
    means: "mapped through the page cache: stores become durable page by page, by msync",
    volatile: false,
    blockDevice,
  };
}

/** Whether a block device could be mapped directly under a DAX file system; null if it does not say. */
export function canDax(blockDevice: string): boolean | null {
  const own = readAttribute(`/sys/class/block/${blockDevice}/queue/dax`);
  // A partition has no queue of its own.
  const text = own ?? readAttribute(`/sys/class/block/${blockDevice}/../queue/dax`);
  return text === null ? null : text === "1";
}

/** The namespace of a persistent memory device, e.g. "namespace0.0"; null if it has none. */
export function namespaceOf(path: string): string | null {
  try {
    const { rdev } = statSync(path, { bigint: true });
    const kind = statSync(path).isBlockDevice() ? "block" : "char";
    const link = realpathSync(`/sys/dev/${kind}/${deviceNumbers(rdev)}`);
    const match = /\/((?:namespace|btt|pfn|dax)\d+\.\d+)\//.exec(`${link}/`);
    const seed = match?.[1];
    if (seed === undefined) return null;
    if (seed.startsWith("namespace")) return seed;
    // The name of the namespace that a personality (dax0.0, pfn0.0, btt0.0) was made of.
    const [region] = /\d+\.\d+$/.exec(seed) ?? [];
    const attribute = readAttribute(`${link.slice(0, link.indexOf(`/${seed}/`))}/${seed}/namespace`);
    return attribute !== null && attribute !== ""
      ? attribute
      : region === undefined
        ? null
        : `namespace${region}`;
  } catch {
    return null;
  }
}

/** The driver of a DAX device: "device_dax", or "kmem" when the kernel uses its memory as its own. */
export function driverOf(path: string): string | null {
  try {
    const { rdev } = statSync(path, { bigint: true });
    return basename(readlinkSync(`/sys/dev/char/${deviceNumbers(rdev)}/driver`));
  } catch {
    return null;
  }
}
