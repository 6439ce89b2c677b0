/**
 * How a daemon in the background tells the command that started it that the mount answers, or why it does not: a line
 * of JSON on an inherited pipe. Before it, how far a recovery that takes long has come.
 *
 * Invariants:
 * - at most one such line is written, and it is the last; the end of the pipe without it means that the daemon died;
 * - what comes before fits into any pipe: nobody who does not read holds up a daemon.
 */
import { closeSync, writeSync } from "node:fs";
import { Failure } from "./failure.ts";

export interface ReadyLine {
  pid: number;
  progress?: { step: string; done: number; total: number };
  failure?: { what: string; why: string; todo: string; exitCode: 1 | 2 };
}

/** Bytes in all, and time from one to the next, milliseconds. */
const PROGRESS_BYTES_MAX = 32_768;
const PROGRESS_MS = 100;

/** The daemon's end. */
export class Readiness {
  #descriptor: number | undefined;
  #progressBytes = 0;
  #progressAtMs = 0;

  /** Without a descriptor nobody waits, and telling does nothing. */
  constructor(descriptor: number | undefined) {
    this.#descriptor = descriptor;
  }

  ready(): void {
    this.#write({ pid: process.pid });
  }

  progress(step: string, done: number, total: number): void {
    const nowMs = performance.now();
    if (this.#descriptor === undefined || nowMs - this.#progressAtMs < PROGRESS_MS) return;
    this.#progressAtMs = nowMs;
    const line = `${JSON.stringify({ pid: process.pid, progress: { step, done, total } })}\n`;
    this.#progressBytes += line.length;
    if (this.#progressBytes > PROGRESS_BYTES_MAX) return;
    try {
      writeSync(this.#descriptor, line);
    } catch {
      // As below.
    }
  }

  failed({ what, why, todo, exitCode }: Failure): void {
    this.#write({ pid: process.pid, failure: { what, why, todo, exitCode } });
  }

  #write(line: ReadyLine): void {
    if (this.#descriptor === undefined) return;
    try {
      writeSync(this.#descriptor, `${JSON.stringify(line)}\n`);
      closeSync(this.#descriptor);
    } catch {
      // Who started us has gone away (Ctrl-C); the mount is no worse for it.
    }
    this.#descriptor = undefined;
  }
}

/** The first complete lines of what was read that tell of progress; the rest. */
export function takeProgress(text: string): { steps: NonNullable<ReadyLine["progress"]>[]; rest: string } {
  const steps: NonNullable<ReadyLine["progress"]>[] = [];
  let rest = text;
  for (let end = rest.indexOf("\n"); end >= 0; end = rest.indexOf("\n")) {
    const { progress } = JSON.parse(rest.slice(0, end)) as ReadyLine;
    if (progress === undefined) break;
    steps.push(progress);
    rest = rest.slice(end + 1);
  }
  return { steps, rest };
}

/** What the other end read: the daemon's pid, or the failure that it told. */
export function readReadyLine(text: string): number {
  if (!text.includes("\n")) {
    throw new Failure(
      "mount",
      "the daemon ended before the mount answered",
      "run it with --foreground to see why",
    );
  }
  const { pid, failure } = JSON.parse(text.slice(0, text.indexOf("\n"))) as ReadyLine;
  if (failure !== undefined) throw new Failure(failure.what, failure.why, failure.todo, failure.exitCode);
  return pid;
}
