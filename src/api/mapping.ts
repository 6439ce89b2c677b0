/**
 * Direct mappings for JavaScript.
 *
 * Invariants:
 * - no access through the buffer ends the process, as long as the region itself is not cut short: the range lies within the
 *   file, is prepared unless the caller says otherwise, and is taken away from JavaScript (length 0) before it is taken away
 *   from the process;
 * - listeners of "break" run before that, and may still load, store and persist.
 */
import { constants as bufferLimits } from "node:buffer";
import { EventEmitter } from "node:events";
import { fstat } from "node:fs";
import { type FileHandle, open as openFile } from "node:fs/promises";
import { Errno } from "../base/errno.ts";
import { type FileMap, readExtents } from "../daemon/client.ts";
import { errnoOf } from "../daemon/failure.ts";
import { BreakReason, ExtentState, LeaseKind } from "../lease/wire.ts";
import { client, type NativeBreak, type NativeMapping } from "./native.ts";

/** Options of mapdirect_map() in native/client/mapdirect.h. */
const WHOLE_FILE = 0x100;
const PREPARE = 0x200;

export type LeaseWish = "default" | "seal" | "breakable";

export interface MapOptions {
  /** Bytes from the start of the file, a multiple of the page size. Default 0. */
  readonly offset?: number;
  /** Bytes. Default: up to the end of the file. */
  readonly length?: number;
  /**
   * "seal": conflicting operations fail with ETXTBSY; for the file's owner and root. "breakable": they wait, and the
   * mapping is told and released. Default: what the mount says.
   */
  readonly lease?: LeaseWish;
  /** Any change of the file's size is a conflict, not only changes of the range. */
  readonly wholeFile?: boolean;
  /**
   * Allocate and zero the range first (true). With false, a store to a hole or an unwritten extent ends the process with
   * SIGBUS: see {@link DirectMapping.locate}.
   */
  readonly prepare?: boolean;
  /** As MAP_SYNC: refuse (EOPNOTSUPP) unless a flush of the CPU's caches alone makes stores durable. */
  readonly sync?: boolean;
}

/** Why a lease is being broken. */
export interface BreakNotice {
  readonly leaseId: bigint;
  /** What somebody wants to change: offset in the file and bytes. */
  readonly offset: bigint;
  readonly length: bigint;
  /** Milliseconds until the operation goes on without us. */
  readonly remainingMs: number;
  readonly reason: "conflict" | "administrator" | "unmount";
}

/** Where a byte of the mapping lies. Valid as long as the mapping is. */
export interface Location {
  /** "written": the byte is in the region at `physical`. "hole": it reads zero, and a store raises SIGBUS. */
  readonly state: "hole" | "written";
  /** Offset in the region, bytes; null for a hole. */
  readonly physical: bigint | null;
  /** Bytes from there on that are alike and adjacent. */
  readonly length: number;
  readonly leaseId: bigint;
  readonly generation: bigint;
}

/** What a mapping tells its listeners. */
export interface MappingEvents {
  /** The lease is being broken. When the listeners have returned, the mapping is released. */
  break: [notice: BreakNotice];
  /** The buffer has length 0, and the lease has ended. */
  release: [];
}

const REASONS: Readonly<Record<number, BreakNotice["reason"]>> = {
  [BreakReason.CONFLICT]: "conflict",
  [BreakReason.ADMINISTRATOR]: "administrator",
  [BreakReason.UNMOUNT]: "unmount",
};

/** A range of a file whose bytes are the file's physical blocks. Made by {@link mapDirect}. */
export class DirectMapping extends EventEmitter<MappingEvents> {
  /**
   * The bytes. Stores are seen by read(2) and every other mapping at once. After the release it has length 0, as have
   * all views of the same memory. Asynchronous functions of node:zlib do not bear that while they are at work: give them a
   * copy. Others (fs.read…) go on with memory that belongs to nobody.
   */
  readonly buffer: Buffer;
  readonly leaseId: bigint;
  /** Of the block map, which the lease pins. */
  readonly generation: bigint;
  readonly kind: "seal" | "breakable";
  /** "cacheline": persist() is a CPU flush. "page": it is an msync. */
  readonly granularity: "cacheline" | "page";
  /** In the file, bytes. */
  readonly offset: number;
  readonly length: number;
  readonly #native: NativeMapping;
  #released: Promise<void> | undefined;

  /** @internal */
  constructor(native: NativeMapping, offset: number, length: number) {
    super();
    this.#native = native;
    this.buffer = Buffer.from(native.memory, 0, length);
    this.leaseId = native.leaseId;
    this.generation = native.generation;
    this.kind = native.kind === LeaseKind.SEAL ? "seal" : "breakable";
    this.granularity = native.cacheline ? "cacheline" : "page";
    this.offset = offset;
    this.length = length;
  }

  get released(): boolean {
    return this.#released !== undefined;
  }

  /**
   * Make stores to [offset, offset + length) of the mapping durable.
   * @throws RangeError; Error with code EIO (the region could not be written), EBADF (released).
   */
  async persist(offset = 0, length = this.length - offset): Promise<void> {
    this.#check(offset, length);
    await client().persist(this.#native.handle, offset, length);
  }

  /** The same, at once. With granularity "page" it waits for the device. */
  persistSync(offset = 0, length = this.length - offset): void {
    this.#check(offset, length);
    client().persistSync(this.#native.handle, offset, length);
  }

  /** Where the byte at `offset` of the mapping lies. @throws RangeError; Error EBADF. */
  locate(offset: number): Location {
    this.#check(offset, 1);
    const { state, physical, length } = client().locate(this.#native.handle, offset, 0);
    const written = state === ExtentState.WRITTEN;
    return {
      state: written ? "written" : "hole",
      physical: written ? physical : null,
      length: Math.min(length, this.length - offset),
      leaseId: this.leaseId,
      generation: this.generation,
    };
  }

  /** Unmap. The buffer is empty at once; resolves when the lease has ended. May be called again. */
  release(): Promise<void> {
    this.#released ??= client()
      .release(this.#native.handle, this.#native.memory)
      .then(() => {
        this.emit("release");
      });
    return this.#released;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }

  /** @internal */
  onBreak(notice: NativeBreak): void {
    if (this.released) return;
    const { leaseId, offset, length, remainingMs } = notice;
    try {
      const reason = REASONS[notice.reason] ?? "conflict";
      this.emit("break", { leaseId, offset, length, remainingMs, reason });
    } finally {
      void this.release();
    }
  }

  #check(offset: number, length: number): void {
    if (this.released) {
      throw Object.assign(new Error("EBADF: the mapping is released"), { code: "EBADF", errno: 9 });
    }
    const good =
      Number.isSafeInteger(offset) &&
      Number.isSafeInteger(length) &&
      offset >= 0 &&
      length >= 0 &&
      offset + length <= this.length;
    if (!good)
      throw new RangeError(`[${offset}, ${offset} + ${length}) of a mapping of ${this.length} bytes`);
  }
}

/** A file of a mapdirect mount, open for reading and writing. Made by {@link open}. */
export class DirectFile {
  /** Node's own handle, for reading, writing and the rest. */
  readonly handle: FileHandle;

  /** @internal */
  constructor(handle: FileHandle) {
    this.handle = handle;
  }

  get fd(): number {
    return this.handle.fd;
  }

  /** As {@link mapDirect}. */
  map(options: MapOptions = {}): Promise<DirectMapping> {
    return mapDirect(this, options);
  }

  /**
   * Allocate, zero and unshare [offset, offset + length), durably, so that it can be mapped and stored to. A length of 0
   * means up to the end. @throws Error with code ENOSPC, ETXTBSY, EOPNOTSUPP.
   */
  async prepare(offset = 0, length = 0): Promise<void> {
    await client().prepare(this.fd, offset, length);
  }

  /** The file's block map. Without a lease it is a snapshot. */
  extents(): FileMap {
    return readExtents(this.fd);
  }

  /** Mappings of the file stay. */
  async close(): Promise<void> {
    await this.handle.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * Open a file of a mapdirect mount. @param flags as for fs.open; "r+" and "w+" are those that can be mapped.
 * @throws what fs.promises.open throws
 */
export async function open(path: string, flags: string | number = "r+", mode = 0o666): Promise<DirectFile> {
  return new DirectFile(await openFile(path, flags, mode));
}

/** A mapping lives as long as its memory: somebody may have kept nothing but the buffer. */
const ofMemory = new WeakMap<ArrayBuffer, DirectMapping>();

const KINDS: Readonly<Record<LeaseWish, number>> = {
  default: LeaseKind.DEFAULT,
  seal: LeaseKind.SEAL,
  breakable: LeaseKind.BREAKABLE,
};

/**
 * Map a range of a file directly.
 *
 * @param file what {@link open} returned, a FileHandle, a descriptor, or a path. It may be closed afterwards.
 * @throws RangeError (the range is not within the file, or is larger than a Buffer can be); TypeError (unknown lease);
 *   Error with `code`: EACCES (not open for reading and writing, the region cannot be opened, a seal for another's file),
 *   EAGAIN (a break is under way or just over, a limit on leases), EINVAL (alignment), ENOSPC (preparing), EOPNOTSUPP (not
 *   on a mapdirect mount, or MAP_SYNC would not be true), EPERM (shared blocks, with prepare: false), ETXTBSY (preparing
 *   what somebody has sealed).
 */
export async function mapDirect(
  file: DirectFile | FileHandle | number | string,
  options: MapOptions = {},
): Promise<DirectMapping> {
  if (typeof file === "string") {
    const opened = await openFile(file, "r+");
    try {
      return await mapDirect(opened, options);
    } finally {
      await opened.close();
    }
  }
  const { fd } = typeof file === "number" ? { fd: file } : file;
  const { offset = 0, lease = "default", prepare = true, wholeFile = false, sync = false } = options;
  if (!Object.hasOwn(KINDS, lease)) throw new TypeError(`lease: expected default, seal or breakable`);
  const { size } = await statOf(fd);
  const { length = Math.max(0, size - offset) } = options;
  const good = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length > 0;
  if (!good || offset + length > size) {
    throw new RangeError(`[${offset}, ${offset} + ${length}) of a file of ${size} bytes`);
  }
  if (length > bufferLimits.MAX_LENGTH) {
    throw new RangeError(`${length} bytes are more than a Buffer holds: ${bufferLimits.MAX_LENGTH}`);
  }
  const wish = KINDS[lease] | (wholeFile ? WHOLE_FILE : 0) | (prepare ? PREPARE : 0);
  let tell: (notice: NativeBreak) => void = () => {};
  const broken = new Promise<NativeBreak>((resolve) => {
    tell = resolve;
  });
  const native = await client()
    .map(fd, offset, length, wish, sync, tell)
    .catch((error: unknown) => {
      if (errnoOf(error) !== Errno.ERANGE) throw error;
      throw new RangeError(`[${offset}, ${offset} + ${length}) of a file that became smaller`);
    });
  const mapping = new DirectMapping(native, offset, length);
  ofMemory.set(native.memory, mapping);
  // Not before whoever asked for the mapping has had a chance to listen. The addon must not keep it alive.
  const weak = new WeakRef(mapping);
  void broken.then((notice) => setImmediate(() => weak.deref()?.onBreak(notice)));
  return mapping;
}

function statOf(descriptor: number): Promise<{ size: number }> {
  return new Promise((resolve, reject) => {
    fstat(descriptor, (error, status) => (error === null ? resolve(status) : reject(error)));
  });
}
