/**
 * Blocks that somebody may still reach though their file has let go of them: the holder of a lease that was revoked by
 * time, and has not unmapped (semantics R19).
 *
 * Invariants (check()):
 * - a claim names runs of blocks that its owner could reach when it was revoked; it ends only by `release`;
 * - a block that is freed while any claim covers it is held: allocated in the allocator, used by nobody;
 * - a held block goes back as soon as no claim covers it any more, and not before.
 */
import { invariant } from "../base/errors.ts";
import { type Row, RunTable } from "../tables/run-table.ts";
import type { Run } from "./allocator.ts";
import { References } from "./references.ts";

export interface HeldRun extends Run {
  /** Group that freed it. */
  readonly lsn: number;
}

export class Quarantine {
  readonly #claims = new Map<number, readonly Run[]>();
  /** All claims together: what is freed is looked up here, however many there are. */
  readonly #claimed = new References();
  /** Runs that are held; `value` is the group that freed them. */
  readonly #held = new RunTable();
  #blocks = 0;

  /** Blocks held back at this moment. */
  get blocks(): number {
    return this.#blocks;
  }

  get claims(): number {
    return this.#claims.size;
  }

  /** From now on, blocks of these runs are held when they are freed. `owner` is a number never used before. */
  claim(owner: number, runs: readonly Run[]): void {
    invariant(!this.#claims.has(owner), () => `claim ${owner} exists`);
    this.#claims.set(owner, runs);
    for (const run of runs) this.#claimed.add(run.start, run.count);
  }

  /** Somebody who holds no lease can reach a block of this run. */
  isClaimed(start: number, count: number): boolean {
    if (this.#claims.size === 0) return false;
    const { claimed, length } = this.#stretch(start, count);
    return claimed || length < count;
  }

  /** The parts of a run that somebody can reach who holds no lease. */
  *claimedRuns(start: number, count: number): IterableIterator<Run> {
    if (this.#claims.size === 0) return;
    for (let at = start; at < start + count; ) {
      const { claimed, length } = this.#stretch(at, start + count - at);
      if (claimed) yield { start: at, count: length };
      at += length;
    }
  }

  /** Blocks [start, start + count) were freed by group `lsn`: holds what is claimed, returns what may go. */
  hold(start: number, count: number, lsn: number): Run[] {
    const free: Run[] = [];
    if (this.#claims.size === 0) return [{ start, count }];
    for (let at = start; at < start + count; ) {
      const { claimed, length } = this.#stretch(at, start + count - at);
      if (claimed) {
        this.#keep(at, length, lsn);
      } else free.push({ start: at, count: length });
      at += length;
    }
    return free;
  }

  /** These blocks are free, but within reach: the caller has taken them out of the allocator. They must be claimed. */
  adopt(start: number, count: number): void {
    this.#keep(start, count, 0);
  }

  #keep(start: number, count: number, lsn: number): void {
    this.#held.replace(start, start, [{ start, count, value: lsn, tag: 0 }]);
    this.#blocks += count;
  }

  /** The owner cannot reach anything any more. Returns the held runs that nobody else claims. */
  release(owner: number): HeldRun[] {
    const runs = this.#claims.get(owner);
    if (runs === undefined) return [];
    this.#claims.delete(owner);
    for (const run of runs) this.#claimed.remove(run.start, run.count);
    const free: HeldRun[] = [];
    for (const { start, count } of runs) this.#letGo(start, start + count, free);
    return free;
  }

  /** What is held of [from, end) and claimed by nobody any more goes to `free`. */
  #letGo(from: number, end: number, free: HeldRun[]): void {
    for (let run = this.#held.first(from); run !== undefined && run.start < end; ) {
      const { start, count, value: lsn } = run;
      const kept: Row[] = [];
      for (let at = start; at < start + count; ) {
        const { claimed, length } = this.#stretch(at, start + count - at);
        if (claimed) kept.push({ start: at, count: length, value: lsn, tag: 0 });
        else {
          free.push({ start: at, count: length, lsn });
          this.#blocks -= length;
        }
        at += length;
      }
      this.#held.replace(start, start + 1, kept);
      run = this.#held.first(start + count);
    }
  }

  /** How many of the blocks that this owner claims are held. */
  heldFor(owner: number): number {
    let blocks = 0;
    for (const { start, count } of this.#claims.get(owner) ?? []) {
      const end = start + count;
      for (let run = this.#held.first(start); run !== undefined && run.start < end; ) {
        const runEnd = run.start + run.count;
        blocks += Math.min(runEnd, end) - Math.max(run.start, start);
        run = this.#held.first(runEnd);
      }
    }
    return blocks;
  }

  *heldRuns(): IterableIterator<Readonly<Run>> {
    for (const { start, count } of this.#held) yield { start, count };
  }

  /** Whether `at` is claimed, and for how many blocks the answer stays the same, at most `limit`. */
  #stretch(at: number, limit: number): { claimed: boolean; length: number } {
    const { references, count } = this.#claimed.at(at, limit);
    const claimed = references > 0;
    let length = count;
    while (length < limit) {
      const next = this.#claimed.at(at + length, limit - length);
      if (next.references > 0 !== claimed) break;
      length += next.count;
    }
    return { claimed, length };
  }

  check(): void {
    this.#held.check();
    let blocks = 0;
    for (const run of this.#held) blocks += run.count;
    invariant(blocks === this.#blocks, () => `${blocks} blocks held, ${this.#blocks} counted`);
    for (const run of this.#held) {
      let at = run.start;
      while (at < run.start + run.count) {
        const { claimed, length } = this.#stretch(at, run.start + run.count - at);
        invariant(claimed, () => `block ${at} is held for nobody`);
        at += length;
      }
    }
  }
}
