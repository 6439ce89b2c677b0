/** Attributes and extended attributes of an inode. Size changes live in data.ts. */
import { now, type Timestamp } from "../base/clock.ts";
import { FsError } from "../base/errors.ts";
import type { GroupBuilder } from "../media/group.ts";
import { ACL_ACCESS, ACL_DEFAULT, afterChmod, checkList, withAccess } from "./acl.ts";
import { fieldsOf, type Inode, NSEC_PER_SEC, S_IFMT, S_ISGID, S_ISUID, S_IXGRP } from "./inode.ts";
import { InodeFlag, mustNotBePinned } from "./inode-flags.ts";
import type { Store } from "./store.ts";

export const XATTR_NAME_MAX = 255;
export const XATTR_VALUE_MAX = 65536;
/** Most bytes of names that listxattr(2) can return (XATTR_LIST_MAX). */
export const XATTR_LIST_MAX = 65536;

export interface AttributeChange {
  /** Permission bits; the type stays. */
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  readonly atime?: Timestamp;
  readonly mtime?: Timestamp;
  /** Given by the kernel alone (writeback cache). */
  readonly ctime?: Timestamp;
  /** Clear setuid and setgid, as a write or chown by another does. */
  readonly killPrivileges?: Kill;
}

/**
 * Whether a change takes setuid and setgid away. Setgid of a file that its group may not execute is only taken by a
 * stranger: somebody who is not in that group (setattr_should_drop_suidgid, fs/attr.c).
 */
export type Kill = boolean | "stranger";

export function withoutPrivileges(mode: number, kill: Kill): number {
  if (kill === false) return mode;
  const left = mode & ~S_ISUID;
  return (mode & S_IXGRP) !== 0 || kill === "stranger" ? left & ~S_ISGID : left;
}

/** File capabilities (capabilities(7)). */
const CAPABILITIES = "security.capability";

export function hasCapabilities(inode: Inode): boolean {
  return inode.xattrs?.has(CAPABILITIES) === true;
}

/**
 * A change of content, size or owner takes the file's capabilities away, whoever makes it: root as well
 * (cap_inode_need_killpriv, security/commoncap.c). With FUSE_HANDLE_KILLPRIV_V2 the kernel leaves that to the server.
 */
export function dropCapabilities(group: GroupBuilder, inode: Inode): void {
  if (hasCapabilities(inode)) group.xattrGone(inode.ino, CAPABILITIES);
}

/** @throws FsError EINVAL (nanoseconds out of range: a second has 10^9 of them); as Store.begin() */
export function changeAttributes(store: Store, inode: Inode, change: AttributeChange): void {
  for (const wish of [change.atime, change.mtime, change.ctime]) {
    if (wish !== undefined && wish.nsec >= NSEC_PER_SEC)
      throw new FsError("EINVAL", `${wish.nsec} nanoseconds`);
  }
  const time = change.ctime ?? now();
  const fields = fieldsOf(inode);
  fields.ctimeSec = time.sec;
  fields.ctimeNsec = time.nsec;
  if (change.mode !== undefined) fields.mode = (inode.mode & S_IFMT) | (change.mode & 0o7777);
  fields.mode = withoutPrivileges(fields.mode, change.killPrivileges ?? false);
  if (change.uid !== undefined) fields.uid = change.uid;
  if (change.gid !== undefined) fields.gid = change.gid;
  if (change.atime !== undefined) {
    fields.atimeSec = change.atime.sec;
    fields.atimeNsec = change.atime.nsec;
  }
  if (change.mtime !== undefined) {
    fields.mtimeSec = change.mtime.sec;
    fields.mtimeNsec = change.mtime.nsec;
  }
  const list = inode.xattrs?.get(ACL_ACCESS);
  const group = store.begin(list !== undefined && change.mode !== undefined);
  group.inode(fields);
  if (list !== undefined && change.mode !== undefined)
    group.xattr(inode.ino, ACL_ACCESS, afterChmod(list, fields.mode));
  if ((change.uid !== undefined || change.gid !== undefined) && !inode.isDirectory)
    dropCapabilities(group, inode);
  store.commit();
}

/** What atime option is in force: relatime's rule is that of the kernel (relatime_need_update, fs/inode.c). */
export type AtimeMode = "relatime" | "noatime" | "strictatime";

const DAY_SEC = 24 * 60 * 60;

/** A file or directory was read. In memory at first; logged with the next flush of times. */
export function noteAccess(store: Store, inode: Inode, mode: AtimeMode): void {
  if (mode === "noatime" || store.journal === null || (inode.flags & InodeFlag.NOATIME) !== 0) return;
  const time = now();
  if (mode === "relatime") {
    const newer =
      inode.atimeSec < inode.mtimeSec ||
      (inode.atimeSec === inode.mtimeSec && inode.atimeNsec <= inode.mtimeNsec) ||
      inode.atimeSec < inode.ctimeSec ||
      (inode.atimeSec === inode.ctimeSec && inode.atimeNsec <= inode.ctimeNsec);
    if (!newer && time.sec - inode.atimeSec < DAY_SEC) return;
  }
  inode.atimeSec = time.sec;
  inode.atimeNsec = time.nsec;
  store.noteTimes(inode);
}

/** The file's contents changed without a record. In memory at first; logged with the next flush of times. */
export function noteModification(store: Store, inode: Inode): void {
  const time = now();
  inode.mtimeSec = time.sec;
  inode.mtimeNsec = time.nsec;
  inode.ctimeSec = time.sec;
  inode.ctimeNsec = time.nsec;
  store.noteTimes(inode);
}

export const XATTR_CREATE = 1;
export const XATTR_REPLACE = 2;

/** @throws FsError EPERM (inode flags), EEXIST, ENODATA as setxattr(2); ERANGE, E2BIG's place is taken by ENOSPC as on ext4 */
export function setXattr(store: Store, inode: Inode, name: string, value: Uint8Array, flags: number): void {
  mustNotBePinned(inode);
  if (name.length === 0 || name.length > XATTR_NAME_MAX) throw new FsError("ERANGE");
  if (value.length > XATTR_VALUE_MAX) throw new FsError("ENOSPC", "attribute value");
  if ((flags & ~(XATTR_CREATE | XATTR_REPLACE)) !== 0) throw new FsError("EINVAL");
  const known = inode.xattrs?.has(name) ?? false;
  if (known && (flags & XATTR_CREATE) !== 0) throw new FsError("EEXIST");
  if (!known && (flags & XATTR_REPLACE) !== 0) throw new FsError("ENODATA");
  if (!known) {
    let listed = name.length + 1;
    for (const other of inode.xattrs?.keys() ?? []) listed += other.length + 1;
    if (listed > XATTR_LIST_MAX) throw new FsError("ENOSPC", "attribute names");
  }
  const time = now();
  const group = store.begin(true);
  group.xattr(inode.ino, name, value);
  group.inode({ ...fieldsOf(inode), ctimeSec: time.sec, ctimeNsec: time.nsec });
  store.commit();
}

/**
 * Set an access control list. @param dropSetgid the caller may not keep setgid (FUSE_SETXATTR_ACL_KILL_SGID).
 * @throws FsError EPERM (inode flags), EINVAL (no list), EACCES (a default list for what is no directory), ENOSPC; as setXattr()
 */
export function setAcl(
  store: Store,
  inode: Inode,
  name: string,
  list: Uint8Array,
  dropSetgid: boolean,
): void {
  mustNotBePinned(inode);
  if (name === ACL_DEFAULT) {
    checkList(list);
    if (!inode.isDirectory)
      throw new FsError("EACCES", "only directories have a default access control list");
    setXattr(store, inode, name, list, 0);
    return;
  }
  const { mode, value } = withAccess(inode.mode, list, dropSetgid);
  const time = now();
  const group = value === null ? store.beginFreeing() : store.begin(true);
  group.inode({ ...fieldsOf(inode), mode, ctimeSec: time.sec, ctimeNsec: time.nsec });
  if (value !== null) group.xattr(inode.ino, name, value);
  else if (inode.xattrs?.has(name) === true) group.xattrGone(inode.ino, name);
  store.commit();
}

/** @throws FsError ENODATA */
export function getXattr(inode: Inode, name: string): Uint8Array {
  const value = inode.xattrs?.get(name);
  if (value === undefined) throw new FsError("ENODATA");
  return value;
}

/** @throws FsError EPERM (inode flags), ENODATA */
export function removeXattr(store: Store, inode: Inode, name: string): void {
  mustNotBePinned(inode);
  getXattr(inode, name);
  const time = now();
  const group = store.beginFreeing();
  group.xattrGone(inode.ino, name);
  group.inode({ ...fieldsOf(inode), ctimeSec: time.sec, ctimeNsec: time.nsec });
  store.commit();
}
