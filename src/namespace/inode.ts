/** An inode in memory. It changes only by records (state.ts), except for the times named in store.ts. */
import type { InodeFields } from "../media/group.ts";
import { ExtentMap } from "../space/extent-map.ts";
import { Directory } from "./directory.ts";

export const S_IFMT = 0o170000;
export const S_IFSOCK = 0o140000;
export const S_IFLNK = 0o120000;
export const S_IFREG = 0o100000;
export const S_IFBLK = 0o060000;
export const S_IFDIR = 0o040000;
export const S_IFCHR = 0o020000;
export const S_IFIFO = 0o010000;
export const S_ISUID = 0o4000;
export const S_ISGID = 0o2000;
export const S_IXGRP = 0o0010;

/** What an inode can be. */
export const FILE_TYPES: ReadonlySet<number> = new Set([
  ...[S_IFSOCK, S_IFLNK, S_IFREG, S_IFBLK, S_IFDIR, S_IFCHR, S_IFIFO],
]);

/** Type and permissions, all bits. */
export const MODE_MAX = 0o177777;
export const NAME_BYTES_MAX = 255;
export const SYMLINK_BYTES_MAX = 4095;
export const LINK_MAX = 65000;
/** Inodes of a volume, and names in a directory: V8's Map throws RangeError at 2^24 entries. */
export const ENTRIES_MAX = 16_000_000;
/** No extent of a file reaches past this block. */
export const FILE_BLOCKS_MAX = 2 ** 51;
/** Nanoseconds of a time are below this. */
export const NSEC_PER_SEC = 1_000_000_000;
/** Largest file size: off_t's maximum. */
export const FILE_BYTES_MAX = 0x7fff_ffff_ffff_ffffn;

/** What a record may call an entry of a directory; its length the record bounds. */
export function isEntryName(name: string): boolean {
  return !name.includes("/") && !name.includes("\0") && name !== "." && name !== "..";
}

export class Inode implements InodeFields {
  readonly ino: number;
  size!: bigint;
  parent!: number;
  mode!: number;
  nlink!: number;
  uid!: number;
  gid!: number;
  rdev!: number;
  generation!: number;
  atimeSec!: number;
  mtimeSec!: number;
  ctimeSec!: number;
  btimeSec!: number;
  atimeNsec!: number;
  mtimeNsec!: number;
  ctimeNsec!: number;
  btimeNsec!: number;

  /** Regular files. */
  extents: ExtentMap | null = null;
  /** Directories. */
  directory: Directory | null = null;
  /** Symbolic links; byte string. */
  target: string | null = null;
  xattrs: Map<string, Uint8Array> | null = null;
  /** InodeFlag: what the attribute of these says (inode-flags.ts). */
  flags = 0;

  /** References that the kernel and open handles hold; volatile. An inode without names is freed when both are 0. */
  lookups = 0;
  opens = 0;
  /** Group that last changed where the file's blocks are, or made it; volatile, 0 since before this mount. */
  mapLsn = 0;

  constructor(fields: InodeFields) {
    this.ino = fields.ino;
    this.assign(fields);
    const type = fields.mode & S_IFMT;
    if (type === S_IFDIR) this.directory = new Directory();
    if (type === S_IFREG) this.extents = new ExtentMap();
  }

  /** Take over all fields of a record for the same inode. */
  assign(fields: InodeFields): void {
    this.size = fields.size;
    this.parent = fields.parent;
    this.mode = fields.mode;
    this.nlink = fields.nlink;
    this.uid = fields.uid;
    this.gid = fields.gid;
    this.rdev = fields.rdev;
    this.generation = fields.generation;
    this.atimeSec = fields.atimeSec;
    this.mtimeSec = fields.mtimeSec;
    this.ctimeSec = fields.ctimeSec;
    this.btimeSec = fields.btimeSec;
    this.atimeNsec = fields.atimeNsec;
    this.mtimeNsec = fields.mtimeNsec;
    this.ctimeNsec = fields.ctimeNsec;
    this.btimeNsec = fields.btimeNsec;
  }

  get type(): number {
    return this.mode & S_IFMT;
  }
  get isDirectory(): boolean {
    return this.directory !== null;
  }
}

/** All fields of the inode as a plain object, to be changed and logged. */
export function fieldsOf(inode: Readonly<Inode>): InodeFields {
  return {
    ino: inode.ino,
    size: inode.size,
    parent: inode.parent,
    mode: inode.mode,
    nlink: inode.nlink,
    uid: inode.uid,
    gid: inode.gid,
    rdev: inode.rdev,
    generation: inode.generation,
    atimeSec: inode.atimeSec,
    mtimeSec: inode.mtimeSec,
    ctimeSec: inode.ctimeSec,
    btimeSec: inode.btimeSec,
    atimeNsec: inode.atimeNsec,
    mtimeNsec: inode.mtimeNsec,
    ctimeNsec: inode.ctimeNsec,
    btimeNsec: inode.btimeNsec,
  };
}
