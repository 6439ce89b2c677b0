/**
 * What a command tells the user when it cannot do its work: what failed, why, and what to do about it.
 *
 * Invariant: exit code 2 means that nothing was tried, because the request itself was wrong; 1 that it was tried.
 */
import { Errno, errnoName } from "../base/errno.ts";
import { CorruptionError, FsError } from "../base/errors.ts";

export class Failure extends Error {
  readonly exitCode: 1 | 2;
  readonly what: string;
  readonly why: string;
  readonly todo: string;

  constructor(what: string, why: string, todo: string, exitCode: 1 | 2 = 1) {
    super(`${what}: ${why}; ${todo}`);
    this.name = "Failure";
    this.exitCode = exitCode;
    this.what = what;
    this.why = why;
    this.todo = todo;
  }
}

/** A wrong request: exit code 2. */
export function usage(what: string, why: string, todo: string): Failure {
  return new Failure(what, why, todo, 2);
}

/** The positive errno of an error thrown by Node (negative there), by the addon or by us; 0 if it has none. */
export function errnoOf(error: unknown): number {
  if (!(error instanceof Error)) return 0;
  const { errno, code } = error as NodeJS.ErrnoException;
  if (typeof errno === "number" && errno !== 0) return Math.abs(errno);
  return typeof code === "string" && code in Errno ? Errno[code as keyof typeof Errno] : 0;
}

const MEANING: Record<string, string> = {
  EACCES: "permission denied",
  EAGAIN: "a limit is reached, a lease is being broken, or a snapshot is being taken",
  EBUSY: "it is in use",
  ECONNABORTED: "the daemon behind it is gone",
  EEXIST: "it exists already",
  EFBIG: "it is too large",
  EINVAL: "the request does not fit it",
  EIO: "input/output error",
  EISDIR: "it is a directory",
  ENODEV: "no such device",
  ENOENT: "no such file or directory",
  ENOMEM: "not enough memory",
  ENOSPC: "no space left",
  ENOTCONN: "the daemon behind it is gone",
  ENOTDIR: "not a directory",
  ENXIO: "no such device or address",
  EOPNOTSUPP: "not supported",
  EPERM: "operation not permitted",
  EROFS: "read-only",
  ETXTBSY: "a direct mapping pins its blocks (text file busy)",
};

/** The reason in words, for an error of any origin. */
export function reason(error: unknown): string {
  const name = errnoName(errnoOf(error));
  // Errors of ours say more than the number does.
  if (error instanceof FsError && error.message !== name) return error.message.slice(`${name}: `.length);
  const known = MEANING[name];
  if (known !== undefined) return `${known} (${name})`;
  return error instanceof Error ? error.message : String(error);
}

const DAMAGED =
  "see what 'mapdirect fsck REGION' says, which also repairs; 'mapdirect mount -o ro,rescue' shows what there is";

/** Whatever was thrown, as a failure with something to do about it. */
export function asFailure(error: unknown, what: string, todo = "see 'mapdirect --help'"): Failure {
  if (error instanceof Failure) return error;
  if (error instanceof CorruptionError) return new Failure(what, error.message, DAMAGED);
  const why = reason(error);
  // Some reasons bring their own advice, after a semicolon.
  const cut = error instanceof FsError ? why.lastIndexOf("; ") : -1;
  return cut < 0 ? new Failure(what, why, todo) : new Failure(what, why.slice(0, cut), why.slice(cut + 2));
}
