/**
 * What the client library and the daemon say to each other: ioctls on any open file of the mount. Declared here once;
 * `scripts/generate.mjs` writes native/client/wire.h from it (`npm run check` fails when the two differ).
 *
 * FUSE copies exactly the bytes that the ioctl number's size and direction bits name (restricted ioctls,
 * Documentation/filesystems/fuse), so each request has one fixed-size struct that goes in and comes out.
 */
import { big64, bytes, struct, text, u32, u64 } from "../layout/struct.ts";

/** The mmap flag. Not the 2017 value (0x80000), which is MAP_SYNC since Linux 4.15. */
export const MAP_DIRECT = 0x200000;

/** 2: WATCH needs the token of the grant. */
export const WIRE_VERSION = 2;

/** Largest payload of a restricted ioctl: 14 bits of size, rounded down to a multiple of 8. */
export const IOCTL_BYTES_MAX = 16376;

export const LeaseKind = { DEFAULT: 0, SEAL: 1, BREAKABLE: 2 } as const;

export const LeaseFlag = {
  /** Any size change of the file is a conflict, not only changes of the range (the rule of patch series v4). */
  WHOLE_FILE: 1,
  /** The caller wants MAP_SYNC: refuse with EOPNOTSUPP unless a CPU flush alone makes stores durable. */
  SYNC: 2,
  /** Run `prepare` on the range first. */
  PREPARE: 4,
  /** Asked for on behalf of a program that knows nothing of it: an ordinary mapping of the range breaks the lease. */
  AUTOMATIC: 8,
} as const;

export const LEASE_FLAGS_KNOWN =
  LeaseFlag.WHOLE_FILE | LeaseFlag.SYNC | LeaseFlag.PREPARE | LeaseFlag.AUTOMATIC;

export const ExtentState = { HOLE: 0, UNWRITTEN: 1, WRITTEN: 2, SHARED: 3 } as const;

export const RegionKind = { FILE: 1, BLOCK: 2, DEVDAX: 3 } as const;

export const RegionFlag = {
  /** Cache-line granular persistence: a CPU flush alone makes stores durable. */
  CACHELINE: 1,
  /** Declared by --assume-pmem rather than found. */
  ASSUMED: 2,
  /** The region itself must be mapped with MAP_SYNC for that to be true (a file on a DAX file system). */
  NEEDS_MAP_SYNC: 4,
  /** Mounted read-only: no direct mappings. */
  READ_ONLY: 8,
} as const;

export const WireExtent = struct(
  "mapdirect_wire_extent",
  "One piece of a file's block map.",
  {
    offset: big64("byte offset in the file"),
    physical: u64("byte offset in the region; 0 for a hole"),
    length: big64("bytes"),
    state: u32("ExtentState"),
    reserved0: u32("zero"),
  },
  32,
);

export const WireRegion = struct(
  "mapdirect_wire_region",
  "Names the region behind a mount, so that a client can open it with its own credentials and check it.",
  {
    version: u32("WIRE_VERSION"),
    kind: u32("RegionKind"),
    flags: u32("RegionFlag bits"),
    blockSize: u32("bytes; the unit of extents"),
    regionBytes: u64("size of the region in bytes"),
    mapAlignment: u64("alignment of physical offset, length and address that the backing needs, bytes"),
    uuid: bytes(16, "volume uuid, as in the superblock"),
    superblockUuidOffset: u64("byte offset of the uuid in the region"),
    device: big64("st_dev of a region file; st_rdev of a device"),
    inode: big64("st_ino of a region file; 0 for a device"),
    defaultKind: u32("LeaseKind that the mount hands out when asked for DEFAULT"),
    pathBytes: u32("length of path, without NUL"),
    path: text(4096, "absolute path of the region, as the daemon sees it"),
    socketBytes: u32("length of socket, without NUL; 0 when there is none"),
    breakTimeMs: u32(
      "how long a holder is given when its lease is broken, milliseconds; the largest number for more",
    ),
    socket: text(104, "absolute path of a socket that hands out a descriptor of the region (direct_group=)"),
  },
  4288,
);

export const WIRE_EXTENTS_MAX = 508;

/** Of most files these are all, and each byte of an ioctl is copied twice. */
export const WIRE_GRANT_EXTENTS_MAX = 29;

/** Header of GRANT and EXTENTS; WireExtents follow it, `WIRE_GRANT_EXTENTS_MAX` or `WIRE_EXTENTS_MAX`. */
export const WireMap = struct(
  "mapdirect_wire_map",
  "Request and reply of GRANT and EXTENTS. Extents that do not fit are fetched with EXTENTS from nextOffset.",
  {
    version: u32("in: WIRE_VERSION"),
    kind: u32("in: LeaseKind (GRANT); out: the kind granted"),
    flags: u32("in: LeaseFlag bits (GRANT)"),
    count: u32("out: number of extents that follow"),
    offset: big64("in: byte offset in the file; multiple of the block size for GRANT"),
    length: big64("in: bytes; GRANT rounds up to whole blocks"),
    leaseId: u64("out: lease id (GRANT)"),
    generation: u64("out: generation of the block map that these extents were read under"),
    nextOffset: big64("out: where to continue, 0 when complete"),
    fileBytes: big64("out: size of the file"),
    inode: u64("out: inode number"),
    mapBytes: big64("out: offset of the first byte past the file's last block"),
    token: bytes(16, "out: random; whoever knows it may watch the lease (GRANT)"),
  },
  96,
);

export const WIRE_GRANT_BYTES = 96 + WIRE_GRANT_EXTENTS_MAX * 32;
export const WIRE_MAP_BYTES = 96 + WIRE_EXTENTS_MAX * 32;

export const WireRange = struct(
  "mapdirect_wire_range",
  "PREPARE, DEFRAG: a range of the file.",
  {
    version: u32("WIRE_VERSION"),
    flags: u32("zero"),
    offset: big64("byte offset in the file"),
    length: big64("bytes; 0 for up to the end of the file"),
    reserved: bytes(8, "zero"),
  },
  32,
);

export const WireLease = struct(
  "mapdirect_wire_lease",
  "WATCH, END: a lease.",
  {
    version: u32("WIRE_VERSION"),
    flags: u32("EndFlag bits (END), else zero"),
    token: bytes(16, "as GRANT answered it (WATCH), unless this is the lease's own open file description"),
    leaseId: u64("lease id"),
  },
  32,
);

export const WireClone = struct(
  "mapdirect_wire_clone",
  "OFFER, on the source: a token that names this open file. CLONE, on the target: share the blocks of the offered one.",
  {
    version: u32("WIRE_VERSION"),
    flags: u32("zero"),
    token: bytes(16, "out (OFFER), in (CLONE): random; valid until the source is closed"),
    sourceOffset: big64("in (CLONE): byte offset in the source; whole blocks"),
    offset: big64("in (CLONE): byte offset in the target; whole blocks"),
    length: big64("in (CLONE): bytes; whole blocks, or up to the end of the source; 0 for up to its end"),
    reserved: bytes(16, "zero"),
  },
  64,
);

export const SNAPSHOT_RUNS_MAX = 128;
export const SNAPSHOT_PIECES_MAX = 3;
export const SNAPSHOT_PIECE_BYTES = 4096;

export const SnapshotStep = {
  /** The moment is now: from here on this open file description stands for the copy, and ends it when it is closed. */
  BEGIN: 1,
  /** All that came before is copied: more of it. */
  NEXT: 2,
} as const;

export const SnapshotFlag = {
  /** in (BEGIN): also of files that are mapped directly, whose bytes are then of any moment of the copying. */
  MAPPED: 1,
  /** out: nothing is left. */
  DONE: 2,
} as const;

export const WireRun = struct(
  "mapdirect_wire_run",
  "A run of bytes of the region.",
  { physical: u64("byte offset in the region"), length: u64("bytes") },
  16,
);

export const WireSnapshot = struct(
  "mapdirect_wire_snapshot",
  "SNAPSHOT: a copy of the region as it was at one moment. Runs are to be copied from the region; the bytes of pieces follow.",
  {
    version: u32("in: WIRE_VERSION"),
    step: u32("in: SnapshotStep"),
    flags: u32("SnapshotFlag bits"),
    runs: u32("out: number of runs"),
    pieces: u32("out: number of pieces; their places follow those of the runs"),
    blockSize: u32("out: bytes; runs are whole blocks"),
    regionBytes: u64("out: size of the volume in bytes"),
    leftBytes: u64("out: bytes that are not copied yet, these included"),
    reserved: bytes(24, "zero"),
  },
  64,
);

export const SNAPSHOT_PLACES_BYTES = (SNAPSHOT_RUNS_MAX + SNAPSHOT_PIECES_MAX) * WireRun.size;
export const WIRE_SNAPSHOT_BYTES =
  WireSnapshot.size + SNAPSHOT_PLACES_BYTES + SNAPSHOT_PIECES_MAX * SNAPSHOT_PIECE_BYTES;

export const EndFlag = {
  /** Nothing was stored through the mapping: the file's times stay. */
  UNCHANGED: 1,
} as const;

export const LeaseState = { HELD: 0, BREAKING: 1, REVOKED: 2, GONE: 3 } as const;
export const BreakReason = { NONE: 0, CONFLICT: 1, ADMINISTRATOR: 2, UNMOUNT: 3 } as const;

export const WireStatus = struct(
  "mapdirect_wire_status",
  "STATUS: how a watched lease is.",
  {
    version: u32("WIRE_VERSION"),
    state: u32("LeaseState"),
    reason: u32("BreakReason"),
    reserved0: u32("zero"),
    leaseId: u64("lease id"),
    offset: big64("conflict: byte offset in the file"),
    length: big64("conflict: bytes"),
    remainingMs: u64("breaking: milliseconds until the lease is revoked"),
    reserved1: bytes(16, "zero"),
  },
  64,
);

export const WIRE_CONTROL_TEXT = 16336;

export const WireControl = struct(
  "mapdirect_wire_control",
  "A question to the daemon and a slice of its answer, UTF-8 JSON. Ask again with token and offset for the next slice.",
  {
    version: u32("in: WIRE_VERSION"),
    question: u32("in: Question"),
    token: u32("in: 0 for a new answer; out: names the answer"),
    count: u32("out: bytes of text in this slice"),
    offset: u64("in: where in the answer to continue"),
    total: u64("out: bytes of the whole answer, or more while that is not known (DUMP)"),
    argument: u64("in: meaning depends on the question"),
    text: bytes(WIRE_CONTROL_TEXT, "out: the slice"),
  },
  16376,
);

export const Question = {
  INFO: 1,
  LEASES: 2,
  STATS: 3,
  BREAK: 4,
  CHECK: 5,
  /** Another size; `argument`: bytes, 0 for all of the region. Answered when it is done: takes long, may be interrupted. */
  RESIZE: 6,
  /** All metadata as of this moment, JSON lines; `total` is known with the last slice, and larger before. Read in order. */
  DUMP: 7,
  /** Processes that still map files from before this mount. */
  ORPHANS: 8,
  MAP: 16,
  WHERE: 17,
} as const;

/** MAP: the argument is the number of cells wanted, at most this. */
export const MAP_CELLS_MAX = 65536;
/** WHERE: the argument is `cells * WHERE_CELLS + cell`, with the cells of an answer to MAP. */
export const WHERE_CELLS = 2 ** 32;

const IOC_WRITE = 1;
const IOC_READ = 2;
/** _IOC(dir, type, nr, size) of asm-generic/ioctl.h; x86-64 and aarch64 share it. */
const ioc = (direction: number, number: number, size: number): number =>
  ((direction << 30) | (size << 16) | (0x4d << 8) | number) >>> 0;

export const Ioctl = {
  REGION: ioc(IOC_READ, 0xd0, WireRegion.size),
  GRANT: ioc(IOC_READ | IOC_WRITE, 0xd1, WIRE_GRANT_BYTES),
  EXTENTS: ioc(IOC_READ | IOC_WRITE, 0xd2, WIRE_MAP_BYTES),
  END: ioc(IOC_WRITE, 0xd3, WireLease.size),
  PREPARE: ioc(IOC_WRITE, 0xd4, WireRange.size),
  CONTROL: ioc(IOC_READ | IOC_WRITE, 0xd5, WireControl.size),
  /** On another open file description of the same file: poll(2) there tells of the lease from now on. */
  WATCH: ioc(IOC_WRITE, 0xd6, WireLease.size),
  STATUS: ioc(IOC_READ, 0xd7, WireStatus.size),
  OFFER: ioc(IOC_READ, 0xd8, WireClone.size),
  CLONE: ioc(IOC_WRITE, 0xd9, WireClone.size),
  DEFRAG: ioc(IOC_WRITE, 0xda, WireRange.size),
  SNAPSHOT: ioc(IOC_READ | IOC_WRITE, 0xdb, WIRE_SNAPSHOT_BYTES),
} as const;
