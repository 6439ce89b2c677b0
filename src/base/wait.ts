/**
 * An operation that cannot go on yet throws a Wait before it has changed anything. Whoever runs operations (the
 * session's dispatcher) keeps the request, waits for `until`, and runs it again from the start: an operation never
 * holds state across a wait, so everything it has checked is checked again.
 */
export class Wait extends Error {
  readonly until: Promise<void>;

  constructor(reason: string, until: Promise<void>) {
    super(reason);
    this.name = "Wait";
    this.until = until;
    // Whoever waits hears of a failure; that nobody does is no fault.
    until.catch(() => {});
  }
}

/** A promise, and what resolves it. */
export interface Deferred {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
}

export function deferred(): Deferred {
  let resolve: () => void = () => {};
  const promise = new Promise<void>((done) => {
    resolve = done;
  });
  return { promise, resolve };
}

/** Run an operation to its end, waiting as often as it asks for. Errors of the operation pass through. */
export async function retrying<T>(operation: () => T): Promise<T> {
  for (;;) {
    try {
      return operation();
    } catch (error) {
      if (!(error instanceof Wait)) throw error;
      await error.until;
    }
  }
}

/** Resolves when the wait is over or cut short. A failed wait is over, too: what failed is seen by the operation itself. */
export function settledOrAborted(until: Promise<void>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      signal.removeEventListener("abort", done);
      resolve();
    };
    signal.addEventListener("abort", done);
    until.then(done, done);
    // Of what has happened already, a listener is not told.
    if (signal.aborted) done();
  });
}
