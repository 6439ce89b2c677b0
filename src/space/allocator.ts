/**
 * Free space: one bit for each block, and a count of free blocks for each *chunk* of 2 MiB.
 *
 * Invariants (check()):
 * - chunkFree[c] is the number of zero bits of chunk c, and freeBlocks their sum;
 * - whole holds exactly the chunks of which every block is free, begun those of which some are and some are not;
 * - no row of free blocks in chunk c is longer than longest[c]: a bound, that a search makes exact where it looks;
 * - a block is free, or allocated, or pending: given back by a record that is not durable yet. Pending blocks keep their
 *   bit; they become free when the log says that the record survives a power cut (releaseThrough). Otherwise a crash
 *   could leave two files with the same block, or one with the other's bytes;
 * - a free block that is being discarded counts as pending: nobody gets it before the discard is over;
 * - while the tail is withheld (the volume is being made smaller), no block of it is free: those that would be are
 *   withheld, which counts as allocated. When all of them are, nobody has any.
 *
 * Policy: large requests get whole chunks, side by side where possible, so that mappings get huge pages and few extents;
 * small ones fill chunks that are already begun. A search looks at a bounded number of chunks, so that its time does not
 * grow with the volume: on a full one that is cut to pieces it may give a shorter run than the longest there is.
 */
import { InvariantError, invariant } from "../base/errors.ts";
import { BitTree } from "./bit-tree.ts";

export interface Run {
  /** First block. */
  start: number;
  /** Blocks. */
  count: number;
}

interface PendingRun extends Run {
  readonly lsn: number;
}

const CHUNK_BYTES = 2 * 1024 * 1024;
/** Begun chunks whose bits a search for a small run reads, and chunks whose bounds it compares, at most. */
const READ_MAX = 64;
const COMPARED_MAX = 256;
/** Rows of whole chunks that a search for a large run compares, at most. */
const ROWS_MAX = 256;

export class Allocator {
  readonly chunkBlocks: number;
  #blockCount: number;
  #bits: Uint32Array;
  #chunkFree: Uint16Array;
  #longest: Uint16Array;
  #whole: BitTree;
  #begun: BitTree;
  #freeBlocks = 0;
  #pendingBlocks = 0;
  #pending: PendingRun[] = [];
  /** Free, but what lies below is being told so at this moment. */
  readonly #discarding = new Set<Run>();
  #discardingBlocks = 0;
  /** Hears of blocks that have become free. */
  onFree: ((start: number, count: number) => void) | null = null;
  /** Chunks where the last small and the last large search ended. */
  #smallCursor = 0;
  #largeCursor = 0;
  /** Blocks from here on are withheld when they are free. */
  #end: number;
  #withheldBlocks = 0;
  /** One bit for each block, while a tail is withheld. */
  #withheld: Uint32Array | null = null;

  /** All blocks free. */
  constructor(blockCount: number, blockBytes: number) {
    this.#blockCount = blockCount;
    this.#end = blockCount;
    this.chunkBlocks = Math.max(1, CHUNK_BYTES / blockBytes);
    const chunks = Math.ceil(blockCount / this.chunkBlocks);
    this.#bits = new Uint32Array(Math.ceil((chunks * this.chunkBlocks) / 32));
    this.#chunkFree = new Uint16Array(chunks).fill(this.chunkBlocks);
    this.#longest = new Uint16Array(chunks).fill(this.chunkBlocks);
    this.#whole = new BitTree(chunks);
    this.#begun = new BitTree(chunks);
    this.#freeBlocks = chunks * this.chunkBlocks;
    this.#index();
    // The last chunk may reach past the end: those blocks are never free.
    for (let block = blockCount; block < chunks * this.chunkBlocks; block += 1) this.#take(block, 1);
  }

  get blockCount(): number {
    return this.#blockCount;
  }
  /** Nothing is allocated from here on. */
  get end(): number {
    return this.#end;
  }
  /** Blocks behind `end` that somebody has, or that are pending. */
  get usedBehindEnd(): number {
    return this.#blockCount - this.#end - this.#withheldBlocks;
  }

  /** Blocks that can be allocated now. */
  get freeBlocks(): number {
    return this.#freeBlocks;
  }
  /** Blocks that become free with the next sync, or when they have been discarded. */
  get pendingBlocks(): number {
    return this.#pendingBlocks + this.#discardingBlocks;
  }

  isFree(block: number): boolean {
    return ((this.#bits[block >>> 5] as number) & (1 << (block & 31))) === 0;
  }

  /** Free blocks of [start, start + count), which lie in one chunk. */
  countFree(start: number, count: number): number {
    if (this.#chunkFree[Math.floor(start / this.chunkBlocks)] === 0) return 0;
    const end = start + count;
    let free = 0;
    for (let block = this.#firstFree(start, end); block >= 0; block = this.#firstFree(block, end)) {
      const run = this.#freeRun(block, end - block);
      free += run;
      block += run;
    }
    return free;
  }

  /** One bit for each block that is not free, 32 to a word from the lowest up; bits behind the last block are zero. */
  takenBits(): Uint32Array {
    const bits = this.#bits.slice(0, Math.ceil(this.blockCount / 32));
    const rest = this.blockCount & 31;
    if (rest !== 0) (bits[bits.length - 1] as number) &= (1 << rest) - 1;
    return bits;
  }

  /** Mark as allocated while the map is built up; false if a block of the run is allocated already or out of bounds. */
  claim(start: number, count: number): boolean {
    if (start + count > this.blockCount) return false;
    if (this.#freeRun(start, count) !== count) return false;
    this.#take(start, count);
    return true;
  }

  /** A copy of the superblock may be stored in the last block, as long as nobody has it. */
  get isLastFree(): boolean {
    return this.isFree(this.blockCount - 1);
  }

  /** Mark as allocated whatever is free of [start, end). Returns it. */
  claimFree(start: number, end: number): Run[] {
    const limit = Math.min(end, this.blockCount);
    const claimed: Run[] = [];
    for (let block = start; block < limit; ) {
      const count = this.#freeRun(block, limit - block);
      if (count > 0) claimed.push(this.#taken(block, count));
      block += Math.max(count, 1);
    }
    return claimed;
  }

  /**
   * Allocate one run of at most `want` blocks: as long a one as the policy finds, null if nothing is free.
   * @param goal block that would continue the file's previous extent; 0 for none.
   */
  allocate(want: number, goal: number): Run | null {
    invariant(want > 0, "allocation of no blocks");
    if (this.#freeBlocks === 0) return null;
    if (goal > 0 && goal < this.blockCount) {
      const length = this.#freeRun(goal, want);
      if (length === want || length >= this.chunkBlocks / 4) return this.#taken(goal, length);
    }
    if (want * 8 >= this.chunkBlocks) {
      const run = this.#findChunks(want);
      if (run !== null) return this.#taken(run.start, run.count);
    }
    const run = this.#findSmall(want);
    return run === null ? null : this.#taken(run.start, run.count);
  }

  /** Chunks side by side that are wholly free, for at most `want` blocks; null if there is none. They stay free. */
  wholeChunks(want: number): Run | null {
    return this.#findChunks(want);
  }

  /** A chunk begins at this block, and is wholly free. */
  isWholeChunk(block: number): boolean {
    if (block < 0 || block % this.chunkBlocks !== 0 || block >= this.#end) return false;
    return this.#whole.has(block / this.chunkBlocks);
  }

  /** Allocate at most `want` blocks from the beginning of a free chunk; null if no chunk is free. */
  allocateChunks(want: number): Run | null {
    const run = this.#findChunks(want);
    return run === null ? null : this.#taken(run.start, run.count);
  }

  /**
   * Allocate exactly `count` blocks at a multiple of `count`, which divides a chunk or is a multiple of one; null if there
   * is no such run.
   */
  allocateAligned(count: number): Run | null {
    const { chunkBlocks } = this;
    for (const chunks of count < chunkBlocks ? [this.#begun, this.#whole] : [this.#whole]) {
      for (let chunk = chunks.next(0); chunk >= 0; chunk = chunks.next(chunk + 1)) {
        if ((this.#longest[chunk] as number) < Math.min(count, chunkBlocks)) continue;
        const from = Math.ceil((chunk * chunkBlocks) / count) * count;
        const end = Math.min((chunk + 1) * chunkBlocks, this.blockCount);
        for (let start = from; start < end && start + count <= this.blockCount; start += count) {
          if (this.#freeRun(start, count) === count) return this.#taken(start, count);
        }
      }
    }
    return null;
  }

  /** The volume has so many blocks from now on; the new ones are free. */
  extend(blockCount: number): void {
    invariant(blockCount >= this.#blockCount && this.#withheld === null, "a volume that grows");
    const before = this.#blockCount;
    const bits = this.#bits;
    const chunkFree = this.#chunkFree;
    const chunks = Math.ceil(blockCount / this.chunkBlocks);
    this.#bits = new Uint32Array(Math.ceil((chunks * this.chunkBlocks) / 32));
    this.#bits.set(bits);
    this.#chunkFree = new Uint16Array(chunks).fill(this.chunkBlocks);
    this.#chunkFree.set(chunkFree);
    this.#index();
    // Whole chunks come free; of those that the old and the new end cut, the blocks that are inside.
    this.#freeBlocks += (chunks - chunkFree.length) * this.chunkBlocks;
    this.#blockCount = blockCount;
    this.#end = blockCount;
    const filled = Math.min(blockCount, chunkFree.length * this.chunkBlocks);
    if (filled > before) this.#put(before, filled - before);
    if (chunks > chunkFree.length) this.#take(blockCount, chunks * this.chunkBlocks - blockCount);
  }

  /** From now on nothing is allocated from block `end` on, until cut() or restore(). */
  withhold(end: number): void {
    invariant(this.#withheld === null && end > 0 && end <= this.#blockCount, "one tail at a time");
    this.#withheld = new Uint32Array(this.#bits.length);
    const tail = this.claimFree(end, this.#blockCount);
    this.#end = end;
    for (const { start, count } of tail) this.#withhold(start, count);
  }

  /** The tail is ordinary space again. */
  restore(): void {
    const runs = [...this.withheldRuns()];
    this.#withheld = null;
    this.#withheldBlocks = 0;
    this.#end = this.#blockCount;
    for (const { start, count } of runs) this.#put(start, count);
  }

  /** The withheld tail, of which nobody has a block any more, is no part of the volume from now on. */
  cut(): void {
    invariant(this.#withheld !== null && this.usedBehindEnd === 0, "a tail that nobody uses");
    this.#withheld = null;
    this.#withheldBlocks = 0;
    this.#blockCount = this.#end;
    const chunks = Math.ceil(this.#end / this.chunkBlocks);
    this.#bits = this.#bits.slice(0, Math.ceil((chunks * this.chunkBlocks) / 32));
    this.#chunkFree = this.#chunkFree.slice(0, chunks);
    this.#index();
    // Where chunks are shorter than a word: the bits behind the last one are clear, as in a new allocator.
    const inLastWord = (chunks * this.chunkBlocks) & 31;
    const last = this.#bits.length - 1;
    if (inLastWord > 0) this.#bits[last] = (this.#bits[last] as number) & ((1 << inLastWord) - 1);
    this.#smallCursor %= chunks;
    this.#largeCursor %= chunks;
  }

  /** Withheld blocks, in order, for the invariants of the whole volume. */
  *withheldRuns(): IterableIterator<Run> {
    const withheld = this.#withheld;
    if (withheld === null) return;
    let start = -1;
    for (let block = this.#end; block <= this.#blockCount; block += 1) {
      const inside =
        block < this.#blockCount && ((withheld[block >>> 5] as number) & (1 << (block & 31))) !== 0;
      if (inside && start < 0) start = block;
      if (!inside && start >= 0) {
        yield { start, count: block - start };
        start = -1;
      }
    }
  }

  #withhold(start: number, count: number): void {
    mark(this.#withheld as Uint32Array, start, count, true);
    this.#withheldBlocks += count;
  }

  /** Give blocks back at once. */
  free(start: number, count: number): void {
    this.#put(start, count);
    this.onFree?.(start, count);
  }

  /** The first row of free blocks that has one in [from, end): where it begins in there, and at most `limit` of it. */
  nextFree(from: number, end: number, limit: number): Run | null {
    for (let at = from; at < end; ) {
      const chunk = Math.floor(at / this.chunkBlocks);
      const chunkEnd = Math.min((chunk + 1) * this.chunkBlocks, end);
      const start = this.#chunkFree[chunk] === 0 ? -1 : this.#firstFree(at, chunkEnd);
      if (start >= 0) return { start, count: this.#freeRun(start, Math.min(limit, end - start)) };
      at = chunkEnd;
    }
    return null;
  }

  /** These blocks are free, and nobody is to get them until endDiscard(). */
  beginDiscard(start: number, count: number): Run {
    const run = this.#taken(start, count);
    this.#discarding.add(run);
    this.#discardingBlocks += count;
    return run;
  }

  endDiscard(run: Run): void {
    invariant(this.#discarding.delete(run), "a discard that was begun");
    this.#discardingBlocks -= run.count;
    this.#put(run.start, run.count);
  }

  /**
   * Where allocateAligned() would find room for so many runs of `count` blocks, if those of `taken` were free. Nothing is
   * allocated or freed.
   */
  alignedPlaces(places: number, count: number, taken: readonly Run[]): Run[] {
    for (const run of taken) this.#put(run.start, run.count);
    const found: Run[] = [];
    while (found.length < places) {
      const place = this.allocateAligned(count);
      if (place === null) break;
      found.push(place);
    }
    for (const run of found) this.#put(run.start, run.count);
    for (const run of taken) this.#take(run.start, run.count);
    return found;
  }

  /** Give blocks back as soon as the group with this number is durable. */
  freeAfter(start: number, count: number, lsn: number): void {
    this.#pendingBlocks += count;
    this.#pending.push({ start, count, lsn });
  }

  /** Everything up to this group number is durable. */
  releaseThrough(lsn: number): void {
    if (this.#pending.length === 0) return;
    let kept = 0;
    for (const run of this.#pending) {
      if (run.lsn > lsn) {
        this.#pending[kept] = run;
        kept += 1;
        continue;
      }
      this.#pendingBlocks -= run.count;
      this.free(run.start, run.count);
    }
    this.#pending.length = kept;
  }

  /** Pending runs, for the invariants of the whole volume. */
  *pendingRuns(): IterableIterator<Readonly<Run>> {
    yield* this.#pending;
    yield* this.#discarding;
  }

  /** Blocks free from `start` on, at most `limit`. */
  #freeRun(start: number, limit: number): number {
    const bits = this.#bits;
    const end = Math.min(start + limit, this.blockCount);
    let block = start;
    while (block < end) {
      const shift = block & 31;
      const word = (bits[block >>> 5] as number) >>> shift;
      if (word === 0) {
        block += 32 - shift;
        continue;
      }
      block += 31 - Math.clz32(word & -word);
      break;
    }
    return Math.max(0, Math.min(block, end) - start);
  }

  /** First free block at or behind `start`, before `end`; -1 if none. */
  #firstFree(start: number, end: number): number {
    const bits = this.#bits;
    let block = start;
    while (block < end) {
      const shift = block & 31;
      const word = ~(bits[block >>> 5] as number) >>> shift;
      if (word === 0) {
        block += 32 - shift;
        continue;
      }
      block += 31 - Math.clz32(word & -word);
      return block < end ? block : -1;
    }
    return -1;
  }

  /** Whole free chunks: as many side by side as the request needs, or the longest of the rows that are compared. */
  #findChunks(want: number): Run | null {
    const chunks = this.#chunkFree.length;
    const needed = Math.ceil(want / this.chunkBlocks);
    let bestStart = -1;
    let bestLength = 0;
    // From the cursor to the end, and then from the beginning to the cursor.
    let from = this.#whole.next(this.#largeCursor);
    let wrapped = false;
    for (let rows = 0; rows < ROWS_MAX; rows += 1) {
      if (from < 0 && !wrapped) {
        wrapped = true;
        from = this.#whole.next(0);
      }
      if (from < 0 || (wrapped && from >= this.#largeCursor)) break;
      let length = 1;
      // A row does not wrap around the end of the region.
      while (length < needed && from + length < chunks && this.#whole.has(from + length)) length += 1;
      if (length > bestLength) {
        bestStart = from;
        bestLength = length;
        if (length === needed) break;
      }
      from = this.#whole.next(from + length);
    }
    if (bestLength === 0) return null;
    this.#largeCursor = bestStart;
    return {
      start: bestStart * this.chunkBlocks,
      count: Math.min(want, bestLength * this.chunkBlocks),
    };
  }

  /** A run in a chunk that is begun; else a fresh chunk; else the longest run seen. */
  #findSmall(want: number): Run | null {
    const limit = Math.min(want, this.chunkBlocks);
    let best: Run | null = null;
    let chunk = this.#begun.next(this.#smallCursor);
    let wrapped = false;
    let read = 0;
    for (let compared = 0; compared < COMPARED_MAX && read < READ_MAX; compared += 1) {
      if (chunk < 0 && !wrapped) {
        wrapped = true;
        chunk = this.#begun.next(0);
      }
      if (chunk < 0 || (wrapped && chunk >= this.#smallCursor)) break;
      if (best === null || (this.#longest[chunk] as number) > best.count) {
        read += 1;
        const run = this.#longestIn(chunk, limit);
        if (run.count === limit) {
          this.#smallCursor = chunk;
          return run;
        }
        // It is all of the row, since it is shorter than what was looked for.
        this.#longest[chunk] = run.count;
        if (best === null || run.count > best.count) best = run;
      }
      chunk = this.#begun.next(chunk + 1);
    }
    // A few begun chunks without room are enough: a fresh one beats splitting the request.
    let fresh = this.#whole.next(this.#smallCursor);
    if (fresh < 0) fresh = this.#whole.next(0);
    if (fresh >= 0) {
      this.#smallCursor = fresh;
      const start = fresh * this.chunkBlocks;
      return { start, count: this.#freeRun(start, limit) };
    }
    if (best !== null) this.#smallCursor = Math.floor(best.start / this.chunkBlocks);
    return best;
  }

  /** The first run of `limit` blocks in a chunk, or its longest one. */
  #longestIn(chunk: number, limit: number): Run {
    const end = Math.min((chunk + 1) * this.chunkBlocks, this.blockCount);
    const best = { start: chunk * this.chunkBlocks, count: 0 };
    for (let block = this.#firstFree(best.start, end); block >= 0; ) {
      const count = this.#freeRun(block, Math.min(limit, end - block));
      if (count > best.count) {
        best.start = block;
        best.count = count;
        if (count === limit) break;
      }
      block = this.#firstFree(block + count, end);
    }
    return best;
  }

  #taken(start: number, count: number): Run {
    this.#take(start, count);
    return { start, count };
  }

  #take(start: number, count: number): void {
    this.#freeBlocks -= count;
    this.#mark(start, count, true);
  }

  #put(start: number, count: number): void {
    if (start < 0 || start + count > this.blockCount) {
      throw new InvariantError(`freeing blocks ${start} to ${start + count}, outside the volume`);
    }
    const inside = Math.max(0, Math.min(count, this.#end - start));
    if (inside < count) this.#withhold(start + inside, count - inside);
    if (inside === 0) return;
    this.#freeBlocks += inside;
    this.#mark(start, inside, false);
  }

  #mark(start: number, count: number, used: boolean): void {
    mark(this.#bits, start, count, used);
    const end = start + count;
    for (let at = start; at < end; ) {
      const chunk = Math.floor(at / this.chunkBlocks);
      const length = Math.min(end, (chunk + 1) * this.chunkBlocks) - at;
      const free = (this.#chunkFree[chunk] as number) + (used ? -length : length);
      this.#chunkFree[chunk] = free;
      // Blocks that are given back may join rows: what is known is only that no row has more than all of them.
      if (!used || (this.#longest[chunk] as number) > free) this.#longest[chunk] = free;
      this.#indexChunk(chunk);
      at += length;
    }
  }

  #indexChunk(chunk: number): void {
    const free = this.#chunkFree[chunk] as number;
    if (free === this.chunkBlocks) this.#whole.add(chunk);
    else this.#whole.delete(chunk);
    if (free > 0 && free < this.chunkBlocks) this.#begun.add(chunk);
    else this.#begun.delete(chunk);
  }

  /** The number of chunks has changed. */
  #index(): void {
    const chunks = this.#chunkFree.length;
    this.#longest = this.#chunkFree.slice();
    this.#whole = new BitTree(chunks);
    this.#begun = new BitTree(chunks);
    for (let chunk = 0; chunk < chunks; chunk += 1) this.#indexChunk(chunk);
  }

  check(): void {
    let free = 0;
    for (let chunk = 0; chunk < this.#chunkFree.length; chunk += 1) {
      let count = 0;
      for (let block = chunk * this.chunkBlocks; block < (chunk + 1) * this.chunkBlocks; block += 1) {
        if (this.isFree(block)) count += 1;
      }
      invariant(
        count === this.#chunkFree[chunk],
        () => `chunk ${chunk}: ${count} blocks free, ${this.#chunkFree[chunk]} counted`,
      );
      free += count;
      const row = this.#longestIn(chunk, this.chunkBlocks).count;
      const bound = this.#longest[chunk] as number;
      invariant(row <= bound, () => `chunk ${chunk}: ${row} blocks side by side, ${bound} at most expected`);
      invariant(this.#whole.has(chunk) === (count === this.chunkBlocks), () => `chunk ${chunk} is whole`);
      const isBegun = count > 0 && count < this.chunkBlocks;
      invariant(this.#begun.has(chunk) === isBegun, () => `chunk ${chunk} is begun`);
    }
    this.#whole.check();
    this.#begun.check();
    invariant(free === this.#freeBlocks, () => `${free} blocks free, ${this.#freeBlocks} counted`);
    let withheld = 0;
    for (const run of this.withheldRuns()) {
      withheld += run.count;
      for (let block = run.start; block < run.start + run.count; block += 1)
        invariant(!this.isFree(block), () => `block ${block} is withheld and free`);
    }
    invariant(
      withheld === this.#withheldBlocks,
      () => `${withheld} blocks withheld, ${this.#withheldBlocks} counted`,
    );
    const pending = this.#pending.reduce((sum, run) => sum + run.count, 0);
    invariant(
      pending === this.#pendingBlocks,
      () => `${pending} blocks pending, ${this.#pendingBlocks} counted`,
    );
    const discarding = [...this.#discarding].reduce((sum, run) => sum + run.count, 0);
    invariant(
      discarding === this.#discardingBlocks,
      () => `${discarding} blocks being discarded, ${this.#discardingBlocks} counted`,
    );
  }
}

/** Set or clear the bits of a run, none of which is so already. */
function mark(bits: Uint32Array, start: number, count: number, used: boolean): void {
  let block = start;
  const end = start + count;
  while (block < end) {
    const shift = block & 31;
    const length = Math.min(32 - shift, end - block);
    const mask = (length === 32 ? 0xffff_ffff : ((1 << length) - 1) << shift) >>> 0;
    const word = bits[block >>> 5] as number;
    if (((used ? word : ~word) & mask) !== 0) {
      throw new InvariantError(
        `blocks ${block} to ${block + length} are ${used ? "allocated" : "free"} already`,
      );
    }
    bits[block >>> 5] = used ? word | mask : word & ~mask;
    block += length;
  }
}
