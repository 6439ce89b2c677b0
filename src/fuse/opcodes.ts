/**
 * One row per opcode: what a request and its reply look like. Decoding, dispatch and printing all read this table and
 * nothing else about an opcode's form is written anywhere.
 *
 * Invariants:
 * - `in` comes first in a request, right after the header, then what `trailing` says;
 * - `out` comes first in a successful reply, then `outSecond`, then what `outTrailing` says;
 * - a row with `reply: false` is never answered, not even with an error: the kernel does not wait, and a reply with an
 *   unknown id fails.
 */
import { largest } from "../base/arrays.ts";
import {
  AccessIn,
  type AnyStruct,
  AttrOut,
  BatchForgetIn,
  BmapIn,
  BmapOut,
  CopyFileRangeIn,
  CopyFileRangeOut,
  CreateIn,
  EntryOut,
  FallocateIn,
  FlushIn,
  ForgetIn,
  FsyncIn,
  GetattrIn,
  GetxattrIn,
  InitIn,
  InitOut,
  InterruptIn,
  IoctlIn,
  IoctlOut,
  LinkIn,
  LkIn,
  LkOut,
  LseekIn,
  LseekOut,
  MkdirIn,
  MknodIn,
  NotifyRetrieveIn,
  Opcode,
  type OpcodeName,
  OpenIn,
  OpenOut,
  PollIn,
  PollOut,
  ReadIn,
  ReleaseIn,
  RemovemappingIn,
  Rename2In,
  RenameIn,
  SETXATTR_IN_COMPAT_BYTES,
  SetattrIn,
  SetupmappingIn,
  SetxattrIn,
  StatfsOut,
  StatxIn,
  StatxOut,
  SyncfsIn,
  WriteIn,
  WriteOut,
} from "./kernel.ts";

/**
 * What follows the fixed part of a request:
 * - `name`: a directory entry's name and a NUL; `two names`: twice;
 * - `name+target`: a name, then a symbolic link's target (any bytes, up to 4095);
 * - `xattr name`: may contain a slash; `xattr name+data`: then the value;
 * - `any name`: bytes and a NUL that mean nothing (TMPFILE sends "/");
 * - `data`: bytes, as many as the fixed part says.
 */
export type Trailing =
  | "none"
  | "name"
  | "two names"
  | "name+target"
  | "any name"
  | "xattr name"
  | "xattr name+data"
  | "data";

/** What follows the fixed part of a reply. `data or size`: bytes, or GetxattrOut when the request's size was 0. */
export type OutTrailing = "none" | "data" | "data or size" | "dirents" | "direntplus";

export interface OpRow {
  readonly opcode: number;
  readonly name: OpcodeName;
  readonly in: AnyStruct | null;
  /** The least that `in` may be cut to by an older protocol, bytes; equal to in.size where that cannot be. */
  readonly inBytesMin: number;
  readonly trailing: Trailing;
  /** The field of `in` that counts the bytes of trailing data; null if data reaches to the end of the request. */
  readonly sizeField: string | null;
  /** Byte offset of sizeField in `in`, -1 without one. */
  readonly sizeAt: number;
  readonly reply: boolean;
  readonly out: AnyStruct | null;
  readonly outSecond: AnyStruct | null;
  readonly outTrailing: OutTrailing;
  /** Minor protocol version that brought this opcode; 0 if older than what is worked with. */
  readonly since: number;
}

interface Extra {
  inBytesMin?: number;
  sizeField?: string;
  reply?: false;
  outSecond?: AnyStruct;
  outTrailing?: OutTrailing;
  since?: number;
}

const row = (
  name: OpcodeName,
  input: AnyStruct | null,
  trailing: Trailing,
  out: AnyStruct | null,
  extra: Extra = {},
): OpRow => ({
  opcode: Opcode[name],
  name,
  in: input,
  inBytesMin: extra.inBytesMin ?? input?.size ?? 0,
  trailing,
  sizeField: extra.sizeField ?? null,
  sizeAt: input !== null && extra.sizeField !== undefined ? (input.at[extra.sizeField] as number) : -1,
  reply: extra.reply ?? true,
  out,
  outSecond: extra.outSecond ?? null,
  outTrailing: extra.outTrailing ?? "none",
  since: extra.since ?? 0,
});

export const opRows: readonly OpRow[] = [
  row("LOOKUP", null, "name", EntryOut),
  row("FORGET", ForgetIn, "none", null, { reply: false }),
  row("GETATTR", GetattrIn, "none", AttrOut),
  row("SETATTR", SetattrIn, "none", AttrOut),
  row("READLINK", null, "none", null, { outTrailing: "data" }),
  row("SYMLINK", null, "name+target", EntryOut),
  row("MKNOD", MknodIn, "name", EntryOut),
  row("MKDIR", MkdirIn, "name", EntryOut),
  row("UNLINK", null, "name", null),
  row("RMDIR", null, "name", null),
  row("RENAME", RenameIn, "two names", null),
  row("LINK", LinkIn, "name", EntryOut),
  row("OPEN", OpenIn, "none", OpenOut),
  row("READ", ReadIn, "none", null, { outTrailing: "data" }),
  row("WRITE", WriteIn, "data", WriteOut, { sizeField: "size" }),
  row("STATFS", null, "none", StatfsOut),
  row("RELEASE", ReleaseIn, "none", null),
  row("FSYNC", FsyncIn, "none", null),
  row("SETXATTR", SetxattrIn, "xattr name+data", null, {
    inBytesMin: SETXATTR_IN_COMPAT_BYTES,
    sizeField: "size",
  }),
  row("GETXATTR", GetxattrIn, "xattr name", null, { outTrailing: "data or size" }),
  row("LISTXATTR", GetxattrIn, "none", null, { outTrailing: "data or size" }),
  row("REMOVEXATTR", null, "xattr name", null),
  row("FLUSH", FlushIn, "none", null),
  // Major and minor are all that the oldest kernels send, and all that refusing one takes.
  row("INIT", InitIn, "none", InitOut, { inBytesMin: 8 }),
  row("OPENDIR", OpenIn, "none", OpenOut),
  row("READDIR", ReadIn, "none", null, { outTrailing: "dirents" }),
  row("RELEASEDIR", ReleaseIn, "none", null),
  row("FSYNCDIR", FsyncIn, "none", null),
  row("GETLK", LkIn, "none", LkOut),
  row("SETLK", LkIn, "none", null),
  row("SETLKW", LkIn, "none", null),
  row("ACCESS", AccessIn, "none", null),
  row("CREATE", CreateIn, "name", EntryOut, { outSecond: OpenOut }),
  // An INTERRUPT may be answered with EAGAIN, to have it sent again; otherwise the interrupted request is answered.
  row("INTERRUPT", InterruptIn, "none", null, { reply: false }),
  row("BMAP", BmapIn, "none", BmapOut),
  row("DESTROY", null, "none", null),
  row("IOCTL", IoctlIn, "data", IoctlOut, { sizeField: "inSize", outTrailing: "data" }),
  row("POLL", PollIn, "none", PollOut),
  row("NOTIFY_REPLY", NotifyRetrieveIn, "data", null, { sizeField: "size", reply: false }),
  row("BATCH_FORGET", BatchForgetIn, "data", null, { reply: false }),
  row("FALLOCATE", FallocateIn, "none", null),
  row("READDIRPLUS", ReadIn, "none", null, { outTrailing: "direntplus" }),
  row("RENAME2", Rename2In, "two names", null),
  row("LSEEK", LseekIn, "none", LseekOut),
  row("COPY_FILE_RANGE", CopyFileRangeIn, "none", WriteOut),
  row("SETUPMAPPING", SetupmappingIn, "none", null),
  row("REMOVEMAPPING", RemovemappingIn, "data", null),
  row("SYNCFS", SyncfsIn, "none", null, { since: 34 }),
  row("TMPFILE", CreateIn, "any name", EntryOut, { outSecond: OpenOut, since: 37 }),
  row("STATX", StatxIn, "none", StatxOut, { since: 39 }),
  row("COPY_FILE_RANGE_64", CopyFileRangeIn, "none", CopyFileRangeOut, { since: 45 }),
];

/** One more than the highest opcode: the size of a dispatch array. */
export const OPCODE_LIMIT = largest(opRows, (each) => each.opcode) + 1;

const byOpcode: (OpRow | undefined)[] = new Array(OPCODE_LIMIT).fill(undefined);
for (const each of opRows) byOpcode[each.opcode] = each;

/** The row of an opcode, or undefined for one that this code does not know (answer ENOSYS). */
export function opRow(opcode: number): OpRow | undefined {
  return byOpcode[opcode];
}

/** The name of an opcode, for messages. */
export function opcodeName(opcode: number): string {
  return byOpcode[opcode]?.name ?? `opcode ${opcode}`;
}
