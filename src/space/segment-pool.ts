/**
 * The reserve of metadata segments: taken out of the free space in advance, so that the log and the next checkpoint
 * always find room. It is what keeps unlink and truncate working on a full volume.
 *
 * Invariants:
 * - the segments here are allocated in the allocator and used by nobody;
 * - a sparse region has taken room for them: storing there does not fail when what it lies on is full;
 * - none of them reaches behind the allocator's end: what is given back from there goes to the allocator;
 * - they are in memory only: after a crash they are free space again, and the reserve is taken anew;
 * - some are lent for second copies of metadata (copies.ts): these count as being in the reserve, and are taken back when
 *   nothing else is left.
 */
import { FsError } from "../base/errors.ts";
import type { CopySource, LentSegment } from "../media/chain.ts";
import type { Region } from "../region/region.ts";
import type { Allocator, Run } from "./allocator.ts";

/** Places that are tried where what a sparse region lies on is full: some of them it has taken before. */
const TRIES_MAX = 16;
/** When all of these were in vain, and nothing has become free since, milliseconds until the next try. */
const TRY_AGAIN_MS = 250;

export class SegmentPool {
  readonly #allocator: Allocator;
  readonly #segmentBlocks: number;
  readonly #blockBytes: number;
  readonly #region: Pick<Region, "allocate"> | null;
  /** Longest free first. */
  readonly #free: number[] = [];
  /** Oldest first. */
  readonly #lent = new Map<number, LentSegment>();
  #refused = { atMs: Number.NEGATIVE_INFINITY, freeBlocks: 0 };

  /** @param region has room for what is in the reserve, though it be sparse; null: nothing will be stored there */
  constructor(
    allocator: Allocator,
    segmentBytes: number,
    blockBytes: number,
    region: Pick<Region, "allocate"> | null = null,
  ) {
    this.#region = region;
    this.#allocator = allocator;
    this.#segmentBlocks = segmentBytes / blockBytes;
    this.#blockBytes = blockBytes;
  }

  get available(): number {
    return this.#free.length + this.#lent.size;
  }
  /** Blocks held by the reserve. */
  get blocks(): number {
    return this.available * this.#segmentBlocks;
  }

  readonly copies: CopySource = {
    take: () => {
      const place = this.#free.shift() ?? this.#grow();
      return place === null ? null : this.#lend(place);
    },
    holds: (copy) => this.#lent.get(copy.place) === copy,
    give: (copy) => {
      if (this.#lent.get(copy.place) !== copy) return;
      this.#lent.delete(copy.place);
      this.give(copy.place);
    },
  };

  /** A second copy that is on the media already; null if its blocks are somebody's. */
  adoptCopy(place: number): LentSegment | null {
    return this.#allocator.claim(place / this.#blockBytes, this.#segmentBlocks) ? this.#lend(place) : null;
  }

  /** Byte offset of a segment. @throws FsError ENOSPC */
  take(): number {
    const segment = this.#free.shift() ?? this.#grow() ?? this.#takeBack();
    if (segment === null) throw new FsError("ENOSPC", "no metadata segment is free");
    return segment;
  }

  give(segment: number): void {
    const start = segment / this.#blockBytes;
    if (start + this.#segmentBlocks <= this.#allocator.end) this.#free.push(segment);
    else this.#allocator.free(start, this.#segmentBlocks);
  }

  /** The allocator withholds its tail now. */
  leaveTail(): void {
    for (const segment of this.#free.splice(0)) this.give(segment);
    for (const copy of this.#lent.values()) {
      if (copy.place / this.#blockBytes + this.#segmentBlocks > this.#allocator.end) this.copies.give(copy);
    }
  }

  /** Grow the reserve to `count` segments if the space is there; false if not. */
  ensure(count: number): boolean {
    while (this.available < count) {
      const segment = this.#grow();
      if (segment === null) return false;
      this.#free.push(segment);
    }
    return true;
  }

  /** Return what exceeds `count` to the free space. */
  trim(count: number): void {
    while (this.available > count) {
      const segment = this.#free.shift() ?? (this.#takeBack() as number);
      this.#allocator.free(segment / this.#blockBytes, this.#segmentBlocks);
    }
  }

  *runs(): IterableIterator<{ start: number; count: number }> {
    for (const segments of [this.#free, this.#lent.keys()]) {
      for (const segment of segments) yield { start: segment / this.#blockBytes, count: this.#segmentBlocks };
    }
  }

  #lend(place: number): LentSegment {
    const copy = { place };
    this.#lent.set(place, copy);
    return copy;
  }

  #takeBack(): number | null {
    for (const place of this.#lent.keys()) {
      this.#lent.delete(place);
      return place;
    }
    return null;
  }

  #grow(): number | null {
    const refused: Run[] = [];
    const { atMs, freeBlocks } = this.#refused;
    if (performance.now() < atMs + TRY_AGAIN_MS && this.#allocator.freeBlocks <= freeBlocks) return null;
    try {
      while (refused.length < TRIES_MAX) {
        const run = this.#allocator.allocateAligned(this.#segmentBlocks);
        if (run === null) break;
        refused.push(run);
        if (!this.#isBacked(run)) continue;
        refused.pop();
        return run.start * this.#blockBytes;
      }
    } finally {
      for (const { start, count } of refused) this.#allocator.free(start, count);
    }
    if (refused.length > 0)
      this.#refused = { atMs: performance.now(), freeBlocks: this.#allocator.freeBlocks };
    return null;
  }

  #isBacked({ start, count }: Run): boolean {
    try {
      this.#region?.allocate?.(start * this.#blockBytes, count * this.#blockBytes);
      return true;
    } catch (error) {
      if (error instanceof FsError && error.code === "ENOSPC") return false;
      throw error;
    }
  }
}
