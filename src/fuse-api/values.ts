/**
 * Between what handlers return and what the protocol carries. Handlers are not ours: whatever they return is looked at
 * before it is used, and a TypeError names what is wrong with it.
 */
import { FsError } from "../base/errors.ts";
import type { Attr, Entry as ProtocolEntry, Statfs, StatxAttr } from "../fuse/encode.ts";
import { NAME_MAX_BYTES } from "../fuse/kernel.ts";
import type { Attributes, Entry, ExtendedAttributes, FileSystemStatistics, Time } from "./types.ts";

/** How names are given to handlers. The protocol layer has one character per byte. */
export type NameForm = "utf8" | "bytes";

export class Names {
  readonly #form: NameForm;
  readonly #strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

  constructor(form: NameForm) {
    this.#form = form;
  }

  /** @throws FsError EILSEQ: not UTF-8 */
  decode(bytes: string): string {
    if (this.#form === "bytes" || !hasHighBytes(bytes)) return bytes;
    try {
      return this.#strict.decode(Buffer.from(bytes, "latin1"));
    } catch {
      throw new FsError("EILSEQ", "a name that is not UTF-8");
    }
  }

  encode(text: unknown, what: string): string {
    if (typeof text !== "string") throw new TypeError(`${what}: expected a string, got ${shown(text)}`);
    if (this.#form === "utf8") {
      // One half of a surrogate pair has no UTF-8: it would become another name.
      if (/\p{Surrogate}/u.test(text)) throw new TypeError(`${what}: ${shown(text)} is no Unicode`);
      return Buffer.from(text, "utf8").toString("latin1");
    }
    if (/[^\0-\xff]/.test(text)) throw new TypeError(`${what}: one character per byte was asked for`);
    return text;
  }

  /** Of an entry in a directory. */
  entryName(text: unknown): string {
    const bytes = this.encode(text, "name");
    if (bytes === "" || bytes.length > NAME_MAX_BYTES || /[/\0]/.test(bytes)) {
      throw new TypeError(`name: ${shown(text)} cannot be one`);
    }
    return bytes;
  }
}

function hasHighBytes(text: string): boolean {
  for (let at = 0; at < text.length; at++) if (text.charCodeAt(at) > 0x7f) return true;
  return false;
}

/** A value for a message: what it is, not all of it. */
export function shown(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.slice(0, 40));
  if (typeof value === "object" && value !== null) return value.constructor?.name ?? "an object";
  return typeof value === "function" ? "a function" : String(value);
}

/** A safe integer within [least, most]. */
export function integer(value: unknown, what: string, least = 0, most = Number.MAX_SAFE_INTEGER): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= least && value <= most)
    return value;
  throw new TypeError(`${what}: expected an integer from ${least} to ${most}, got ${shown(value)}`);
}

/** The same of 64 bits. Nothing is converted: BigInt() would make something of "7" and true, too. */
export function bigInteger(value: unknown, what: string, least: bigint, most: bigint): bigint {
  if (typeof value === "bigint" && value >= least && value <= most) return value;
  throw new TypeError(`${what}: expected a bigint from ${least} to ${most}, got ${shown(value)}`);
}

/** Type and permissions, as st_mode: what a reply has room for is more, and would be cut off. */
export function modeOf(value: unknown): number {
  return integer(value, "mode", 0, 0xffff);
}

/** S_IFIFO, S_IFCHR, S_IFDIR, S_IFBLK, S_IFREG, S_IFLNK, S_IFSOCK: the kernel answers EIO by itself for any other. */
const TYPES: readonly number[] = [1, 2, 4, 6, 8, 10, 12];

function modeWithType(value: unknown): number {
  const mode = modeOf(value);
  if (TYPES.includes(mode >> 12)) return mode;
  throw new TypeError(`mode: expected the type of a file (S_IFREG…) in it, got 0o${mode.toString(8)}`);
}

export function record(value: unknown, what: string): object {
  if (typeof value === "object" && value !== null) return value;
  throw new TypeError(`${what}: expected an object, got ${shown(value)}`);
}

export function byteArray(value: unknown, what: string, bytesMax: number): Uint8Array {
  if (!(value instanceof Uint8Array)) throw new TypeError(`${what}: expected bytes, got ${shown(value)}`);
  if (value.length > bytesMax) {
    throw new TypeError(`${what}: ${value.length} bytes where at most ${bytesMax} were asked for`);
  }
  return value;
}

export function iterable<T>(value: Iterable<T>, what: string): Iterable<T> {
  if (typeof value === "object" && value !== null && typeof value[Symbol.iterator] === "function")
    return value;
  throw new TypeError(`${what}: expected a list, got ${shown(value)}`);
}

/** Offsets and sizes above 2^53 - 1 are nobody's. @throws FsError EFBIG */
export function safeNumber(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new FsError("EFBIG", `${value} bytes`);
  return Number(value);
}

const U32 = 0xffff_ffff;
const U64 = 0xffff_ffff_ffff_ffffn;
const EPOCH: Time = { seconds: 0, nanoseconds: 0 };

function timeOf(value: Time | Date | undefined, what: string): Time {
  if (value === undefined) return EPOCH;
  if (value instanceof Date) {
    const ms = value.getTime();
    integer(ms, what, Number.MIN_SAFE_INTEGER);
    const seconds = Math.floor(ms / 1000);
    return { seconds, nanoseconds: (ms - seconds * 1000) * 1_000_000 };
  }
  record(value, what);
  return {
    seconds: integer(value.seconds, `${what}.seconds`, Number.MIN_SAFE_INTEGER),
    nanoseconds: integer(value.nanoseconds, `${what}.nanoseconds`, 0, 999_999_999),
  };
}

const ownUid = process.getuid?.() ?? 0;
const ownGid = process.getgid?.() ?? 0;

export function attrOf(value: Attributes): Attr {
  record(value, "attributes");
  const size = integer(value.size ?? 0, "size");
  const atime = timeOf(value.atime, "atime");
  const mtime = timeOf(value.mtime, "mtime");
  const ctime = timeOf(value.ctime ?? value.mtime, "ctime");
  return {
    ino: integer(value.ino, "ino"),
    size: BigInt(size),
    blocks: integer(value.blocks ?? Math.ceil(size / 512), "blocks"),
    atimeSec: atime.seconds,
    atimeNsec: atime.nanoseconds,
    mtimeSec: mtime.seconds,
    mtimeNsec: mtime.nanoseconds,
    ctimeSec: ctime.seconds,
    ctimeNsec: ctime.nanoseconds,
    mode: modeWithType(value.mode),
    nlink: integer(value.nlink ?? 1, "nlink", 0, U32),
    uid: integer(value.uid ?? ownUid, "uid", 0, U32),
    gid: integer(value.gid ?? ownGid, "gid", 0, U32),
    rdev: integer(value.rdev ?? 0, "rdev", 0, U32),
    blksize: integer(value.blksize ?? 4096, "blksize", 0, U32),
    flags: 0,
  };
}

/** STATX_BASIC_STATS, and STATX_BTIME (linux/stat.h). */
const STATX_BASIC = 0x07ff;
const STATX_BTIME = 0x0800;

export function statxOf(value: ExtendedAttributes): StatxAttr {
  const attr = attrOf(value);
  const btime = timeOf(value.btime, "btime");
  return {
    ...attr,
    mask: STATX_BASIC | (value.btime === undefined ? 0 : STATX_BTIME),
    attributes: bigInteger(value.attributes ?? 0n, "attributes", 0n, U64),
    attributesMask: bigInteger(value.attributesMask ?? 0n, "attributesMask", 0n, U64),
    btimeSec: btime.seconds,
    btimeNsec: btime.nanoseconds,
  };
}

/** How long something may be relied on. */
export interface Ttl {
  readonly sec: number;
  readonly nsec: number;
}

export function ttlOf(milliseconds: unknown, what: string): Ttl {
  if (typeof milliseconds !== "number" || !(milliseconds >= 0) || milliseconds > 1e12) {
    throw new TypeError(`${what}: expected milliseconds, got ${shown(milliseconds)}`);
  }
  const sec = Math.floor(milliseconds / 1000);
  return { sec, nsec: Math.floor((milliseconds - sec * 1000) * 1e6) };
}

export interface Ttls {
  readonly entryTtlMs: number;
  readonly attributesTtlMs: number;
}

export function entryOf(value: Entry, defaults: Ttls): ProtocolEntry {
  record(value, "entry");
  const entry = ttlOf(value.entryTtlMs ?? defaults.entryTtlMs, "entryTtlMs");
  const attributes = ttlOf(value.attributesTtlMs ?? defaults.attributesTtlMs, "attributesTtlMs");
  return {
    nodeid: integer(value.nodeid, "nodeid", 1),
    generation: integer(value.generation ?? 0, "generation"),
    entryValidSec: entry.sec,
    entryValidNsec: entry.nsec,
    attrValidSec: attributes.sec,
    attrValidNsec: attributes.nsec,
    attr: attrOf(value.attributes),
  };
}

/** An entry of what was just made, which has to be of the type that was asked for, and not the root directory. */
export function madeOf(value: Entry, type: number, defaults: Ttls): ProtocolEntry {
  const entry = entryOf(value, defaults);
  integer(entry.nodeid, "nodeid", 2);
  if (entry.attr.mode >> 12 === type >> 12) return entry;
  throw new TypeError(
    `mode: expected type 0o${((type >> 12) << 12).toString(8)}, got 0o${entry.attr.mode.toString(8)}`,
  );
}

export function statfsOf(value: FileSystemStatistics): Statfs {
  record(value, "statfs");
  const blockBytes = integer(value.blockBytes ?? 4096, "blockBytes", 1, U32);
  const bfree = integer(value.blocksFree ?? 0, "blocksFree");
  return {
    blocks: integer(value.blocks ?? 0, "blocks"),
    bfree,
    bavail: integer(value.blocksAvailable ?? bfree, "blocksAvailable"),
    files: integer(value.files ?? 0, "files"),
    ffree: integer(value.filesFree ?? 0, "filesFree"),
    bsize: blockBytes,
    namelen: integer(value.nameBytesMax ?? NAME_MAX_BYTES, "nameBytesMax", 1, U32),
    frsize: blockBytes,
  };
}
