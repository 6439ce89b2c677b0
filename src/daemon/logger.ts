/**
 * The daemon's log: one event a line on stderr. What reads it (a terminal, the journal, a file given with --log) says in
 * which form: text for people, JSON for programs, or text with the priorities of sd-daemon(3) for the journal.
 *
 * Invariants:
 * - a line is written before the call returns: the last one before the end of the process is the one that matters most;
 * - a log that cannot be written (a closed terminal, a full disk) never stops the file system.
 */
import { fstatSync, writeSync } from "node:fs";
import { pino } from "pino";
import type { Log, LogFormat, LogLevel } from "./log.ts";

export interface LogRequest {
  readonly lowest: LogLevel;
  /** Left out: `journal` when stderr is the journal's, else `text`. */
  readonly format?: LogFormat | undefined;
  /** What each line of JSON says besides. */
  readonly fields?: Readonly<Record<string, string | number>>;
  readonly write?: (line: string) => void;
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

export function createLog({ lowest, format, fields = {}, write = toStderr }: LogRequest): Log {
  const form = format ?? (stderrIsJournal() ? "journal" : "text");
  const logger = pino(
    {
      level: lowest,
      base: { pid: process.pid, ...fields },
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
    },
    { write: form === "json" ? write : (line) => write(inWords(line, form)) },
  );
  const at =
    (level: LogLevel) =>
    (text: string): void =>
      logger[level](text);
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

function inWords(line: string, form: "text" | "journal"): string {
  const { time, level, msg } = JSON.parse(line) as { time: string; level: LogLevel; msg: string };
  if (form === "text") return `${time} ${level} ${msg.replaceAll("\n", "\n  ")}\n`;
  // The journal takes each line as an entry of its own, and has the time already.
  return msg.replace(/^/gm, `<${PRIORITIES[level]}>`).concat("\n");
}
