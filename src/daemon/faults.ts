/**
 * What becomes of our own bugs while others have files open: they end no more than what they happened in.
 *
 * - A request is answered with EIO (session.ts), a callback is over; the log has one line for each kind.
 * - Where an invariant does not hold, the state in memory is not to be trusted: from then on nothing is written, everything
 *   is read as before, and the next mount recovers what was acknowledged.
 * - Before there is a mount, the process ends: somebody waits for it to say why.
 */
import { InvariantError } from "../base/errors.ts";
import { listenToFaults } from "../base/faults.ts";
import type { Volume } from "../session/volume.ts";
import type { Log } from "./log.ts";

/** The same fault again is told of once in so long, milliseconds: a timer may meet it every second. */
const AGAIN_MS = 60_000;
/** Faults that are remembered, to tell the same from another. */
const REMEMBERED_MAX = 64;

export class Faults {
  readonly #log: Log;
  #volume: Volume | null = null;
  readonly #told = new Map<string, number>();

  constructor(log: Log) {
    this.#log = log;
    process.on("uncaughtException", (error) => this.#uncaught(error));
    process.on("unhandledRejection", (error) => this.#uncaught(error));
  }

  /** The volume is in use from now on; null: it is not any more. */
  serve(volume: Volume | null): void {
    this.#volume = volume;
    listenToFaults(volume === null ? null : (what, error) => this.#contained(what, error));
  }

  #contained(what: string, error: unknown): void {
    this.#tell(`internal error in ${what}`, error);
    if (error instanceof InvariantError) this.#volume?.store.distrust(error);
  }

  #uncaught(error: unknown): void {
    if (this.#volume === null) {
      this.#log.error(`internal error, stopping: ${inWords(error)}`);
      process.exit(1);
    }
    this.#contained("a callback", error);
  }

  #tell(what: string, error: unknown): void {
    const text = `${what}: ${inWords(error)}`;
    const now = Date.now();
    if (now - (this.#told.get(text) ?? Number.NEGATIVE_INFINITY) < AGAIN_MS) return;
    if (this.#told.size >= REMEMBERED_MAX) this.#told.clear();
    this.#told.set(text, now);
    this.#log.error(text);
  }
}

/** On one line: what, and where it was thrown. */
function inWords(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const where = error.stack?.split("\n").find((line) => /^\s+at /.test(line));
  return `${error.name}: ${error.message}${where === undefined ? "" : ` ${where.trim()}`}`.replaceAll(
    "\n",
    " ",
  );
}
