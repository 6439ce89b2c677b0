/**
 * The daemon's log: one event a line, on stderr or to syslog. What reads it (a terminal, the journal, a file) says in
 * which form: text for people, JSON for programs, or text with the priorities of sd-daemon(3) for the journal.
 *
 * Invariants:
 * - a line is written before the call returns: the last one before the end of the process is the one that matters most;
 * - a log that cannot be written (a closed terminal, a full disk) never stops the file system.
 */
import { fstatSync, writeSync } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { pino } from "pino";
import { addon } from "../region/addon.ts";
import type { Log, LogFormat, LogLevel } from "./log.ts";
import type { LogSink } from "./syslog.ts";

export interface LogRequest {
  readonly lowest: LogLevel;
  /** Left out: `journal` when stderr is the journal's, else `text`. */
  readonly format?: LogFormat | undefined;
  /** What each line of JSON says besides. */
  readonly fields?: Readonly<Record<string, string | number>>;
  readonly write?: ((line: string) => void) | undefined;
  /** Takes the lines instead, each with its priority, and has the time by itself. */
  readonly sink?: LogSink | undefined;
}

/** Of syslog(3), as sd-daemon(3) has them. */
const PRIORITIES: Record<LogLevel, number> = { debug: 7, info: 6, warn: 4, error: 3 };

const toStderr = (line: string): void => {
  try {
    writeSync(2, line);
  } catch {
    // See above.
  }
};

/** systemd names the device and inode of what it connected stderr to (systemd.exec(5)). */
function stderrIsJournal(): boolean {
  const [device, inode] = (process.env.JOURNAL_STREAM ?? "").split(":");
  if (inode === undefined) return false;
  try {
    const { dev, ino } = fstatSync(2);
    return `${dev}` === device && `${ino}` === inode;
  } catch {
    return false;
  }
}

export function createLog({ lowest, format, fields = {}, write = toStderr, sink }: LogRequest): Log {
  const form = format ?? (stderrIsJournal() ? "journal" : "text");
  const stream = form === "json" ? write : (line: string) => write(inWords(line, form));
  const logger = pino(
    {
      level: lowest,
      base: { pid: process.pid, ...fields },
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    { write: sink === undefined ? stream : (line) => toSink(line, form, sink) },
  );
  const at =
    (level: LogLevel) =>
    (text: string): void =>
      logger[level](text);
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

/** A log in a file, which can be begun anew where somebody has renamed it. */
export class LogFile {
  readonly #path: string;
  readonly #withStderr: boolean;
  #file: FileHandle;

  private constructor(path: string, file: FileHandle, withStderr: boolean) {
    this.#path = path;
    this.#withStderr = withStderr;
    this.#file = file;
    this.#redirect();
  }

  /** @param withStderr for a daemon whose stderr nobody sees: what Node.js and the C library say is in the file as well. */
  static async open(path: string, withStderr: boolean): Promise<LogFile> {
    return new LogFile(path, await open(path, "a", 0o600), withStderr);
  }

  write(line: string): void {
    try {
      writeSync(this.#file.fd, line);
    } catch {
      // See above.
    }
  }

  /** Not on the event loop: by now the path may lead to a mount that waits for us. */
  async reopen(): Promise<void> {
    const before = this.#file;
    this.#file = await open(this.#path, "a", 0o600);
    this.#redirect();
    await before.close();
  }

  #redirect(): void {
    if (!this.#withStderr) return;
    for (const descriptor of [1, 2]) addon().replaceDescriptor(this.#file.fd, descriptor);
  }
}

interface Event {
  readonly time: string;
  readonly level: LogLevel;
  readonly msg: string;
}

function toSink(line: string, form: LogFormat, sink: LogSink): void {
  const { level, msg } = JSON.parse(line) as Event;
  for (const text of form === "json" ? [line.trimEnd()] : msg.split("\n")) sink(PRIORITIES[level], text);
}

function inWords(line: string, form: "text" | "journal"): string {
  const { time, level, msg } = JSON.parse(line) as Event;
  if (form === "text") return `${time} ${level} ${msg.replaceAll("\n", "\n  ")}\n`;
  // The journal takes each line as an entry of its own, and has the time already.
  return msg.replace(/^/gm, `<${PRIORITIES[level]}>`).concat("\n");
}
