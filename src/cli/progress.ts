/**
 * Bars for what takes long: on standard error, and only where that is a terminal.
 *
 * Invariants:
 * - a step that is over soon shows nothing;
 * - when the operation is over, the bar is gone: the terminal has what the command prints;
 * - nothing about the terminal is changed, so that nothing has to be put back when the command is ended half-way.
 */
import { Presets, SingleBar } from "cli-progress";
import { listenToProgress } from "../base/progress.ts";

/** Nothing is shown before, milliseconds. */
const PATIENCE_MS = 300;

export class Bars {
  readonly #stream: NodeJS.WriteStream;
  readonly #patienceMs: number;
  readonly #sinceMs = performance.now();
  #bar: SingleBar | null = null;
  #step = "";

  constructor(stream: NodeJS.WriteStream, patienceMs: number) {
    this.#stream = stream;
    this.#patienceMs = patienceMs;
  }

  update(step: string, done: number, total: number): void {
    if (performance.now() - this.#sinceMs < this.#patienceMs) return;
    if (this.#bar === null || step !== this.#step) {
      this.stop();
      this.#step = step;
      const format = total > 0 ? "{step} [{bar}] {percentage} %, {eta_formatted} left" : "{step}: {value}";
      this.#bar = new SingleBar(
        {
          stream: this.#stream,
          format,
          clearOnComplete: true,
          // Whoever ends the command half-way gets a terminal that is as it was: nothing of it is changed.
          hideCursor: false,
          linewrap: true,
          barsize: 30,
          // Most of what is shown here leaves no time for timers: drawn as it is told.
          synchronousUpdate: true,
          noTTYOutput: false,
          fps: 10,
        },
        Presets.legacy,
      );
      this.#bar.start(total > 0 ? total : Number.MAX_SAFE_INTEGER, done, { step });
    }
    if (total > 0) this.#bar.setTotal(total);
    this.#bar.update(done, { step });
  }

  stop(): void {
    this.#bar?.stop();
    this.#bar = null;
  }
}

/** Run it, showing how far it is. */
export function showingProgress<T>(action: () => T): T {
  if (process.stderr.isTTY !== true) return action();
  const bars = new Bars(process.stderr, PATIENCE_MS);
  listenToProgress((step, done, total) => bars.update(step, done, total));
  const end = (): void => {
    listenToProgress(null);
    bars.stop();
  };
  let result: T;
  try {
    result = action();
  } catch (error) {
    end();
    throw error;
  }
  if (result instanceof Promise) return result.finally(end) as T;
  end();
  return result;
}
