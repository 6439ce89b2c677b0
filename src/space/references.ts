/**
 * How many extents refer to each block that files may share: reflink's reference counts.
 *
 * They are not on the media: each SHARED extent is one reference to each of its blocks, so the extents tell. A count of
 * one is a block that was shared once; its owner may take it for itself again (namespace/sharing.ts).
 *
 * Invariants (check()):
 * - runs are sorted, do not overlap, have at least one block and one reference each;
 * - neighbours that could be one run are one run.
 */
import { replaceRange } from "../base/arrays.ts";
import { invariant } from "../base/errors.ts";
import type { Run } from "./allocator.ts";

export interface CountedRun extends Run {
  references: number;
}

export class References {
  readonly #runs: CountedRun[] = [];

  get length(): number {
    return this.#runs.length;
  }

  [Symbol.iterator](): IterableIterator<Readonly<CountedRun>> {
    return this.#runs[Symbol.iterator]();
  }

  /** Count all of these: in one sweep over where they begin and end. Nothing was counted before. */
  build(extents: readonly Run[]): void {
    const begins = extents.map(({ start }) => start).sort((a, b) => a - b);
    const ends = extents.map(({ start, count }) => start + count).sort((a, b) => a - b);
    let references = 0;
    let at = 0;
    for (let begin = 0, end = 0; end < ends.length; ) {
      const next = Math.min(begins[begin] ?? Number.POSITIVE_INFINITY, ends[end] as number);
      if (references > 0 && next > at) this.#runs.push({ start: at, count: next - at, references });
      const before = references;
      while (begins[begin] === next) {
        begin += 1;
        references += 1;
      }
      while (ends[end] === next) {
        end += 1;
        references -= 1;
      }
      const last = this.#runs[this.#runs.length - 1];
      // As many begin here as end: the run goes on.
      if (references === before && last !== undefined && last.start + last.count === next && references > 0) {
        this.#runs.pop();
        at = last.start;
      } else at = next;
    }
  }

  /** One more extent refers to these blocks. */
  add(start: number, count: number): void {
    this.#change(start, count, 1);
  }

  /** One extent less does. Returns the runs that no extent refers to any more. */
  remove(start: number, count: number): Run[] {
    return this.#change(start, count, -1);
  }

  /** References to the block `start`, and for how many blocks the number stays the same, at most `limit`. */
  at(start: number, limit: number): { references: number; count: number } {
    const run = this.#runs[this.#search(start)];
    if (run === undefined) return { references: 0, count: limit };
    if (run.start > start) return { references: 0, count: Math.min(limit, run.start - start) };
    return { references: run.references, count: Math.min(limit, run.start + run.count - start) };
  }

  /** Index of the first run that ends behind `block`. */
  #search(block: number): number {
    let low = 0;
    let high = this.#runs.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const run = this.#runs[middle] as CountedRun;
      if (run.start + run.count <= block) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #change(start: number, count: number, by: 1 | -1): Run[] {
    const end = start + count;
    const gone: Run[] = [];
    const replaced: CountedRun[] = [];
    const put = (at: number, upTo: number, references: number): void => {
      if (upTo <= at) return;
      if (references === 0) {
        gone.push({ start: at, count: upTo - at });
        return;
      }
      const last = replaced[replaced.length - 1];
      if (last !== undefined && last.start + last.count === at && last.references === references) {
        last.count += upTo - at;
      } else replaced.push({ start: at, count: upTo - at, references });
    };
    const nobodys = (at: number, upTo: number): void => {
      if (by > 0) put(at, upTo, 1);
      else invariant(upTo <= at, () => `blocks ${at} to ${upTo - 1} are not referred to`);
    };
    // From the neighbour before to the neighbour behind, so that what fits together is joined.
    const first = this.#search(start - 1);
    let index = first;
    let at = start;
    for (; index < this.#runs.length; index += 1) {
      const run = this.#runs[index] as CountedRun;
      if (run.start > end) break;
      const runEnd = run.start + run.count;
      put(run.start, Math.min(runEnd, start), run.references);
      const from = Math.min(Math.max(run.start, at), end);
      nobodys(at, from);
      at = Math.max(from, Math.min(runEnd, end));
      put(from, at, run.references + by);
      put(Math.max(run.start, end), runEnd, run.references);
    }
    nobodys(at, end);
    replaceRange(this.#runs, first, index - first, replaced);
    return gone;
  }

  check(): void {
    let previous: CountedRun | null = null;
    for (const run of this.#runs) {
      invariant(
        run.count >= 1 && run.references >= 1,
        () => `run of ${run.count}, ${run.references} references`,
      );
      if (previous !== null) {
        const end = previous.start + previous.count;
        invariant(end <= run.start, () => `runs overlap at block ${run.start}`);
        invariant(
          end < run.start || previous.references !== run.references,
          () => `runs at block ${run.start} should be one`,
        );
      }
      previous = run;
    }
  }
}
