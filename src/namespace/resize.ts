/**
 * Another size for a volume that is not mounted.
 *
 * Invariant: until the superblocks name the new metadata (rewrite.ts), nothing that the old ones name has changed: blocks of
 * the tail are copied to free ones, and stay where they were. A crash at any moment finds the old size or the new.
 */
import { FsError } from "../base/errors.ts";
import { progress } from "../base/progress.ts";
import { type MappedState, UNWRITTEN } from "../media/group.ts";
import { leastReserve, leastVolumeBytes, rewriteReserve } from "../media/reserve.ts";
import { mustBeReadOnly, type SuperblockValue } from "../media/superblock.ts";
import type { Region } from "../region/region.ts";
import { Allocator, type Run } from "../space/allocator.ts";
import { overlapping } from "../space/runs.ts";
import { SegmentPool } from "../space/segment-pool.ts";
import { bringBack, claimAll } from "./recovered.ts";
import { rewrite } from "./rewrite.ts";
import type { State } from "./state.ts";

const COPY_BYTES = 4 * 1024 * 1024;

export interface Resized {
  readonly beforeBytes: number;
  readonly afterBytes: number;
  /** Bytes of files that had to move. */
  readonly movedBytes: number;
}

/** In whole blocks, rounded down. @throws FsError EINVAL (too small for this volume) */
export function wholeSize(superblock: SuperblockValue, wantedBytes: number): number {
  const { blockBytes, segmentBytes } = superblock;
  const bytes = Math.floor(wantedBytes / blockBytes) * blockBytes;
  const least = leastVolumeBytes(segmentBytes);
  if (bytes < least) throw new FsError("EINVAL", `a volume of ${bytes} bytes; this one needs ${least}`);
  return bytes;
}

export function doesNotFit(bytes: number): FsError {
  return new FsError(
    "ENOSPC",
    `${bytes} bytes of files lie behind the new end, and do not fit before it; delete something, or choose a larger --size`,
  );
}

export function noRoomForMetadata(): FsError {
  return new FsError(
    "ENOSPC",
    "no room for metadata, and what it keeps in reserve, before the new end; delete something, or choose a larger --size",
  );
}

/**
 * @param wantedBytes rounded down to whole blocks
 * @throws FsError EINVAL (too small, or larger than the region), ENOSPC (the files do not fit), EROFS; CorruptionError
 */
export async function resize(region: Region, wantedBytes: number): Promise<Resized> {
  const { state, recovery, allocator: before, segments } = bringBack(region);
  const { superblock } = recovery;
  const { blockBytes, segmentBytes, regionBytes } = superblock;
  const readOnly = mustBeReadOnly(superblock);
  if (readOnly !== null) throw new FsError("EROFS", readOnly);
  const afterBytes = wholeSize(superblock, wantedBytes);
  if (afterBytes > region.facts.sizeBytes) {
    throw new FsError("EINVAL", `a volume of ${afterBytes} bytes in a region of ${region.facts.sizeBytes}`);
  }
  if (afterBytes === regionBytes) return { beforeBytes: regionBytes, afterBytes, movedBytes: 0 };

  const blocks = afterBytes / blockBytes;
  let allocator = before;
  let moved = 0;
  let pool: SegmentPool;
  if (afterBytes > regionBytes) {
    allocator = new Allocator(blocks, blockBytes);
    claimAll(allocator, state, { superblock, segments });
    pool = new SegmentPool(allocator, segmentBytes, blockBytes, region);
  } else {
    // Nothing is allocated behind the new end any more.
    allocator.claimFree(blocks, allocator.blockCount);
    pool = new SegmentPool(allocator, segmentBytes, blockBytes, region);
    const kept = segments.filter((at) => at + segmentBytes <= afterBytes).length;
    const size = () => ({ segmentBytes, regionBytes: afterBytes, snapshotBytes: state.snapshotBytes });
    // What the new metadata takes, and what is to be left then: the old metadata before the end is free again.
    const needed = () => rewriteReserve(size()) + Math.max(0, leastReserve(size()) - kept);
    if (!pool.ensure(needed())) throw noRoomForMetadata();
    moved = moveOut(region, blockBytes, state, allocator, blocks);
    // Files may have more extents now.
    if (!pool.ensure(needed())) throw noRoomForMetadata();
  }
  state.setBlockCount(blocks);
  const geometry = { ...recovery.geometry, regionBytes: afterBytes };
  const from = { index: recovery.log.index + 1, lsn: recovery.nextLsn + 1 };
  await rewrite(region, geometry, pool, state, { ...superblock, regionBytes: afterBytes }, from, true, () =>
    allocator.isFree(blocks - 1),
  );
  return { beforeBytes: regionBytes, afterBytes, movedBytes: moved * blockBytes };
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
): number {
  const runs = tailRuns(state, limit);
  const total = runs.reduce((sum, { count }) => sum + count, 0);
  const moves: Move[] = [];
  let done = 0;
  for (const run of runs) {
    for (let at = run.start; at < run.start + run.count; ) {
      const left = run.start + run.count - at;
      const room = allocator.allocate(Math.min(left, Math.max(1, COPY_BYTES / blockBytes)), 0);
      if (room === null) throw doesNotFit((total - done) * blockBytes);
      if (run.hasData) region.copy(at * blockBytes, room.start * blockBytes, room.count * blockBytes);
      moves.push({ start: at, count: room.count, to: room.start });
      at += room.count;
      done += room.count;
      progress("moving blocks", done, total);
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
