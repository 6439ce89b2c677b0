/**
 * The only loader of the .node file, and the types of what it exports. Native methods throw `Error` with `code` (errno
 * name) and `errno` (positive number); they validate what is cheap and rely on their TypeScript callers for the rest.
 */
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { RegionMappings, RoomBelow } from "./region.ts";

export interface NativeRegionInfo {
  kind: "file" | "block" | "devdax";
  sizeBytes: number;
  /** A mapping bypasses the page cache: a DAX device, or a file on a DAX file system. */
  dax: boolean;
  mapSync: boolean;
  mapAlignmentBytes: number;
  /** Something lies below that can be told of what is not used; whether it takes that, discard() tells. */
  discards: boolean;
  /** Why MAP_SYNC was not granted, "" when it was. */
  mapSyncRefusal: string;
  device: bigint;
  inode: bigint;
  uid: number;
  gid: number;
  mode: number;
}

/** A mapped region. All offsets and lengths are bytes. */
export interface NativeRegion {
  readonly info: NativeRegionInfo;
  /** Choose how stores become durable, once, after open: true = non-temporal stores + flush; false = plain stores. */
  setCacheline(on: boolean): void;
  /** Open the region once more, read-write, and send that over a connected unix socket (SCM_RIGHTS, one byte of data). */
  handOut(socket: number): void;
  read(offset: number, target: Uint8Array, targetStart: number, length: number): void;
  write(offset: number, source: Uint8Array, sourceStart: number, length: number): void;
  zero(offset: number, length: number): void;
  copy(sourceOffset: number, targetOffset: number, length: number): void;
  flush(offset: number, length: number): void;
  /** madvise(MADV_DONTNEED) of the whole pages in there; where the backing does not know that, nothing happens. */
  unload(offset: number, length: number): void;
  /**
   * Of a region on tmpfs: have the kernel keep each whole huge page (2 MiB) in there, of which nothing is a hole, as one page.
   * On the thread pool. Resolves to a byte for each: 1 it is one, 0 it has holes, 2 the kernel did not. Rejects with
   * EOPNOTSUPP where there is nothing to gain (another kind of region, Linux before 6.1, no huge pages).
   */
  gather(offset: number, length: number): Promise<Uint8Array>;
  /**
   * One pass over `proc` for other processes that map the region, found by what the own mapping looks like in maps. On
   * threads of its own: one that waits longer than `patienceMs` for a process is left behind, and its process ETIMEDOUT.
   */
  findMappings(proc: string, patienceMs: number): Promise<RegionMappings>;
  drain(): void;
  /** msync(MS_SYNC) of the dirty whole (or fdatasync), on the thread pool. */
  sync(): Promise<void>;
  /** How large the file or device is at this moment, bytes. */
  measure(): number;
  /** Have a file take room there from what it lies on: ENOSPC. Where nothing is sparse it does nothing. */
  allocate(offset: number, length: number): void;
  /** Of a file: what is free where it lies, and what it has taken; null where that has no bound. */
  /** fallocate(2) with FALLOC_FL_PUNCH_HOLE, or BLKDISCARD, on the thread pool. EOPNOTSUPP where there is no such thing. */
  discard(offset: number, length: number): Promise<void>;
  below(): RoomBelow | null;
  /**
   * Reach so many bytes: a file grows, durably (on the thread pool), a device must have them (EINVAL). ENOMEM is thrown
   * when no address space was set aside. What rejects has the `step` that failed: "fsync" means as much as a failed sync.
   */
  grow(sizeBytes: number): Promise<void>;
  close(): void;
}

export interface Channel {
  /** Stop watching and close the descriptor. */
  close(): void;
  /** Answer with `length` bytes of `payload` from `start`; error is a positive errno or 0. Returns 0 or a positive errno of the write. */
  reply(unique: bigint, error: number, payload: Uint8Array, start: number, length: number): number;
  /** Answer a READ by writev from the region: `pieces` holds `count` pairs (region offset or -1 for zeros, length).
   *  When the region cannot deliver them, the request is answered with EIO and EIO is returned. */
  replyRegion(unique: bigint, region: NativeRegion, pieces: Float64Array, count: number): number;
  /** FUSE notification (unique 0, error = code). Written in order by a thread of the channel's own, because the kernel
   *  may need the server meanwhile. `atOnce` is for those that never do, and goes past the others: behind one that waits
   *  for a lock they could be the very thing that has it released. Resolves with 0 or the positive errno (ENOENT: the
   *  kernel knows no such node; fine. ENODEV: the channel was closed first). */
  notify(code: number, payload: Uint8Array, atOnce?: boolean): Promise<number>;
  /** Requests read, wake-ups, busy-poll hits: for the statistics. */
  readonly counters: { requests: number; wakeups: number; pollHits: number };
}

/**
 * A descriptor that the addon has opened. It is closed when it is collected, or when its worker thread ends, unless somebody has
 * taken it over: so keep the object for as long as its number is in use.
 */
export interface OwnedDescriptor {
  /** -1 when it was taken or closed. */
  readonly number: number;
  /** The number, for the caller to close. */
  take(): number;
  close(): void;
}

/** io_uring and its entries, before and after a channel uses them. Opaque. */
export interface NativeRing {
  readonly ring: never;
}

/** A channel of the kernel's own. */
export interface KernelChannel extends Channel {
  /**
   * Have requests come through the ring from now on, after INIT was answered so; `onRequest` then gets the entry that holds
   * one as its second argument. Returns 0 or a positive errno: they go on coming through the descriptor.
   */
  useRing(ring: NativeRing): number;
  /** Where the requests of an entry lie, from the first byte on, until they are answered. */
  entry(index: number): Buffer;
}

export interface Addon {
  readonly flushMethod: string;
  /** How crc32c is computed: "sse4.2", "armv8-crc" or "table". */
  readonly checksumMethod: string;
  crc32c(data: Uint8Array, start: number, length: number, seed: number): number;
  /** mapSync: try MAP_SYNC. readOnly: O_RDONLY + PROT_READ. Takes flock(LOCK_EX) unless lock is false: EBUSY if held. */
  openRegion(path: string, options: { readOnly: boolean; lock: boolean; mapSync: boolean }): NativeRegion;
  /**
   * mount(2) as root; the descriptor is /dev/fuse. `options` are the kernel's, without `fd=`. On the thread pool: the mount
   * point may lie on a mount that the calling thread serves.
   */
  mountRoot(
    source: string,
    mountpoint: string,
    fsType: string,
    options: string,
    flags: number,
  ): Promise<OwnedDescriptor>;
  unmount(mountpoint: string, lazy: boolean): void;
  /** The same on the thread pool, for a daemon that unmounts itself: the kernel may need it meanwhile. */
  unmountAsync(mountpoint: string, lazy: boolean): Promise<void>;
  /** For the hand-over of a /dev/fuse descriptor by fusermount3 (fusemount.ts): a connected pair, closed on exec. */
  socketpair(): [OwnedDescriptor, OwnedDescriptor];
  receiveDescriptor(socket: OwnedDescriptor): OwnedDescriptor;
  /** One datagram to a unix socket, without waiting: 0 or a positive errno (EAGAIN: it takes no more at the moment). */
  sendDatagram(path: string, data: Uint8Array): number;
  /** dup2(2). */
  replaceDescriptor(source: number, target: number): void;
  /** flock(LOCK_EX | LOCK_NB): EBUSY if held by another open file description. */
  lockDescriptor(descriptor: number): void;
  /**
   * Watch a /dev/fuse descriptor with uv_poll. `onRequest(length)` is called on the event loop for each request, which
   * lies in buffer[0, length) until it returns; true from it has promises run before the channel looks for more. `onEnd(errno)`: 0 when the file system was unmounted (ENODEV).
   */
  openChannel(
    descriptor: OwnedDescriptor | number,
    buffer: Uint8Array,
    options: { busyPollMicros: number; batch: number },
    onRequest: (length: number, entry?: number) => unknown,
    onEnd: (errno: number) => void,
  ): KernelChannel;
  /**
   * For FUSE over io_uring: `queues` is the number of possible CPUs, `depth` how many requests of each are served at a time
   * to begin with. Throws what io_uring_setup(2) says: ENOSYS, EPERM (sysctl kernel.io_uring_disabled), ENOMEM.
   */
  openRing(options: { queues: number; depth: number; payloadBytes: number }): NativeRing;
  /** ioctl(2) with a buffer that goes in and out; returns its non-negative result or throws. */
  ioctl(descriptor: number, request: number, argument: Uint8Array): number;
  /** fallocate(2), lseek(2) SEEK_DATA/SEEK_HOLE and such, for tests and tools that Node has no call for. */
  fallocate(descriptor: number, mode: number, offset: bigint, length: bigint): void;
  lseek(descriptor: number, offset: bigint, whence: number): bigint;
  renameat2(source: string, target: string, flags: number): void;
  setxattr(path: string, name: string, value: Uint8Array, flags: number): void;
  getxattr(path: string, name: string): Buffer;
  listxattr(path: string): string[];
  removexattr(path: string, name: string): void;
}

let loaded: Addon | undefined;

/** The directory that holds package.json: two levels up, in src/ as in dist/. */
export const packageRoot = join(dirname(fileURLToPath(import.meta.url)), "..", "..");

/** Of this program, as package.json has it. */
export function packageVersion(): string {
  const text = readFileSync(join(packageRoot, "package.json"), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

/** Load one of the products of binding.gyp. Throws with the command that builds it when it is missing. */
export function loadNative(name: "mapdirect" | "mapdirect_client"): unknown {
  const file = join(packageRoot, "build", "Release", `${name}.node`);
  if (!existsSync(file)) throw new Error(`${file} is missing: run 'npm run build' in ${packageRoot}`);
  return createRequire(import.meta.url)(file);
}

/** The daemon's addon, loaded once. */
export function addon(): Addon {
  loaded ??= loadNative("mapdirect") as Addon;
  return loaded;
}

/** The optional package fuse-native, of which this is all that is used. */
export interface FuseNative {
  new (
    mountpoint: string,
    operations: object,
    options: object,
  ): { mount(done: (error: Error | null) => void): void };
}

/** RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE (dlfcn.h): Node closes what is no addon again, and this has to stay. */
const KEEP_LOADED = 0x2 | 0x100 | 0x1000;

/**
 * Load fuse-native, if it is installed. Its addon needs libfuse.so.2, which it brings under another name; the loader takes
 * a library that is loaded already for the one of that name.
 * @throws Error saying why it cannot be had
 */
export function loadFuseNative(): FuseNative {
  const require = createRequire(import.meta.url);
  let folder: string;
  try {
    folder = dirname(require.resolve("fuse-native/package.json"));
  } catch {
    throw new Error("the optional package fuse-native is not installed");
  }
  const library = join(folder, "prebuilds", `${process.platform}-${process.arch}`, "libfuse.so");
  if (existsSync(library)) {
    try {
      process.dlopen({ exports: {} }, library, KEEP_LOADED);
    } catch {
      // It is no addon. Whether it was loaded shows next.
    }
  }
  try {
    return require("fuse-native") as FuseNative;
  } catch (error) {
    const why = error instanceof Error ? error.message.split("\n")[0] : String(error);
    throw new Error(`the optional package fuse-native cannot be loaded: ${why}`);
  }
}
