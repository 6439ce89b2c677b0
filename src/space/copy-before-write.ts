/**
 * The region as it was at one moment, for somebody who copies it while it goes on changing.
 *
 * The copier reads the region itself, runs of blocks as `advance` hands them out. Before a block that it has not copied
 * yet is stored to, the old bytes are set aside, and handed out as pieces later.
 *
 * Invariants:
 * - a block is *wanted* while its bytes are those of the moment, and nobody has copied them for certain: not set aside,
 *   and not in a run that the copier was done with when it came back;
 * - a piece comes out after the run that its block was in, if it was in one: whoever applies both in order of their
 *   coming has the bytes of the moment;
 * - a block is set aside at most once, before the first store that changes it;
 * - nobody waits for the copier longer than COPIER_IDLE_MS: one that stays away that long while somebody waits has lost.
 */

import { FsError } from "../base/errors.ts";
import { after, fault } from "../base/faults.ts";
import { deferred } from "../base/wait.ts";
import type { Region } from "../region/region.ts";
import type { Allocator, Run } from "./allocator.ts";

/** Bytes of a piece: what every block size is a multiple of. */
export const PIECE_BYTES = 4096;
/** Above this, those who would store wait until some of it has been taken. */
const ASIDE_BYTES_MAX = 64 * 1024 * 1024;
/** Handed out at a time at most, bytes: a copier takes some milliseconds for so many. */
const HANDED_BYTES_MAX = 8 * 1024 * 1024;
export const COPIER_IDLE_MS = 30_000;

export interface Piece {
  /** Byte offset in the region. */
  readonly offset: number;
  readonly bytes: Uint8Array;
}

export interface Portion {
  readonly runs: readonly Run[];
  readonly pieces: readonly Piece[];
  /** Nothing is left: the copy is whole, and stores are no longer looked at. */
  readonly done: boolean;
}

export interface CopyOptions {
  readonly region: Region;
  readonly blockBytes: number;
  /** What is allocated at this moment. */
  readonly allocator: Allocator;
  /** Allocated, but what is in it means nothing. */
  readonly except: Iterable<Readonly<Run>>;
}

export class CopyBeforeWrite {
  readonly #region: Region;
  readonly #blockBytes: number;
  readonly #blockCount: number;
  /** One bit for each block that is wanted. */
  readonly #wanted: Uint32Array;
  #left = 0;
  /** No block before it is wanted, but for those of #handed. */
  #cursor = 0;
  #handed: Run[] = [];
  #sooner: Run[] = [];
  /** Those before #asideTaken have been handed over. */
  #aside: Piece[] = [];
  #asideTaken = 0;
  #over: FsError | "done" | null = null;
  #turn = deferred();
  #waiters = 0;
  #idle: NodeJS.Timeout;

  /** The moment is now. */
  constructor(options: CopyOptions) {
    this.#region = options.region;
    this.#blockBytes = options.blockBytes;
    this.#blockCount = options.allocator.blockCount;
    this.#wanted = options.allocator.takenBits();
    for (const { start, count } of options.except) this.#forget(start, count);
    for (const word of this.#wanted) this.#left += ones(word);
    this.#idle = this.#watchCopier();
    this.#region.beforeStore = (offset, length) => this.#beforeStore(offset, length);
  }

  /** Bytes that the copier has not got yet. */
  get leftBytes(): number {
    return this.#left * this.#blockBytes + this.asideBytes;
  }

  /** Of these, bytes in the daemon's memory. */
  get asideBytes(): number {
    return (this.#aside.length - this.#asideTaken) * PIECE_BYTES;
  }

  /** Too much has been set aside: resolves when it is worth another try. Null if all is well. */
  get full(): Promise<void> | null {
    return this.asideBytes > ASIDE_BYTES_MAX && this.#over === null ? this.#nextTurn() : null;
  }

  /**
   * Whoever is about to have these blocks changed behind the daemon's back: null if they are copied, or what to wait for
   * before asking again. They are copied next.
   */
  copying(runs: Iterable<Readonly<Run>>): Promise<void> | null {
    if (this.#over !== null) return null;
    let found = false;
    for (const { start, count } of runs) {
      for (let at = start; at < start + count; ) {
        const wanted = this.#wantedRun(at, start + count - at);
        if (wanted > 0) {
          this.#sooner.push({ start: at, count: wanted });
          found = true;
        }
        at += wanted;
        while (at < start + count && !this.#isWanted(at)) at += 1;
      }
    }
    return found ? this.#nextTurn() : null;
  }

  /**
   * The copier is done with what it was handed last, and takes more.
   * @throws FsError ECANCELED (it stayed away too long, or end() was called), EIO (what was to be set aside could not be read).
   */
  advance(runsMax: number, piecesMax: number): Portion {
    if (this.#over instanceof FsError) throw this.#over;
    for (const { start, count } of this.#handed) this.#forget(start, count, true);
    this.#handed = [];
    clearTimeout(this.#idle);
    this.#idle = this.#watchCopier();
    const pieces = this.#aside.slice(this.#asideTaken, this.#asideTaken + piecesMax);
    this.#asideTaken += pieces.length;
    if (this.#asideTaken === this.#aside.length) {
      this.#aside = [];
      this.#asideTaken = 0;
      // Not before: who waits for what was set aside to go is not to wait for more copying.
      this.#handOut(runsMax);
    }
    const done = this.#left === 0 && this.#aside.length === 0;
    if (done) this.#finish("done");
    else this.#wake();
    return { runs: this.#handed, pieces, done };
  }

  /** The copier is gone. */
  end(): void {
    if (this.#over === null) this.#finish(new FsError("ECANCELED", "the copy was given up"));
  }

  #finish(how: FsError | "done"): void {
    this.#over = how;
    this.#region.beforeStore = null;
    this.#aside = [];
    this.#asideTaken = 0;
    clearTimeout(this.#idle);
    this.#wake();
  }

  #nextTurn(): Promise<void> {
    this.#waiters += 1;
    return this.#turn.promise;
  }

  #wake(): void {
    this.#waiters = 0;
    this.#turn.resolve();
    this.#turn = deferred();
  }

  #watchCopier(): NodeJS.Timeout {
    const timer = after(COPIER_IDLE_MS, "watching a copier", () => {
      if (this.#waiters > 0) {
        this.#finish(new FsError("ECANCELED", "others waited too long for the copier"));
      } else this.#idle = this.#watchCopier();
    });
    timer.unref();
    return timer;
  }

  #handOut(runsMax: number): void {
    let room = Math.max(1, Math.floor(HANDED_BYTES_MAX / this.#blockBytes));
    const hand = (start: number, most: number): number => {
      const count = this.#wantedRun(start, Math.min(most, room));
      if (count > 0) this.#handed.push({ start, count });
      room -= count;
      return count;
    };
    while (this.#sooner.length > 0 && room > 0 && this.#handed.length < runsMax) {
      const { start, count } = this.#sooner.pop() as Run;
      const handed = hand(start, count);
      const rest = Math.max(handed, 1);
      if (count > rest) this.#sooner.push({ start: start + rest, count: count - rest });
    }
    // A block that is handed out twice is copied twice, and is the same both times.
    while (room > 0 && this.#handed.length < runsMax) {
      while (this.#cursor < this.#blockCount && !this.#isWanted(this.#cursor)) {
        // 32 blocks at a time where nothing is wanted: most of a region may be free.
        this.#cursor += this.#wanted[this.#cursor >>> 5] === 0 ? 32 - (this.#cursor & 31) : 1;
      }
      if (this.#cursor >= this.#blockCount) break;
      this.#cursor += hand(this.#cursor, this.#blockCount - this.#cursor);
    }
  }

  #beforeStore(offset: number, length: number): void {
    const end = Math.ceil((offset + length) / this.#blockBytes);
    for (let block = Math.floor(offset / this.#blockBytes); block < end; ) {
      const count = this.#wantedRun(block, end - block);
      if (count > 0 && !this.#setAside(block, count)) return;
      block += Math.max(count, 1);
    }
  }

  #setAside(block: number, count: number): boolean {
    let bytes: Buffer;
    const at = block * this.#blockBytes;
    try {
      bytes = Buffer.allocUnsafe(count * this.#blockBytes);
      this.#region.read(at, bytes, 0, bytes.length);
    } catch (error) {
      // The store itself is none the worse for it.
      if (!(error instanceof FsError)) fault("setting bytes aside for a snapshot", error);
      this.#finish(error instanceof FsError ? error : new FsError("EIO", String(error)));
      return false;
    }
    for (let done = 0; done < bytes.length; done += PIECE_BYTES) {
      this.#aside.push({ offset: at + done, bytes: bytes.subarray(done, done + PIECE_BYTES) });
    }
    this.#forget(block, count, true);
    return true;
  }

  #isWanted(block: number): boolean {
    return ((this.#wanted[block >>> 5] as number) & (1 << (block & 31))) !== 0;
  }

  /** How many blocks from `start` on are wanted, at most `most`. */
  #wantedRun(start: number, most: number): number {
    const limit = Math.min(most, this.#blockCount - start);
    let count = 0;
    while (count < limit && this.#isWanted(start + count)) count += 1;
    return count;
  }

  #forget(start: number, count: number, counted = false): void {
    for (let block = start; block < start + count; block += 1) {
      if (counted && this.#isWanted(block)) this.#left -= 1;
      (this.#wanted[block >>> 5] as number) &= ~(1 << (block & 31));
    }
  }
}

/** Bits that are set: in pairs, fours, eights, and then all eights at once. */
function ones(word: number): number {
  const pairs = word - ((word >>> 1) & 0x5555_5555);
  const fours = (pairs & 0x3333_3333) + ((pairs >>> 2) & 0x3333_3333);
  return Math.imul((fours + (fours >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24;
}
