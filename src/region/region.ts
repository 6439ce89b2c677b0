/**
 * A region: a run of bytes that survives the daemon, mapped into it. Everything above sees only this interface, so that
 * a test can put a recording or failing region in its place.
 *
 * Invariants every backend keeps (test/contract/region.contract.ts):
 * - what `write`, `zero` and `copy` stored is visible at once to every other mapping of the region, and survives the
 *   death of the daemon at any later instruction;
 * - CACHELINE granularity: what was stored before `drain()` returned survives a power cut after it;
 * - PAGE granularity: what was stored before `sync()` was called survives a power cut after its promise resolved;
 *   `drain()` does nothing. A failed sync rejects, and stays failed (see syncError) until the region is reopened:
 *   after a failed fsync the kernel may have dropped the dirty pages (PostgreSQL's fsync lesson, 2018);
 * - a range outside [0, sizeBytes) is an InvariantError, never a stray access;
 * - grow() keeps every byte and every address, and a sync under way goes on;
 * - a store into a sparse file is FsError(ENOSPC) where what that lies on is full;
 * - a media error (SIGBUS in the daemon's mapping) is FsError(EIO), never the daemon's death.
 */
export type RegionKindName = "file" | "block" | "devdax" | "memory";
export type Granularity = "cacheline" | "page";

/** Hardware truth, discovered once at open and kept as a value. */
export interface RegionFacts {
  readonly path: string;
  readonly kind: RegionKindName;
  /** What can be reached. It never shrinks; grow() makes it more. */
  readonly sizeBytes: number;
  /** What was found, in words, and what that means for who maps files: see backing.ts. */
  readonly found: string;
  readonly means: string;
  /** A mapping bypasses the page cache. */
  readonly dax: boolean;
  readonly granularity: Granularity;
  /** The mapping was made with MAP_SYNC (DAX): flushing CPU caches makes even a new page table entry durable. */
  readonly mapSync: boolean;
  /** --assume-pmem: cacheline granularity was declared, not found. */
  readonly assumed: boolean;
  /** Alignment in bytes that offset, length and address of a mapping of this region need (4096; device-dax often 2 MiB). */
  readonly mapAlignmentBytes: number;
  /** "clwb", "clflushopt", "clflush", "dc cvap", "dc cvac", "msync". */
  readonly flushMethod: string;
  /** st_dev of a file, st_rdev of a device; bigint because dev_t is 64 bits. */
  readonly device: bigint;
  /** st_ino of a file, 0 for a device. */
  readonly inode: bigint;
  /** Who may open it, as it was when it was opened: owner, group and mode bits. */
  readonly access: { readonly uid: number; readonly gid: number; readonly mode: number };
  /** What could not be had, and why: shown by `mapdirect info`. */
  readonly fallbacks: readonly string[];
}

/** Who maps a region besides this process. */
export interface RegionMappings {
  /** Those that do, with the `lines` of /proc/PID/maps; and those that cannot be looked at: `failure`, an errno. */
  readonly processes: readonly { readonly pid: number; readonly failure: number; readonly lines: string }[];
  /** No process was new at the end of the pass. */
  readonly settled: boolean;
}

/** What a sparse file lies on, bytes. */
export interface RoomBelow {
  readonly freeBytes: number;
  /** What the file has taken of it. */
  readonly allocatedBytes: number;
}

export interface Region {
  /** Another value after grow(). */
  readonly facts: RegionFacts;
  /** Set once a sync failed; every later sync rejects with it. */
  readonly syncError: Error | null;
  /** Called before `write`, `zero` and `copy` change bytes of [offset, offset + length), for who wants the old ones. */
  beforeStore: ((offset: number, length: number) => void) | null;

  read(offset: number, target: Uint8Array, targetStart: number, length: number): void;
  /** Store bytes; on cacheline granularity with non-temporal stores or store + flush, so that `drain()` completes them. */
  write(offset: number, source: Uint8Array, sourceStart: number, length: number): void;
  zero(offset: number, length: number): void;
  /** Copy within the region; the ranges do not overlap. */
  copy(sourceOffset: number, targetOffset: number, length: number): void;
  /** Start writing back what others have stored there from the CPU's caches; nothing on page granularity. */
  flush(offset: number, length: number): void;
  /** These bytes will not be looked at for a while: the pages need not stay mapped. What was stored there stays. */
  unload(offset: number, length: number): void;
  /** Order and complete everything stored and flushed so far (store fence) on cacheline granularity; nothing on page granularity. */
  drain(): void;
  /** Make durable everything stored so far: off the event loop; on cacheline granularity it drains and resolves. */
  sync(): Promise<void>;
  /** How large the file or device is at this moment, bytes: others may have changed that. @throws FsError EIO */
  measure(): number;
  /**
   * Reach at least so many bytes. A file that is smaller grows, sparse; when the promise resolves, that survives a power
   * cut. @throws FsError EINVAL (a device that is smaller), ENOMEM (no address space: open it anew), EFBIG, EPERM, EIO.
   */
  grow(sizeBytes: number): Promise<void>;
  /**
   * Storing there will not fail for lack of room. Absent where nothing can be sparse.
   * @throws FsError ENOSPC (what the file lies on is full), EIO
   */
  allocate?(offset: number, length: number): void;
  /**
   * What is stored there means nothing any more: what the region lies on may use the room for something else. Until
   * something is stored there again, anything may be read. Off the event loop. Absent where nothing lies below: on DAX.
   * @throws FsError EOPNOTSUPP (what lies below takes no discards), EIO
   */
  discard?(offset: number, length: number): Promise<void>;
  /** Absent, or null, where nothing bounds it but the region's own size. */
  below?(): RoomBelow | null;
  /** What the region lies on has no room for a store, which failed with ENOSPC, or none for allocate(). Until it is set to false. */
  isFullBelow?: boolean;
  /** One pass over all processes for those that map it. Absent where no other process can. */
  findMappings?(proc?: string, patienceMs?: number): Promise<RegionMappings>;
  close(): void;
}

/** A region whose bytes the /dev/fuse channel can send without a copy through JavaScript. */
export interface NativeBacked {
  /** The addon's own object behind this region; opaque outside the channel. */
  readonly native: object;
}
