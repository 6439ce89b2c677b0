/** Create the file behind a region: sparse, private to its owner, and never in place of one that is in use. */
import { closeSync, constants, fchmodSync, fstatSync, fsyncSync, ftruncateSync, openSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { Errno } from "../base/errno.ts";
import { FsError } from "../base/errors.ts";
import { addon } from "./addon.ts";
import { REGION_BYTES_MIN } from "./open.ts";

export interface CreateRegionOptions {
  /** Take an existing file too, and lose what it holds. */
  force?: boolean;
}

/** Bytes are zero afterwards. Whoever may open the file may read and write the whole volume, hence mode 0600. */
export function createRegionFile(path: string, sizeBytes: number, options: CreateRegionOptions = {}): void {
  const { force = false } = options;
  const absolute = resolve(path);
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < REGION_BYTES_MIN) {
    throw new FsError(
      "EINVAL",
      `region ${absolute}: ${sizeBytes} bytes are not at least ${REGION_BYTES_MIN}`,
    );
  }
  const exclusive = force ? 0 : constants.O_EXCL;
  // O_NONBLOCK: an existing fifo must be refused, not waited for.
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NONBLOCK | exclusive;
  let descriptor: number;
  try {
    descriptor = openSync(absolute, flags, 0o600);
  } catch (error) {
    throw explain(error, absolute);
  }
  try {
    if (!fstatSync(descriptor).isFile()) {
      throw new FsError(
        "EINVAL",
        `${absolute} is not a regular file: a device needs no creating, format it as it is`,
      );
    }
    // Held by a daemon that has the file mapped: cutting it short would take the blocks from under it.
    addon().lockDescriptor(descriptor);
    ftruncateSync(descriptor, 0);
    ftruncateSync(descriptor, sizeBytes);
    fchmodSync(descriptor, 0o600);
    fsyncSync(descriptor);
  } catch (error) {
    throw explain(error, absolute);
  } finally {
    closeSync(descriptor);
  }
  syncDirectory(dirname(absolute));
}

/** Without this a power cut could forget the name of a region that was reported as created. */
export function syncDirectory(path: string): void {
  const descriptor = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

function explain(error: unknown, path: string): Error {
  if (error instanceof FsError || !(error instanceof Error)) return error as Error;
  switch (Math.abs((error as NodeJS.ErrnoException).errno ?? 0)) {
    case Errno.EEXIST:
      return new FsError(
        "EEXIST",
        `${path} exists already: choose another path, or force to lose what it holds`,
      );
    case Errno.ENOENT:
      return new FsError("ENOENT", `${path}: the directory ${dirname(path)} does not exist, create it first`);
    case Errno.EACCES:
      return new FsError("EACCES", `${path}: no permission to create it there`);
    case Errno.EBUSY:
      return new FsError(
        "EBUSY",
        `region ${path} is in use: unmount it first (fuser -v ${path} names who has it)`,
      );
    case Errno.EFBIG:
    case Errno.EINVAL:
      return new FsError("EFBIG", `${path}: the file system there has no files of that size`);
    case Errno.EISDIR:
      return new FsError("EISDIR", `${path} is a directory: name a file in it`);
    default:
      return error;
  }
}
