/**
 * POSIX access control lists (acl(5)), in the form of the kernel's extended attributes (linux/posix_acl_xattr.h). The kernel
 * enforces them (FUSE_POSIX_ACL); ours is that they and the permission bits say the same, and that new files inherit.
 *
 * Invariants:
 * - an access list that says no more than the permission bits is not stored;
 * - otherwise the bits of owner and others are those of its entries, the bits of the group those of its mask.
 */
import { FsError } from "../base/errors.ts";
import { viewOf } from "../layout/struct.ts";
import { S_IFLNK, S_IFMT, S_ISGID } from "./inode.ts";

export const ACL_ACCESS = "system.posix_acl_access";
export const ACL_DEFAULT = "system.posix_acl_default";

const VERSION = 2;
const HEADER_BYTES = 4;
const ENTRY_BYTES = 8;
const Tag = { USER_OBJ: 1, USER: 2, GROUP_OBJ: 4, GROUP: 8, MASK: 16, OTHER: 32 } as const;
const PERMISSIONS = 0o7;

interface Entry {
  readonly tag: number;
  perm: number;
  readonly id: number;
}

/** @throws FsError EINVAL for what is no list: posix_acl_valid() of fs/posix_acl.c. */
function parse(value: Uint8Array): Entry[] {
  const view = viewOf(value);
  const bad = (): never => {
    throw new FsError("EINVAL", "access control list");
  };
  if (value.length < HEADER_BYTES || (value.length - HEADER_BYTES) % ENTRY_BYTES !== 0) bad();
  if (view.getUint32(0, true) !== VERSION) bad();
  const entries: Entry[] = [];
  for (let at = HEADER_BYTES; at < value.length; at += ENTRY_BYTES) {
    const perm = view.getUint16(at + 2, true);
    if ((perm & ~PERMISSIONS) !== 0) bad();
    entries.push({ tag: view.getUint16(at, true), perm, id: view.getUint32(at + 4, true) });
  }
  const tags = entries.map(({ tag }) => tag);
  const count = (tag: number): number => tags.filter((other) => other === tag).length;
  const named = count(Tag.USER) + count(Tag.GROUP);
  const known = Object.values<number>(Tag);
  if (tags.some((tag, index) => !known.includes(tag) || (index > 0 && tag < (tags[index - 1] as number))))
    bad();
  for (const tag of [Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER]) if (count(tag) !== 1) bad();
  if (count(Tag.MASK) > 1 || (named > 0 && count(Tag.MASK) === 0)) bad();
  return entries;
}

function encode(entries: readonly Entry[]): Uint8Array {
  const value = new Uint8Array(HEADER_BYTES + entries.length * ENTRY_BYTES);
  const view = viewOf(value);
  view.setUint32(0, VERSION, true);
  for (const [index, { tag, perm, id }] of entries.entries()) {
    const at = HEADER_BYTES + index * ENTRY_BYTES;
    view.setUint16(at, tag, true);
    view.setUint16(at + 2, perm, true);
    view.setUint32(at + 4, id, true);
  }
  return value;
}

/** The entries whose permissions are those of owner, group (or the mask in its place) and others. */
function ofBits(entries: readonly Entry[]): { owner: Entry; group: Entry; other: Entry } {
  const find = (tag: number): Entry => entries.find((entry) => entry.tag === tag) as Entry;
  return {
    owner: find(Tag.USER_OBJ),
    group: entries.find(({ tag }) => tag === Tag.MASK) ?? find(Tag.GROUP_OBJ),
    other: find(Tag.OTHER),
  };
}

const saysMore = (entries: readonly Entry[]): boolean => entries.length > 3;

/** What a file becomes that is given this access list. `value`: what to store, null if the bits say it all. */
export function withAccess(
  mode: number,
  list: Uint8Array,
  dropSetgid: boolean,
): { mode: number; value: Uint8Array | null } {
  const entries = parse(list);
  const { owner, group, other } = ofBits(entries);
  const kept = dropSetgid ? mode & ~S_ISGID : mode;
  return {
    mode: (kept & ~0o777) | (owner.perm << 6) | (group.perm << 3) | other.perm,
    value: saysMore(entries) ? encode(entries) : null,
  };
}

/** @throws FsError EINVAL */
export function checkList(list: Uint8Array): void {
  parse(list);
}

/** The access list after a chmod to `mode`. */
export function afterChmod(list: Uint8Array, mode: number): Uint8Array {
  const entries = parse(list);
  const { owner, group, other } = ofBits(entries);
  owner.perm = (mode >>> 6) & PERMISSIONS;
  group.perm = (mode >>> 3) & PERMISSIONS;
  other.perm = mode & PERMISSIONS;
  return encode(entries);
}

/**
 * What a new file of this mode gets in a directory with this default list (null: with none, and the umask counts).
 * As posix_acl_create() of fs/posix_acl.c.
 */
export function inherited(
  mode: number,
  umask: number,
  defaults: Uint8Array | null,
): { mode: number; access: Uint8Array | null } {
  if ((mode & S_IFMT) === S_IFLNK) return { mode, access: null };
  if (defaults === null) return { mode: mode & ~(umask & 0o777), access: null };
  const entries = parse(defaults);
  const { owner, group, other } = ofBits(entries);
  owner.perm &= (mode >>> 6) & PERMISSIONS;
  group.perm &= (mode >>> 3) & PERMISSIONS;
  other.perm &= mode & PERMISSIONS;
  return {
    mode: (mode & ~0o777) | (owner.perm << 6) | (group.perm << 3) | other.perm,
    access: saysMore(entries) ? encode(entries) : null,
  };
}
