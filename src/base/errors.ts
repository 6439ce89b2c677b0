/**
 * Three kinds of failure, never mixed:
 *
 * - `FsError`: an expected answer to a caller (ENOENT, ENOSPC, ETXTBSY…). Translated to a reply in one place. Among them
 *   `MediaError`, which the administrator has to hear of as well.
 * - `CorruptionError`: bytes on the region are not what the format says. Names the place, what was expected and
 *   what was found. The mount is refused, or turns read-only.
 * - `InvariantError`: our own bug. The mount turns read-only rather than write on top of a state it does not understand.
 */
import { Errno, type ErrnoName, errnoName } from "./errno.ts";

export class FsError extends Error {
  readonly errno: number;

  /** @param errno its name, or its number from 1 to 4095. @throws TypeError for any other: it would mean success */
  constructor(errno: ErrnoName | number, detail?: string) {
    const value = typeof errno === "number" ? errno : Errno[errno];
    const name = typeof errno === "number" ? errnoName(errno) : errno;
    super(detail === undefined ? name : `${name}: ${detail}`);
    if (!Number.isInteger(value) || value < 1 || value > 4095) throw new TypeError(`no errno: ${errno}`);
    this.name = "FsError";
    this.errno = value;
  }

  get code(): string {
    return errnoName(this.errno);
  }
}

/** The region could not be read, written or synced: EIO to the caller, and a line in the log. */
export class MediaError extends FsError {
  constructor(detail: string) {
    super("EIO", detail);
    this.name = "MediaError";
  }
}

export class CorruptionError extends Error {
  /** Where on the region: a structure and its byte offset. */
  readonly where: string;
  readonly expected: string;
  readonly found: string;

  constructor(where: string, expected: string, found: string) {
    super(`damaged ${where}: expected ${expected}, found ${found}`);
    this.name = "CorruptionError";
    this.where = where;
    this.expected = expected;
    this.found = found;
  }
}

export class InvariantError extends Error {
  constructor(detail: string) {
    super(`invariant violated: ${detail}`);
    this.name = "InvariantError";
  }
}

/** Stop on a broken assumption of our own. Never use it for input that comes from outside. */
export function invariant(condition: boolean, detail: string | (() => string)): asserts condition {
  if (!condition) throw new InvariantError(typeof detail === "string" ? detail : detail());
}
