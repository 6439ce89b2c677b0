/**
 * Copying from file to file within a volume, by sharing blocks where that is possible.
 *
 * Invariants:
 * - leased blocks never become shared: a clone asks the guard for both sides, a copy of such a range copies bytes;
 * - nor do blocks that a process which lost its lease could still store into (quarantine.ts): they are copied;
 * - a target never shows the source's bytes from behind the source's end.
 */
import { append } from "../base/arrays.ts";
import { now } from "../base/clock.ts";
import { FsError } from "../base/errors.ts";
import { SHARED, WRITTEN } from "../media/group.ts";
import type { Run } from "../space/allocator.ts";
import { holdsData, type Piece } from "../space/extent-map.ts";
import { dropCapabilities, type Kill, withoutPrivileges } from "./attributes.ts";
import { blocksFor, goalFor, ownEnd, read, write, zeroBehindEnd } from "./data.ts";
import { FILE_BYTES_MAX, type Inode } from "./inode.ts";
import { mayWriteAt, mustNotBePinned } from "./inode-flags.ts";
import { knowsSharing } from "./sharing.ts";
import type { Store } from "./store.ts";

/** Extents handed over in one group of records; each is two records, or the records of a copy. */
const PIECES_MAX = 256;
/** Bytes copied before others get a turn. */
const COPY_BYTES = 1024 * 1024;

const scratch = Buffer.alloc(COPY_BYTES);

export interface Range {
  readonly source: Inode;
  readonly sourceOffset: bigint;
  readonly target: Inode;
  readonly targetOffset: bigint;
  /** Bytes. */
  readonly length: bigint;
  /** Clear setuid and setgid of the target: who writes is not privileged. */
  readonly killPrivileges: Kill;
}

/** The range without what lies behind the source's end. @throws FsError EINVAL (no files, or they overlap), EFBIG. */
function clip(range: Range): Range {
  const { source, sourceOffset, target, targetOffset } = range;
  for (const inode of [source, target]) {
    if (inode.extents === null) throw new FsError(inode.isDirectory ? "EISDIR" : "EINVAL");
  }
  const left = source.size - sourceOffset;
  const length = range.length < left ? range.length : left > 0n ? left : 0n;
  if (targetOffset + length > FILE_BYTES_MAX) throw new FsError("EFBIG");
  const distance = sourceOffset < targetOffset ? targetOffset - sourceOffset : sourceOffset - targetOffset;
  if (source === target && distance < length) throw new FsError("EINVAL", "source and target overlap");
  return { ...range, length };
}

/** Whole blocks of the range; the last may be cut by the end of the source if it will be the target's end, too. */
function wholeBlocks(store: Store, range: Range): number {
  const { source, sourceOffset, target, targetOffset, length } = range;
  const ends = sourceOffset + length === source.size && targetOffset + length >= target.size;
  return ends ? blocksFor(store, length) : Number(length >> store.blockShift);
}

/**
 * copy_file_range(2): shares what can be shared, copies the rest. Returns the bytes done, often fewer than asked for;
 * 0 at the end of the source. @throws FsError EINVAL, EISDIR, EFBIG, ENOSPC, ETXTBSY (a write into a leased hole); Wait.
 */
export function copyRange(store: Store, asked: Range): number {
  store.writable();
  mayWriteAt(asked.target, asked.targetOffset);
  const range = clip(asked);
  const { source, sourceOffset, target, targetOffset, length } = range;
  if (length === 0n) return 0;
  const within = sourceOffset & store.blockMask;
  if (knowsSharing(store) && within === (targetOffset & store.blockMask)) {
    const toBoundary = BigInt(store.blockBytes) - within;
    // Up to the next block first: from there on whole blocks follow.
    if (within !== 0n) return copyBytes(store, range, length < toBoundary ? length : toBoundary);
    const blocks = wholeBlocks(store, range);
    const from = Number(sourceOffset >> store.blockShift);
    const to = Number(targetOffset >> store.blockShift);
    const { guard } = store;
    if (blocks > 0 && !guard.isLeased(source, from, blocks) && !guard.isLeased(target, to, blocks)) {
      return share(store, range, blocks);
    }
  }
  return copyBytes(store, range, length);
}

function copyBytes(store: Store, range: Range, limit: bigint): number {
  const bytes = limit < BigInt(COPY_BYTES) ? Number(limit) : COPY_BYTES;
  const { source, sourceOffset, target, targetOffset } = range;
  const found = read(store, source, sourceOffset, scratch, 0, bytes);
  return write(store, target, targetOffset, scratch, 0, found, range.killPrivileges);
}

/**
 * FICLONERANGE: from now on both files refer to the same blocks. Returns the bytes done: call again for the rest.
 * @throws FsError EINVAL (offsets and length must be whole blocks, but for the end of the source), EOPNOTSUPP (a volume
 *   that knows no shared extents), EISDIR, EFBIG, ENOSPC, ETXTBSY; Wait.
 */
export function cloneRange(store: Store, asked: Range): number {
  store.writable();
  mustNotBePinned(asked.target);
  if (!knowsSharing(store)) throw new FsError("EOPNOTSUPP", "this volume was made without shared extents");
  const range = clip(asked);
  if (range.length !== asked.length) throw new FsError("EINVAL", "beyond the end of the source");
  if (range.length === 0n) return 0;
  const blocks = wholeBlocks(store, range);
  const aligned = ((range.sourceOffset | range.targetOffset) & store.blockMask) === 0n;
  if (!aligned || blocks < blocksFor(store, range.length)) {
    throw new FsError("EINVAL", `whole blocks of ${store.blockBytes} bytes, or up to the end of the source`);
  }
  return share(store, range, blocks);
}

function share(store: Store, range: Range, blocks: number): number {
  const { source, target, targetOffset, length } = range;
  const first = Number(range.sourceOffset >> store.blockShift);
  const targetFirst = Number(targetOffset >> store.blockShift);
  store.guard.beforeMapChange(source, [{ block: first, count: blocks }]);
  store.guard.beforeMapChange(target, [{ block: targetFirst, count: blocks }]);
  if (targetOffset + length > target.size) store.guard.beforeSizeChange(target);
  ownEnd(store, target, targetOffset);
  const sourceMap = source.extents as NonNullable<Inode["extents"]>;
  const targetMap = target.extents as NonNullable<Inode["extents"]>;
  const group = store.begin(true);
  zeroBehindEnd(store, target, targetOffset);
  const taken: Run[] = [];
  try {
    let done = 0;
    for (let pieces = 0; pieces < PIECES_MAX && done < blocks; pieces += 1) {
      const piece: Piece = sourceMap.at(first + done, blocks - done);
      const to = targetFirst + done;
      if (!holdsData(piece.state)) {
        const there = targetMap.next(to);
        if (there !== null && there.block < to + piece.count) group.extentGone(target.ino, to, piece.count);
      } else if (!store.quarantine.isClaimed(piece.physical, piece.count)) {
        if (piece.state === WRITTEN)
          group.extent(source.ino, piece.block, piece.physical, piece.count, SHARED);
        group.extent(target.ino, to, piece.physical, piece.count, SHARED);
      } else {
        // A slice of its own: copying takes time.
        if (done > 0) break;
        piece.count = Math.min(piece.count, Math.max(1, COPY_BYTES / store.blockBytes));
        append(taken, store.allocate(piece.count, goalFor(store, target, to), to));
        let copied = 0;
        for (const run of taken) {
          const { blockBytes } = store;
          store.region.copy(
            (piece.physical + copied) * blockBytes,
            run.start * blockBytes,
            run.count * blockBytes,
          );
          group.extent(target.ino, to + copied, run.start, run.count, WRITTEN);
          copied += run.count;
        }
        if (copied === 0) throw new FsError("ENOSPC");
        piece.count = copied;
        pieces = PIECES_MAX;
      }
      done += piece.count;
    }
    const reached = BigInt(done) << store.blockShift;
    const bytes = reached < length ? reached : length;
    const end = targetOffset + bytes;
    const time = now();
    group.touch(
      target.ino,
      end > target.size ? end : target.size,
      withoutPrivileges(target.mode, range.killPrivileges),
      time.sec,
      time.nsec,
      time.sec,
      time.nsec,
    );
    dropCapabilities(group, target);
    store.commit();
    return Number(bytes);
  } catch (error) {
    store.giveBack(taken);
    throw error;
  }
}
