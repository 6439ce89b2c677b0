/**
 * Flags of an inode, as chattr(1) sets them, and what they forbid: everybody, root as well, as on ext4 (the checks of
 * fs/namei.c, fs/open.c, fs/attr.c and fs/xattr.c, which the kernel leaves to a FUSE server).
 *
 * On the media they are an extended attribute of a name that nobody can ask for. So volumes without them are as they were, and a
 * version that does not know them keeps them.
 */
import { now } from "../base/clock.ts";
import { FsError } from "../base/errors.ts";
import { fieldsOf, type Inode } from "./inode.ts";
import type { Store } from "./store.ts";

/** FS_*_FL of linux/fs.h. */
export const InodeFlag = {
  /** Nothing of it changes: content, size, attributes, names. */
  IMMUTABLE: 0x10,
  /** What is there stays; a file is written at its end alone, a directory gets names. */
  APPEND: 0x20,
  /** For dump(8). */
  NODUMP: 0x40,
  /** Reading leaves the time of access. */
  NOATIME: 0x80,
} as const;

const PINNED = InodeFlag.IMMUTABLE | InodeFlag.APPEND;
export const INODE_FLAGS = PINNED | InodeFlag.NODUMP | InodeFlag.NOATIME;
/** What a directory hands down to what is made in it, as ext4 and tmpfs have it. */
const INHERITED = InodeFlag.NODUMP | InodeFlag.NOATIME;

export const isImmutable = (inode: Inode): boolean => (inode.flags & InodeFlag.IMMUTABLE) !== 0;
export const isAppendOnly = (inode: Inode): boolean => (inode.flags & InodeFlag.APPEND) !== 0;
export const isPinned = (inode: Inode): boolean => (inode.flags & PINNED) !== 0;

/** The flags that a new inode gets from its directory. */
export const inheritedFlags = (parent: Inode): number => parent.flags & INHERITED;

/** @throws FsError EPERM */
export function mustNotBeImmutable(inode: Inode): void {
  if (isImmutable(inode)) throw new FsError("EPERM", `inode ${inode.ino} is immutable`);
}

/** @throws FsError EPERM */
export function mustNotBePinned(inode: Inode): void {
  mustNotBeImmutable(inode);
  if (isAppendOnly(inode)) throw new FsError("EPERM", `inode ${inode.ino} is append-only`);
}

/** The name of an inode goes from a directory (may_delete, fs/namei.c). @throws FsError EPERM */
export function mayRemoveName(parent: Inode, inode: Inode): void {
  mustNotBePinned(parent);
  mustNotBePinned(inode);
}

/** Bytes from `offset` on are written. @throws FsError EPERM */
export function mayWriteAt(inode: Inode, offset: bigint): void {
  mustNotBeImmutable(inode);
  if (isAppendOnly(inode) && offset < inode.size)
    throw new FsError("EPERM", `inode ${inode.ino} is append-only`);
}

/** Set all flags. @throws FsError EOPNOTSUPP (one that is not known); as Store.begin() */
export function setInodeFlags(store: Store, inode: Inode, flags: number): void {
  if ((flags & ~INODE_FLAGS) !== 0) throw new FsError("EOPNOTSUPP", `inode flags 0x${flags.toString(16)}`);
  // Those of a later version stay.
  const all = (inode.flags & ~INODE_FLAGS) | flags;
  if (all === inode.flags) return;
  const time = now();
  const group = all === 0 ? store.beginFreeing() : store.begin(true);
  if (all === 0) group.xattrGone(inode.ino, FLAGS_ATTRIBUTE);
  else group.xattr(inode.ino, FLAGS_ATTRIBUTE, encodeFlags(all));
  group.inode({ ...fieldsOf(inode), ctimeSec: time.sec, ctimeNsec: time.nsec });
  store.commit();
}

/** 4 bytes, little-endian. */
export const FLAGS_ATTRIBUTE = "system.inode_flags";

export function encodeFlags(flags: number): Uint8Array {
  const value = new Uint8Array(4);
  new DataView(value.buffer).setUint32(0, flags, true);
  return value;
}

/** Null: the attribute has another form. */
export function decodeFlags(value: Uint8Array): number | null {
  return value.length === 4 ? new DataView(value.buffer, value.byteOffset).getUint32(0, true) : null;
}
