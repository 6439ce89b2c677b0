/**
 * What nobody expected, where nobody is there to hear of it: thrown in the callback of a timer or of an event, or by a
 * promise that nobody awaits. In a bare callback it would end the process, and with it the mount of everybody. So each of
 * these goes through here, and whoever runs the process says what becomes of it: one listener, as there is one process.
 *
 * Invariants:
 * - what `guarded` returns never throws;
 * - a fault is never lost: without a listener it is thrown from the event loop, as if nobody had caught it.
 */
export type FaultListener = (what: string, error: unknown) => void;

let listener: FaultListener | null = null;

/** Null: what nobody expected ends the process again. */
export function listenToFaults(to: FaultListener | null): void {
  listener = to;
}

/** Tell of it. @param what was being done, in words */
export function fault(what: string, error: unknown): void {
  if (listener !== null) listener(what, error);
  else
    setImmediate(() => {
      throw error;
    });
}

/** The same function, whose exceptions are faults; so are those of the promise that it returns. */
export function guarded<A extends unknown[]>(
  what: string,
  run: (...args: A) => unknown,
): (...args: A) => void {
  return (...args) => {
    try {
      // biome-ignore lint/plugin: as many as it was called with
      const result = run(...args);
      if (result instanceof Promise) inBackground(what, result);
    } catch (error) {
      fault(what, error);
    }
  };
}

/** Nobody awaits this promise. */
export function inBackground(what: string, running: Promise<unknown>): void {
  running.catch((error: unknown) => fault(what, error));
}

export function after(milliseconds: number, what: string, run: () => unknown): NodeJS.Timeout {
  return setTimeout(guarded(what, run), milliseconds);
}

export function every(milliseconds: number, what: string, run: () => unknown): NodeJS.Timeout {
  return setInterval(guarded(what, run), milliseconds);
}

/** In the next turn of the event loop. */
export function soon(what: string, run: () => unknown): void {
  setImmediate(guarded(what, run));
}
