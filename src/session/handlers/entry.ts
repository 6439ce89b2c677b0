/** Inodes as the kernel's protocol shows them. */
import type { Attr, Entry } from "../../fuse/encode.ts";
import type { Inode } from "../../namespace/inode.ts";
import type { Session } from "../session.ts";

/**
 * How long the kernel may keep names and attributes, seconds. All changes go through this one mount, and those that the
 * kernel cannot see (a lease's end, prepare) are announced, so the only limit is caution.
 */
export const VALID_SEC = 3600;

/** How long the kernel may keep the attributes of this inode, seconds. */
export const attrValidSec = (session: Session, inode: Inode): number =>
  session.pageCache.revalidates(inode) ? 0 : VALID_SEC;

/** Directories have no size of their own; this is what other file systems show for a small one. */
const DIRECTORY_BYTES = 4096n;

export function attrOf(session: Session, inode: Inode): Attr {
  const blockBytes = session.volume.store.blockBytes;
  return {
    ino: inode.ino,
    size: inode.directory === null ? inode.size : DIRECTORY_BYTES,
    blocks:
      inode.extents === null ? (inode.directory === null ? 0 : 8) : inode.extents.blocks * (blockBytes / 512),
    atimeSec: inode.atimeSec,
    atimeNsec: inode.atimeNsec,
    mtimeSec: inode.mtimeSec,
    mtimeNsec: inode.mtimeNsec,
    ctimeSec: inode.ctimeSec,
    ctimeNsec: inode.ctimeNsec,
    mode: inode.mode,
    nlink: inode.nlink,
    uid: inode.uid,
    gid: inode.gid,
    rdev: inode.rdev,
    blksize: blockBytes,
    flags: 0,
  };
}

export function entryOf(session: Session, inode: Inode): Entry {
  return {
    nodeid: inode.ino,
    generation: inode.generation,
    entryValidSec: VALID_SEC,
    entryValidNsec: 0,
    attrValidSec: attrValidSec(session, inode),
    attrValidNsec: 0,
    attr: attrOf(session, inode),
  };
}
