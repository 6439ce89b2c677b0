/** GETATTR, SETATTR, STATX. */
import { now, type Timestamp } from "../../base/clock.ts";
import { putAttrOut, putStatxOut } from "../../fuse/encode.ts";
import { Fattr, GetattrFlag, SetattrIn } from "../../fuse/kernel.ts";
import type { Request } from "../../fuse/request.ts";
import { type AttributeChange, changeAttributes } from "../../namespace/attributes.ts";
import { truncate } from "../../namespace/data.ts";
import type { Inode } from "../../namespace/inode.ts";
import { INODE_FLAGS, InodeFlag, mustNotBeImmutable, mustNotBePinned } from "../../namespace/inode-flags.ts";
import type { Session } from "../session.ts";
import { attrOf, attrValidSec } from "./entry.ts";
import { killOf } from "./privileges.ts";

const putAttributes = (session: Session, inode: Inode): number =>
  putAttrOut(session.outView, 0, attrOf(session, inode), attrValidSec(session, inode), 0);

function replyAttributes(session: Session, request: Request, inode: Inode): void {
  session.reply(request, putAttributes(session, inode));
}

/**
 * stat(2) asks about an inode; the kernel itself, before a read(2) through the page cache, about an open file. That one is
 * answered when what the cache has of a range that is mapped directly is gone.
 */
export function getattr(session: Session, request: Request): void {
  const inode = session.volume.store.inode(request.nodeid);
  const fresh = (request.getattrFlags & GetattrFlag.FH) === 0 ? null : session.pageCache.fresh(inode);
  if (fresh === null) {
    replyAttributes(session, request, inode);
    return;
  }
  session.replyAfter(request.clone(), fresh, () => putAttributes(session, inode));
}

const SECONDS_MAX = BigInt(Number.MAX_SAFE_INTEGER);

/** Times that cannot be kept become the nearest that can, as timestamp_truncate() in fs/inode.c has it: 285 million years. */
function timeOf(seconds: bigint, nsec: number): Timestamp {
  if (seconds > SECONDS_MAX) return { sec: Number.MAX_SAFE_INTEGER, nsec: 0 };
  if (seconds < -SECONDS_MAX) return { sec: -Number.MAX_SAFE_INTEGER, nsec: 0 };
  return { sec: Number(seconds), nsec };
}

/**
 * What may_setattr() (fs/attr.c) and ext4 ask of an inode with flags: its size is for truncate() to refuse. Both times as of
 * now are what writing at the end would do.
 * @throws FsError EPERM
 */
function mayChange(inode: Inode, valid: number): void {
  const touch =
    (valid & (Fattr.MODE | Fattr.UID | Fattr.GID)) === 0 &&
    ((valid & Fattr.ATIME) === 0 || (valid & Fattr.ATIME_NOW) !== 0) &&
    ((valid & Fattr.MTIME) === 0 || (valid & Fattr.MTIME_NOW) !== 0);
  if (touch) mustNotBeImmutable(inode);
  else mustNotBePinned(inode);
}

type Changes = { -readonly [K in keyof AttributeChange]: AttributeChange[K] };

export function setattr(session: Session, request: Request): void {
  const { store } = session.volume;
  const inode = store.inode(request.nodeid);
  const wish = request.body(SetattrIn);
  const valid = wish.valid;
  mayChange(inode, valid);
  const kill = killOf(request, inode, (valid & Fattr.KILL_SUIDGID) !== 0);
  if ((valid & Fattr.SIZE) !== 0) {
    session.heldFiles.check(inode);
    truncate(store, inode, wish.size, kill);
    session.pageCache.cut(inode, wish.size);
  }
  const change: Changes = {};
  const time = now();
  if ((valid & Fattr.MODE) !== 0) change.mode = wish.mode;
  if ((valid & Fattr.UID) !== 0) change.uid = wish.uid;
  if ((valid & Fattr.GID) !== 0) change.gid = wish.gid;
  if ((valid & Fattr.ATIME) !== 0) {
    change.atime = (valid & Fattr.ATIME_NOW) !== 0 ? time : timeOf(wish.atime, wish.atimensec);
  }
  if ((valid & Fattr.MTIME) !== 0) {
    change.mtime = (valid & Fattr.MTIME_NOW) !== 0 ? time : timeOf(wish.mtime, wish.mtimensec);
  }
  // chown(2) takes setuid and setgid away, whoever calls it; under HANDLE_KILLPRIV_V2 that is our work. A chmod in the
  // same request has the last word.
  const owner = (valid & (Fattr.UID | Fattr.GID)) !== 0;
  if ((valid & Fattr.MODE) === 0) change.killPrivileges = kill || (owner && !inode.isDirectory);
  const nothing = Object.values(change).every((value) => value === undefined || value === false);
  if (!nothing || (valid & Fattr.SIZE) === 0) changeAttributes(store, inode, change);
  replyAttributes(session, request, inode);
}

/** STATX_BASIC_STATS | STATX_BTIME (linux/stat.h). */
const STATX_MASK = 0x07ff | 0x0800;

/** STATX_ATTR_* are the numbers of the flags that stat(2) knows. */
const STATX_ATTRIBUTES = INODE_FLAGS & ~InodeFlag.NOATIME;

export function statx(session: Session, request: Request): void {
  const inode = session.volume.store.inode(request.nodeid);
  const length = putStatxOut(
    session.outView,
    0,
    {
      ...attrOf(session, inode),
      mask: STATX_MASK,
      attributes: BigInt(inode.flags & STATX_ATTRIBUTES),
      attributesMask: BigInt(STATX_ATTRIBUTES),
      btimeSec: inode.btimeSec,
      btimeNsec: inode.btimeNsec,
    },
    attrValidSec(session, inode),
    0,
  );
  session.reply(request, length);
}
