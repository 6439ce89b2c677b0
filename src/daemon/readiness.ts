/**
 * How a daemon in the background tells the command that started it that the mount answers, or why it does not: one line
 * of JSON on an inherited pipe.
 *
 * Invariant: at most one line is written; the end of the pipe without a line means that the daemon died.
 */
import { closeSync, writeSync } from "node:fs";
import { Failure } from "./failure.ts";

export interface ReadyLine {
  pid: number;
  failure?: { what: string; why: string; todo: string; exitCode: 1 | 2 };
}

/** The daemon's end. */
export class Readiness {
  #descriptor: number | undefined;

  /** Without a descriptor nobody waits, and telling does nothing. */
  constructor(descriptor: number | undefined) {
    this.#descriptor = descriptor;
  }

  ready(): void {
    this.#write({ pid: process.pid });
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
