/** Waiting for what another process, or the event loop, brings about. */
import { setTimeout as sleep } from "node:timers/promises";

const LOOK_MS = 10;

/** Resolves when it holds. @throws Error when it does not within `limitMs`. */
export async function until(holds: () => boolean | Promise<boolean>, limitMs: number): Promise<void> {
  const end = Date.now() + limitMs;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`not so after ${limitMs} ms`);
    await sleep(LOOK_MS);
  }
}
