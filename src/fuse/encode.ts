/**
 * Writers of replies into a reusable buffer. A payload here is what follows the out header, which the channel writes.
 *
 * Invariants:
 * - every byte of a struct is written, padding included, so that a reused buffer never leaks an older reply;
 * - each `put…` returns the bytes it wrote; the caller has room for them;
 * - a dirent writer never writes past its capacity, and what it holds is whole entries.
 *
 * Constant offsets, DataView setters and plain numbers: these run once per request. The tests compare every one of
 * them with the struct declaration in kernel.ts.
 */
import { invariant } from "../base/errors.ts";
import { setU64 } from "../layout/struct.ts";
import {
  AttrOut,
  BmapOut,
  Dirent,
  Direntplus,
  EntryOut,
  FuseAttr,
  GetxattrOut,
  IoctlOut,
  Kstatfs,
  LkOut,
  LseekOut,
  OpenOut,
  PollOut,
  StatxOut,
  WriteOut,
} from "./kernel.ts";

/** The attributes of a node, as a reply carries them. Seconds are safe integers and may be negative. */
export interface Attr {
  readonly ino: number;
  /** Bytes. */
  readonly size: bigint;
  /** Allocated space in units of 512 bytes. */
  readonly blocks: number;
  readonly atimeSec: number;
  readonly atimeNsec: number;
  readonly mtimeSec: number;
  readonly mtimeNsec: number;
  readonly ctimeSec: number;
  readonly ctimeNsec: number;
  readonly mode: number;
  readonly nlink: number;
  readonly uid: number;
  readonly gid: number;
  /** Device number in the kernel's 32-bit encoding, 0 unless a device node. */
  readonly rdev: number;
  /** Preferred transfer size, bytes. */
  readonly blksize: number;
  /** AttrFlag. */
  readonly flags: number;
}

/** A directory entry as a reply carries it: how long name and attributes may be cached, and the node. */
export interface Entry {
  /** 0: a negative entry, the name does not exist and that may be cached. */
  readonly nodeid: number;
  readonly generation: number;
  readonly entryValidSec: number;
  readonly entryValidNsec: number;
  readonly attrValidSec: number;
  readonly attrValidNsec: number;
  readonly attr: Attr;
}

export interface Statfs {
  /** Block counts are in units of `frsize` bytes. */
  readonly blocks: number;
  readonly bfree: number;
  readonly bavail: number;
  readonly files: number;
  readonly ffree: number;
  readonly bsize: number;
  readonly namelen: number;
  readonly frsize: number;
}

/** An Attr with what only statx(2) tells. */
export interface StatxAttr extends Attr {
  /** STATX_* bits of the fields that are filled in. */
  readonly mask: number;
  /** STATX_ATTR_* bits set, and known. */
  readonly attributes: bigint;
  readonly attributesMask: bigint;
  readonly btimeSec: number;
  readonly btimeNsec: number;
}

/** Write a safe integer, negative or not, as a 64-bit two's complement value. */
export function setI64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value, true);
  view.setInt32(at + 4, Math.floor(value / 0x1_0000_0000), true);
}

const A = FuseAttr.at;
const E = EntryOut.at;
/** Where the attributes begin in EntryOut and AttrOut. */
const ENTRY_ATTR = E.ino;
const ATTR_OUT_ATTR = AttrOut.at.ino;

export function putAttr(view: DataView, at: number, attr: Attr): number {
  setU64(view, at + A.ino, attr.ino);
  view.setBigUint64(at + A.size, attr.size, true);
  setU64(view, at + A.blocks, attr.blocks);
  setI64(view, at + A.atime, attr.atimeSec);
  setI64(view, at + A.mtime, attr.mtimeSec);
  setI64(view, at + A.ctime, attr.ctimeSec);
  view.setUint32(at + A.atimensec, attr.atimeNsec, true);
  view.setUint32(at + A.mtimensec, attr.mtimeNsec, true);
  view.setUint32(at + A.ctimensec, attr.ctimeNsec, true);
  view.setUint32(at + A.mode, attr.mode, true);
  view.setUint32(at + A.nlink, attr.nlink, true);
  view.setUint32(at + A.uid, attr.uid, true);
  view.setUint32(at + A.gid, attr.gid, true);
  view.setUint32(at + A.rdev, attr.rdev, true);
  view.setUint32(at + A.blksize, attr.blksize, true);
  view.setUint32(at + A.flags, attr.flags, true);
  return FuseAttr.size;
}

export function putEntry(view: DataView, at: number, entry: Entry): number {
  setU64(view, at + E.nodeid, entry.nodeid);
  setU64(view, at + E.generation, entry.generation);
  setU64(view, at + E.entryValid, entry.entryValidSec);
  setU64(view, at + E.attrValid, entry.attrValidSec);
  view.setUint32(at + E.entryValidNsec, entry.entryValidNsec, true);
  view.setUint32(at + E.attrValidNsec, entry.attrValidNsec, true);
  putAttr(view, at + ENTRY_ATTR, entry.attr);
  return EntryOut.size;
}

/** Reply of LOOKUP for a name that does not exist, cacheable for a while. (ENOENT is the answer without caching.) */
export function putNegativeEntry(view: DataView, at: number, validSec: number, validNsec: number): number {
  zero(view, at, EntryOut.size);
  setU64(view, at + E.entryValid, validSec);
  view.setUint32(at + E.entryValidNsec, validNsec, true);
  return EntryOut.size;
}

export function putAttrOut(
  view: DataView,
  at: number,
  attr: Attr,
  validSec: number,
  validNsec: number,
): number {
  setU64(view, at + AttrOut.at.attrValid, validSec);
  view.setUint32(at + AttrOut.at.attrValidNsec, validNsec, true);
  view.setUint32(at + AttrOut.at.dummy, 0, true);
  putAttr(view, at + ATTR_OUT_ATTR, attr);
  return AttrOut.size;
}

/** Reply of OPEN and OPENDIR. `openFlags`: Fopen. */
export function putOpenOut(view: DataView, at: number, fh: number, openFlags: number, backingId = 0): number {
  setU64(view, at + OpenOut.at.fh, fh);
  view.setUint32(at + OpenOut.at.openFlags, openFlags, true);
  view.setInt32(at + OpenOut.at.backingId, backingId, true);
  return OpenOut.size;
}

/** Reply of CREATE and TMPFILE: an entry and an open file. */
export function putCreateOut(
  view: DataView,
  at: number,
  entry: Entry,
  fh: number,
  openFlags: number,
): number {
  const entryBytes = putEntry(view, at, entry);
  return entryBytes + putOpenOut(view, at + entryBytes, fh, openFlags);
}

/** Reply of WRITE and COPY_FILE_RANGE: bytes done, below 2^32. */
export function putWriteOut(view: DataView, at: number, size: number): number {
  view.setUint32(at + WriteOut.at.size, size, true);
  view.setUint32(at + WriteOut.at.padding, 0, true);
  return WriteOut.size;
}

/** Reply of COPY_FILE_RANGE_64: bytes done. */
export function putCopyFileRangeOut(view: DataView, at: number, bytesCopied: bigint): number {
  view.setBigUint64(at, bytesCopied, true);
  return 8;
}

export function putStatfs(view: DataView, at: number, statfs: Statfs): number {
  zero(view, at, Kstatfs.size);
  setU64(view, at + Kstatfs.at.blocks, statfs.blocks);
  setU64(view, at + Kstatfs.at.bfree, statfs.bfree);
  setU64(view, at + Kstatfs.at.bavail, statfs.bavail);
  setU64(view, at + Kstatfs.at.files, statfs.files);
  setU64(view, at + Kstatfs.at.ffree, statfs.ffree);
  view.setUint32(at + Kstatfs.at.bsize, statfs.bsize, true);
  view.setUint32(at + Kstatfs.at.namelen, statfs.namelen, true);
  view.setUint32(at + Kstatfs.at.frsize, statfs.frsize, true);
  return Kstatfs.size;
}

/** Reply of GETXATTR and LISTXATTR with size 0: how many bytes there are. */
export function putXattrSize(view: DataView, at: number, size: number): number {
  view.setUint32(at + GetxattrOut.at.size, size, true);
  view.setUint32(at + GetxattrOut.at.padding, 0, true);
  return GetxattrOut.size;
}

export function putLseekOut(view: DataView, at: number, offset: bigint): number {
  view.setBigUint64(at + LseekOut.at.offset, offset, true);
  return LseekOut.size;
}

/** Reply of IOCTL; the caller appends the bytes for the user. */
export function putIoctlOut(view: DataView, at: number, result: number): number {
  view.setInt32(at + IoctlOut.at.result, result, true);
  view.setUint32(at + IoctlOut.at.flags, 0, true);
  view.setUint32(at + IoctlOut.at.inIovs, 0, true);
  view.setUint32(at + IoctlOut.at.outIovs, 0, true);
  return IoctlOut.size;
}

/** Reply of POLL: PollEvent bits. */
export function putPollOut(view: DataView, at: number, revents: number): number {
  view.setUint32(at + PollOut.at.revents, revents, true);
  view.setUint32(at + PollOut.at.padding, 0, true);
  return PollOut.size;
}

export function putBmapOut(view: DataView, at: number, block: number): number {
  setU64(view, at + BmapOut.at.block, block);
  return BmapOut.size;
}

/** Reply of GETLK. */
export function putLkOut(
  view: DataView,
  at: number,
  start: bigint,
  end: bigint,
  type: number,
  pid: number,
): number {
  view.setBigUint64(at + LkOut.at.start, start, true);
  view.setBigUint64(at + LkOut.at.end, end, true);
  view.setUint32(at + LkOut.at.type, type, true);
  view.setUint32(at + LkOut.at.pid, pid, true);
  return LkOut.size;
}

export function putStatxOut(
  view: DataView,
  at: number,
  attr: StatxAttr,
  validSec: number,
  validNsec: number,
): number {
  const S = StatxOut.at;
  zero(view, at, StatxOut.size);
  setU64(view, at + S.attrValid, validSec);
  view.setUint32(at + S.attrValidNsec, validNsec, true);
  view.setUint32(at + S.mask, attr.mask, true);
  view.setUint32(at + S.blksize, attr.blksize, true);
  view.setBigUint64(at + S.attributes, attr.attributes, true);
  view.setUint32(at + S.nlink, attr.nlink, true);
  view.setUint32(at + S.uid, attr.uid, true);
  view.setUint32(at + S.gid, attr.gid, true);
  view.setUint16(at + S.mode, attr.mode, true);
  setU64(view, at + S.ino, attr.ino);
  view.setBigUint64(at + S.size, attr.size, true);
  setU64(view, at + S.blocks, attr.blocks);
  view.setBigUint64(at + S.attributesMask, attr.attributesMask, true);
  setI64(view, at + S.atimeSec, attr.atimeSec);
  view.setUint32(at + S.atimeNsec, attr.atimeNsec, true);
  setI64(view, at + S.btimeSec, attr.btimeSec);
  view.setUint32(at + S.btimeNsec, attr.btimeNsec, true);
  setI64(view, at + S.ctimeSec, attr.ctimeSec);
  view.setUint32(at + S.ctimeNsec, attr.ctimeNsec, true);
  setI64(view, at + S.mtimeSec, attr.mtimeSec);
  view.setUint32(at + S.mtimeNsec, attr.mtimeNsec, true);
  // rdev is new_encode_dev(): 12 bits of major between 8 low and 12 high bits of minor.
  view.setUint32(at + S.rdevMajor, (attr.rdev >>> 8) & 0xfff, true);
  view.setUint32(at + S.rdevMinor, (attr.rdev & 0xff) | ((attr.rdev >>> 12) & 0xfff00), true);
  return StatxOut.size;
}

function zero(view: DataView, at: number, length: number): void {
  new Uint8Array(view.buffer, view.byteOffset + at, length).fill(0);
}

/** What READDIR and READDIRPLUS replies have in common: whole entries, 8-byte aligned, up to a capacity. */
abstract class EntryList {
  protected readonly bytes: Buffer;
  protected readonly view: DataView;
  protected start = 0;
  protected limit = 0;
  protected next = 0;

  constructor(buffer: Uint8Array) {
    this.bytes = Buffer.from(buffer.buffer, buffer.byteOffset, buffer.byteLength);
    this.view = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength);
  }

  /** Start anew: at most `capacity` bytes (the request's size) from byte `start` of the buffer. */
  begin(capacity: number, start = 0): void {
    invariant(start >= 0 && start <= this.bytes.length, "reply starts outside its buffer");
    this.start = start;
    this.next = start;
    this.limit = Math.min(start + capacity, this.bytes.length);
  }

  /** Bytes written since `begin`. */
  get length(): number {
    return this.next - this.start;
  }

  /** Put the dirent at the end of the list and zero its padding. */
  protected putDirent(at: number, ino: number, off: number, type: number, name: string): void {
    const view = this.view;
    setU64(view, at + Dirent.at.ino, ino);
    setU64(view, at + Dirent.at.off, off);
    view.setUint32(at + Dirent.at.namelen, name.length, true);
    view.setUint32(at + Dirent.at.type, type, true);
    const nameAt = at + Dirent.size;
    const end = nameAt + name.length;
    const aligned = align8(end - this.start) + this.start;
    this.bytes.write(name, nameAt, name.length, "latin1");
    for (let position = end; position < aligned; position++) this.bytes[position] = 0;
    this.next = aligned;
  }
}

const align8 = (value: number): number => (value + 7) & ~7;

/** Fills the reply of READDIR. */
export class DirentWriter extends EntryList {
  /** Whether an entry with a name of so many bytes still fits. */
  fits(nameBytes: number): boolean {
    return this.next + align8(Dirent.size + nameBytes) <= this.limit;
  }

  /** Append an entry; false, and nothing written, if it does not fit. `off`: where to continue after it. `name`: latin1. */
  add(ino: number, off: number, type: number, name: string): boolean {
    if (!this.fits(name.length)) return false;
    this.putDirent(this.next, ino, off, type, name);
    return true;
  }
}

/** Fills the reply of READDIRPLUS. Each entry with a node id counts as a lookup of it. */
export class DirentplusWriter extends EntryList {
  fits(nameBytes: number): boolean {
    return this.next + align8(Direntplus.size + nameBytes) <= this.limit;
  }

  /** Append an entry with its attributes; false, and nothing written, if it does not fit. */
  add(entry: Entry, off: number, type: number, name: string): boolean {
    if (!this.fits(name.length)) return false;
    const at = this.next;
    const entryBytes = putEntry(this.view, at, entry);
    this.putDirent(at + entryBytes, entry.attr.ino, off, type, name);
    return true;
  }

  /** Append an entry without a node: for "." and "..", which the kernel must not look up this way. */
  addBare(ino: number, off: number, type: number, name: string): boolean {
    if (!this.fits(name.length)) return false;
    const at = this.next;
    zero(this.view, at, EntryOut.size);
    setU64(this.view, at + E.ino, ino);
    this.putDirent(at + EntryOut.size, ino, off, type, name);
    return true;
  }
}
