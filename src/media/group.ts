/**
 * Groups of records: building them for the log, and taking them apart again.
 *
 * Invariants:
 * - a group is at most `capacity` bytes and a multiple of 8; whoever builds one that would not fit gets FsError(EFBIG)
 *   before anything was written;
 * - taking a group apart never reads outside it, and reports damage as CorruptionError with its place;
 * - what the sink is told is exactly what the builder was told, in the same order (test/media/group.test.ts).
 */
import { CorruptionError, FsError, invariant } from "../base/errors.ts";
import { getU64, setU64, viewOf } from "../layout/struct.ts";
import { crc32c } from "./checksum.ts";
import {
  BarrierRecord,
  DentryGoneRecord,
  DentryRecord,
  EndRecord,
  ExtentGoneRecord,
  ExtentRecord,
  GROUP_MAGIC,
  GroupHeader,
  InodeGoneRecord,
  InodeRecord,
  LinkRecord,
  RecordHeader,
  RecordType,
  recordBodies,
  SymlinkRecord,
  TouchRecord,
  XattrGoneRecord,
  XattrRecord,
} from "./format.ts";

/** Seconds are whole numbers (negative before 1970), nanoseconds lie in [0, 10^9). */
export interface InodeFields {
  ino: number;
  /** Bytes. */
  size: bigint;
  parent: number;
  mode: number;
  nlink: number;
  uid: number;
  gid: number;
  rdev: number;
  generation: number;
  atimeSec: number;
  mtimeSec: number;
  ctimeSec: number;
  btimeSec: number;
  atimeNsec: number;
  mtimeNsec: number;
  ctimeNsec: number;
  btimeNsec: number;
}

export const UNWRITTEN = 1;
export const WRITTEN = 2;
/** Written, and other extents may refer to the same blocks. */
export const SHARED = 3;
export type MappedState = typeof UNWRITTEN | typeof WRITTEN | typeof SHARED;

/** What the records of a group say, in order. Names and targets are byte strings: one character per byte (latin1). */
export interface RecordSink {
  inode(fields: InodeFields): void;
  inodeGone(ino: number): void;
  touch(
    ino: number,
    size: bigint,
    mode: number,
    mtimeSec: number,
    mtimeNsec: number,
    ctimeSec: number,
    ctimeNsec: number,
  ): void;
  dentry(parent: number, name: string, ino: number, type: number, cookie: number): void;
  dentryGone(parent: number, name: string): void;
  extent(ino: number, block: number, physical: number, count: number, state: MappedState): void;
  extentGone(ino: number, block: number, count: number): void;
  symlink(ino: number, target: string): void;
  xattr(ino: number, name: string, value: Uint8Array): void;
  xattrGone(ino: number, name: string): void;
  barrier(lsn: number): void;
  link(segment: number, index: number, incarnation: number): void;
  end(endLsn: number, records: number, nextIno: number, nextGeneration: number): void;
}

const TWO_32 = 0x1_0000_0000;
const HEADER = GroupHeader.size;
const RECORD = RecordHeader.size;
const pad8 = (length: number): number => (length + 7) & ~7;

function setSeconds(view: DataView, at: number, seconds: number): void {
  const high = Math.floor(seconds / TWO_32);
  view.setUint32(at, seconds - high * TWO_32, true);
  view.setInt32(at + 4, high, true);
}

function getSeconds(view: DataView, at: number): number {
  return view.getInt32(at + 4, true) * TWO_32 + view.getUint32(at, true);
}

export class GroupBuilder implements RecordSink {
  readonly capacity: number;
  #data: Buffer;
  #view: DataView;
  #length = HEADER;
  #count = 0;

  /** @param capacity largest group in bytes, header included. */
  constructor(capacity: number) {
    this.capacity = capacity;
    this.#data = Buffer.alloc(Math.min(capacity, 4096));
    this.#view = viewOf(this.#data);
  }

  /** Bytes so far, header included. */
  get length(): number {
    return this.#length;
  }
  get count(): number {
    return this.#count;
  }
  get data(): Buffer {
    return this.#data;
  }
  get view(): DataView {
    return this.#view;
  }

  reset(): void {
    this.#length = HEADER;
    this.#count = 0;
  }

  /** Write the header; afterwards data[0, length) is the group as it goes onto the media. */
  finish(kind: number, lsn: number, incarnation: number, seed: number): void {
    const view = this.#view;
    view.setUint32(GroupHeader.at.magic, GROUP_MAGIC, true);
    view.setUint32(GroupHeader.at.length, this.#length, true);
    view.setUint16(GroupHeader.at.kind, kind, true);
    view.setUint16(GroupHeader.at.count, this.#count, true);
    setU64(view, GroupHeader.at.lsn, lsn);
    setU64(view, GroupHeader.at.incarnation, incarnation);
    const from = GroupHeader.at.length;
    view.setUint32(GroupHeader.at.crc, crc32c(this.#data, from, this.#length - from, seed), true);
  }

  /** Room for a record with `bodyBytes` of body; returns where the body begins. */
  #record(type: number, bodyBytes: number): number {
    const bytes = pad8(RECORD + bodyBytes);
    const end = this.#length + bytes;
    if (end > this.capacity || this.#count === 0xffff) {
      throw new FsError("EFBIG", `one change of more than ${this.capacity} bytes of metadata`);
    }
    if (end > this.#data.length) {
      const larger = Buffer.alloc(Math.min(this.capacity, Math.max(end, this.#data.length * 2)));
      this.#data.copy(larger, 0, 0, this.#length);
      this.#data = larger;
      this.#view = viewOf(larger);
    }
    const at = this.#length;
    this.#view.setUint32(at, type, true);
    this.#view.setUint32(at + RecordHeader.at.length, bytes, true);
    // Padding and reserved bytes are zero; the buffer is reused, so say so.
    this.#data.fill(0, at + RECORD, end);
    this.#length = end;
    this.#count += 1;
    return at + RECORD;
  }

  inode(fields: InodeFields): void {
    const at = this.#record(RecordType.INODE, InodeRecord.size);
    const view = this.#view;
    const field = InodeRecord.at;
    setU64(view, at + field.ino, fields.ino);
    view.setBigUint64(at + field.size, fields.size, true);
    setU64(view, at + field.parent, fields.parent);
    view.setUint32(at + field.mode, fields.mode, true);
    view.setUint32(at + field.nlink, fields.nlink, true);
    view.setUint32(at + field.uid, fields.uid, true);
    view.setUint32(at + field.gid, fields.gid, true);
    view.setUint32(at + field.rdev, fields.rdev, true);
    view.setUint32(at + field.generation, fields.generation, true);
    setSeconds(view, at + field.atimeSec, fields.atimeSec);
    setSeconds(view, at + field.mtimeSec, fields.mtimeSec);
    setSeconds(view, at + field.ctimeSec, fields.ctimeSec);
    setSeconds(view, at + field.btimeSec, fields.btimeSec);
    view.setUint32(at + field.atimeNsec, fields.atimeNsec, true);
    view.setUint32(at + field.mtimeNsec, fields.mtimeNsec, true);
    view.setUint32(at + field.ctimeNsec, fields.ctimeNsec, true);
    view.setUint32(at + field.btimeNsec, fields.btimeNsec, true);
  }

  inodeGone(ino: number): void {
    setU64(this.#view, this.#record(RecordType.INODE_GONE, InodeGoneRecord.size), ino);
  }

  touch(
    ino: number,
    size: bigint,
    mode: number,
    mtimeSec: number,
    mtimeNsec: number,
    ctimeSec: number,
    ctimeNsec: number,
  ): void {
    const at = this.#record(RecordType.TOUCH, TouchRecord.size);
    const view = this.#view;
    const field = TouchRecord.at;
    setU64(view, at + field.ino, ino);
    view.setBigUint64(at + field.size, size, true);
    setSeconds(view, at + field.mtimeSec, mtimeSec);
    setSeconds(view, at + field.ctimeSec, ctimeSec);
    view.setUint32(at + field.mtimeNsec, mtimeNsec, true);
    view.setUint32(at + field.ctimeNsec, ctimeNsec, true);
    view.setUint32(at + field.mode, mode, true);
  }

  dentry(parent: number, name: string, ino: number, type: number, cookie: number): void {
    const at = this.#record(RecordType.DENTRY, DentryRecord.size + name.length);
    const view = this.#view;
    const field = DentryRecord.at;
    setU64(view, at + field.parent, parent);
    setU64(view, at + field.ino, ino);
    setU64(view, at + field.cookie, cookie);
    view.setUint8(at + field.type, type);
    view.setUint8(at + field.nameBytes, name.length);
    this.#data.write(name, at + DentryRecord.size, "latin1");
  }

  dentryGone(parent: number, name: string): void {
    const at = this.#record(RecordType.DENTRY_GONE, DentryGoneRecord.size + name.length);
    setU64(this.#view, at + DentryGoneRecord.at.parent, parent);
    this.#view.setUint8(at + DentryGoneRecord.at.nameBytes, name.length);
    this.#data.write(name, at + DentryGoneRecord.size, "latin1");
  }

  extent(ino: number, block: number, physical: number, count: number, state: MappedState): void {
    const at = this.#record(RecordType.EXTENT, ExtentRecord.size);
    const view = this.#view;
    setU64(view, at + ExtentRecord.at.ino, ino);
    setU64(view, at + ExtentRecord.at.block, block);
    setU64(view, at + ExtentRecord.at.physical, physical);
    view.setUint32(at + ExtentRecord.at.count, count, true);
    view.setUint32(at + ExtentRecord.at.state, state, true);
  }

  extentGone(ino: number, block: number, count: number): void {
    const at = this.#record(RecordType.EXTENT_GONE, ExtentGoneRecord.size);
    setU64(this.#view, at + ExtentGoneRecord.at.ino, ino);
    setU64(this.#view, at + ExtentGoneRecord.at.block, block);
    setU64(this.#view, at + ExtentGoneRecord.at.count, count);
  }

  symlink(ino: number, target: string): void {
    const at = this.#record(RecordType.SYMLINK, SymlinkRecord.size + target.length);
    setU64(this.#view, at + SymlinkRecord.at.ino, ino);
    this.#view.setUint32(at + SymlinkRecord.at.targetBytes, target.length, true);
    this.#data.write(target, at + SymlinkRecord.size, "latin1");
  }

  xattr(ino: number, name: string, value: Uint8Array): void {
    const at = this.#record(RecordType.XATTR, XattrRecord.size + name.length + value.length);
    setU64(this.#view, at + XattrRecord.at.ino, ino);
    this.#view.setUint32(at + XattrRecord.at.valueBytes, value.length, true);
    this.#view.setUint8(at + XattrRecord.at.nameBytes, name.length);
    this.#data.write(name, at + XattrRecord.size, "latin1");
    this.#data.set(value, at + XattrRecord.size + name.length);
  }

  xattrGone(ino: number, name: string): void {
    const at = this.#record(RecordType.XATTR_GONE, XattrGoneRecord.size + name.length);
    setU64(this.#view, at + XattrGoneRecord.at.ino, ino);
    this.#view.setUint8(at + XattrGoneRecord.at.nameBytes, name.length);
    this.#data.write(name, at + XattrGoneRecord.size, "latin1");
  }

  barrier(lsn: number): void {
    setU64(this.#view, this.#record(RecordType.BARRIER, BarrierRecord.size), lsn);
  }

  link(segment: number, index: number, incarnation: number): void {
    const at = this.#record(RecordType.LINK, LinkRecord.size);
    setU64(this.#view, at + LinkRecord.at.segment, segment);
    setU64(this.#view, at + LinkRecord.at.index, index);
    setU64(this.#view, at + LinkRecord.at.incarnation, incarnation);
  }

  end(endLsn: number, records: number, nextIno: number, nextGeneration: number): void {
    const at = this.#record(RecordType.END, EndRecord.size);
    setU64(this.#view, at + EndRecord.at.endLsn, endLsn);
    setU64(this.#view, at + EndRecord.at.records, records);
    setU64(this.#view, at + EndRecord.at.nextIno, nextIno);
    setU64(this.#view, at + EndRecord.at.nextGeneration, nextGeneration);
  }
}

export interface GroupInfo {
  /** Bytes. */
  readonly length: number;
  readonly kind: number;
  readonly lsn: number;
  readonly incarnation: number;
}

/**
 * The group at byte `at` of `data`, if one with a right checksum is there and ends by `limit`; otherwise null.
 * The checksum is the only judge: no field is trusted before it has matched.
 */
export function groupAt(
  data: Uint8Array,
  view: DataView,
  at: number,
  limit: number,
  seed: number,
): GroupInfo | null {
  if (at + HEADER > limit || view.getUint32(at, true) !== GROUP_MAGIC) return null;
  const length = view.getUint32(at + GroupHeader.at.length, true);
  if (length < HEADER || length % 8 !== 0 || at + length > limit) return null;
  const from = GroupHeader.at.length;
  if (crc32c(data, at + from, length - from, seed) !== view.getUint32(at + GroupHeader.at.crc, true))
    return null;
  const lsn = getU64(view, at + GroupHeader.at.lsn);
  const incarnation = getU64(view, at + GroupHeader.at.incarnation);
  if (Number.isNaN(lsn) || Number.isNaN(incarnation)) return null;
  return { length, kind: view.getUint16(at + GroupHeader.at.kind, true), lsn, incarnation };
}

const bodyBytesByType: number[] = [];
for (const [name, body] of Object.entries(recordBodies)) {
  bodyBytesByType[RecordType[name as keyof typeof RecordType]] = body.size;
}

/**
 * Tell the sink every record of the group in data[at, at + length). The checksum has matched, so anything wrong in here
 * was written so: damage that a checksum cannot see, or a hostile image. Both are CorruptionError.
 *
 * @param place byte offset of the group in the region, for the message.
 */
export function readRecords(
  data: Buffer,
  view: DataView,
  at: number,
  length: number,
  place: number,
  sink: RecordSink,
): void {
  const limit = at + length;
  const count = view.getUint16(at + GroupHeader.at.count, true);
  let position = at + HEADER;
  // The type is spelled out so that the compiler knows that nothing goes on behind a call.
  const bad: (what: string, expected: string, found: string | number) => never = (what, expected, found) => {
    throw new CorruptionError(
      `${what} in the record at byte ${place + position - at}`,
      expected,
      String(found),
    );
  };
  const u64 = (offset: number): number => {
    const value = getU64(view, offset);
    if (Number.isNaN(value)) bad("a 64-bit field", "at most 2^53 - 1", "more");
    return value;
  };
  for (let index = 0; index < count; index += 1) {
    if (position + RECORD > limit) bad("the count", `${index} records`, count);
    const type = view.getUint16(position, true);
    const bytes = view.getUint32(position + RecordHeader.at.length, true);
    const fixed = bodyBytesByType[type];
    if (fixed === undefined) bad("the type", "a known record type", type);
    if (bytes % 8 !== 0 || bytes < RECORD + fixed || position + bytes > limit) {
      bad("the length", `a multiple of 8 within the group, at least ${RECORD + fixed}`, bytes);
    }
    const body = position + RECORD;
    const tail = body + fixed;
    const end = position + bytes;
    const nameAt = (offset: number, nameBytes: number): string => {
      if (nameBytes === 0 || offset + nameBytes > end)
        bad("the name", "1 byte or more, within the record", nameBytes);
      return data.toString("latin1", offset, offset + nameBytes);
    };
    switch (type) {
      case RecordType.INODE: {
        const field = InodeRecord.at;
        sink.inode({
          ino: u64(body + field.ino),
          size: view.getBigUint64(body + field.size, true),
          parent: u64(body + field.parent),
          mode: view.getUint32(body + field.mode, true),
          nlink: view.getUint32(body + field.nlink, true),
          uid: view.getUint32(body + field.uid, true),
          gid: view.getUint32(body + field.gid, true),
          rdev: view.getUint32(body + field.rdev, true),
          generation: view.getUint32(body + field.generation, true),
          atimeSec: getSeconds(view, body + field.atimeSec),
          mtimeSec: getSeconds(view, body + field.mtimeSec),
          ctimeSec: getSeconds(view, body + field.ctimeSec),
          btimeSec: getSeconds(view, body + field.btimeSec),
          atimeNsec: view.getUint32(body + field.atimeNsec, true),
          mtimeNsec: view.getUint32(body + field.mtimeNsec, true),
          ctimeNsec: view.getUint32(body + field.ctimeNsec, true),
          btimeNsec: view.getUint32(body + field.btimeNsec, true),
        });
        break;
      }
      case RecordType.INODE_GONE:
        sink.inodeGone(u64(body));
        break;
      case RecordType.TOUCH: {
        const field = TouchRecord.at;
        sink.touch(
          u64(body + field.ino),
          view.getBigUint64(body + field.size, true),
          view.getUint32(body + field.mode, true),
          getSeconds(view, body + field.mtimeSec),
          view.getUint32(body + field.mtimeNsec, true),
          getSeconds(view, body + field.ctimeSec),
          view.getUint32(body + field.ctimeNsec, true),
        );
        break;
      }
      case RecordType.DENTRY: {
        const field = DentryRecord.at;
        sink.dentry(
          u64(body + field.parent),
          nameAt(tail, view.getUint8(body + field.nameBytes)),
          u64(body + field.ino),
          view.getUint8(body + field.type),
          u64(body + field.cookie),
        );
        break;
      }
      case RecordType.DENTRY_GONE:
        sink.dentryGone(
          u64(body + DentryGoneRecord.at.parent),
          nameAt(tail, view.getUint8(body + DentryGoneRecord.at.nameBytes)),
        );
        break;
      case RecordType.EXTENT: {
        const state = view.getUint32(body + ExtentRecord.at.state, true);
        if (state !== UNWRITTEN && state !== WRITTEN && state !== SHARED)
          bad("the extent state", "1 to 3", state);
        sink.extent(
          u64(body + ExtentRecord.at.ino),
          u64(body + ExtentRecord.at.block),
          u64(body + ExtentRecord.at.physical),
          view.getUint32(body + ExtentRecord.at.count, true),
          state,
        );
        break;
      }
      case RecordType.EXTENT_GONE:
        sink.extentGone(
          u64(body + ExtentGoneRecord.at.ino),
          u64(body + ExtentGoneRecord.at.block),
          u64(body + ExtentGoneRecord.at.count),
        );
        break;
      case RecordType.SYMLINK: {
        const targetBytes = view.getUint32(body + SymlinkRecord.at.targetBytes, true);
        if (targetBytes > 4095) bad("the target length", "at most 4095", targetBytes);
        sink.symlink(u64(body), nameAt(tail, targetBytes));
        break;
      }
      case RecordType.XATTR: {
        const nameBytes = view.getUint8(body + XattrRecord.at.nameBytes);
        const valueBytes = view.getUint32(body + XattrRecord.at.valueBytes, true);
        const name = nameAt(tail, nameBytes);
        if (valueBytes > 65536 || tail + nameBytes + valueBytes > end) {
          bad("the value length", "at most 65536, within the record", valueBytes);
        }
        const from = tail + nameBytes;
        sink.xattr(u64(body), name, Uint8Array.prototype.slice.call(data, from, from + valueBytes));
        break;
      }
      case RecordType.XATTR_GONE:
        sink.xattrGone(u64(body), nameAt(tail, view.getUint8(body + XattrGoneRecord.at.nameBytes)));
        break;
      case RecordType.BARRIER:
        sink.barrier(u64(body));
        break;
      case RecordType.LINK:
        sink.link(
          u64(body + LinkRecord.at.segment),
          u64(body + LinkRecord.at.index),
          u64(body + LinkRecord.at.incarnation),
        );
        break;
      case RecordType.END:
        sink.end(
          u64(body + EndRecord.at.endLsn),
          u64(body + EndRecord.at.records),
          u64(body + EndRecord.at.nextIno),
          u64(body + EndRecord.at.nextGeneration),
        );
        break;
    }
    position = end;
  }
  if (position !== limit) bad("the end", `the group to end at byte ${place + length}`, place + position - at);
}

/** A sink that refuses everything; extend it where only some records may occur. */
export function refusingSink(where: string): RecordSink {
  const refuse = (): never => {
    throw new CorruptionError(where, "no such record here", "one");
  };
  return {
    inode: refuse,
    inodeGone: refuse,
    touch: refuse,
    dentry: refuse,
    dentryGone: refuse,
    extent: refuse,
    extentGone: refuse,
    symlink: refuse,
    xattr: refuse,
    xattrGone: refuse,
    barrier: refuse,
    link: refuse,
    end: refuse,
  };
}

invariant(RECORD === 8 && HEADER % 8 === 0, "groups and records are multiples of 8 bytes");
