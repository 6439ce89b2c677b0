/** Runs of blocks in order. */
import type { Run } from "./allocator.ts";

/** Of runs that are sorted and do not overlap each other those that have a block of [start, end). */
export function* overlapping<R extends Readonly<Run>>(
  runs: readonly R[],
  start: number,
  end: number,
): IterableIterator<R> {
  let low = 0;
  let high = runs.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const run = runs[middle] as R;
    if (run.start + run.count <= start) low = middle + 1;
    else high = middle;
  }
  for (let at = low; at < runs.length && (runs[at] as R).start < end; at += 1) yield runs[at] as R;
}
