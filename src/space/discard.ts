/**
 * Free blocks are told to what the region lies on, which may then use the room for something else: all of them when
 * somebody asks (fstrim), or those that have become free lately (-o discard).
 *
 * Invariants:
 * - what is discarded is free: no state that a power cut could bring back has a use for it. What is freed and not durably
 *   so, in quarantine, withheld, or in the reserve of metadata is allocated for the allocator, and stays as it is;
 * - nobody gets a block while it is being discarded: a discard that comes after a store would destroy it;
 * - nothing is discarded while somebody wants the region's bytes as they were (Region.beforeStore);
 * - what is spared keeps the room that it has below: where the next mount looks for segments of metadata first, and on a full
 *   disk below would find none otherwise;
 * - one slice at a time, on the thread pool, bounded in bytes and in extents: who needs the last free blocks waits for no
 *   more than that.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { FsError } from "../base/errors.ts";
import type { Region } from "../region/region.ts";
import type { Allocator, Run } from "./allocator.ts";
import { blocksIn, overlapping, union } from "./runs.ts";

/** Of one slice: bytes, extents, and extents that are looked at. */
const SLICE_BYTES = 8 * 1024 * 1024;
const SLICE_RUNS = 64;
const SLICE_LOOKS = 4096;
/** Shorter extents wait for an fstrim: each costs as much as a long one, and cuts what lies below to pieces. */
const FREED_BYTES_MIN = 64 * 1024;
/** What is discarded by itself takes one part of the time in so many, and pauses at least so long, milliseconds. */
const TIME_SHARE = 4;
const PAUSE_MS_MIN = 2;

/** In blocks. */
export interface TrimRange {
  readonly start: number;
  readonly end: number;
  /** Shorter extents are left alone. */
  readonly least: number;
}

export interface DiscardOptions {
  readonly region: Region;
  readonly allocator: Allocator;
  readonly blockBytes: number;
  /** Free space that keeps the room that it has below, in any order. */
  readonly spared: () => readonly Run[];
}

export class Discards {
  readonly #region: Region;
  readonly #allocator: Allocator;
  readonly #spared: () => readonly Run[];
  readonly #blockBytes: number;
  #slice: Promise<void> | null = null;
  #ended = false;
  /** Chunks with blocks that have become free since the last look, or that were so then; null: nobody wants to know. */
  #fresh: Set<number> | null = null;
  #aged: ReadonlySet<number> = new Set();
  #discarding: Promise<void> | null = null;
  #tell: (text: string) => void = () => {};
  /** Since the volume was opened. */
  blocks = 0;
  /** What was stored in these bytes of the region is gone. */
  onDiscard: (offset: number, length: number) => void = () => {};

  constructor(options: DiscardOptions) {
    this.#region = options.region;
    this.#allocator = options.allocator;
    this.#spared = options.spared;
    this.#blockBytes = options.blockBytes;
  }

  /** Something lies below the region that may take discards. */
  get arePossible(): boolean {
    return this.#region.discard !== undefined;
  }

  /** The slice under way: resolves when its blocks are free again. Null if there is none. */
  get underWay(): Promise<void> | null {
    return this.#slice;
  }

  /**
   * Discard what is free in a range; returns how many blocks that were. What becomes free meanwhile may be among them.
   * @param pause between two slices; what it throws ends it
   * @throws FsError EOPNOTSUPP, EBUSY (a snapshot is being taken), EROFS (end() was called), EIO
   */
  async trim(range: TrimRange, pause: () => Promise<void>): Promise<number> {
    let blocks = 0;
    for (const part of this.#withoutSpared(range)) {
      for (let at = part.start, joins = false; at < part.end; ) {
        while (this.#slice !== null) await this.#slice;
        const found = this.#next({ ...part, start: at }, joins);
        if (found.runs.length > 0) blocks += await this.#discard(found.runs);
        at = found.next;
        joins = found.goesOn;
        if (at < part.end) await pause();
      }
    }
    return blocks;
  }

  /** Keep account of what becomes free, for discardFreed(). @param tell whoever runs the daemon, if it cannot be done */
  follow(tell: (text: string) => void): void {
    this.#tell = tell;
    if (!this.arePossible) {
      tell("discard: nothing lies below this region that could use its free blocks");
      return;
    }
    this.#fresh = new Set();
    this.#allocator.onFree = (start, count) => {
      const { chunkBlocks } = this.#allocator;
      const last = Math.floor((start + count - 1) / chunkBlocks);
      for (let chunk = Math.floor(start / chunkBlocks); chunk <= last; chunk += 1) this.#fresh?.add(chunk);
    };
  }

  /**
   * Discard what has become free, now and then: what was freed since the last call waits for the next, because a file that
   * is deleted is often written anew. Returns at once if the last call is not done yet.
   */
  discardFreed(): Promise<void> {
    if (this.#fresh === null || this.#ended) return Promise.resolve();
    this.#discarding ??= this.#discardAged(this.#fresh).finally(() => {
      this.#discarding = null;
    });
    return this.#discarding;
  }

  /** Nothing is discarded any more when the promise resolves. */
  async end(): Promise<void> {
    this.#ended = true;
    this.#unfollow();
    while (this.#slice !== null) await this.#slice;
  }

  #unfollow(): void {
    this.#fresh = null;
    this.#aged = new Set();
    this.#allocator.onFree = null;
  }

  async #discardAged(fresh: ReadonlySet<number>): Promise<void> {
    const due = [...this.#aged].filter((chunk) => !fresh.has(chunk)).sort((one, other) => one - other);
    this.#aged = fresh;
    this.#fresh = new Set();
    const { chunkBlocks } = this.#allocator;
    const ranges = union(due.map((chunk) => ({ start: chunk * chunkBlocks, count: chunkBlocks })));
    const least = Math.max(1, Math.ceil(FREED_BYTES_MIN / this.#blockBytes));
    let since = performance.now();
    const pause = async (): Promise<void> => {
      const tookMs = performance.now() - since;
      const pauseMs = Math.max(PAUSE_MS_MIN, tookMs * (TIME_SHARE - 1));
      await sleep(pauseMs, undefined, { ref: false });
      since = performance.now();
    };
    for (const [index, { start, count }] of ranges.entries()) {
      try {
        if (index > 0) await pause();
        await this.trim({ start, end: start + count, least }, pause);
      } catch (error) {
        if (!(error instanceof FsError)) throw error;
        if (this.#ended) return;
        if (error.code !== "EBUSY") {
          this.#tell(`discard: ${error.message}; what becomes free is not discarded any more`);
          this.#unfollow();
          return;
        }
        for (const { start: left, count: blocks } of ranges.slice(index))
          this.#allocator.onFree?.(left, blocks);
        return;
      }
    }
  }

  #withoutSpared({ start, end, least }: TrimRange): TrimRange[] {
    const parts: TrimRange[] = [];
    let from = start;
    for (const run of overlapping(union(this.#spared()), start, end)) {
      if (run.start > from) parts.push({ start: from, end: run.start, least });
      from = run.start + run.count;
    }
    if (from < end) parts.push({ start: from, end, least });
    return parts;
  }

  /**
   * The next free runs of a range, as many as make a slice, where to go on, and whether the last run may go on there.
   * @param joins the range may begin in the middle of a run that was long enough
   */
  #next(range: TrimRange, joins: boolean): { runs: Run[]; next: number; goesOn: boolean } {
    const runs: Run[] = [];
    let left = Math.max(1, Math.floor(SLICE_BYTES / this.#blockBytes));
    let at = range.start;
    // The volume may have become smaller.
    const end = Math.min(range.end, this.#allocator.end);
    for (let looks = 0; looks < SLICE_LOOKS && runs.length < SLICE_RUNS && left > 0; looks += 1) {
      const found = this.#allocator.nextFree(at, end, Math.max(range.least, left));
      if (found === null) return { runs, next: range.end, goesOn: false };
      const isLong = found.count >= range.least || (joins && found.start === range.start);
      const count = isLong ? Math.min(found.count, left) : found.count;
      at = found.start + count;
      if (!isLong) continue;
      runs.push({ start: found.start, count });
      left -= count;
    }
    return { runs, next: at, goesOn: left === 0 };
  }

  /** With nothing awaited since the runs were found to be free. */
  async #discard(found: readonly Run[]): Promise<number> {
    if (this.#ended) throw new FsError("EROFS", "being unmounted");
    this.#mustNotBeWanted();
    const runs = found.map(({ start, count }) => this.#allocator.beginDiscard(start, count));
    const work = this.#give(runs);
    const over = (): void => {
      this.#slice = null;
    };
    this.#slice = work.then(over, over);
    await work;
    const blocks = blocksIn(runs);
    this.blocks += blocks;
    return blocks;
  }

  #mustNotBeWanted(): void {
    if (this.#region.beforeStore !== null)
      throw new FsError("EBUSY", "a snapshot is being taken, which may need what was there");
  }

  async #give(runs: readonly Run[]): Promise<void> {
    try {
      for (const { start, count } of runs) {
        // A snapshot may have begun since the last one.
        this.#mustNotBeWanted();
        const offset = start * this.#blockBytes;
        const length = count * this.#blockBytes;
        await this.#region.discard?.(offset, length);
        this.onDiscard(offset, length);
      }
    } finally {
      for (const run of runs) this.#allocator.endDiscard(run);
    }
  }
}
