/**
 * Operations on names: lookup, create, link, unlink, rename.
 *
 * Names are byte strings (latin1). Each function validates everything before it begins the change; what it throws is the
 * answer to the caller, and then nothing has changed. Permissions were checked by the kernel (default_permissions); what the
 * flags of an inode forbid is for us to refuse.
 */
import { now } from "../base/clock.ts";
import { FsError } from "../base/errors.ts";
import { COUNTER_MAX } from "../media/format.ts";
import type { GroupBuilder } from "../media/group.ts";
import { ROOT_INO } from "../media/mkfs.ts";
import { ACL_ACCESS, ACL_DEFAULT, inherited } from "./acl.ts";
import type { Dentry, Directory } from "./directory.ts";
import {
  ENTRIES_MAX,
  FILE_TYPES,
  fieldsOf,
  type Inode,
  LINK_MAX,
  MODE_MAX,
  NAME_BYTES_MAX,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
  S_ISGID,
  SYMLINK_BYTES_MAX,
} from "./inode.ts";
import {
  encodeFlags,
  FLAGS_ATTRIBUTE,
  inheritedFlags,
  mayRemoveName,
  mustNotBeImmutable,
  mustNotBePinned,
} from "./inode-flags.ts";
import type { Store } from "./store.ts";

export const RENAME_NOREPLACE = 1;
export const RENAME_EXCHANGE = 2;

/** Who creates: what a new inode takes from its maker. */
export interface Creator {
  readonly uid: number;
  readonly gid: number;
  /** Counts where the directory has no default access control list. Default 0: the mode is as wanted already. */
  readonly umask?: number;
}

function roomForName(directory: Directory): void {
  if (directory.names.size >= ENTRIES_MAX) throw new FsError("ENOSPC", `${ENTRIES_MAX} names in a directory`);
}

function directoryOf(inode: Inode): Directory {
  if (inode.directory === null) throw new FsError("ENOTDIR");
  return inode.directory;
}

function checkName(name: string): void {
  if (name.length > NAME_BYTES_MAX) throw new FsError("ENAMETOOLONG");
  if (name === "" || name.includes("/") || name.includes("\0")) throw new FsError("EINVAL", "name");
  if (name === "." || name === "..") throw new FsError("EEXIST");
}

export function entryOf(parent: Inode, name: string): Readonly<Dentry> | undefined {
  if (name.length > NAME_BYTES_MAX) throw new FsError("ENAMETOOLONG");
  return directoryOf(parent).names.get(name);
}

/** @throws FsError ENOENT, ENOTDIR, ENAMETOOLONG */
export function lookup(store: Store, parent: Inode, name: string): Inode {
  if (name === ".") return parent;
  if (name === "..") return store.inode(parent.parent === 0 ? ROOT_INO : parent.parent);
  const entry = entryOf(parent, name);
  if (entry === undefined) throw new FsError("ENOENT");
  return store.inode(entry.ino);
}

/** A position for another entry: none is used twice, so they can run out (in a volume that somebody else has written). */
function newCookie(directory: Directory): number {
  const cookie = directory.nextCookie;
  if (cookie >= COUNTER_MAX) throw new FsError("ENOSPC", "no position is left in the directory");
  return cookie;
}

/** The position of a name, which it keeps whatever it comes to stand for; a new one's. */
function cookieOf(parent: Inode, name: string): number {
  const directory = directoryOf(parent);
  return directory.names.get(name)?.cookie ?? newCookie(directory);
}

/** The directory's own record after a change of its entries. */
function touchDirectory(group: GroupBuilder, directory: Inode, linkDelta: number): void {
  const time = now();
  group.inode({
    ...fieldsOf(directory),
    nlink: directory.nlink + linkDelta,
    mtimeSec: time.sec,
    mtimeNsec: time.nsec,
    ctimeSec: time.sec,
    ctimeNsec: time.nsec,
  });
}

/** The inode's record with another link count, another parent, and a new ctime. */
function relink(group: GroupBuilder, inode: Inode, nlink: number, parent = inode.parent): void {
  const time = now();
  group.inode({ ...fieldsOf(inode), nlink, parent, ctimeSec: time.sec, ctimeNsec: time.nsec });
}

/**
 * Make a file of any type.
 * @param mode type and permissions.
 * @param target symbolic links: where to; byte string.
 */
export function create(
  store: Store,
  parent: Inode,
  name: string,
  mode: number,
  rdev: number,
  creator: Creator,
  target: string | null,
): Inode {
  checkName(name);
  const directory = directoryOf(parent);
  if (parent.nlink === 0) throw new FsError("ENOENT", "the directory was removed");
  if (directory.names.has(name)) throw new FsError("EEXIST");
  mustNotBeImmutable(parent);
  roomForName(directory);
  const isDirectory = (mode & S_IFMT) === S_IFDIR;
  const group = store.begin(true);
  const ino = newInode(store, group, parent, mode, rdev, creator, target, 1);
  group.dentry(parent.ino, name, ino, mode >>> 12, newCookie(directory));
  touchDirectory(group, parent, isDirectory ? 1 : 0);
  store.commit();
  return store.inode(ino);
}

/** A file without a name (O_TMPFILE). */
export function createUnnamed(store: Store, parent: Inode, mode: number, creator: Creator): Inode {
  directoryOf(parent);
  mustNotBeImmutable(parent);
  const group = store.begin(true);
  const ino = newInode(store, group, parent, mode, 0, creator, null, 0);
  store.commit();
  return store.inode(ino);
}

function newInode(
  store: Store,
  group: GroupBuilder,
  parent: Inode,
  mode: number,
  rdev: number,
  creator: Creator,
  target: string | null,
  names: number,
): number {
  if (target !== null && (target.length === 0 || target.length > SYMLINK_BYTES_MAX)) {
    throw new FsError(target.length === 0 ? "ENOENT" : "ENAMETOOLONG");
  }
  const type = mode & S_IFMT;
  // A caller of mknod(2) could ask for anything, were the kernel not there.
  if (!FILE_TYPES.has(type) || (mode & ~MODE_MAX) !== 0 || (type === S_IFLNK) !== (target !== null)) {
    throw new FsError("EINVAL", `mode ${mode.toString(8)}`);
  }
  const time = now();
  if (store.state.inodes.size >= ENTRIES_MAX) throw new FsError("ENOSPC", `${ENTRIES_MAX} inodes`);
  const ino = store.state.nextIno;
  if (ino >= COUNTER_MAX) throw new FsError("ENOSPC", "no inode number is left");
  const defaults = parent.xattrs?.get(ACL_DEFAULT) ?? null;
  const { mode: masked, access } = inherited(mode, creator.umask ?? 0, defaults);
  // A setgid directory hands its group down, and to directories the bit as well (inode_init_owner, fs/inode.c).
  const inherits = (parent.mode & S_ISGID) !== 0;
  group.inode({
    ino,
    size: type === S_IFLNK ? BigInt(target?.length ?? 0) : 0n,
    parent: type === S_IFDIR ? parent.ino : 0,
    mode: inherits && type === S_IFDIR ? masked | S_ISGID : masked,
    nlink: type === S_IFDIR ? 2 : names,
    uid: creator.uid,
    gid: inherits ? parent.gid : creator.gid,
    rdev,
    generation: store.state.nextGeneration,
    atimeSec: time.sec,
    mtimeSec: time.sec,
    ctimeSec: time.sec,
    btimeSec: time.sec,
    atimeNsec: time.nsec,
    mtimeNsec: time.nsec,
    ctimeNsec: time.nsec,
    btimeNsec: time.nsec,
  });
  if (target !== null) group.symlink(ino, target);
  const flags = inheritedFlags(parent);
  if (flags !== 0) group.xattr(ino, FLAGS_ATTRIBUTE, encodeFlags(flags));
  if (access !== null) group.xattr(ino, ACL_ACCESS, access);
  if (defaults !== null && type === S_IFDIR) group.xattr(ino, ACL_DEFAULT, defaults);
  return ino;
}

/** A further name for a file. @throws FsError EPERM (a directory, inode flags), EMLINK, EEXIST, ENOENT */
export function link(store: Store, inode: Inode, parent: Inode, name: string): void {
  checkName(name);
  const directory = directoryOf(parent);
  if (inode.isDirectory) throw new FsError("EPERM");
  if (parent.nlink === 0) throw new FsError("ENOENT", "the directory was removed");
  if (directory.names.has(name)) throw new FsError("EEXIST");
  mustNotBeImmutable(parent);
  mustNotBePinned(inode);
  roomForName(directory);
  if (inode.nlink >= LINK_MAX) throw new FsError("EMLINK");
  const group = store.begin(true);
  group.dentry(parent.ino, name, inode.ino, inode.mode >>> 12, newCookie(directory));
  relink(group, inode, inode.nlink + 1);
  touchDirectory(group, parent, 0);
  store.commit();
}

/** Take a name of a file that is no directory. Its blocks go when nobody has it open any more. */
export function unlink(store: Store, parent: Inode, name: string): void {
  const inode = lookup(store, parent, name);
  mayRemoveName(parent, inode);
  if (inode.isDirectory) throw new FsError("EISDIR");
  const group = store.beginFreeing();
  group.dentryGone(parent.ino, name);
  relink(group, inode, inode.nlink - 1);
  touchDirectory(group, parent, 0);
  store.commit();
  store.reapSoon(inode);
}

export function rmdir(store: Store, parent: Inode, name: string): void {
  if (name === ".") throw new FsError("EINVAL");
  if (name === "..") throw new FsError("ENOTEMPTY");
  const inode = lookup(store, parent, name);
  mayRemoveName(parent, inode);
  if (directoryOf(inode).names.size > 0) throw new FsError("ENOTEMPTY");
  const group = store.beginFreeing();
  group.dentryGone(parent.ino, name);
  relink(group, inode, 0);
  touchDirectory(group, parent, -1);
  store.commit();
  store.reapSoon(inode);
}

/** `ancestor` is `inode` or lies above it. */
function isAbove(store: Store, ancestor: Inode, inode: Inode): boolean {
  for (let at = inode; ; at = store.inode(at.parent)) {
    if (at === ancestor) return true;
    if (at.ino === ROOT_INO) return false;
  }
}

/**
 * rename(2), renameat2(2) with RENAME_NOREPLACE or RENAME_EXCHANGE.
 * @throws FsError EPERM (inode flags), EINVAL for other flags, or a directory into itself; EEXIST, ENOENT, ENOTEMPTY, EISDIR, ENOTDIR
 */
export function rename(
  store: Store,
  sourceParent: Inode,
  sourceName: string,
  targetParent: Inode,
  targetName: string,
  flags: number,
): void {
  if (
    (flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE)) !== 0 ||
    flags === (RENAME_NOREPLACE | RENAME_EXCHANGE)
  ) {
    throw new FsError("EINVAL", `rename flags ${flags}`);
  }
  for (const name of [sourceName, targetName]) {
    if (name === "." || name === "..") throw new FsError("EBUSY");
    checkName(name);
  }
  const source = lookup(store, sourceParent, sourceName);
  const targetDirectory = directoryOf(targetParent);
  if (targetParent.nlink === 0) throw new FsError("ENOENT", "the directory was removed");
  const targetEntry = targetDirectory.names.get(targetName);
  const target = targetEntry === undefined ? null : store.inode(targetEntry.ino);
  if (source.isDirectory && isAbove(store, source, targetParent)) {
    throw new FsError("EINVAL", "a directory into itself");
  }

  if (flags === RENAME_EXCHANGE) {
    if (target === null) throw new FsError("ENOENT");
    if (target.isDirectory && isAbove(store, target, sourceParent)) {
      throw new FsError("EINVAL", "a directory into itself");
    }
    if (target === source) return;
    mayRemoveName(sourceParent, source);
    mayRemoveName(targetParent, target);
    exchange(store, sourceParent, sourceName, source, targetParent, targetName, target);
    return;
  }
  if (target !== null) {
    if ((flags & RENAME_NOREPLACE) !== 0) throw new FsError("EEXIST");
    // Two names of one file: rename does nothing (POSIX).
    if (target === source) return;
    mayRemoveName(targetParent, target);
    if (target.directory !== null) {
      if (!source.isDirectory) throw new FsError("EISDIR");
      if (target.directory.names.size > 0) throw new FsError("ENOTEMPTY");
    } else if (source.isDirectory) throw new FsError("ENOTDIR");
  }

  mayRemoveName(sourceParent, source);
  mustNotBeImmutable(targetParent);
  if (target === null && sourceParent !== targetParent) roomForName(targetDirectory);
  const moved = source.isDirectory && sourceParent !== targetParent;
  const group = store.begin(target === null);
  group.dentryGone(sourceParent.ino, sourceName);
  if (target !== null) relink(group, target, target.isDirectory ? 0 : target.nlink - 1);
  group.dentry(
    targetParent.ino,
    targetName,
    source.ino,
    source.mode >>> 12,
    cookieOf(targetParent, targetName),
  );
  relink(group, source, source.nlink, source.isDirectory ? targetParent.ino : source.parent);
  const gained = (moved ? 1 : 0) - (target?.isDirectory === true ? 1 : 0);
  if (sourceParent === targetParent) {
    touchDirectory(group, sourceParent, gained);
  } else {
    touchDirectory(group, sourceParent, moved ? -1 : 0);
    touchDirectory(group, targetParent, gained);
  }
  store.commit();
  if (target !== null) store.reapSoon(target);
}

function exchange(
  store: Store,
  sourceParent: Inode,
  sourceName: string,
  source: Inode,
  targetParent: Inode,
  targetName: string,
  target: Inode,
): void {
  const group = store.begin(true);
  // Both names were there before, and stay where they are for whoever reads the directory.
  const [sourceCookie, targetCookie] = [
    cookieOf(sourceParent, sourceName),
    cookieOf(targetParent, targetName),
  ];
  group.dentry(sourceParent.ino, sourceName, target.ino, target.mode >>> 12, sourceCookie);
  group.dentry(targetParent.ino, targetName, source.ino, source.mode >>> 12, targetCookie);
  relink(group, source, source.nlink, source.isDirectory ? targetParent.ino : 0);
  relink(group, target, target.nlink, target.isDirectory ? sourceParent.ino : 0);
  if (sourceParent === targetParent) {
    touchDirectory(group, sourceParent, 0);
  } else {
    const delta = (target.isDirectory ? 1 : 0) - (source.isDirectory ? 1 : 0);
    touchDirectory(group, sourceParent, delta);
    touchDirectory(group, targetParent, -delta);
  }
  store.commit();
}
