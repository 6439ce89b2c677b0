/**
 * The extents of a draft: every block inside the volume, not in its metadata, and one file's alone or marked as shared.
 *
 * Blocks that several files claim are kept for all of them, as shared ones: nothing is lost, and the next write to either
 * file gives it blocks of its own. Which of them the content belongs to, nobody can tell.
 */
import { type MappedState, SHARED, UNWRITTEN } from "../media/group.ts";
import type { Run } from "../space/allocator.ts";
import { overlapping } from "../space/runs.ts";
import type { Draft, DraftInode } from "./draft.ts";
import type { Problems } from "./problem.ts";

export interface Space {
  /** Blocks of the volume. */
  readonly blockCount: number;
  /** Blocks that the superblock named before the region was cut; what lies beyond them was never true. */
  readonly namedBlockCount: number;
  /** Where no file's data can be: superblocks and the segments in use. */
  readonly metadata: readonly Run[];
  /** Extents may be marked as shared. */
  readonly knowsSharing: boolean;
}

interface Claim extends Run {
  readonly inode: DraftInode;
  /** First block in the file. */
  readonly block: number;
  readonly state: MappedState;
}

const nothing = (): void => {};

/** Returns whether blocks are shared now in a volume that knew no such thing. */
export function judgeBlocks(draft: Draft, space: Space, problems: Problems): boolean {
  const metadata = [...space.metadata].sort((a, b) => a.start - b.start);
  const claims: Claim[] = [];
  for (const inode of draft.inodes.values()) {
    for (const { block, count, physical, state } of [...inode.extents]) {
      const place = `inode ${inode.ino}: extent at file block ${block}`;
      const end = physical + count;
      const lose = (from: number, blocks: number, expected: string): void => {
        problems.add("extent", place, expected, `${blocks} at ${from}`, "they become a hole");
        // Differences first: sums may be no exact doubles.
        inode.extents.remove(block + (from - physical), blocks, nothing);
      };
      if (end > space.namedBlockCount) {
        lose(physical, count, `blocks below ${space.namedBlockCount}`);
        continue;
      }
      // What is intact of it stays.
      const last = Math.min(end, space.blockCount);
      let at = physical;
      const keep = (to: number): void => {
        if (to > at) claims.push({ inode, block: block + (at - physical), start: at, count: to - at, state });
      };
      for (const run of overlapping(metadata, physical, last)) {
        keep(run.start);
        const from = Math.max(at, run.start);
        at = Math.min(last, run.start + run.count);
        lose(from, at - from, "blocks outside the metadata");
      }
      keep(last);
      const beyond = Math.max(physical, last);
      if (beyond < end) lose(beyond, end - beyond, `blocks below ${space.blockCount}`);
    }
  }
  let shares = claims.some(({ state }) => state === SHARED);
  const contested = contestedRuns(claims);
  for (const { inode, block, start, count, state } of claims) {
    for (const run of overlapping(contested, start, start + count)) {
      const from = Math.max(start, run.start);
      const length = Math.min(start + count, run.start + run.count) - from;
      const at = block + from - start;
      // An unwritten extent has no content to lose: it becomes a hole instead.
      if (state === UNWRITTEN) inode.extents.remove(at, length, nothing);
      else inode.extents.set(at, length, from, SHARED, nothing);
      shares = true;
      if (state === SHARED) continue;
      problems.add(
        "extent",
        `inode ${inode.ino}: extent at file block ${at}`,
        `blocks ${from} to ${from + length - 1} to be its own`,
        "others have them, too",
        state === UNWRITTEN ? "it becomes a hole" : "they become shared blocks",
      );
    }
  }
  if (!shares || space.knowsSharing) return false;
  problems.add("extent", "superblock", "the mark that blocks may be shared", "none", "it is set");
  return true;
}

/** Blocks that several claim, and not all of them as shared: in one sweep over where claims begin and end. */
function contestedRuns(claims: readonly Claim[]): Run[] {
  const edges = claims.flatMap(({ start, count, state }) => [
    { at: start, step: 1, own: state === SHARED ? 0 : 1 },
    { at: start + count, step: -1, own: state === SHARED ? 0 : -1 },
  ]);
  edges.sort((a, b) => a.at - b.at);
  const runs: Run[] = [];
  let claimed = 0;
  let own = 0;
  let before = 0;
  for (const edge of edges) {
    if (claimed > 1 && own > 0 && edge.at > before) {
      const last = runs.at(-1);
      if (last !== undefined && last.start + last.count === before) last.count += edge.at - before;
      else runs.push({ start: before, count: edge.at - before });
    }
    claimed += edge.step;
    own += edge.own;
    before = edge.at;
  }
  return runs;
}
