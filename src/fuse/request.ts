/**
 * A reusable decoder over the one buffer that the channel reads requests into.
 *
 * Invariants, from a `load` that returned until the next `load`:
 * - `length` equals the header's own length and the bytes read; every accessor stays inside [0, length);
 * - the fixed part that the opcode's row declares is there in full (or as much of it as the protocol version sends);
 * - the data of WRITE and IOCTL is there in full: bytes[dataAt, dataAt + ioSize) may be used without `data()`;
 * - nothing is copied: `data()` and `bytes` alias the buffer, which the next request overwrites. Whoever keeps a request
 *   takes a `clone()`.
 *
 * Malformed input is an expected answer, never an exception of another kind. Everything here throws FsError:
 * - EPROTO from `load` when not even a header is there: there is no id to answer to, drop it (`unique` is 0n);
 * - EINVAL for any other damage: wrong length, short body, missing NUL, empty name, a slash in a name, "." or ".."
 *   where no lookup is meant, a 64-bit number above 2^53 - 1 in a field declared as number. `opcode` and `unique` are
 *   set by then, so that the caller can answer (and must not, if the opcode is one without a reply);
 * - ENAMETOOLONG for names over 255 and targets over 4095 bytes.
 * InvariantError means that our own code asked for something that the opcode does not have.
 *
 * Names are bytes: strings with one character per byte (latin1, "binary"), never decoded.
 */
import { CorruptionError, FsError, InvariantError } from "../base/errors.ts";
import { getU64, type StructValue } from "../layout/struct.ts";
import {
  type AnyStruct,
  BatchForgetIn,
  ExtHeader,
  ExtType,
  ForgetIn,
  ForgetOne,
  FUSE_UNIQUE_RESEND,
  GetattrIn,
  InHeader,
  InterruptIn,
  NAME_MAX_BYTES,
  Opcode,
  ReadIn,
  SETXATTR_IN_COMPAT_BYTES,
  TARGET_MAX_BYTES,
  WriteIn,
} from "./kernel.ts";
import { type OpRow, opcodeName, opRow } from "./opcodes.ts";

const HEADER_BYTES = InHeader.size;
const NUL = 0;
const SLASH = 0x2f;

// READ, READDIR, READDIRPLUS and WRITE have the same layout: one set of accessors serves all four.
if (
  Object.entries(ReadIn.at).some(([name, at]) => name !== "readFlags" && Reflect.get(WriteIn.at, name) !== at)
) {
  throw new InvariantError("fuse_read_in and fuse_write_in differ");
}

const AT_FH = HEADER_BYTES + ReadIn.at.fh;
const AT_OFFSET = HEADER_BYTES + ReadIn.at.offset;
const AT_SIZE = HEADER_BYTES + ReadIn.at.size;
const AT_IO_FLAGS = HEADER_BYTES + ReadIn.at.readFlags;
const AT_LOCK_OWNER = HEADER_BYTES + ReadIn.at.lockOwner;
const AT_OPEN_FLAGS = HEADER_BYTES + ReadIn.at.flags;
const AT_GETATTR_FLAGS = HEADER_BYTES + GetattrIn.at.getattrFlags;
const AT_GETATTR_FH = HEADER_BYTES + GetattrIn.at.fh;

export class Request {
  /** The whole buffer; what lies beyond `length` belongs to older requests. */
  readonly bytes: Buffer;
  readonly view: DataView;

  /** Set by the session when SETXATTR_EXT was negotiated: SETXATTR then has a 16-byte fixed part, otherwise 8. */
  setxattrExtended = true;

  /** When it came, for whoever takes the time (performance.now(), milliseconds); a clone came with its original. */
  receivedMs = 0;

  /** Bytes of this request, header included; 0 after a load that failed. */
  length = 0;
  opcode = 0;
  /** The opcode's row; undefined if the opcode is unknown: nothing but the header is decoded, answer ENOSYS. */
  row: OpRow | undefined = undefined;
  unique = 0n;
  nodeid = 0;
  uid = 0;
  gid = 0;
  pid = 0;
  /** Byte offset of the fixed part. */
  readonly bodyAt = HEADER_BYTES;
  /** Bytes of the fixed part that were sent. */
  bodyBytes = 0;
  /** Byte offset of what follows the fixed part. */
  trailingAt = 0;
  /** Byte offset of the end of all that, where the extensions begin. */
  end = 0;

  /** `isCopy`: the buffer is its own, and nobody else writes into it. */
  constructor(
    buffer: Uint8Array,
    readonly isCopy = false,
  ) {
    this.bytes = Buffer.from(buffer.buffer, buffer.byteOffset, buffer.byteLength);
    this.view = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength);
  }

  /** Take up the request in buffer[0, length). */
  load(length: number): void {
    const view = this.view;
    this.opcode = 0;
    this.row = undefined;
    this.unique = 0n;
    this.nodeid = 0;
    this.length = 0;
    this.bodyBytes = 0;
    this.trailingAt = HEADER_BYTES;
    this.end = HEADER_BYTES;
    if (length < HEADER_BYTES || length > view.byteLength) {
      throw new FsError("EPROTO", `a request of ${length} bytes`);
    }
    this.opcode = view.getUint32(InHeader.at.opcode, true);
    this.unique = view.getBigUint64(InHeader.at.unique, true);
    this.uid = view.getUint32(InHeader.at.uid, true);
    this.gid = view.getUint32(InHeader.at.gid, true);
    this.pid = view.getUint32(InHeader.at.pid, true);
    const row = opRow(this.opcode);
    this.row = row;
    const declared = view.getUint32(InHeader.at.len, true);
    if (declared !== length) throw this.malformed(`header says ${declared} bytes, ${length} were read`);
    this.nodeid = this.number(InHeader.at.nodeid, "nodeid");
    const end = length - 8 * view.getUint16(InHeader.at.totalExtlen, true);
    if (end < HEADER_BYTES) throw this.malformed("extensions longer than the request");
    this.end = end;
    if (row?.in != null) {
      let body = row.in.size;
      if (body !== row.inBytesMin) {
        if (this.opcode === Opcode.SETXATTR) {
          if (!this.setxattrExtended) body = SETXATTR_IN_COMPAT_BYTES;
        } else if (end - HEADER_BYTES < body) {
          body = Math.max(row.inBytesMin, end - HEADER_BYTES);
        }
      }
      if (end - HEADER_BYTES < body) {
        throw this.malformed(`${end - HEADER_BYTES} bytes where ${body} belong`);
      }
      this.bodyBytes = body;
      this.trailingAt = HEADER_BYTES + body;
      if (row.trailing === "data" && row.sizeAt >= 0) {
        const size = view.getUint32(HEADER_BYTES + row.sizeAt, true);
        if (size > end - this.trailingAt) {
          throw this.malformed(`${end - this.trailingAt} bytes of data where ${size} belong`);
        }
      }
    }
    this.length = length;
  }

  /** The kernel sent this request before and does not know whether it was carried out (7.40). */
  get resent(): boolean {
    return (this.unique & FUSE_UNIQUE_RESEND) !== 0n;
  }

  /** Decode the fixed part. `declared` must be the one in the opcode's row. Fields that were not sent are zero. */
  body<S extends AnyStruct>(declared: S): StructValue<S> {
    const expected: AnyStruct | null | undefined = this.row?.in;
    if (expected !== declared) throw new InvariantError(`${opcodeName(this.opcode)} has no ${declared.name}`);
    try {
      if (this.bodyBytes === declared.size) return declared.decode(this.view, HEADER_BYTES) as StructValue<S>;
      const whole = new Uint8Array(declared.size);
      whole.set(this.bytes.subarray(HEADER_BYTES, HEADER_BYTES + this.bodyBytes));
      return declared.decode(new DataView(whole.buffer), 0) as StructValue<S>;
    } catch (error) {
      if (error instanceof CorruptionError) throw this.malformed(error.message);
      throw error;
    }
  }

  // ---- READ, READDIR, READDIRPLUS, WRITE: single fields, no objects

  /** File handle of READ, READDIR, READDIRPLUS, WRITE. */
  get ioHandle(): number {
    return this.number(AT_FH, "fh");
  }
  /** Byte offset of the same. */
  get ioOffset(): bigint {
    return this.view.getBigUint64(AT_OFFSET, true);
  }
  /** The same as a number: EINVAL above 2^53 - 1, which no file here reaches. */
  get ioOffsetNumber(): number {
    return this.number(AT_OFFSET, "offset");
  }
  /** Bytes of the same. */
  get ioSize(): number {
    return this.view.getUint32(AT_SIZE, true);
  }
  /** ReadFlag or WriteFlag bits of the same. */
  get ioFlags(): number {
    return this.view.getUint32(AT_IO_FLAGS, true);
  }
  /** Lock owner of the same; valid if the flags say so. */
  get ioLockOwner(): bigint {
    return this.view.getBigUint64(AT_LOCK_OWNER, true);
  }
  /** O_* flags of the open file of the same. */
  get ioOpenFlags(): number {
    return this.view.getUint32(AT_OPEN_FLAGS, true);
  }

  // ---- GETATTR

  get getattrFlags(): number {
    return this.view.getUint32(AT_GETATTR_FLAGS, true);
  }
  /** File handle of GETATTR; means nothing unless getattrFlags has FH. */
  get getattrHandle(): number {
    return this.number(AT_GETATTR_FH, "fh");
  }

  // ---- FORGET, BATCH_FORGET, INTERRUPT

  get forgetLookups(): number {
    return this.number(HEADER_BYTES + ForgetIn.at.nlookup, "nlookup");
  }

  /** Call `each` for every element of BATCH_FORGET. All are checked before the first call. */
  batchForget(each: (nodeid: number, lookups: number) => void): void {
    const count = this.view.getUint32(HEADER_BYTES + BatchForgetIn.at.count, true);
    const room = this.end - this.trailingAt;
    if (count * ForgetOne.size > room) throw this.malformed(`${count} elements in ${room} bytes`);
    for (let index = 0; index < count; index++) {
      const at = this.trailingAt + index * ForgetOne.size;
      this.number(at + ForgetOne.at.nodeid, "nodeid");
      this.number(at + ForgetOne.at.nlookup, "nlookup");
    }
    for (let index = 0; index < count; index++) {
      const at = this.trailingAt + index * ForgetOne.size;
      each(getU64(this.view, at + ForgetOne.at.nodeid), getU64(this.view, at + ForgetOne.at.nlookup));
    }
  }

  /** The id of the request that INTERRUPT is about. */
  get interrupted(): bigint {
    return this.view.getBigUint64(HEADER_BYTES + InterruptIn.at.unique, true);
  }

  // ---- what follows the fixed part

  /** The first name: of a directory entry, or of an extended attribute. */
  name(): string {
    const trailing = this.row?.trailing;
    switch (trailing) {
      case "name":
      case "two names":
      case "name+target":
        return this.entryName(this.trailingAt);
      case "xattr name":
      case "xattr name+data":
      case "any name":
        return this.text(this.trailingAt, NAME_MAX_BYTES);
      default:
        throw new InvariantError(`${opcodeName(this.opcode)} has no name`);
    }
  }

  /** The second name: the new one of RENAME and RENAME2, or the target of SYMLINK. */
  secondName(): string {
    const trailing = this.row?.trailing;
    if (trailing !== "two names" && trailing !== "name+target") {
      throw new InvariantError(`${opcodeName(this.opcode)} has no second name`);
    }
    const at = this.nulAt(this.trailingAt, NAME_MAX_BYTES) + 1;
    return trailing === "two names" ? this.entryName(at) : this.text(at, TARGET_MAX_BYTES);
  }

  /** Byte offset in `bytes` of the data of WRITE, SETXATTR, IOCTL, NOTIFY_REPLY, BATCH_FORGET, REMOVEMAPPING. */
  get dataAt(): number {
    return this.row?.trailing === "xattr name+data"
      ? this.nulAt(this.trailingAt, NAME_MAX_BYTES) + 1
      : this.trailingAt;
  }

  /** The data of the same: an alias of the buffer. As long as the fixed part says; EINVAL if that is not there. */
  data(): Buffer {
    const row = this.row;
    if (row === undefined || (row.trailing !== "data" && row.trailing !== "xattr name+data")) {
      throw new InvariantError(`${opcodeName(this.opcode)} has no data`);
    }
    const at = this.dataAt;
    const room = this.end - at;
    const size = row.sizeAt < 0 ? room : this.view.getUint32(HEADER_BYTES + row.sizeAt, true);
    if (size > room) throw this.malformed(`${room} bytes of data where ${size} belong`);
    return this.bytes.subarray(at, at + size);
  }

  /**
   * The groups of the caller that the kernel names under CREATE_SUPP_GROUP: the one that owns the parent directory, if
   * the caller is in it.
   */
  supplementaryGroups(): number[] {
    const groups: number[] = [];
    for (let at = this.end; at + ExtHeader.size <= this.length; ) {
      const size = this.view.getUint32(at + ExtHeader.at.size, true);
      const type = this.view.getUint32(at + ExtHeader.at.type, true);
      if (size < ExtHeader.size || size > this.length - at) throw this.malformed("broken extension");
      if (type === ExtType.GROUPS) {
        if (size < ExtHeader.size + 4) throw this.malformed("broken extension");
        const count = this.view.getUint32(at + ExtHeader.size, true);
        if (ExtHeader.size + 4 + 4 * count > size) throw this.malformed("broken extension");
        for (let index = 0; index < count; index++) {
          groups.push(this.view.getUint32(at + ExtHeader.size + 4 + 4 * index, true));
        }
      }
      at += (size + 7) & ~7;
    }
    return groups;
  }

  /** A request with a buffer of its own, to be answered or run again later. */
  clone(): Request {
    const copy = new Request(Buffer.from(this.bytes.subarray(0, this.length)), true);
    copy.setxattrExtended = this.setxattrExtended;
    copy.receivedMs = this.receivedMs;
    copy.load(this.length);
    return copy;
  }

  // ---- inside

  /** A 64-bit field at byte offset `at` of the buffer, as a number. */
  private number(at: number, what: string): number {
    const value = getU64(this.view, at);
    if (Number.isNaN(value)) throw this.malformed(`${what} is ${this.view.getBigUint64(at, true)}`);
    return value;
  }

  /** Byte offset of the NUL that ends the text at `at`. */
  private nulAt(at: number, bytesMax: number): number {
    const bytes = this.bytes;
    const end = this.end;
    const limit = Math.min(end, at + bytesMax + 1);
    for (let position = at; position < limit; position++) {
      if (bytes[position] === NUL) return position;
    }
    // The kernel's own limit for a name is higher (FUSE_NAME_MAX is 1024): a text that ends later is merely too long.
    if (limit < end && bytes.subarray(limit, end).includes(NUL)) {
      throw new FsError("ENAMETOOLONG", `more than ${bytesMax} bytes`);
    }
    throw this.malformed("no NUL");
  }

  private text(at: number, bytesMax: number): string {
    const end = this.nulAt(at, bytesMax);
    if (end === at) throw this.malformed("empty name");
    return this.bytes.toString("latin1", at, end);
  }

  private entryName(at: number): string {
    const bytes = this.bytes;
    const end = this.nulAt(at, NAME_MAX_BYTES);
    if (end === at) throw this.malformed("empty name");
    for (let position = at; position < end; position++) {
      if (bytes[position] === SLASH) throw this.malformed("slash in a name");
    }
    const name = bytes.toString("latin1", at, end);
    if ((name === "." || name === "..") && this.opcode !== Opcode.LOOKUP) {
      throw this.malformed(`the name ${name}`);
    }
    return name;
  }

  private malformed(what: string): FsError {
    return new FsError("EINVAL", `malformed ${opcodeName(this.opcode)}: ${what}`);
  }
}
