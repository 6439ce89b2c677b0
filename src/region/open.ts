/**
 * Open a region and find out what it can do. What is found is kept as a value (RegionFacts) and never asked again;
 * what could not be had is listed there with its reason.
 */
import { type Stats, statSync } from "node:fs";
import { resolve } from "node:path";
import { Errno } from "../base/errno.ts";
import { FsError } from "../base/errors.ts";
import { addon, type NativeRegion, type NativeRegionInfo } from "./addon.ts";
import { describeBacking, fileSystemOf } from "./backing.ts";
import { MappedRegion } from "./native-region.ts";
import type { RegionFacts } from "./region.ts";

/** Less cannot hold even a superblock; what a volume needs is for the format to say. */
export const REGION_BYTES_MIN = 4096;

export interface OpenRegionOptions {
  readOnly?: boolean;
  /** Declare cache-line persistence where it is not found: for tests, and for hardware that Linux does not recognise. */
  assumePmem?: boolean;
  /** Refuse a region that another process has locked, and lock it. Default true. */
  lock?: boolean;
}

export function openRegion(path: string, options: OpenRegionOptions = {}): MappedRegion {
  const { readOnly = false, assumePmem = false, lock = true } = options;
  const absolute = resolve(path);
  checkIsRegion(absolute);
  let native: NativeRegion;
  try {
    native = addon().openRegion(absolute, { readOnly, lock, mapSync: true });
  } catch (error) {
    throw explain(error, absolute, readOnly);
  }
  if (native.info.sizeBytes < REGION_BYTES_MIN) {
    native.close();
    throw tooSmall(absolute, native.info.sizeBytes);
  }
  const facts = describe(absolute, native.info, assumePmem);
  native.setCacheline(facts.granularity === "cacheline");
  return new MappedRegion(native, facts);
}

function describe(path: string, info: NativeRegionInfo, assumePmem: boolean): RegionFacts {
  const found = info.kind === "devdax" || info.mapSync;
  const assumed = !found && assumePmem;
  const fallbacks: string[] = [];
  const backing = describeBacking(path, info);
  if (!info.mapSync) {
    const effect =
      info.kind === "devdax"
        ? "a CPU flush makes stores durable all the same: a device-dax mapping has no file system behind it"
        : backing.volatile
          ? "nothing here is durable"
          : "stores become durable by msync";
    fallbacks.push(`no MAP_SYNC (${info.mapSyncRefusal}): ${assumed ? "see below" : effect}`);
  }
  if (assumed) {
    fallbacks.push("persistent memory is assumed, not found: a power cut may lose what counts as durable");
  }
  return Object.freeze({
    path,
    kind: info.kind,
    sizeBytes: info.sizeBytes,
    found: backing.found,
    means: backing.means,
    dax: info.dax,
    granularity: found || assumed ? "cacheline" : "page",
    mapSync: info.mapSync,
    assumed,
    mapAlignmentBytes: info.mapAlignmentBytes,
    flushMethod: found || assumed ? addon().flushMethod : "msync",
    device: info.device,
    inode: info.inode,
    access: Object.freeze({ uid: info.uid, gid: info.gid, mode: info.mode }),
    fallbacks: Object.freeze(fallbacks),
  });
}

/** Looked at before it is opened: opening a fifo would wait for its other end. */
function checkIsRegion(path: string): void {
  let status: Stats;
  try {
    status = statSync(path);
  } catch (error) {
    throw explain(error, path, true);
  }
  if (status.isDirectory()) {
    throw new FsError(
      "EISDIR",
      `${path} is a directory; a region is a file, a block device or a DAX device, for example ${path}/volume.region`,
    );
  }
  if (!status.isFile() && !status.isBlockDevice() && !status.isCharacterDevice()) {
    const what = status.isFIFO() ? "a fifo" : "a socket";
    throw new FsError("ENODEV", `${path} is ${what}; a region is a file, a block device or a DAX device`);
  }
  if (status.isFile() && status.size < REGION_BYTES_MIN) throw tooSmall(path, status.size);
}

function tooSmall(path: string, sizeBytes: number): FsError {
  return new FsError("EINVAL", `${path} has ${sizeBytes} bytes, fewer than any region; name another file`);
}

function explain(error: unknown, path: string, readOnly: boolean): Error {
  if (!(error instanceof Error)) return new Error(String(error));
  const raw = (error as NodeJS.ErrnoException).errno;
  if (raw === undefined) return error; // the addon is missing, which says what to do itself
  const mode = readOnly ? "reading" : "reading and writing";
  switch (Math.abs(raw)) {
    case Errno.ENOENT:
      return new FsError(
        "ENOENT",
        `region ${path} does not exist: check the path, or create the region first`,
      );
    case Errno.ENOTDIR:
      return new FsError("ENOTDIR", `region ${path}: a part of the path is not a directory`);
    case Errno.EACCES:
      return new FsError(
        "EACCES",
        `region ${path} may not be opened for ${mode}: check its owner and mode and the directories above it`,
      );
    case Errno.EPERM:
      return new FsError(
        "EPERM",
        `region ${path} may not be opened for ${mode}: it is immutable, or this process is confined`,
      );
    case Errno.EROFS:
      return new FsError(
        "EROFS",
        `region ${path} lies on a read-only file system: open it read-only, or remount that file system`,
      );
    case Errno.EBUSY:
      return new FsError(
        "EBUSY",
        `region ${path} is in use, mounted or being checked by another process: end that first (fuser -v ${path} names it)`,
      );
    case Errno.ENODEV:
      return new FsError(
        "ENODEV",
        `${path} cannot be mapped: it is a device that is not DAX, or its file system has no mmap`,
      );
    case Errno.ENOMEM:
      return new FsError(
        "ENOMEM",
        fileSystemOf(path) === "hugetlbfs"
          ? `region ${path}: there are not enough free huge pages: give the kernel more (sysctl vm.nr_hugepages)`
          : `region ${path} does not fit into this process's address space (ulimit -v)`,
      );
    default:
      return error;
  }
}
