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

/** The same blocks in order, none twice. */
export function union(runs: readonly Readonly<Run>[]): Run[] {
  const merged: { start: number; count: number }[] = [];
  for (const { start, count } of [...runs].sort((one, other) => one.start - other.start)) {
    const last = merged.at(-1);
    if (last === undefined || start > last.start + last.count) merged.push({ start, count });
    else last.count = Math.max(last.count, start + count - last.start);
  }
  return merged;
}

/** How many blocks there are in runs that do not overlap each other. */
export function blocksIn(runs: readonly Pick<Run, "count">[]): number {
  let blocks = 0;
  for (const { count } of runs) blocks += count;
  return blocks;
}

/** What both have; each as `union` returns it. */
export function intersection(one: readonly Run[], other: readonly Run[]): Run[] {
  const both: Run[] = [];
  for (const { start, count } of one) {
    for (const run of overlapping(other, start, start + count)) {
      const from = Math.max(start, run.start);
      both.push({ start: from, count: Math.min(start + count, run.start + run.count) - from });
    }
  }
  return both;
}
