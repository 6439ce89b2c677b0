/**
 * Work that takes longer than a request may wait is a generator that yields every now and then; whoever runs it decides
 * whether others get their turn meanwhile.
 */
import { FsError } from "./errors.ts";

/** How long the event loop is kept at a time, milliseconds. */
const SLICE_MS = 2;

/** Run it while requests are served. What it looks at may change between two slices. @throws FsError EINTR when aborted. */
export async function inSlices<T>(work: Generator<void, T>, signal?: AbortSignal): Promise<T> {
  for (;;) {
    const from = performance.now();
    do {
      const step = work.next();
      if (step.done === true) return step.value;
    } while (performance.now() - from < SLICE_MS);
    await new Promise((resolve) => setImmediate(resolve));
    if (signal?.aborted) throw new FsError("EINTR");
  }
}

/** Run it to its end at once. */
export function atOnce<T>(work: Generator<void, T>): T {
  for (;;) {
    const step = work.next();
    if (step.done === true) return step.value;
  }
}
