/**
 * The daemon's log: one line an event on stderr, with time and level. What reads it (a terminal, systemd, a file given
 * with --log) is not its business.
 */
import { writeSync } from "node:fs";

export type LogLevel = "debug" | "info" | "warn" | "error";
const ORDER: readonly LogLevel[] = ["debug", "info", "warn", "error"];

export interface Log {
  debug(text: string): void;
  info(text: string): void;
  warn(text: string): void;
  error(text: string): void;
}

/** Written synchronously: the last line before the end of the process is the one that matters most. */
const toStderr = (line: string): void => {
  try {
    writeSync(2, line);
  } catch {
    // A closed terminal or a full disk must not stop the file system.
  }
};

export function createLog(lowest: LogLevel, write: (line: string) => void = toStderr): Log {
  const at =
    (level: LogLevel) =>
    (text: string): void => {
      if (ORDER.indexOf(level) < ORDER.indexOf(lowest)) return;
      const flat = text.replaceAll("\n", "\n  ");
      write(`${new Date().toISOString()} ${level} ${flat}\n`);
    };
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}
