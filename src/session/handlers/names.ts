/** Requests about names. A reply with an entry counts as a lookup, which the kernel gives back with FORGET. */
import { FsError } from "../../base/errors.ts";
import { putEntry, putNegativeEntry } from "../../fuse/encode.ts";
import { LinkIn, MkdirIn, MknodIn, Opcode, Rename2In, RenameIn } from "../../fuse/kernel.ts";
import type { Request } from "../../fuse/request.ts";
import { type Inode, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } from "../../namespace/inode.ts";
import * as names from "../../namespace/names.ts";
import type { Session } from "../session.ts";
import { entryOf, VALID_SEC } from "./entry.ts";

export function replyEntry(session: Session, request: Request, inode: Inode): void {
  inode.lookups += 1;
  const length = putEntry(session.outView, 0, entryOf(session, inode));
  if (!session.reply(request, length)) {
    // Nobody took it, so nobody will give it back.
    inode.lookups -= 1;
    session.volume.store.reapSoon(inode);
  }
}

export function lookup(session: Session, request: Request): void {
  const { store } = session.volume;
  const parent = store.inode(request.nodeid);
  const name = request.name();
  if (name !== "." && name !== ".." && names.entryOf(parent, name) === undefined) {
    session.reply(request, putNegativeEntry(session.outView, 0, VALID_SEC, 0));
    return;
  }
  replyEntry(session, request, names.lookup(store, parent, name));
}

function forgetOne(session: Session, nodeid: number, lookups: number): void {
  const inode = session.volume.store.state.inodes.get(nodeid);
  if (inode === undefined) return;
  inode.lookups = Math.max(0, inode.lookups - lookups);
  if (inode.lookups === 0 && inode.nlink === 0) session.volume.store.reapSoon(inode);
}

export function forget(session: Session, request: Request): void {
  forgetOne(session, request.nodeid, request.forgetLookups);
}

export function batchForget(session: Session, request: Request): void {
  request.batchForget((nodeid, lookups) => forgetOne(session, nodeid, lookups));
}

/** Under FUSE_DONT_MASK the umask is ours to apply. */
export function creatorOf(request: Request, umask: number): names.Creator {
  return { uid: request.uid, gid: request.gid, umask };
}

export function mknod(session: Session, request: Request): void {
  const { store } = session.volume;
  const { mode, rdev, umask } = request.body(MknodIn);
  // mknod(2): no type means a regular file.
  const full = (mode & S_IFMT) === 0 ? mode | S_IFREG : mode;
  const parent = store.inode(request.nodeid);
  const made = names.create(store, parent, request.name(), full, rdev, creatorOf(request, umask), null);
  replyEntry(session, request, made);
}

export function mkdir(session: Session, request: Request): void {
  const { store } = session.volume;
  const { mode, umask } = request.body(MkdirIn);
  const full = S_IFDIR | (mode & 0o7777);
  const parent = store.inode(request.nodeid);
  const made = names.create(store, parent, request.name(), full, 0, creatorOf(request, umask), null);
  replyEntry(session, request, made);
}

export function symlink(session: Session, request: Request): void {
  const { store } = session.volume;
  const target = request.secondName();
  const parent = store.inode(request.nodeid);
  replyEntry(
    session,
    request,
    names.create(store, parent, request.name(), S_IFLNK | 0o777, 0, request, target),
  );
}

export function readlink(session: Session, request: Request): void {
  const inode = session.volume.store.inode(request.nodeid);
  if (inode.target === null) throw new FsError("EINVAL", "no symbolic link");
  session.reply(request, session.out.write(inode.target, 0, "latin1"));
}

export function link(session: Session, request: Request): void {
  const { store } = session.volume;
  const inode = store.inode(request.body(LinkIn).oldnodeid);
  names.link(store, inode, store.inode(request.nodeid), request.name());
  replyEntry(session, request, inode);
}

export function unlink(session: Session, request: Request): void {
  const { store } = session.volume;
  names.unlink(store, store.inode(request.nodeid), request.name());
  session.reply(request, 0);
}

export function rmdir(session: Session, request: Request): void {
  const { store } = session.volume;
  names.rmdir(store, store.inode(request.nodeid), request.name());
  session.reply(request, 0);
}

export function rename(session: Session, request: Request): void {
  const { store } = session.volume;
  let flags = 0;
  let newdir: number;
  if (request.opcode === Opcode.RENAME2) ({ flags, newdir } = request.body(Rename2In));
  else newdir = request.body(RenameIn).newdir;
  names.rename(
    store,
    store.inode(request.nodeid),
    request.name(),
    store.inode(newdir),
    request.secondName(),
    flags,
  );
  session.reply(request, 0);
}
