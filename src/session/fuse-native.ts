/**
 * The second transport: the npm package fuse-native (libfuse 2.9, paths instead of nodes) in the place of /dev/fuse. It looks
 * like a channel to the session: what fuse-native calls is written as the request that the kernel would have sent, and the
 * session's reply is taken apart for it.
 *
 * Invariants:
 * - a path is walked by LOOKUP for each operation, and every lookup is given back by FORGET when it is over: nothing here
 *   remembers what a path means;
 * - fuse-native does not say who calls. So the mount is for whoever mounted alone (no allow_other), and all requests are theirs;
 * - names that are no UTF-8 do not survive fuse-native: they are refused (EILSEQ), never taken for another.
 *
 * What its interface lacks is listed in docs/OPERATIONS.md. Above all it has no ioctl, so that there are no leases.
 */

import { Errno } from "../base/errno.ts";
import { FsError } from "../base/errors.ts";
import { every, fault } from "../base/faults.ts";
import {
  type AnyStruct,
  AttrOut,
  CreateIn,
  Dirent,
  EntryOut,
  Fattr,
  ForgetIn,
  FsyncFlag,
  FsyncIn,
  FUSE_MAJOR,
  FUSE_MINOR_MIN,
  FUSE_ROOT_ID,
  GetattrIn,
  GetxattrIn,
  InHeader,
  InitBit,
  InitIn,
  LinkIn,
  MkdirIn,
  MknodIn,
  Opcode,
  OpenFlag,
  OpenIn,
  OpenOut,
  ReadIn,
  ReleaseIn,
  RenameIn,
  SetattrIn,
  SetxattrIn,
  StatfsOut,
  WriteIn,
  WriteOut,
} from "../fuse/kernel.ts";
import type { StructValue } from "../layout/struct.ts";
import type { Channel, FuseNative, NativeRegion } from "../region/addon.ts";

export interface FuseNativeMount {
  readonly mountpoint: string;
  /** Words for fuse_mount(3), without those of libfuse. */
  readonly options: readonly string[];
  /** fuse-native does not say when the mount has ended: this does, without touching the mount. */
  readonly isMounted: () => boolean;
}

/** How often to look whether it is still mounted, milliseconds. */
const WATCH_MS = 50;

/** libfuse 2.9: inode numbers are ours to say, large writes, attributes cached for as long as by the other transport. */
const LIBFUSE_OPTIONS = [
  "use_ino",
  "readdir_ino",
  "big_writes",
  "max_write=131072",
  "entry_timeout=1",
  "attr_timeout=1",
];

interface Reply {
  readonly errno: number;
  readonly payload: Buffer;
}

interface OpenFile {
  readonly nodeid: number;
  readonly fh: number;
  readonly flags: number;
}

/** The last argument of each operation: 0 or a positive result, or a negative errno; then what it answers. */
type Done = (result: number, ...answer: unknown[]) => void;

export class FuseNativeChannel implements Channel {
  readonly #buffer: Buffer;
  readonly #view: DataView;
  readonly #onRequest: (length: number) => void;
  readonly #onEnd: () => void;
  readonly #waiting = new Map<bigint, (reply: Reply) => void>();
  readonly #open = new Map<number, OpenFile>();
  readonly #free: number[] = [];
  readonly #uid = process.getuid?.() ?? 0;
  readonly #gid = process.getgid?.() ?? 0;
  #unique = 0n;
  #requests = 0;
  #watch: NodeJS.Timeout | undefined;

  constructor(buffer: Buffer, onRequest: (length: number) => void, onEnd: () => void) {
    this.#buffer = buffer;
    this.#view = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength);
    this.#onRequest = onRequest;
    this.#onEnd = onEnd;
  }

  /** Mount, and serve until it is unmounted. @throws Error */
  async mount(native: FuseNative, request: FuseNativeMount): Promise<void> {
    await this.#init();
    const words = [...request.options, ...LIBFUSE_OPTIONS];
    const channel = this;
    // Its own list of options has no word for most of these. Its methods for extended attributes do not know how much
    // room the caller has, and would have libfuse send what lies behind it.
    class Mounted extends native {
      _fuseOptions(): string {
        return `-o${words.join(",")}`;
      }
      _op_getxattr(signal: Done, path: string, name: string, room: Buffer): void {
        channel.#extended(signal, room, channel.#getxattr(path, name));
      }
      _op_listxattr(signal: Done, path: string, room: Buffer): void {
        channel.#extended(signal, room, channel.#listxattr(path));
      }
    }
    const fuse = new Mounted(request.mountpoint, this.#operations(), { timeout: false });
    await new Promise<void>((resolve, reject) => {
      fuse.mount((error) => {
        if (error === null) resolve();
        else
          reject(
            new FsError("EIO", `fuse-native could not mount on ${request.mountpoint}: ${error.message}`),
          );
      });
    });
    this.#watch = every(WATCH_MS, "looking for the mount", () => {
      if (request.isMounted()) return;
      clearInterval(this.#watch);
      this.#onEnd();
    });
  }

  // ---- the channel that the session sees

  close(): void {
    clearInterval(this.#watch);
    for (const answer of [...this.#waiting.values()])
      answer({ errno: Errno.ENOTCONN, payload: Buffer.alloc(0) });
  }

  reply(unique: bigint, error: number, payload: Uint8Array, start: number, length: number): number {
    // A copy: the session builds the next reply at the same place.
    return this.#settle(unique, error, Buffer.from(payload.subarray(start, start + length)));
  }

  replyRegion(unique: bigint, region: NativeRegion, pieces: Float64Array, count: number): number {
    let total = 0;
    for (let index = 0; index < count; index += 1) total += pieces[2 * index + 1] as number;
    const payload = Buffer.alloc(total);
    let at = 0;
    try {
      for (let index = 0; index < count; index += 1) {
        const [offset, length] = [pieces[2 * index] as number, pieces[2 * index + 1] as number];
        if (offset >= 0 && length > 0) region.read(offset, payload, at, length);
        at += length;
      }
    } catch {
      this.#settle(unique, Errno.EIO, Buffer.alloc(0));
      return Errno.EIO;
    }
    return this.#settle(unique, 0, payload);
  }

  /** There are none: libfuse's time-outs bound how old what the kernel shows can be. */
  async notify(): Promise<number> {
    return Errno.ENOSYS;
  }

  get counters(): Channel["counters"] {
    return { requests: this.#requests, wakeups: 0, pollHits: 0 };
  }

  #settle(unique: bigint, errno: number, payload: Buffer): number {
    const answer = this.#waiting.get(unique);
    if (answer === undefined) return Errno.ENOENT;
    this.#waiting.delete(unique);
    answer({ errno, payload });
    return 0;
  }

  // ---- requests

  /** Write a request as the kernel does: its length. Parts: a struct with its values, text with its NUL, bytes. */
  #write(opcode: number, nodeid: number, parts: readonly Part[]): number {
    this.#unique += 2n;
    let at = InHeader.size;
    for (const part of parts) {
      if (typeof part === "string") {
        at += this.#buffer.write(part, at, "latin1");
        this.#buffer[at] = 0;
        at += 1;
      } else if (part instanceof Uint8Array) {
        this.#buffer.set(part, at);
        at += part.length;
      } else {
        part.declared.encode(this.#view, at, part.value);
        at += part.declared.size;
      }
    }
    InHeader.encode(this.#view, 0, {
      len: at,
      opcode,
      unique: this.#unique,
      nodeid,
      uid: this.#uid,
      gid: this.#gid,
    });
    this.#requests += 1;
    return at;
  }

  /** @throws FsError what the session answered */
  #ask(opcode: number, nodeid: number, ...parts: readonly Part[]): Promise<Buffer> {
    const length = this.#write(opcode, nodeid, parts);
    return new Promise((resolve, reject) => {
      this.#waiting.set(this.#unique, ({ errno, payload }) => {
        if (errno === 0) resolve(payload);
        else reject(new FsError(errno));
      });
      this.#onRequest(length);
    });
  }

  async #init(): Promise<void> {
    const flags = (1 << InitBit.BIG_WRITES) | (1 << InitBit.MAX_PAGES) | (1 << InitBit.SETXATTR_EXT);
    await this.#ask(
      Opcode.INIT,
      0,
      part(InitIn, { major: FUSE_MAJOR, minor: FUSE_MINOR_MIN, maxReadahead: 131_072, flags }),
    );
  }

  #forget(nodeid: number): void {
    if (nodeid === FUSE_ROOT_ID) return;
    this.#onRequest(this.#write(Opcode.FORGET, nodeid, [part(ForgetIn, { nlookup: 1 })]));
  }

  async #lookup(parent: number, name: string): Promise<number> {
    const { nodeid } = decode(EntryOut, await this.#ask(Opcode.LOOKUP, parent, name));
    if (nodeid === 0) throw new FsError("ENOENT");
    return nodeid;
  }

  /** Walk a path, and use the node it leads to. */
  async #at<T>(path: string, use: (nodeid: number) => Promise<T>): Promise<T> {
    let nodeid: number = FUSE_ROOT_ID;
    try {
      for (const name of bytesOf(path).split("/")) {
        if (name === "") continue;
        const next = await this.#lookup(nodeid, name);
        this.#forget(nodeid);
        nodeid = next;
      }
      return await use(nodeid);
    } finally {
      this.#forget(nodeid);
    }
  }

  /** Use the directory of a path, and its last name. */
  #in<T>(path: string, use: (parent: number, name: string) => Promise<T>): Promise<T> {
    const cut = path.lastIndexOf("/");
    return this.#at(path.slice(0, cut), (parent) => use(parent, bytesOf(path.slice(cut + 1))));
  }

  /** A new name whose node nobody here keeps. */
  async #make(opcode: number, path: string, ...parts: readonly Part[]): Promise<void> {
    await this.#in(path, async (parent, name) => {
      const head = parts[0] === undefined || typeof parts[0] === "string" ? [] : [parts[0]];
      const tail = parts.slice(head.length);
      // biome-ignore lint/plugin: what a caller in this file has written down
      this.#forget(decode(EntryOut, await this.#ask(opcode, parent, ...head, name, ...tail)).nodeid);
    });
  }

  // ---- open files: small numbers from 1 on, which is what fuse-native carries

  #add(file: OpenFile): number {
    const descriptor = this.#free.pop() ?? this.#open.size + 1;
    this.#open.set(descriptor, file);
    return descriptor;
  }

  #file(descriptor: number): OpenFile {
    const file = this.#open.get(descriptor);
    if (file === undefined) throw new FsError("EBADF");
    return file;
  }

  async #release(descriptor: number): Promise<void> {
    const { nodeid, fh, flags } = this.#file(descriptor);
    this.#open.delete(descriptor);
    this.#free.push(descriptor);
    await this.#ask(Opcode.RELEASE, nodeid, part(ReleaseIn, { fh, flags }));
  }

  // ---- operations

  async #getattr(path: string): Promise<object> {
    const attr = await this.#at(path, async (nodeid) =>
      decode(AttrOut, await this.#ask(Opcode.GETATTR, nodeid, part(GetattrIn, {}))),
    );
    // It has no times before 1970, and no nanoseconds.
    const ms = (seconds: bigint, nanoseconds: number): number =>
      Math.max(0, Number(seconds) * 1000 + Math.floor(nanoseconds / 1_000_000));
    return {
      ...attr,
      size: Number(attr.size),
      atime: ms(attr.atime, attr.atimensec),
      mtime: ms(attr.mtime, attr.mtimensec),
      ctime: ms(attr.ctime, attr.ctimensec),
    };
  }

  async #readdir(path: string): Promise<string[]> {
    return this.#at(path, async (nodeid) => {
      const { fh } = decode(OpenOut, await this.#ask(Opcode.OPENDIR, nodeid, part(OpenIn, {})));
      try {
        const names: string[] = [];
        let offset = 0n;
        for (;;) {
          const size = READDIR_BYTES;
          const list = await this.#ask(Opcode.READDIR, nodeid, part(ReadIn, { fh, offset, size }));
          if (list.length === 0) return names;
          const view = viewOf(list);
          for (let at = 0; at < list.length; ) {
            const { off, namelen } = Dirent.decode(view, at);
            const name = list.toString("utf8", at + Dirent.size, at + Dirent.size + namelen);
            // One that is no UTF-8 cannot be told to fuse-native, nor come back from it.
            if (!name.includes(REPLACED)) names.push(name);
            offset = BigInt(off);
            at += (Dirent.size + namelen + 7) & ~7;
          }
        }
      } finally {
        await this.#ask(Opcode.RELEASEDIR, nodeid, part(ReleaseIn, { fh }));
      }
    });
  }

  async #setattr(nodeid: number, value: Partial<StructValue<typeof SetattrIn>>): Promise<void> {
    await this.#ask(Opcode.SETATTR, nodeid, part(SetattrIn, value));
  }

  #getxattr(path: string, name: string): Promise<Buffer> {
    return this.#at(path, (nodeid) =>
      this.#ask(Opcode.GETXATTR, nodeid, part(GetxattrIn, { size: XATTR_BYTES_MAX }), bytesOf(name)),
    );
  }

  #listxattr(path: string): Promise<Buffer> {
    return this.#at(path, (nodeid) =>
      this.#ask(Opcode.LISTXATTR, nodeid, part(GetxattrIn, { size: XATTR_BYTES_MAX })),
    );
  }

  /** The caller wants to know the size (no room), or has to have room for all. */
  #extended(signal: Done, room: Buffer, value: Promise<Buffer>): void {
    value
      .then((bytes) => {
        if (room.length > 0 && bytes.length > room.length) throw new FsError("ERANGE");
        if (room.length > 0) bytes.copy(room);
        return bytes.length;
      })
      .then(
        (length) => signal(length, room.buffer),
        (error: unknown) => signal(-errnoOf(error), room.buffer),
      );
  }

  #operations(): object {
    /** An operation that answers with one value, or with none. */
    const answering =
      <A extends unknown[]>(run: (...args: A) => Promise<unknown>) =>
      (...args: [...A, Done]): void => {
        const done = args.pop() as Done;
        // biome-ignore lint/plugin: as many as it was called with
        run(...(args as unknown as A)).then(
          (value) => (value === undefined ? done(0) : done(0, value)),
          (error: unknown) => done(-errnoOf(error)),
        );
      };
    /** An operation whose result is a count of bytes. */
    const counting =
      <A extends unknown[]>(run: (...args: A) => Promise<number>) =>
      (...args: [...A, Done]): void => {
        const done = args.pop() as Done;
        // biome-ignore lint/plugin: as many as it was called with
        run(...(args as unknown as A)).then(
          (count) => done(count),
          (error: unknown) => done(-errnoOf(error)),
        );
      };
    return {
      getattr: answering((path: string) => this.#getattr(path)),
      // Called by path all the same: a file without a name has a hidden one in libfuse.
      fgetattr: answering((path: string) => this.#getattr(path)),
      readdir: answering((path: string) => this.#readdir(path)),
      readlink: answering((path: string) =>
        this.#at(path, async (nodeid) => (await this.#ask(Opcode.READLINK, nodeid)).toString("utf8")),
      ),
      statfs: answering(async (_path: string) => {
        const { namelen, ...statfs } = decode(StatfsOut, await this.#ask(Opcode.STATFS, FUSE_ROOT_ID));
        return { ...statfs, favail: statfs.ffree, namemax: namelen };
      }),
      mknod: answering((path: string, mode: number, rdev: number) =>
        this.#make(Opcode.MKNOD, path, part(MknodIn, { mode, rdev })),
      ),
      mkdir: answering((path: string, mode: number) =>
        this.#make(Opcode.MKDIR, path, part(MkdirIn, { mode })),
      ),
      symlink: answering((target: string, path: string) => this.#make(Opcode.SYMLINK, path, bytesOf(target))),
      link: answering((source: string, path: string) =>
        this.#at(source, (oldnodeid) => this.#make(Opcode.LINK, path, part(LinkIn, { oldnodeid }))),
      ),
      unlink: answering((path: string) =>
        this.#in(path, async (parent, name) => void (await this.#ask(Opcode.UNLINK, parent, name))),
      ),
      rmdir: answering((path: string) =>
        this.#in(path, async (parent, name) => void (await this.#ask(Opcode.RMDIR, parent, name))),
      ),
      rename: answering((source: string, target: string) =>
        this.#in(source, (parent, name) =>
          this.#in(target, async (newdir, newName) => {
            await this.#ask(Opcode.RENAME, parent, part(RenameIn, { newdir }), name, newName);
          }),
        ),
      ),
      chmod: answering((path: string, mode: number) =>
        this.#at(path, (nodeid) => this.#setattr(nodeid, { valid: Fattr.MODE, mode })),
      ),
      chown: answering((path: string, uid: number, gid: number) =>
        this.#at(path, (nodeid) => {
          const valid = (uid === NOBODY ? 0 : Fattr.UID) | (gid === NOBODY ? 0 : Fattr.GID);
          return this.#setattr(nodeid, { valid, uid, gid });
        }),
      ),
      utimens: answering((path: string, atimeMs: number, mtimeMs: number) =>
        this.#at(path, (nodeid) =>
          this.#setattr(nodeid, {
            valid: Fattr.ATIME | Fattr.MTIME,
            atime: BigInt(Math.floor(atimeMs / 1000)),
            atimensec: (atimeMs % 1000) * 1_000_000,
            mtime: BigInt(Math.floor(mtimeMs / 1000)),
            mtimensec: (mtimeMs % 1000) * 1_000_000,
          }),
        ),
      ),
      truncate: answering((path: string, size: number) =>
        this.#at(path, (nodeid) => this.#setattr(nodeid, { valid: Fattr.SIZE, size: BigInt(size) })),
      ),
      ftruncate: answering(async (_path: string, descriptor: number, size: number) => {
        const { nodeid, fh } = this.#file(descriptor);
        await this.#setattr(nodeid, { valid: Fattr.SIZE | Fattr.FH, fh, size: BigInt(size) });
      }),
      open: answering((path: string, flags: number) =>
        this.#at(path, async (nodeid) => {
          const { fh } = decode(OpenOut, await this.#ask(Opcode.OPEN, nodeid, part(OpenIn, { flags })));
          return this.#add({ nodeid, fh, flags });
        }),
      ),
      // It does not say how the file is opened; the kernel holds the caller to that.
      create: answering((path: string, mode: number) =>
        this.#in(path, async (parent, name) => {
          const flags = OpenFlag.RDWR | OpenFlag.CREAT;
          const made = await this.#ask(Opcode.CREATE, parent, part(CreateIn, { flags, mode }), name);
          const { nodeid } = decode(EntryOut, made);
          this.#forget(nodeid);
          return this.#add({ nodeid, fh: OpenOut.decode(viewOf(made), EntryOut.size).fh, flags });
        }),
      ),
      release: answering((_path: string, descriptor: number) => this.#release(descriptor)),
      flush: answering(async (_path: string, _descriptor: number) => undefined),
      fsync: answering(async (_path: string, dataOnly: number, descriptor: number) => {
        const { nodeid, fh } = this.#file(descriptor);
        const fsyncFlags = dataOnly === 0 ? 0 : FsyncFlag.FDATASYNC;
        await this.#ask(Opcode.FSYNC, nodeid, part(FsyncIn, { fh, fsyncFlags }));
      }),
      fsyncdir: answering((path: string, _dataOnly: number, _descriptor: number) =>
        this.#at(path, async (nodeid) => void (await this.#ask(Opcode.FSYNCDIR, nodeid, part(FsyncIn, {})))),
      ),
      read: counting(async (_path: string, descriptor: number, room: Buffer, size: number, at: number) => {
        const { nodeid, fh, flags } = this.#file(descriptor);
        const offset = BigInt(at);
        return (await this.#ask(Opcode.READ, nodeid, part(ReadIn, { fh, offset, size, flags }))).copy(room);
      }),
      write: counting(async (_path: string, descriptor: number, data: Buffer, size: number, at: number) => {
        const { nodeid, fh, flags } = this.#file(descriptor);
        const head = part(WriteIn, { fh, offset: BigInt(at), size, flags });
        return decode(WriteOut, await this.#ask(Opcode.WRITE, nodeid, head, data.subarray(0, size))).size;
      }),
      setxattr: answering((path: string, name: string, value: Buffer, _position: number, flags: number) =>
        this.#at(path, async (nodeid) => {
          const head = part(SetxattrIn, { size: value.length, flags });
          await this.#ask(Opcode.SETXATTR, nodeid, head, bytesOf(name), value);
        }),
      ),
      // Served by the methods above; that they are here is what has them called.
      getxattr: () => {},
      listxattr: () => {},
      removexattr: answering((path: string, name: string) =>
        this.#at(path, async (nodeid) => void (await this.#ask(Opcode.REMOVEXATTR, nodeid, bytesOf(name)))),
      ),
    };
  }
}

type Part = string | Uint8Array | { readonly declared: AnyStruct; readonly value: object };

const part = <S extends AnyStruct>(declared: S, value: Partial<StructValue<S>>): Part => ({
  declared,
  value,
});

const viewOf = (bytes: Buffer): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

const decode = <S extends AnyStruct>(declared: S, bytes: Buffer): StructValue<S> =>
  declared.decode(viewOf(bytes), 0) as StructValue<S>;

const READDIR_BYTES = 131_072;
const XATTR_BYTES_MAX = 65_536;
/** (uid_t)-1: leave it as it is. */
const NOBODY = 0xffff_ffff;
/** What stands for bytes that are no UTF-8. */
const REPLACED = "\ufffd";

/** @throws FsError EILSEQ */
function bytesOf(text: string): string {
  if (text.includes(REPLACED)) throw new FsError("EILSEQ", "fuse-native carries no names that are not UTF-8");
  return Buffer.from(text, "utf8").toString("latin1");
}

function errnoOf(error: unknown): number {
  if (error instanceof FsError) return error.errno;
  fault("fuse-native", error);
  return Errno.EIO;
}
