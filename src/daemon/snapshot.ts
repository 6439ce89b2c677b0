/**
 * A copy of a volume as it was at one moment, in a file of its own: of one that is not mounted, or of one in use, whose
 * daemon sets aside what is stored to before it is copied.
 *
 * Invariants:
 * - under its name the copy is whole, closed cleanly and durable, or it is not there: until then it is called otherwise;
 * - the source is only read;
 * - what is free in the source, or zero, is a hole in the copy.
 */
import { execFile } from "node:child_process";
import { closeSync, fsyncSync, openSync, renameSync, rmSync, statSync, writeSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { promisify } from "node:util";
import { Errno } from "../base/errno.ts";
import { FsError } from "../base/errors.ts";
import { progress } from "../base/progress.ts";
import { viewOf } from "../layout/struct.ts";
import * as wire from "../lease/wire.ts";
import { bringBack } from "../namespace/recovered.ts";
import { Store } from "../namespace/store.ts";
import { addon } from "../region/addon.ts";
import { createRegionFile, syncDirectory } from "../region/create.ts";
import { openRegion } from "../region/open.ts";
import type { Region } from "../region/region.ts";
import { CopyBeforeWrite } from "../space/copy-before-write.ts";
import { withOpen } from "./client.ts";
import { asFailure, errnoOf, Failure, usage } from "./failure.ts";
import { openRegionOrExplain } from "./region.ts";

export interface SnapshotRequest {
  /** Absolute path of the region; not looked at if it is mounted. */
  readonly region: string;
  /** Absolute path; null if it is not mounted. */
  readonly mountpoint: string | null;
  /** The file to make; it must not exist. */
  readonly target: string;
  /** Also while files are mapped directly: the copy has these with bytes of any moment of the copying. */
  readonly mappedToo: boolean;
  /** Aborted: the copy is given up and removed. */
  readonly signal: AbortSignal;
}

export interface Taken {
  /** Size of the volume, bytes. */
  readonly sizeBytes: number;
  /** Of these, bytes that were in use and copied. */
  readonly copiedBytes: number;
}

/** Bytes of the region: to be read there now, or as they were, read already. */
interface Part {
  readonly offset: number;
  readonly length: number;
  readonly bytes: Uint8Array | null;
}

interface Source {
  readonly region: Region;
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly leftBytes: number;
  /** All that came before is copied: more; null when nothing is left. */
  next(): readonly Part[] | null;
}

const COPY_BYTES = 1024 * 1024;

/** @throws Failure; then no file is left. */
export async function takeSnapshot(request: SnapshotRequest): Promise<Taken> {
  const { mountpoint } = request;
  const target = resolve(request.target);
  if (statSync(target, { throwIfNoEntry: false }) !== undefined) {
    throw new Failure(target, "it exists already", "name a file that does not");
  }
  if (mountpoint === null) {
    const region = openRegionOrExplain(request.region, { readOnly: true });
    try {
      return await copyTo(target, unmounted(region), request);
    } catch (error) {
      throw asFailure(error, request.region, "see 'mapdirect fsck REGION'");
    } finally {
      region.close();
    }
  }
  if (statSync(dirname(target)).dev === statSync(mountpoint).dev) {
    throw usage(target, `it lies in ${mountpoint}, and would be a copy of itself`, "name a file elsewhere");
  }
  // What ordinary mappings have changed lies in the page cache: the daemon gets it first.
  await promisify(execFile)("sync", ["-f", mountpoint]).catch(() => {});
  // The descriptor stands for the snapshot: when this process ends, however it does, so does the snapshot.
  const descriptor = openSync(mountpoint, "r");
  try {
    const source = begin(descriptor, mountpoint, request);
    try {
      return await copyTo(target, source, request);
    } finally {
      source.region.close();
    }
  } catch (error) {
    throw explained(error, mountpoint);
  } finally {
    closeSync(descriptor);
  }
}

function explained(error: unknown, mountpoint: string): Failure {
  if (error instanceof Failure) return error;
  switch (errnoOf(error)) {
    case Errno.EBUSY:
      return new Failure(mountpoint, "another snapshot of it is being taken", "wait until that is done");
    case Errno.ETXTBSY:
      return new Failure(
        mountpoint,
        "files are mapped directly: what is stored there while it is copied cannot be held back",
        `end that (see 'mapdirect leases ${mountpoint}'), or take these files as they come with --mapped`,
      );
    case Errno.EACCES:
      return new Failure(mountpoint, "a snapshot is for root and whoever mounted", "ask as one of them");
    case Errno.ECANCELED:
      return new Failure(mountpoint, "others had to wait too long for it", "take it again");
    default:
      return asFailure(error, mountpoint, "see 'mapdirect info MOUNTPOINT'");
  }
}

/** The region behind a mount, opened with our own rights, beside its daemon. */
function openSource(descriptor: number, mountpoint: string): Region {
  const reply = new Uint8Array(wire.WireRegion.size);
  withAnswer(() => addon().ioctl(descriptor, wire.Ioctl.REGION, reply), mountpoint);
  const named = wire.WireRegion.decode(viewOf(reply), 0);
  const region = openRegion(named.path, { readOnly: true, lock: false });
  if (region.facts.device !== named.device || region.facts.inode !== named.inode) {
    region.close();
    throw new Failure(named.path, "it is not what is mounted any more", "put the region back in its place");
  }
  return region;
}

/** What is not a mount of ours says so in its own words. */
function withAnswer(ask: () => void, mountpoint: string): void {
  try {
    ask();
  } catch (error) {
    if (errnoOf(error) !== Errno.ENOTTY && errnoOf(error) !== Errno.ENOSYS) throw error;
    // The same words as for any other question.
    withOpen(mountpoint, () => {
      throw error;
    });
  }
}

function begin(descriptor: number, mountpoint: string, request: SnapshotRequest): Source {
  const buffer = new Uint8Array(wire.WIRE_SNAPSHOT_BYTES);
  const view = viewOf(buffer);
  const step = (step: number, flags = 0): ReturnType<typeof wire.WireSnapshot.decode> => {
    wire.WireSnapshot.encode(view, 0, { version: wire.WIRE_VERSION, step, flags });
    withAnswer(() => addon().ioctl(descriptor, wire.Ioctl.SNAPSHOT, buffer), mountpoint);
    return wire.WireSnapshot.decode(view, 0);
  };
  const first = step(wire.SnapshotStep.BEGIN, request.mappedToo ? wire.SnapshotFlag.MAPPED : 0);
  // Not before: the region may grow until then.
  const region = openSource(descriptor, mountpoint);
  let { leftBytes } = first;
  let done = false;
  return {
    region,
    sizeBytes: first.regionBytes,
    blockBytes: first.blockSize,
    get leftBytes() {
      return leftBytes;
    },
    next() {
      if (done) return null;
      const reply = step(wire.SnapshotStep.NEXT);
      ({ leftBytes } = reply);
      done = (reply.flags & wire.SnapshotFlag.DONE) !== 0;
      if (reply.runs > wire.SNAPSHOT_RUNS_MAX || reply.pieces > wire.SNAPSHOT_PIECES_MAX)
        throw new Failure("daemon", "its answer does not fit", "update mapdirect");
      const bytesAt = wire.WireSnapshot.size + wire.SNAPSHOT_PLACES_BYTES;
      return Array.from({ length: reply.runs + reply.pieces }, (_, index) => {
        const place = wire.WireRun.decode(view, wire.WireSnapshot.size + index * wire.WireRun.size);
        const piece = index - reply.runs;
        const from = bytesAt + piece * wire.SNAPSHOT_PIECE_BYTES;
        const bytes = piece < 0 ? null : buffer.slice(from, from + place.length);
        return { offset: place.physical, length: place.length, bytes };
      });
    },
  };
}

/** Nobody else is there: what is in use is copied as it is. */
function unmounted(region: Region): Source {
  const { allocator, recovery } = bringBack(region);
  const { blockBytes, regionBytes } = recovery.superblock;
  const copy = new CopyBeforeWrite({ region, blockBytes, allocator, except: [] });
  return {
    region,
    sizeBytes: regionBytes,
    blockBytes,
    get leftBytes() {
      return copy.leftBytes;
    },
    next() {
      const { runs, done } = copy.advance(wire.SNAPSHOT_RUNS_MAX, 0);
      if (done) return null;
      return runs.map(({ start, count }) => ({
        offset: start * blockBytes,
        length: count * blockBytes,
        bytes: null,
      }));
    },
  };
}

async function copyTo(target: string, source: Source, request: SnapshotRequest): Promise<Taken> {
  const partial = `${target}.partial-${process.pid}`;
  createRegionFile(partial, source.sizeBytes);
  try {
    const copiedBytes = await copyParts(partial, source, request);
    await settle(partial);
    renameSync(partial, target);
    syncDirectory(dirname(target));
    return { sizeBytes: source.sizeBytes, copiedBytes };
  } catch (error) {
    if (errnoOf(error) === Errno.ENOSPC)
      throw new Failure(basename(target), "no space left for the copy", `make room in ${dirname(target)}`);
    throw error;
  } finally {
    rmSync(partial, { force: true });
  }
}

async function copyParts(path: string, source: Source, request: SnapshotRequest): Promise<number> {
  const { region, blockBytes, leftBytes: totalBytes } = source;
  const buffer = Buffer.alloc(Math.max(COPY_BYTES, blockBytes));
  const zeros = Buffer.alloc(blockBytes);
  const descriptor = openSync(path, "r+");
  const put = (bytes: Uint8Array, offset: number): void => {
    for (let done = 0; done < bytes.length; )
      done += writeSync(descriptor, bytes, done, bytes.length - done, offset + done);
  };
  try {
    for (let parts = source.next(); parts !== null; parts = source.next()) {
      for (const { offset, length, bytes } of parts) {
        // Also when it is all zero: what was copied here before need not be.
        if (bytes !== null) put(bytes, offset);
        else {
          for (let done = 0; done < length; done += buffer.length) {
            const piece = buffer.subarray(0, Math.min(buffer.length, length - done));
            region.read(offset + done, piece, 0, piece.length);
            putData(piece, offset + done, blockBytes, zeros, put);
          }
        }
      }
      progress("copying", totalBytes - source.leftBytes, totalBytes);
      // A signal gets its turn.
      await nextTurn();
      if (request.signal.aborted) throw new Failure(path, "interrupted", "the copy was removed");
    }
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
  return totalBytes;
}

/** Stretches of blocks that are not zero. */
function putData(
  data: Buffer,
  offset: number,
  blockBytes: number,
  zeros: Buffer,
  put: (bytes: Uint8Array, offset: number) => void,
): void {
  let begin = -1;
  for (let at = 0; at <= data.length; at += blockBytes) {
    const isData = at < data.length && !data.subarray(at, at + blockBytes).equals(zeros);
    if (isData && begin < 0) begin = at;
    if (!isData && begin >= 0) {
      put(data.subarray(begin, at), offset + begin);
      begin = -1;
    }
  }
}

/** As the next mount would: recover, so that it is known to be whole, and close it cleanly. */
async function settle(path: string): Promise<void> {
  const region = openRegion(path);
  try {
    const store = await Store.open(region, { readOnly: false });
    await store.close();
  } catch (error) {
    // A file on a full disk: the mapping has no page to give.
    if (error instanceof FsError && error.errno === Errno.EIO) throw new FsError("ENOSPC");
    throw error;
  } finally {
    region.close();
  }
}
