/**
 * How far a long operation has come. What takes long says so as it goes; a command that has somebody to show it to
 * listens. One listener a process, as there is one operation and one terminal: nothing on the way has to hand it down.
 *
 * Invariant: without a listener, saying it costs one comparison.
 */

/**
 * @param step what is being done, in words
 * @param done so many of `total`
 * @param total 0 when nobody knows
 */
export type ProgressListener = (step: string, done: number, total: number) => void;

let listener: ProgressListener | null = null;

/** Null: nobody listens any more. */
export function listenToProgress(to: ProgressListener | null): void {
  listener = to;
}

export function progress(step: string, done: number, total: number): void {
  if (listener !== null) listener(step, done, total);
}

/** Whoever counts in small steps says so once in so many. */
export const PROGRESS_STRIDE = 4096;
