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
import { invariant } from "../base/errors.ts";
import { type Row, RunTable } from "../tables/run-table.ts";
import type { Run } from "./allocator.ts";

export interface CountedRun extends Run {
  references: number;
}

const rowOf = ({ start, count, references }: CountedRun): Row => ({
  start,
  count,
  value: references,
  tag: 0,
});

export class References {
  /** `value` of a row is its number of references. */
  readonly #runs = new RunTable();

  get length(): number {
    return this.#runs.length;
  }

  *[Symbol.iterator](): IterableIterator<Readonly<CountedRun>> {
    for (const { start, count, value } of this.#runs) yield { start, count, references: value };
  }

  /** Count all of these: in one sweep over where they begin and end. Nothing was counted before. */
  build(extents: readonly Run[]): void {
    const begins = extents.map(({ start }) => start).sort((a, b) => a - b);
    const ends = extents.map(({ start, count }) => start + count).sort((a, b) => a - b);
    const runs: CountedRun[] = [];
    let references = 0;
    let at = 0;
    for (let begin = 0, end = 0; end < ends.length; ) {
      const next = Math.min(begins[begin] ?? Number.POSITIVE_INFINITY, ends[end] as number);
      if (references > 0 && next > at) put(runs, at, next, references);
      while (begins[begin] === next) {
        begin += 1;
        references += 1;
      }
      while (ends[end] === next) {
        end += 1;
        references -= 1;
      }
      at = next;
    }
    this.#runs.replace(0, Number.POSITIVE_INFINITY, runs.map(rowOf));
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
    const run = this.#runs.first(start);
    if (run === undefined) return { references: 0, count: limit };
    if (run.start > start) return { references: 0, count: Math.min(limit, run.start - start) };
    return { references: run.value, count: Math.min(limit, run.start + run.count - start) };
  }

  #change(start: number, count: number, by: 1 | -1): Run[] {
    const end = start + count;
    const gone: Run[] = [];
    const replaced: CountedRun[] = [];
    const become = (from: number, upTo: number, references: number): void => {
      if (upTo <= from) return;
      if (references === 0) gone.push({ start: from, count: upTo - from });
      else put(replaced, from, upTo, references);
    };
    const nobodys = (at: number, upTo: number): void => {
      if (by > 0) become(at, upTo, 1);
      else invariant(upTo <= at, () => `blocks ${at} to ${upTo - 1} are not referred to`);
    };
    // From the neighbour before to the neighbour behind, so that what fits together is joined.
    let first = start;
    let behind = end;
    let at = start;
    for (let run = this.#runs.first(Math.max(start - 1, 0)); run !== undefined && run.start <= end; ) {
      const runEnd = run.start + run.count;
      first = Math.min(first, run.start);
      behind = Math.max(behind, runEnd);
      become(run.start, Math.min(runEnd, start), run.value);
      const from = Math.min(Math.max(run.start, at), end);
      nobodys(at, from);
      at = Math.max(from, Math.min(runEnd, end));
      become(from, at, run.value + by);
      become(Math.max(run.start, end), runEnd, run.value);
      run = this.#runs.first(runEnd);
    }
    nobodys(at, end);
    this.#runs.replace(first, behind, replaced.map(rowOf));
    return gone;
  }

  check(): void {
    this.#runs.check();
    let previous: CountedRun | null = null;
    for (const run of this) {
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

/** So many references to [from, end), which lies behind these runs: one more run, or the last one longer. */
function put(runs: CountedRun[], from: number, end: number, references: number): void {
  const last = runs[runs.length - 1];
  if (last !== undefined && last.start + last.count === from && last.references === references) {
    last.count += end - from;
  } else runs.push({ start: from, count: end - from, references });
}
