/**
 * What a file system on this binding is made of: an object with a method for each operation that it serves, the requests
 * that they get and the replies that they return.
 *
 * Units and ranges, everywhere here:
 * - offsets, sizes and lengths are bytes, safe integers from 0 on. A caller who asks beyond 2^53 - 1 gets EFBIG from the
 *   binding, and no handler sees it. Byte ranges of locks and the arguments of ioctls, which use all 64 bits, are bigint;
 * - node ids and handles are safe integers of the file system's own choice, from 1 and from 0 on. The root directory is
 *   node 1. A node id must not mean another file as long as the kernel knows it (until `forget`);
 * - names are strings, decoded from UTF-8, or one character per byte with `names: "bytes"`; at most 255 bytes, without a
 *   slash;
 * - `mode` is st_mode: the type (S_IFREG…) and the permissions.
 */
import type { FsError } from "../base/errors.ts";
import type { Features } from "../fuse/init.ts";

/** A moment: what stat(2) tells. `seconds` may be negative; `nanoseconds` from 0 to 999,999,999. */
export interface Time {
  readonly seconds: number;
  readonly nanoseconds: number;
}

/** What stat(2) tells of a node. */
export interface Attributes {
  readonly ino: number;
  /** Type and permissions, as st_mode. */
  readonly mode: number;
  /** Bytes; 0 if left out. */
  readonly size?: number;
  /** Names; 1 if left out. */
  readonly nlink?: number;
  /** Owner; whoever runs the file system if left out. */
  readonly uid?: number;
  readonly gid?: number;
  /** Device number of a device node, in the kernel's 32-bit encoding. */
  readonly rdev?: number;
  /** Space that is used, in units of 512 bytes; what the size takes if left out. */
  readonly blocks?: number;
  /** Preferred transfer size, bytes; 4096 if left out. */
  readonly blksize?: number;
  /** 1970 if left out. */
  readonly atime?: Time | Date;
  readonly mtime?: Time | Date;
  readonly ctime?: Time | Date;
}

/** What statx(2) tells besides. */
export interface ExtendedAttributes extends Attributes {
  /** When the file was made. */
  readonly btime?: Time | Date;
  /** STATX_ATTR_* bits that are set, and those that this file system knows. */
  readonly attributes?: bigint;
  readonly attributesMask?: bigint;
}

/** A name that was found or made. Counts as one reference to the node, which the kernel gives back with `forget`. */
export interface Entry {
  /** From 1 on. */
  readonly nodeid: number;
  /** Node id and generation together are never used for another file; 0 if left out. */
  readonly generation?: number;
  readonly attributes: Attributes;
  /** How long the kernel may rely on the name and on the attributes without asking, milliseconds; the mount's if left out. */
  readonly entryTtlMs?: number;
  readonly attributesTtlMs?: number;
}

/** An open file or directory. */
export interface Opened {
  /** Comes back with every request on this open file; 0 if left out. */
  readonly handle?: number;
  /** Fopen bits: DIRECT_IO, KEEP_CACHE… */
  readonly flags?: number;
}

/** One entry of a directory that is read. */
export interface DirectoryEntry {
  readonly name: string;
  readonly ino: number;
  /** As st_mode: only the type counts. */
  readonly mode: number;
  /**
   * Where to continue behind this entry: the `offset` of a later request. Any number from 1 on that stays true while the
   * directory is open. If left out, `offset` counts entries: return all of them from number `offset` on.
   */
  readonly offset?: number;
}

/** The same with what a lookup of the name would answer. Without `entry` (for "." and "..") no reference is counted. */
export interface DirectoryEntryPlus extends DirectoryEntry {
  readonly entry?: Entry;
}

export interface FileSystemStatistics {
  /** Sizes in units of `blockBytes`. */
  readonly blocks?: number;
  readonly blocksFree?: number;
  readonly blocksAvailable?: number;
  readonly files?: number;
  readonly filesFree?: number;
  /** 4096 if left out. */
  readonly blockBytes?: number;
  /** Longest name, bytes; 255 if left out. */
  readonly nameBytesMax?: number;
}

/** A byte range of fcntl(2). `end` is the last byte; 2^63 - 1 is the end of the file. */
export interface Lock {
  readonly start: bigint;
  readonly end: bigint;
  /** LockType */
  readonly type: number;
  readonly pid: number;
}

export interface IoctlReply {
  /** What ioctl(2) returns, from 0 on; 0 if left out. */
  readonly result?: number;
  /** For the caller's buffer: at most `outputBytes` of the request. */
  readonly output?: Uint8Array;
}

/** What all requests have in common. */
export interface Request {
  /** The node that it is about; for names, the directory. */
  readonly nodeid: number;
  /** Who asks. With write-back caching they may be 0 for writes, whose caller the kernel no longer knows. */
  readonly uid: number;
  readonly gid: number;
  /** 0 when the caller is in another pid namespace. */
  readonly pid: number;
  /**
   * Aborted when the caller got a signal, or the mount has ended. Throw FsError("EINTR") then. Whoever does not look is
   * not waited for: after a grace time the binding answers EINTR, and what the handler returns later is undone.
   */
  readonly signal: AbortSignal;
}

export interface NameRequest extends Request {
  readonly name: string;
}
export interface HandleRequest extends Request {
  readonly handle: number;
}
export interface GetattrRequest extends Request {
  /** Of fstat(2); null for stat(2). */
  readonly handle: number | null;
}
export interface StatxRequest extends GetattrRequest {
  /** AT_STATX_* and STATX_* as given to statx(2). */
  readonly flags: number;
  readonly mask: number;
}
/** What is there is to be changed. */
export interface AttributeChanges {
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  readonly size?: number;
  readonly atime?: Time | "now";
  readonly mtime?: Time | "now";
  readonly ctime?: Time;
}
export interface SetattrRequest extends GetattrRequest {
  readonly changes: AttributeChanges;
  /** Take setuid away, and setgid if the group may execute; only under HANDLE_KILLPRIV_V2. */
  readonly killPrivileges: boolean;
}
export interface MknodRequest extends NameRequest {
  readonly mode: number;
  readonly rdev: number;
  readonly umask: number;
}
export interface MkdirRequest extends NameRequest {
  readonly mode: number;
  readonly umask: number;
}
export interface SymlinkRequest extends NameRequest {
  readonly target: string;
}
export interface LinkRequest extends NameRequest {
  /** The node that gets the name. */
  readonly target: number;
}
export interface RenameRequest extends NameRequest {
  readonly newParent: number;
  readonly newName: string;
  /** RenameFlag; 0 for rename(2). */
  readonly flags: number;
}
export interface OpenRequest extends Request {
  /** OpenFlag, as given to open(2). */
  readonly flags: number;
}
export interface CreateRequest extends OpenRequest {
  /** "" for a file without a name (O_TMPFILE). */
  readonly name: string;
  readonly mode: number;
  readonly umask: number;
}
export interface ReadRequest extends HandleRequest {
  readonly offset: number;
  readonly size: number;
  /** OpenFlag as of now. */
  readonly flags: number;
}
export interface WriteRequest extends HandleRequest {
  readonly offset: number;
  /** The handler's own: nobody writes to it later. */
  readonly data: Buffer;
  readonly flags: number;
  /** From the page cache: handle and ids may not be those of whoever wrote. */
  readonly writeback: boolean;
  readonly killPrivileges: boolean;
}
export interface ReleaseRequest extends HandleRequest {
  readonly flags: number;
  /** flock(2) locks of this owner end; null without any. */
  readonly unlockOwner: bigint | null;
}
export interface FlushRequest extends HandleRequest {
  readonly lockOwner: bigint;
}
export interface FsyncRequest extends HandleRequest {
  /** fdatasync(2): metadata that is not needed to read the data may wait. */
  readonly dataOnly: boolean;
}
export interface FallocateRequest extends HandleRequest {
  /** FallocMode */
  readonly mode: number;
  readonly offset: number;
  readonly length: number;
}
export interface LseekRequest extends HandleRequest {
  readonly offset: number;
  /** Seek.DATA or Seek.HOLE */
  readonly whence: number;
}
export interface CopyFileRangeRequest extends HandleRequest {
  readonly offset: number;
  readonly targetNodeid: number;
  readonly targetHandle: number;
  readonly targetOffset: number;
  /** At most 2^31 - 4096. */
  readonly length: number;
  readonly flags: number;
}
export interface SetxattrRequest extends NameRequest {
  /** The handler's own. */
  readonly value: Buffer;
  /** XattrFlag */
  readonly flags: number;
}
export interface AccessRequest extends Request {
  /** R_OK 4, W_OK 2, X_OK 1 */
  readonly mask: number;
}
export interface LockRequest extends HandleRequest {
  readonly owner: bigint;
  readonly lock: Lock;
  /** flock(2), not fcntl(2). */
  readonly whole: boolean;
}
export interface SetlkRequest extends LockRequest {
  /** Answer when the lock can be had (the caller may be interrupted meanwhile), and not EAGAIN. */
  readonly wait: boolean;
}
export interface IoctlRequest extends HandleRequest {
  readonly command: number;
  /** As given to ioctl(2): a pointer of the caller, or a number. */
  readonly argument: bigint;
  /** What the command's number says is passed in. */
  readonly input: Buffer;
  /** What it says may be passed out, bytes. */
  readonly outputBytes: number;
  readonly directory: boolean;
}
export interface PollRequest extends HandleRequest {
  /** PollEvent bits that are asked for. */
  readonly events: number;
  /** Call it, once, when the answer would be another one: the kernel then asks anew. Null: nobody waits. */
  readonly wake: (() => void) | null;
}
export interface BmapRequest extends Request {
  readonly block: number;
  readonly blockBytes: number;
}

/** What the two sides have agreed on. */
export interface Connection {
  readonly protocol: { readonly major: 7; readonly minor: number };
  readonly features: Features;
  /** Most bytes in one write, and one read. */
  readonly transferBytesMax: number;
}

/** A value or a promise of it. */
export type Answer<T> = T | PromiseLike<T>;

/**
 * A file system. `lookup` and `getattr` are needed; whatever else is left out is answered as the comment says, otherwise
 * with ENOSYS, from which the kernel knows what to do (EOPNOTSUPP, or a way around).
 *
 * A handler returns its reply or a promise of it, and throws FsError (or any error with an `errno`, such as those of
 * node:fs) to refuse. Anything else that it throws, an errno above 511, and a reply of the wrong form is EIO to the caller
 * and goes to `onError` of the mount. Handlers of different requests run at the same time when they return promises.
 */
export interface FileSystem {
  /** Before the first request. */
  init?(connection: Connection): Answer<void>;
  /** The mount has ended. */
  destroy?(): void;

  /** null: there is no such name, and the kernel may remember that. "." and ".." only come with EXPORT_SUPPORT. */
  lookup(request: NameRequest): Answer<Entry | null>;
  /** The kernel drops so many references to a node. */
  forget?(nodeid: number, references: number): void;
  getattr(request: GetattrRequest): Answer<Attributes>;
  /** Returns what the attributes are then. */
  setattr?(request: SetattrRequest): Answer<Attributes>;
  statx?(request: StatxRequest): Answer<ExtendedAttributes>;
  readlink?(request: Request): Answer<string>;
  mknod?(request: MknodRequest): Answer<Entry>;
  mkdir?(request: MkdirRequest): Answer<Entry>;
  symlink?(request: SymlinkRequest): Answer<Entry>;
  link?(request: LinkRequest): Answer<Entry>;
  unlink?(request: NameRequest): Answer<void>;
  rmdir?(request: NameRequest): Answer<void>;
  rename?(request: RenameRequest): Answer<void>;

  /** Left out: every file can be opened, with handle 0. */
  open?(request: OpenRequest): Answer<Opened>;
  /** Left out: the kernel uses mknod and open. */
  create?(request: CreateRequest): Answer<Entry & Opened>;
  tmpfile?(request: CreateRequest): Answer<Entry & Opened>;
  /** At most `size` bytes; fewer mean the end of the file. */
  read?(request: ReadRequest): Answer<Uint8Array>;
  /** Returns the bytes that were written. */
  write?(request: WriteRequest): Answer<number>;
  /** A descriptor was closed. */
  flush?(request: FlushRequest): Answer<void>;
  /** The last descriptor and mapping are gone. The answer reaches nobody. */
  release?(request: ReleaseRequest): Answer<void>;
  fsync?(request: FsyncRequest): Answer<void>;
  fallocate?(request: FallocateRequest): Answer<void>;
  lseek?(request: LseekRequest): Answer<number>;
  /** Returns the bytes that were copied. Left out: the kernel reads and writes. */
  copyFileRange?(request: CopyFileRangeRequest): Answer<number>;

  opendir?(request: OpenRequest): Answer<Opened>;
  /** Entries behind `offset`, as many as come: the binding takes those that fit into the reply. */
  readdir?(request: ReadRequest): Answer<Iterable<DirectoryEntry>>;
  /** The same with attributes; if it is there, the kernel uses it where it helps. */
  readdirplus?(request: ReadRequest): Answer<Iterable<DirectoryEntryPlus>>;
  releasedir?(request: ReleaseRequest): Answer<void>;
  fsyncdir?(request: FsyncRequest): Answer<void>;

  statfs?(request: Request): Answer<FileSystemStatistics>;
  syncfs?(request: Request): Answer<void>;
  /** Only without `defaultPermissions`. */
  access?(request: AccessRequest): Answer<void>;
  setxattr?(request: SetxattrRequest): Answer<void>;
  /** null: there is none of that name (ENODATA). */
  getxattr?(request: NameRequest): Answer<Uint8Array | null>;
  listxattr?(request: Request): Answer<Iterable<string>>;
  removexattr?(request: NameRequest): Answer<void>;

  /** The lock that is in the way, or null. Left out, as setlk: the kernel keeps locks by itself, which is what most want. */
  getlk?(request: LockRequest): Answer<Lock | null>;
  setlk?(request: SetlkRequest): Answer<void>;
  /** Commands whose number says what is passed in and out (_IOR, _IOW, _IOWR, _IO). */
  ioctl?(request: IoctlRequest): Answer<IoctlReply>;
  /** PollEvent bits that are true now. */
  poll?(request: PollRequest): Answer<number>;
  bmap?(request: BmapRequest): Answer<number>;
}

/** The methods of a file system that answer requests. */
export type Operation = Exclude<keyof FileSystem, "init" | "destroy" | "forget">;

/** What went wrong in a handler, for whoever runs the file system. */
export interface HandlerFailure {
  /** The method. */
  readonly operation: keyof FileSystem;
  readonly nodeid: number;
  /** What it threw, or what was wrong with its reply. */
  readonly error: unknown;
  /** What the caller was told. */
  readonly answer: FsError;
}
