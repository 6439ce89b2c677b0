/**
 * Room for metadata where no free space is left in one piece: what files have in some segments moves elsewhere.
 *
 * Invariants:
 * - what is free of a segment that is being cleared is claimed before anything moves, and what moves away as soon as that
 *   survives a power cut: nobody else gets it meanwhile (runs());
 * - each move is an ordinary record. A crash at any moment finds a block in its old place or in its new one;
 * - nothing moves that a lease pins, that files share, or that somebody without a lease can reach.
 */
import { inSlices } from "../base/slices.ts";
import { retrying } from "../base/wait.ts";
import { SHARED, UNWRITTEN } from "../media/group.ts";
import type { Run } from "../space/allocator.ts";
import { blocksIn } from "../space/runs.ts";
import { goalFor } from "./data.ts";
import type { Inode } from "./inode.ts";
import type { Store } from "./store.ts";

/** Moves in one transaction: bounds its size. */
const MOVES_MAX = 64;
/** Segments, or extents, that are looked at in one step. */
const STRIDE = 256;

/** Blocks of a file in a segment that is to be cleared. */
interface Occupant {
  readonly inode: Inode;
  readonly block: number;
  readonly count: number;
  readonly physical: number;
}

interface Segment {
  readonly start: number;
  readonly used: number;
  occupants: Occupant[];
  claimed: Run[];
}

export class SegmentClearer {
  readonly #store: Store;
  readonly #blocks: number;
  #segments: Segment[] = [];

  constructor(store: Store) {
    this.#store = store;
    this.#blocks = store.superblock.segmentBytes / store.blockBytes;
  }

  /** What is claimed at this moment, for the invariants of the whole volume. */
  *runs(): IterableIterator<Run> {
    for (const { claimed } of this.#segments) yield* claimed;
  }

  /** Clear up to `wanted` segments and give them to the reserve. Returns how many. @throws FsError EROFS, EIO, ETXTBSY */
  async clear(wanted: number): Promise<number> {
    const store = this.#store;
    for (let looked = 2 * wanted; ; looked *= 8) {
      const candidates = await inSlices(this.#leastUsed(looked));
      await inSlices(this.#findOccupants(candidates));
      this.#segments = this.#affordable(candidates, wanted);
      // Where many are pinned, those that are not may come later.
      if (this.#segments.length === wanted || candidates.length < looked) break;
    }
    try {
      for (const segment of this.#segments) this.#claim(segment);
      for (const segment of this.#segments) {
        for (let moved = 0; moved < segment.occupants.length; moved += MOVES_MAX) {
          const some = segment.occupants.slice(moved, moved + MOVES_MAX);
          await retrying(() => this.#move(some));
          // On cache-line granularity it is free already.
          this.#claim(segment);
          await new Promise((resolve) => setImmediate(resolve));
        }
      }
      await store.writable().sync();
      return this.#collect();
    } finally {
      for (const { claimed } of this.#segments) store.giveBack(claimed);
      this.#segments = [];
    }
  }

  /** Segments with the fewest used blocks, of those where files alone have any. */
  *#leastUsed(count: number): Generator<void, Segment[]> {
    const { allocator, quarantine } = this.#store;
    const blocked = this.#withOthers();
    const found: Segment[] = [];
    for (let start = 0; start + this.#blocks <= allocator.blockCount; start += this.#blocks) {
      if ((start / this.#blocks) % STRIDE === 0) yield;
      if (blocked.has(start) || quarantine.isClaimed(start, this.#blocks)) continue;
      const used = this.#blocks - allocator.countFree(start, this.#blocks);
      if (used < this.#blocks) found.push({ start, used, occupants: [], claimed: [] });
    }
    return found.sort((a, b) => a.used - b.used).slice(0, count);
  }

  /** Segments in which blocks lie that are nobody's to move. */
  #withOthers(): Set<number> {
    const { state } = this.#store;
    const blocked = new Set<number>();
    const block = ({ start, count }: Run): void => {
      for (let at = start - (start % this.#blocks); at < start + count; at += this.#blocks) blocked.add(at);
    };
    for (const run of this.#store.metadataRuns()) block(run);
    for (const run of this.#store.pendingRuns()) block(run);
    for (const run of state.references) block(run);
    return blocked;
  }

  *#findOccupants(segments: readonly Segment[]): Generator<void, void> {
    const byStart = new Map(segments.map((segment) => [segment.start, segment]));
    let looked = 0;
    for (const inode of this.#store.state.inodes.values()) {
      // Not by its iterator: the map may change between two steps.
      for (let piece = inode.extents?.next(0) ?? null; piece !== null; ) {
        const { block, count, physical, state } = piece;
        for (let at = physical; at < physical + count && state !== SHARED; ) {
          const start = at - (at % this.#blocks);
          const end = Math.min(start + this.#blocks, physical + count);
          byStart
            .get(start)
            ?.occupants.push({ inode, block: block + at - physical, count: end - at, physical: at });
          at = end;
        }
        looked += 1;
        if (looked % STRIDE === 0) yield;
        piece = inode.extents?.next(block + count) ?? null;
      }
    }
  }

  /** The first of them of which nothing is pinned, as far as what they hold finds room outside them. */
  #affordable(candidates: readonly Segment[], wanted: number): Segment[] {
    const { allocator, guard } = this.#store;
    const chosen: Segment[] = [];
    let room = allocator.freeBlocks;
    for (const segment of candidates) {
      const { used, occupants } = segment;
      if (
        blocksIn(occupants) !== used ||
        occupants.some(({ inode, block, count }) => guard.isLeased(inode, block, count))
      )
        continue;
      // Its own free blocks are lost to what moves.
      room -= this.#blocks;
      if (room < 0 || chosen.length === wanted) break;
      chosen.push(segment);
    }
    return chosen;
  }

  /** As one transaction. What has changed since it was found stays where it is. */
  #move(occupants: readonly Occupant[]): void {
    const { allocator, region, blockBytes, guard, state } = this.#store;
    const group = this.#store.beginMove();
    const taken: Run[] = [];
    try {
      for (const { inode, block, count, physical } of occupants) {
        const map = state.inodes.get(inode.ino) === inode ? inode.extents : null;
        const piece = map?.at(block, count);
        if (piece === undefined || piece.state === 0 || piece.state === SHARED) continue;
        if (piece.physical !== physical || piece.count !== count) continue;
        if (guard.isLeased(inode, block, count)) continue;
        guard.beforeMapChange(inode, [{ block, count }]);
        for (let done = 0; done < count; ) {
          const goal = done === 0 ? goalFor(this.#store, inode, block) : 0;
          const run = allocator.allocate(count - done, goal);
          // Others have taken the room.
          if (run === null) break;
          taken.push(run);
          if (piece.state !== UNWRITTEN)
            region.copy((physical + done) * blockBytes, run.start * blockBytes, run.count * blockBytes);
          group.extent(inode.ino, block + done, run.start, run.count, piece.state);
          done += run.count;
        }
      }
      this.#store.commit();
    } catch (error) {
      this.#store.giveBack(taken);
      throw error;
    }
  }

  #claim({ start, claimed }: Segment): void {
    for (const run of this.#store.allocator.claimFree(start, start + this.#blocks)) claimed.push(run);
  }

  /** What has become free is claimed as well; segments that are ours as a whole go to the reserve. */
  #collect(): number {
    const { pool } = this.#store;
    let cleared = 0;
    for (const segment of this.#segments) {
      this.#claim(segment);
      if (blocksIn(segment.claimed) < this.#blocks) continue;
      segment.claimed = [];
      pool.give(segment.start * this.#store.blockBytes);
      cleared += 1;
    }
    return cleared;
  }
}
