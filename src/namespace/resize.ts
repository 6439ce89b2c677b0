/**
 * Another size for a volume that is not mounted.
 *
 * Invariant: until the superblocks name the new metadata (rewrite.ts), nothing that the old ones name has changed: blocks of
 * the tail are copied to free ones, and stay where they were. A crash at any moment finds the old size or the new.
 */
import { FsError, InvariantError } from "../base/errors.ts";
import { REGION_BYTES_MIN } from "../media/format.ts";
import { type MappedState, UNWRITTEN } from "../media/group.ts";
import { mustBeReadOnly } from "../media/superblock.ts";
import type { Region } from "../region/region.ts";
import { Allocator, type Run } from "../space/allocator.ts";
import { SegmentPool } from "../space/segment-pool.ts";
import { bringBack, claimAll } from "./recovered.ts";
import { rewrite } from "./rewrite.ts";
import type { State } from "./state.ts";

/** What a volume must have room for: as mkfs does. */
const SEGMENTS_MIN = 32;
const COPY_BYTES = 4 * 1024 * 1024;

export interface Resized {
  readonly beforeBytes: number;
  readonly afterBytes: number;
  /** Bytes of files that had to move. */
  readonly movedBytes: number;
}

/**
 * @param wantedBytes rounded down to whole blocks
 * @param progress called with the bytes that were moved and those that will be
 * @throws FsError EINVAL (too small, or larger than the region), ENOSPC (the files do not fit), EROFS; CorruptionError
 */
export async function resize(
  region: Region,
  wantedBytes: number,
  progress: (done: number, total: number) => void = () => {},
): Promise<Resized> {
  const { state, recovery, allocator: before, segments } = bringBack(region);
  const { superblock } = recovery;
  const { blockBytes, segmentBytes, regionBytes } = superblock;
  const readOnly = mustBeReadOnly(superblock);
  if (readOnly !== null) throw new FsError("EROFS", readOnly);
  const afterBytes = Math.floor(wantedBytes / blockBytes) * blockBytes;
  const least = Math.max(REGION_BYTES_MIN, SEGMENTS_MIN * segmentBytes);
  if (afterBytes < least)
    throw new FsError("EINVAL", `a volume of ${afterBytes} bytes; this one needs ${least}`);
  if (afterBytes > region.facts.sizeBytes) {
    throw new FsError("EINVAL", `a volume of ${afterBytes} bytes in a region of ${region.facts.sizeBytes}`);
  }
  if (afterBytes === regionBytes) return { beforeBytes: regionBytes, afterBytes, movedBytes: 0 };

  const blocks = afterBytes / blockBytes;
  let allocator = before;
  let moved = 0;
  if (afterBytes > regionBytes) {
    allocator = new Allocator(blocks, blockBytes);
    claimAll(allocator, state, { superblock, segments });
  } else {
    takeTail(allocator, blocks);
    moved = moveOut(region, blockBytes, state, allocator, blocks, progress);
  }
  state.setBlockCount(blocks);
  const geometry = { ...recovery.geometry, regionBytes: afterBytes };
  const pool = new SegmentPool(allocator, segmentBytes, blockBytes);
  const from = { index: recovery.log.index + 1, lsn: recovery.nextLsn + 1 };
  await rewrite(region, geometry, pool, state, { ...superblock, regionBytes: afterBytes }, from, true);
  return { beforeBytes: regionBytes, afterBytes, movedBytes: moved * blockBytes };
}

/** Nothing is allocated from `first` on any more. */
function takeTail(allocator: Allocator, first: number): void {
  for (let block = first; block < allocator.blockCount; ) {
    let count = 0;
    while (block + count < allocator.blockCount && allocator.isFree(block + count)) count += 1;
    if (count > 0 && !allocator.claim(block, count))
      throw new InvariantError("free blocks could not be taken");
    block += Math.max(count, 1);
  }
}

interface Move extends Run {
  readonly to: number;
}

/** Copy what files have from block `limit` on to free blocks below. Returns how many blocks. @throws FsError ENOSPC */
function moveOut(
  region: Region,
  blockBytes: number,
  state: State,
  allocator: Allocator,
  limit: number,
  progress: (done: number, total: number) => void,
): number {
  const runs = tailRuns(state, limit);
  const total = runs.reduce((sum, { count }) => sum + count, 0);
  const moves: Move[] = [];
  let done = 0;
  for (const run of runs) {
    for (let at = run.start; at < run.start + run.count; ) {
      const left = run.start + run.count - at;
      const room = allocator.allocate(Math.min(left, Math.max(1, COPY_BYTES / blockBytes)), 0);
      if (room === null) {
        const lacking = (total - done) * blockBytes;
        throw new FsError(
          "ENOSPC",
          `${lacking} bytes of files lie behind the new end, and do not fit before it`,
        );
      }
      if (run.hasData) region.copy(at * blockBytes, room.start * blockBytes, room.count * blockBytes);
      moves.push({ start: at, count: room.count, to: room.start });
      at += room.count;
      done += room.count;
      progress(done * blockBytes, total * blockBytes);
    }
  }
  for (const inode of state.inodes.values()) {
    for (const { block, count, physical, state: kind } of [...(inode.extents ?? [])]) {
      if (physical + count <= limit) continue;
      for (const move of overlapping(moves, physical, physical + count)) {
        const from = Math.max(physical, move.start);
        const length = Math.min(physical + count, move.start + move.count) - from;
        const to = move.to + from - move.start;
        state.extent(inode.ino, block + from - physical, to, length, kind as MappedState);
      }
    }
  }
  return total;
}

/** Each block of a file in the tail once, though several may share it. In order. */
function tailRuns(state: State, limit: number): (Run & { hasData: boolean })[] {
  const found: (Run & { hasData: boolean })[] = [];
  for (const inode of state.inodes.values()) {
    for (const { physical, count, state: kind } of inode.extents ?? []) {
      const start = Math.max(physical, limit);
      if (physical + count > start)
        found.push({ start, count: physical + count - start, hasData: kind !== UNWRITTEN });
    }
  }
  found.sort((a, b) => a.start - b.start);
  const runs: (Run & { hasData: boolean })[] = [];
  for (const run of found) {
    const last = runs.at(-1);
    const covered = last === undefined ? 0 : Math.max(0, last.start + last.count - run.start);
    if (covered < run.count) runs.push({ ...run, start: run.start + covered, count: run.count - covered });
  }
  return runs;
}

/** Of moves in order those that have a block of [start, end). */
function* overlapping(moves: readonly Move[], start: number, end: number): IterableIterator<Move> {
  let low = 0;
  let high = moves.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const move = moves[middle] as Move;
    if (move.start + move.count <= start) low = middle + 1;
    else high = middle;
  }
  for (let at = low; at < moves.length && (moves[at] as Move).start < end; at += 1) yield moves[at] as Move;
}
