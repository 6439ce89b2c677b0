/**
 * One row for each opcode that a handler can serve: how a request becomes what the handler gets, how what it returns
 * becomes the payload of a reply, what is answered without a handler, and how a reply that nobody took is undone.
 *
 * Invariants:
 * - `decode` copies what it takes of the request: nothing that a handler gets aliases the channel's buffer;
 * - `encode` checks the reply first (TypeError) and writes whole structs into the server's buffer;
 * - only what `encode` accepted can need `undo`.
 */
import { constants } from "node:fs";
import { FsError } from "../base/errors.ts";
import * as put from "../fuse/encode.ts";
import * as wire from "../fuse/kernel.ts";
import type { Request as ProtocolRequest } from "../fuse/request.ts";
import type * as api from "./types.ts";
import {
  attrOf,
  bigInteger,
  byteArray,
  entryOf,
  integer,
  iterable,
  madeOf,
  modeOf,
  type Names,
  record,
  safeNumber,
  shown,
  statfsOf,
  statxOf,
  type Ttls,
  ttlOf,
} from "./values.ts";

/** What rows need of the server. */
export interface Desk {
  readonly out: Buffer;
  readonly view: DataView;
  readonly names: Names;
  readonly ttls: Ttls;
  readonly fileSystem: api.FileSystem;
  /** Tell the kernel to ask POLL again. */
  wakePoll(kernelHandle: number): void;
  /** Run a handler whose answer reaches nobody; what it throws is reported. */
  quietly(operation: keyof api.FileSystem, nodeid: number, run: () => unknown): void;
}

type Fields<R extends api.Request> = Omit<R, keyof api.Request>;
type Reply<O extends api.Operation> = Awaited<ReturnType<NonNullable<api.FileSystem[O]>>>;
type RequestOf<O extends api.Operation> = Parameters<NonNullable<api.FileSystem[O]>>[0];

export interface Row<O extends api.Operation = api.Operation> {
  readonly operation: O;
  decode(request: ProtocolRequest, desk: Desk): Fields<RequestOf<O>>;
  /** Returns the bytes of the payload in `out`. */
  encode(reply: Reply<O>, desk: Desk, request: RequestOf<O>, size: number): number;
  /** The reply of a file system without the method; without one, ENOSYS. */
  readonly absent?: () => Reply<O>;
  undo?(reply: Reply<O>, desk: Desk, request: RequestOf<O>): void;
}

const rows: (Row | undefined)[] = [];

/** The row of an opcode, if handlers can serve it. */
export function rowOf(opcode: number): Row | undefined {
  return rows[opcode];
}

function add<O extends api.Operation>(opcode: number, row: Row<O>): void {
  rows[opcode] = row as unknown as Row;
}

const { S_IFDIR, S_IFLNK, S_IFREG } = constants;

const nothing = (): Record<string, never> => ({});
const empty = (): number => 0;
const done = (): undefined => undefined;

// ---- names and attributes

const nameOf = (request: ProtocolRequest, desk: Desk): string => desk.names.decode(request.name());

const putEntry = (entry: api.Entry, desk: Desk): number =>
  put.putEntry(desk.view, 0, entryOf(entry, desk.ttls));

const putMade = (entry: api.Entry, desk: Desk, type: number): number =>
  put.putEntry(desk.view, 0, madeOf(entry, type, desk.ttls));

function forgetNode(nodeid: number, desk: Desk): void {
  desk.quietly("forget", nodeid, () => desk.fileSystem.forget?.(nodeid, 1));
}

function forget(entry: api.Entry | null, desk: Desk): void {
  if (entry !== null) forgetNode(entry.nodeid, desk);
}

function putAttributes(reply: api.Attributes, desk: Desk): number {
  const { sec, nsec } = ttlOf(desk.ttls.attributesTtlMs, "attributesTtlMs");
  return put.putAttrOut(desk.view, 0, attrOf(reply), sec, nsec);
}

add(wire.Opcode.LOOKUP, {
  operation: "lookup",
  decode: (request, desk) => ({ name: nameOf(request, desk) }),
  encode(reply, desk) {
    if (reply !== null) return putEntry(reply, desk);
    const { sec, nsec } = ttlOf(desk.ttls.entryTtlMs, "entryTtlMs");
    return put.putNegativeEntry(desk.view, 0, sec, nsec);
  },
  undo: forget,
});

add(wire.Opcode.GETATTR, {
  operation: "getattr",
  decode: (request) => ({
    handle: (request.getattrFlags & wire.GetattrFlag.FH) === 0 ? null : request.getattrHandle,
  }),
  encode: putAttributes,
});

add(wire.Opcode.SETATTR, {
  operation: "setattr",
  decode(request) {
    const wish = request.body(wire.SetattrIn);
    const has = (bit: number): boolean => (wish.valid & bit) !== 0;
    const time = (seconds: number | bigint, nanoseconds: number): api.Time => ({
      seconds: Number(seconds),
      nanoseconds,
    });
    const { MODE, UID, GID, SIZE, ATIME, ATIME_NOW, MTIME, MTIME_NOW, CTIME } = wire.Fattr;
    const changes: api.AttributeChanges = {
      ...(has(MODE) ? { mode: wish.mode } : {}),
      ...(has(UID) ? { uid: wish.uid } : {}),
      ...(has(GID) ? { gid: wish.gid } : {}),
      ...(has(SIZE) ? { size: safeNumber(wish.size) } : {}),
      ...(has(ATIME) ? { atime: has(ATIME_NOW) ? "now" : time(wish.atime, wish.atimensec) } : {}),
      ...(has(MTIME) ? { mtime: has(MTIME_NOW) ? "now" : time(wish.mtime, wish.mtimensec) } : {}),
      ...(has(CTIME) ? { ctime: time(wish.ctime, wish.ctimensec) } : {}),
    };
    return {
      handle: has(wire.Fattr.FH) ? wish.fh : null,
      changes,
      killPrivileges: has(wire.Fattr.KILL_SUIDGID),
    };
  },
  encode: putAttributes,
});

add(wire.Opcode.STATX, {
  operation: "statx",
  decode(request) {
    const { getattrFlags, fh, sxFlags, sxMask } = request.body(wire.StatxIn);
    const handle = (getattrFlags & wire.GetattrFlag.FH) === 0 ? null : fh;
    return { handle, flags: sxFlags, mask: sxMask };
  },
  encode(reply, desk) {
    const { sec, nsec } = ttlOf(desk.ttls.attributesTtlMs, "attributesTtlMs");
    return put.putStatxOut(desk.view, 0, statxOf(reply), sec, nsec);
  },
});

add(wire.Opcode.READLINK, {
  operation: "readlink",
  decode: nothing,
  encode(reply, desk) {
    const target = desk.names.encode(reply, "target");
    if (target === "" || target.length > wire.TARGET_MAX_BYTES || target.includes("\0")) {
      throw new TypeError(`target: ${shown(target)} of ${target.length} bytes cannot be one`);
    }
    return desk.out.write(target, 0, "latin1");
  },
});

add(wire.Opcode.MKNOD, {
  operation: "mknod",
  decode(request, desk) {
    const { mode, rdev, umask } = request.body(wire.MknodIn);
    return { name: nameOf(request, desk), mode, rdev, umask };
  },
  encode: (reply, desk, request) => putMade(reply, desk, request.mode),
  undo: forget,
});

add(wire.Opcode.MKDIR, {
  operation: "mkdir",
  decode(request, desk) {
    const { mode, umask } = request.body(wire.MkdirIn);
    return { name: nameOf(request, desk), mode, umask };
  },
  encode: (reply, desk) => putMade(reply, desk, S_IFDIR),
  undo: forget,
});

add(wire.Opcode.SYMLINK, {
  operation: "symlink",
  decode: (request, desk) => ({
    name: nameOf(request, desk),
    target: desk.names.decode(request.secondName()),
  }),
  encode: (reply, desk) => putMade(reply, desk, S_IFLNK),
  undo: forget,
});

add(wire.Opcode.LINK, {
  operation: "link",
  decode: (request, desk) => ({
    name: nameOf(request, desk),
    target: request.body(wire.LinkIn).oldnodeid,
  }),
  encode: putEntry,
  undo: forget,
});

for (const [opcode, operation] of [
  [wire.Opcode.UNLINK, "unlink"],
  [wire.Opcode.RMDIR, "rmdir"],
  [wire.Opcode.REMOVEXATTR, "removexattr"],
] as const) {
  add(opcode, { operation, decode: (request, desk) => ({ name: nameOf(request, desk) }), encode: empty });
}

for (const opcode of [wire.Opcode.RENAME, wire.Opcode.RENAME2]) {
  add(opcode, {
    operation: "rename",
    decode(request, desk) {
      const { newdir, flags } =
        opcode === wire.Opcode.RENAME2
          ? request.body(wire.Rename2In)
          : { ...request.body(wire.RenameIn), flags: 0 };
      const newName = desk.names.decode(request.secondName());
      return { name: nameOf(request, desk), newParent: newdir, newName, flags };
    },
    encode: empty,
  });
}

// ---- open files

function openedOf(reply: api.Opened): { handle: number; flags: number } {
  record(reply, "opened");
  return {
    handle: integer(reply.handle ?? 0, "handle"),
    flags: integer(reply.flags ?? 0, "flags", 0, 0xffff_ffff),
  };
}

function putOpened(reply: api.Opened, desk: Desk): number {
  const { handle, flags } = openedOf(reply);
  return put.putOpenOut(desk.view, 0, handle, flags);
}

/** Nobody will close what nobody was told of. */
function close(
  operation: "release" | "releasedir",
  { handle = 0 }: api.Opened,
  desk: Desk,
  request: api.OpenRequest,
): void {
  const { nodeid, uid, gid, pid, signal, flags } = request;
  const closing = { nodeid, uid, gid, pid, signal, handle, flags, unlockOwner: null };
  desk.quietly(operation, nodeid, () => desk.fileSystem[operation]?.(closing));
}

add(wire.Opcode.OPEN, {
  operation: "open",
  decode: (request) => ({ flags: request.body(wire.OpenIn).flags }),
  encode: putOpened,
  absent: () => ({}),
  undo: (reply, desk, request) => close("release", reply, desk, request),
});

add(wire.Opcode.OPENDIR, {
  operation: "opendir",
  decode: (request) => ({ flags: request.body(wire.OpenIn).flags }),
  encode: putOpened,
  absent: () => ({}),
  undo: (reply, desk, request) => close("releasedir", reply, desk, request),
});

for (const [opcode, operation] of [
  [wire.Opcode.CREATE, "create"],
  [wire.Opcode.TMPFILE, "tmpfile"],
] as const) {
  add(opcode, {
    operation,
    decode(request, desk) {
      const { flags, mode, umask } = request.body(wire.CreateIn);
      return { name: operation === "tmpfile" ? "" : nameOf(request, desk), flags, mode, umask };
    },
    encode(reply, desk) {
      const { handle, flags } = openedOf(reply);
      return put.putCreateOut(desk.view, 0, madeOf(reply, S_IFREG, desk.ttls), handle, flags);
    },
    undo(reply, desk, request) {
      close("release", reply, desk, { ...request, nodeid: reply.nodeid });
      forget(reply, desk);
    },
  });
}

for (const [opcode, operation] of [
  [wire.Opcode.RELEASE, "release"],
  [wire.Opcode.RELEASEDIR, "releasedir"],
] as const) {
  add(opcode, {
    operation,
    decode(request) {
      const { fh, flags, releaseFlags, lockOwner } = request.body(wire.ReleaseIn);
      const unlocks = (releaseFlags & wire.ReleaseFlag.FLOCK_UNLOCK) !== 0;
      return { handle: fh, flags, unlockOwner: unlocks ? lockOwner : null };
    },
    encode: empty,
    absent: done,
  });
}

add(wire.Opcode.FLUSH, {
  operation: "flush",
  decode(request) {
    const { fh, lockOwner } = request.body(wire.FlushIn);
    return { handle: fh, lockOwner };
  },
  encode: empty,
});

for (const [opcode, operation] of [
  [wire.Opcode.FSYNC, "fsync"],
  [wire.Opcode.FSYNCDIR, "fsyncdir"],
] as const) {
  add(opcode, {
    operation,
    decode(request) {
      const { fh, fsyncFlags } = request.body(wire.FsyncIn);
      return { handle: fh, dataOnly: (fsyncFlags & wire.FsyncFlag.FDATASYNC) !== 0 };
    },
    encode: empty,
  });
}

const reading = (request: ProtocolRequest): Fields<api.ReadRequest> => ({
  handle: request.ioHandle,
  offset: safeNumber(request.ioOffset),
  size: request.ioSize,
  flags: request.ioOpenFlags,
});

add(wire.Opcode.READ, {
  operation: "read",
  decode: reading,
  encode(reply, desk, _request, size) {
    const data = byteArray(reply, "read", size);
    desk.out.set(data);
    return data.length;
  },
});

add(wire.Opcode.WRITE, {
  operation: "write",
  decode: (request) => ({
    handle: request.ioHandle,
    offset: safeNumber(request.ioOffset),
    // A copy: the handler may look at it when the next request is in the buffer.
    data: Buffer.from(request.data()),
    flags: request.ioOpenFlags,
    writeback: (request.ioFlags & wire.WriteFlag.CACHE) !== 0,
    killPrivileges: (request.ioFlags & wire.WriteFlag.KILL_SUIDGID) !== 0,
  }),
  encode: (reply, desk, request) =>
    put.putWriteOut(desk.view, 0, integer(reply, "bytes written", 0, request.data.length)),
});

add(wire.Opcode.FALLOCATE, {
  operation: "fallocate",
  decode(request) {
    const { fh, offset, length, mode } = request.body(wire.FallocateIn);
    safeNumber(offset + length);
    return { handle: fh, offset: Number(offset), length: Number(length), mode };
  },
  encode: empty,
});

add(wire.Opcode.LSEEK, {
  operation: "lseek",
  decode(request) {
    const { fh, offset, whence } = request.body(wire.LseekIn);
    if (offset < 0) throw new FsError("ENXIO", "a negative offset");
    return { handle: fh, offset: safeNumber(BigInt(offset)), whence };
  },
  encode: (reply, desk) => put.putLseekOut(desk.view, 0, BigInt(integer(reply, "offset"))),
});

/** What a 32-bit reply can say, in whole pages (MAX_RW_COUNT, include/linux/fs.h). */
const COPY_BYTES_MAX = 0x7fff_f000n;

for (const opcode of [wire.Opcode.COPY_FILE_RANGE, wire.Opcode.COPY_FILE_RANGE_64]) {
  add(opcode, {
    operation: "copyFileRange",
    decode(request) {
      const wish = request.body(wire.CopyFileRangeIn);
      return {
        handle: wish.fhIn,
        offset: safeNumber(wish.offIn),
        targetNodeid: wish.nodeidOut,
        targetHandle: wish.fhOut,
        targetOffset: safeNumber(wish.offOut),
        length: Number(wish.len < COPY_BYTES_MAX ? wish.len : COPY_BYTES_MAX),
        flags: safeNumber(wish.flags),
      };
    },
    encode(reply, desk, request) {
      const copied = integer(reply, "bytes copied", 0, request.length);
      return opcode === wire.Opcode.COPY_FILE_RANGE
        ? put.putWriteOut(desk.view, 0, copied)
        : put.putCopyFileRangeOut(desk.view, 0, BigInt(copied));
    },
  });
}

// ---- directories

/** The type of a directory entry: DT_*. */
const typeOf = (mode: unknown): number => modeOf(mode) >> 12;

add(wire.Opcode.READDIR, {
  operation: "readdir",
  decode: reading,
  encode(reply, desk, request, size) {
    const writer = new put.DirentWriter(desk.out);
    writer.begin(size);
    let count = request.offset;
    for (const entry of iterable(reply, "readdir")) {
      count += 1;
      const { name, ino, mode, offset = count } = record(entry, "directory entry") as api.DirectoryEntry;
      const bytes = desk.names.entryName(name);
      if (!writer.add(integer(ino, "ino"), integer(offset, "offset", 1), typeOf(mode), bytes)) break;
    }
    return writer.length;
  },
  absent: () => [],
});

/** The entries that were written into the last reply: each of them counts as a reference. */
const counted: number[] = [];

/** An entry that was taken is a reference to the handler, which a reply that nobody takes must give back. */
function forgetCounted(desk: Desk): void {
  for (const nodeid of counted.splice(0)) forgetNode(nodeid, desk);
}

function putEntries(
  writer: put.DirentplusWriter,
  reply: Iterable<api.DirectoryEntryPlus>,
  desk: Desk,
  offsetBefore: number,
): void {
  let count = offsetBefore;
  for (const each of iterable(reply, "readdirplus")) {
    count += 1;
    const {
      name,
      ino,
      mode,
      entry,
      offset = count,
    } = record(each, "directory entry") as api.DirectoryEntryPlus;
    const bytes = desk.names.entryName(name);
    integer(offset, "offset", 1);
    if (entry === undefined || name === "." || name === "..") {
      if (!writer.addBare(integer(ino, "ino"), offset, typeOf(mode), bytes)) break;
      continue;
    }
    const checked = entryOf(entry, desk.ttls);
    if (!writer.add(checked, offset, typeOf(mode), bytes)) break;
    counted.push(checked.nodeid);
  }
}

add(wire.Opcode.READDIRPLUS, {
  operation: "readdirplus",
  decode: reading,
  encode(reply, desk, request, size) {
    const writer = new put.DirentplusWriter(desk.out);
    writer.begin(size);
    counted.length = 0;
    try {
      putEntries(writer, reply, desk, request.offset);
    } catch (error) {
      forgetCounted(desk);
      throw error;
    }
    return writer.length;
  },
  undo: (_reply, desk) => forgetCounted(desk),
});

// ---- the whole file system, extended attributes

add(wire.Opcode.STATFS, {
  operation: "statfs",
  decode: nothing,
  encode: (reply, desk) => put.putStatfs(desk.view, 0, statfsOf(reply)),
  absent: () => ({}),
});

add(wire.Opcode.SYNCFS, { operation: "syncfs", decode: nothing, encode: empty });

add(wire.Opcode.ACCESS, {
  operation: "access",
  decode: (request) => ({ mask: request.body(wire.AccessIn).mask }),
  encode: empty,
});

add(wire.Opcode.SETXATTR, {
  operation: "setxattr",
  decode: (request, desk) => ({
    name: nameOf(request, desk),
    value: Buffer.from(request.data()),
    flags: request.body(wire.SetxattrIn).flags,
  }),
  encode: empty,
});

/** The caller asks for the size first (0), or has room for so many bytes. */
function putSized(value: Uint8Array, desk: Desk, size: number): number {
  if (size === 0) return put.putXattrSize(desk.view, 0, value.length);
  if (value.length > size) throw new FsError("ERANGE");
  desk.out.set(value);
  return value.length;
}

/** XATTR_SIZE_MAX and XATTR_LIST_MAX, linux/limits.h. */
const XATTR_BYTES_MAX = 65_536;

add(wire.Opcode.GETXATTR, {
  operation: "getxattr",
  decode: (request, desk) => ({ name: nameOf(request, desk) }),
  encode(reply, desk, _request, size) {
    if (reply === null) throw new FsError("ENODATA");
    return putSized(byteArray(reply, "value", XATTR_BYTES_MAX), desk, size);
  },
});

add(wire.Opcode.LISTXATTR, {
  operation: "listxattr",
  decode: nothing,
  encode(reply, desk, _request, size) {
    let list = "";
    for (const name of iterable(reply, "listxattr")) {
      const bytes = desk.names.encode(name, "attribute name");
      if (bytes === "" || bytes.includes("\0")) throw new TypeError(`attribute name: ${shown(name)}`);
      list += `${bytes}\0`;
      if (list.length > XATTR_BYTES_MAX) throw new FsError("E2BIG");
    }
    return putSized(Buffer.from(list, "latin1"), desk, size);
  },
});

// ---- locks, ioctl, poll, bmap

/** OFFSET_MAX (include/linux/fs.h), and a pid_t: beyond them the kernel answers its caller EIO by itself. */
const LOCK_END_MAX = 0x7fff_ffff_ffff_ffffn;
const PID_MAX = 0x7fff_ffff;

const locking = (request: ProtocolRequest): Fields<api.LockRequest> => {
  const { fh, owner, start, end, type, pid, lkFlags } = request.body(wire.LkIn);
  return {
    handle: fh,
    owner,
    lock: { start, end, type, pid },
    whole: (lkFlags & wire.LkFlag.FLOCK) !== 0,
  };
};

add(wire.Opcode.GETLK, {
  operation: "getlk",
  decode: locking,
  encode(reply, desk, { lock }) {
    const found = record(reply ?? { ...lock, type: wire.LockType.UNLOCK }, "lock") as api.Lock;
    const start = bigInteger(found.start, "start", 0n, LOCK_END_MAX);
    const end = bigInteger(found.end, "end", start, LOCK_END_MAX);
    const type = integer(found.type, "type", 0, 2);
    return put.putLkOut(desk.view, 0, start, end, type, integer(found.pid, "pid", 0, PID_MAX));
  },
});

for (const [opcode, wait] of [
  [wire.Opcode.SETLK, false],
  [wire.Opcode.SETLKW, true],
] as const) {
  add(opcode, {
    operation: "setlk",
    decode: (request) => ({ ...locking(request), wait }),
    encode: empty,
  });
}

add(wire.Opcode.IOCTL, {
  operation: "ioctl",
  decode(request) {
    const { fh, flags, cmd, arg, outSize } = request.body(wire.IoctlIn);
    return {
      handle: fh,
      command: cmd,
      argument: arg,
      input: Buffer.from(request.data()),
      outputBytes: outSize,
      directory: (flags & wire.IoctlFlag.DIR) !== 0,
    };
  },
  encode(reply, desk, request) {
    const { result = 0, output } = record(reply, "ioctl") as api.IoctlReply;
    const bytes = put.putIoctlOut(desk.view, 0, integer(result, "result", 0, 0x7fff_ffff));
    if (output === undefined) return bytes;
    desk.out.set(byteArray(output, "output", request.outputBytes), bytes);
    return bytes + output.length;
  },
});

add(wire.Opcode.POLL, {
  operation: "poll",
  decode(request, desk) {
    const { fh, kh, flags, events } = request.body(wire.PollIn);
    const waits = (flags & wire.PollFlag.SCHEDULE_NOTIFY) !== 0;
    return { handle: fh, events, wake: waits ? () => desk.wakePoll(kh) : null };
  },
  encode: (reply, desk) => put.putPollOut(desk.view, 0, integer(reply, "events", 0, 0xffff)),
});

add(wire.Opcode.BMAP, {
  operation: "bmap",
  decode(request) {
    const { block, blocksize } = request.body(wire.BmapIn);
    return { block, blockBytes: blocksize };
  },
  encode: (reply, desk) => put.putBmapOut(desk.view, 0, integer(reply, "block")),
});
