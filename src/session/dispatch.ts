/** Which handler serves which opcode. Whatever is not here is answered with ENOSYS, and the kernel remembers. */
import { Opcode } from "../fuse/kernel.ts";
import type { Request } from "../fuse/request.ts";
import * as attributes from "./handlers/attributes.ts";
import * as connection from "./handlers/connection.ts";
import * as data from "./handlers/data.ts";
import * as directories from "./handlers/directories.ts";
import * as files from "./handlers/files.ts";
import * as ioctls from "./handlers/ioctls.ts";
import * as names from "./handlers/names.ts";
import * as xattrs from "./handlers/xattrs.ts";
import type { Session } from "./session.ts";

/** Answers before it returns, or throws FsError or Wait. The request is the session's own buffer: keep nothing of it. */
export interface ImmediateHandler {
  readonly waits: false;
  run(session: Session, request: Request): void;
}

/** May answer later; has a request of its own. The signal is aborted when the caller was interrupted. Throws (rejects) like the other. */
export interface WaitingHandler {
  readonly waits: true;
  /** Answers at once, as the other kind, or returns false: then nothing has happened, and `run` does it. */
  readonly atOnce: ((session: Session, request: Request) => boolean) | null;
  run(session: Session, request: Request, signal: AbortSignal): Promise<void>;
}

export type Handler = ImmediateHandler | WaitingHandler;

const now = (run: ImmediateHandler["run"]): Handler => ({ waits: false, run });
const later = (run: WaitingHandler["run"], atOnce: WaitingHandler["atOnce"] = null): Handler => ({
  waits: true,
  atOnce,
  run,
});

export const handlers: (Handler | undefined)[] = [];

const rows: readonly (readonly [number, Handler])[] = [
  [Opcode.INIT, now(connection.init)],
  [Opcode.DESTROY, now(connection.destroy)],
  [Opcode.STATFS, now(connection.statfs)],
  [Opcode.LOOKUP, now(names.lookup)],
  [Opcode.FORGET, now(names.forget)],
  [Opcode.BATCH_FORGET, now(names.batchForget)],
  [Opcode.MKNOD, now(names.mknod)],
  [Opcode.MKDIR, now(names.mkdir)],
  [Opcode.SYMLINK, now(names.symlink)],
  [Opcode.READLINK, now(names.readlink)],
  [Opcode.LINK, now(names.link)],
  [Opcode.UNLINK, now(names.unlink)],
  [Opcode.RMDIR, now(names.rmdir)],
  [Opcode.RENAME, now(names.rename)],
  [Opcode.RENAME2, now(names.rename)],
  [Opcode.GETATTR, now(attributes.getattr)],
  [Opcode.SETATTR, now(attributes.setattr)],
  [Opcode.STATX, now(attributes.statx)],
  [Opcode.OPEN, now(files.open)],
  [Opcode.CREATE, now(files.create)],
  [Opcode.TMPFILE, now(files.tmpfile)],
  [Opcode.RELEASE, now(files.release)],
  [Opcode.FLUSH, now(files.flush)],
  [Opcode.FSYNC, later(files.fsync)],
  [Opcode.FSYNCDIR, later(files.fsync)],
  [Opcode.SYNCFS, later(files.fsync)],
  [Opcode.POLL, now(files.poll)],
  [Opcode.READ, now(data.read)],
  [Opcode.WRITE, now(data.write)],
  [Opcode.FALLOCATE, later(data.fallocate, data.fallocateAtOnce)],
  [Opcode.LSEEK, now(data.lseek)],
  [Opcode.COPY_FILE_RANGE, now(data.copyFileRange)],
  [Opcode.COPY_FILE_RANGE_64, now(data.copyFileRange)],
  [Opcode.OPENDIR, now(directories.opendir)],
  [Opcode.READDIR, now(directories.readdir)],
  [Opcode.READDIRPLUS, now(directories.readdirplus)],
  [Opcode.RELEASEDIR, now(files.release)],
  [Opcode.SETXATTR, now(xattrs.setxattr)],
  [Opcode.GETXATTR, now(xattrs.getxattr)],
  [Opcode.LISTXATTR, now(xattrs.listxattr)],
  [Opcode.REMOVEXATTR, now(xattrs.removexattr)],
  [Opcode.IOCTL, later(ioctls.ioctl, ioctls.ioctlAtOnce)],
];

for (const [opcode, handler] of rows) handlers[opcode] = handler;
