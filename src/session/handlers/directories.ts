/** Reading directories. Cookies are those of namespace/directory.ts; 1 and 2 are "." and "..". */
import { FsError } from "../../base/errors.ts";
import { DirentplusWriter, DirentWriter, putOpenOut } from "../../fuse/encode.ts";
import { Fopen, OpenFlag, OpenIn } from "../../fuse/kernel.ts";
import type { Request } from "../../fuse/request.ts";
import { noteAccess } from "../../namespace/attributes.ts";
import type { Dentry } from "../../namespace/directory.ts";
import type { Inode } from "../../namespace/inode.ts";
import type { Session } from "../session.ts";
import { entryOf } from "./entry.ts";

const DT_DIR = 4;
const COOKIE_DOT = 1;
const COOKIE_DOTDOT = 2;

/**
 * All changes of a directory go through this mount, and the kernel drops what it has read of one when it changes it. Where
 * each reading is to be noted (strictatime), it has to come here.
 */
function openFlags(session: Session): number {
  const noted = session.options.atime === "strictatime" && !session.options.noDirectoryAtime;
  return noted ? 0 : Fopen.CACHE_DIR | Fopen.KEEP_CACHE;
}

export function opendir(session: Session, request: Request): void {
  const inode = session.volume.store.inode(request.nodeid);
  if (inode.directory === null) throw new FsError("ENOTDIR");
  const handle = session.handles.add(inode, request.body(OpenIn).flags);
  if (!session.reply(request, putOpenOut(session.outView, 0, handle.fh, openFlags(session))))
    session.handles.remove(handle.fh);
}

interface Reading {
  readonly inode: Inode;
  /** Behind which to continue. */
  readonly cookie: number;
  /** Where to stop: a reader that renames what it reads would never come to an end. */
  readonly end: number;
}

/** The directory, where to continue, and the time of access noted. */
function begin(session: Session, request: Request): Reading {
  const handle = session.handles.get(request.ioHandle);
  const { inode } = handle;
  if (inode.directory === null) throw new FsError("ENOTDIR");
  const quiet = session.options.noDirectoryAtime || (request.ioOpenFlags & OpenFlag.NOATIME) !== 0;
  if (!quiet) noteAccess(session.volume.store, inode, session.options.atime);
  const cookie = request.ioOffsetNumber;
  // Opened, or rewound.
  if (cookie === 0) handle.end = inode.directory.nextCookie;
  return { inode, cookie, end: handle.end };
}

/** The names to report, "." and ".." first. */
function* entriesOf({ inode, cookie, end }: Reading): IterableIterator<Readonly<Dentry>> {
  if (cookie < COOKIE_DOT) yield { name: ".", ino: inode.ino, cookie: COOKIE_DOT, type: DT_DIR };
  if (cookie < COOKIE_DOTDOT) yield { name: "..", ino: inode.parent, cookie: COOKIE_DOTDOT, type: DT_DIR };
  for (const entry of inode.directory?.after(cookie) ?? []) {
    if (entry.cookie >= end) return;
    yield entry;
  }
}

export function readdir(session: Session, request: Request): void {
  const reading = begin(session, request);
  const writer = new DirentWriter(session.out);
  writer.begin(request.ioSize);
  for (const entry of entriesOf(reading)) {
    if (!writer.add(entry.ino, entry.cookie, entry.type, entry.name)) break;
  }
  session.reply(request, writer.length);
}

export function readdirplus(session: Session, request: Request): void {
  const reading = begin(session, request);
  const { store } = session.volume;
  const writer = new DirentplusWriter(session.out);
  writer.begin(request.ioSize);
  const seen: Inode[] = [];
  for (const entry of entriesOf(reading)) {
    if (!writer.fits(entry.name.length)) break;
    if (entry.cookie <= COOKIE_DOTDOT) {
      writer.addBare(entry.ino, entry.cookie, entry.type, entry.name);
      continue;
    }
    const child = store.inode(entry.ino);
    writer.add(entryOf(session, child), entry.cookie, entry.type, entry.name);
    child.lookups += 1;
    seen.push(child);
  }
  if (!session.reply(request, writer.length)) {
    for (const child of seen) child.lookups -= 1;
  }
}
