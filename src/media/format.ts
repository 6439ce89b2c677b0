/**
 * Every byte that mapdirect writes on a region, declared once. docs/FORMAT.md is checked against these declarations.
 *
 *     0              64 KiB           128 KiB                                                         end
 *     ├ superblock A ┼ superblock B ──┼ blocks: file data and metadata segments, mixed ┼ (superblock C) ┤
 *
 * A *segment* is an aligned run of `segmentBytes` that holds a header and then *groups*. A group is a checksummed run
 * of records and takes effect whole or not at all. The log is a chain of segments, a checkpoint is another.
 */
import { big64, bytes, i64, struct, text, u8, u16, u32, u64 } from "../layout/struct.ts";

export const FORMAT_VERSION = 1;

/** Byte offsets of the two superblock copies; both lie below RESERVED_BYTES, which no segment or file ever uses. */
export const SUPERBLOCK_OFFSETS = [0, 65536] as const;
export const RESERVED_BYTES = 131072;
/** A third copy begins so many bytes before the end of the volume, if its last block is free when it is unmounted. */
export const END_COPY_BYTES = 4096;
export const SUPERBLOCK_MAGIC = 0x5443_5249_4450_414dn; // "MAPDIRCT" in memory order

export const REGION_BYTES_MIN = 4 * 1024 * 1024;
/** Of UTF-8. */
export const LABEL_BYTES_MAX = 64;
export const BLOCK_BYTES_MIN = 4096;
export const BLOCK_BYTES_MAX = 2 * 1024 * 1024;
/** Longest xattr value (linux/limits.h XATTR_SIZE_MAX) plus name and headers must fit into a group, a group into a segment. */
export const SEGMENT_BYTES_MIN = 131072;
export const SEGMENT_BYTES_MAX = 2 * 1024 * 1024;

/**
 * Ids and counters on the media stay below this. Each is counted up by one at a time, so honest ones never come near;
 * and what is counted up from here cannot leave the numbers that a double holds exactly.
 */
export const COUNTER_MAX = 2 ** 52;
/** So many a volume must have left of those that metadata itself counts, to be used: no honest one has used up the others. */
export const COUNTER_ROOM = 2 ** 32;

/** Feature bits. An unknown incompatible bit refuses the mount; an unknown read-only compatible one allows it read-only. */
export const KNOWN_COMPATIBLE = 0;
export const KNOWN_READ_ONLY_COMPATIBLE = 0;
export const FeatureIncompatible = {
  /** Extents may be in state 3, shared. */
  SHARED_EXTENTS: 1,
} as const;
export const KNOWN_INCOMPATIBLE: number = FeatureIncompatible.SHARED_EXTENTS;

export const VolumeState = { CLEAN: 1, MOUNTED: 2 } as const;

export const Superblock = struct(
  "mapdirect_superblock",
  "Superblock, kept twice; the valid copy with the higher sequence counts.",
  {
    magic: big64('"MAPDIRCT"'),
    version: u32("FORMAT_VERSION"),
    crc: u32("CRC32C of these 512 bytes with this field zero"),
    uuid: bytes(16, "volume uuid (RFC 9562, version 4)"),
    label: text(64, "volume label, UTF-8"),
    sequence: u64("counts superblock writes; both copies carry the same number when at rest"),
    regionBytes: u64("size of the volume in bytes, at most the size of the region"),
    blockBytes: u32("allocation unit in bytes, a power of two from 4096 to 2 MiB"),
    segmentBytes: u32("size of a metadata segment in bytes, a power of two, at least blockBytes"),
    featuresCompatible: u32("unknown bits are ignored"),
    featuresReadOnly: u32("unknown bits allow a read-only mount alone"),
    featuresIncompatible: u32("unknown bits refuse the mount"),
    state: u32("1 clean: the log ends exactly before tailLsn; 2 mounted: the log tells"),
    createdSec: i64("time of mkfs, seconds since 1970"),
    mountedSec: i64("time of the last mount that could write"),
    incarnations: u64("how many chains were ever begun; the next one gets this number plus one"),
    bootId: bytes(16, "/proc/sys/kernel/random/boot_id of the last such mount"),
    checkpointSegment: u64("byte offset of the first segment of the checkpoint"),
    checkpointIncarnation: u64("incarnation of that chain"),
    logSegment: u64("byte offset of the segment where replay begins"),
    logIndex: u64("index of that segment"),
    logIncarnation: u64("incarnation of that segment"),
    logLsn: u64("log sequence number of the first group there"),
    tailLsn: u64(
      "clean, or unmounted without room for a checkpoint: the number that the next group would get; otherwise 0",
    ),
    reserved: bytes(280, "zero"),
  },
  512,
);

export const SEGMENT_MAGIC = 0x4753_444d; // "MDSG"
export const SegmentRole = { LOG: 1, CHECKPOINT: 2, LOG_COPY: 3, CHECKPOINT_COPY: 4 } as const;
/** From the role of a segment to that of its copy. */
export const COPY_ROLE = 2;

export const SegmentHeader = struct(
  "mapdirect_segment",
  "Header of a metadata segment. The next segment is chosen when this one is begun, so that a reader who finds the chain broken here can tell whether it went on.",
  {
    magic: u32('"MDSG"'),
    crc: u32("CRC32C of these 64 bytes with this field zero, seeded with the volume uuid"),
    role: u32("1 log, 2 checkpoint, 3 copy of a log segment, 4 copy of a checkpoint segment"),
    reserved0: u32("zero"),
    index: u64("position in the chain; grows by one"),
    incarnation: u64("of the chain; a chain that a superblock names has a number of its own"),
    firstLsn: u64("number of the first group here"),
    self: u64("byte offset of this segment"),
    next: u64(
      "byte offset of the segment that will follow; 0 if none is set aside; of a copy: of the segment that it is a copy of",
    ),
    reserved1: u64("zero"),
  },
  64,
);

/** Byte offsets of the tables of copies, and their size at most: behind the superblocks, where nothing else ever is. */
export const COPY_TABLE_OFFSETS: Readonly<Record<number, number>> = {
  [SegmentRole.CHECKPOINT]: SUPERBLOCK_OFFSETS[0] + 4096,
  [SegmentRole.LOG]: SUPERBLOCK_OFFSETS[1] + 4096,
};
export const COPY_TABLE_BYTES_MAX = 61440;
export const COPY_TABLE_MAGIC = 0x5443_444d; // "MDCT"

export const CopyTable = struct(
  "mapdirect_copy_table",
  "Where the second copies of a chain's segments are. The byte offsets of the copies follow, 8 bytes each; 0 for none.",
  {
    magic: u32('"MDCT"'),
    crc: u32("CRC32C of the table with this field zero, seeded with the volume uuid"),
    incarnation: u64("of the chain"),
    firstIndex: u64("index of the segment that the first copy is one of"),
    count: u64("number of copies that follow, at most 7676"),
  },
  32,
);

export const GROUP_MAGIC = 0x5047_444d; // "MDGP"
export const GroupKind = { RECORDS: 1, BARRIER: 2, LINK: 3, END: 4 } as const;

export const GroupHeader = struct(
  "mapdirect_group",
  "Header of a group: the checksum over all that follows it is the commit point.",
  {
    magic: u32('"MDGP"'),
    crc: u32("CRC32C of the group from its length field to its end, seeded with the volume uuid"),
    length: u32("bytes of the whole group, a multiple of 8"),
    kind: u16("1 records, 2 barrier, 3 link, 4 end of checkpoint"),
    count: u16("number of records"),
    lsn: u64("log sequence number: grows by one from group to group"),
    incarnation: u64("of the segment that holds it"),
  },
  32,
);

export const RecordType = {
  INODE: 1,
  INODE_GONE: 2,
  TOUCH: 3,
  DENTRY: 4,
  DENTRY_GONE: 5,
  EXTENT: 6,
  EXTENT_GONE: 7,
  SYMLINK: 8,
  XATTR: 9,
  XATTR_GONE: 10,
  BARRIER: 20,
  LINK: 21,
  END: 22,
} as const;

export const RecordHeader = struct(
  "mapdirect_record",
  "Header of a record; its body follows, padded with zeros to a multiple of 8 bytes.",
  {
    type: u16("RecordType"),
    reserved0: u16("zero"),
    length: u32("bytes of the record with this header and its padding"),
  },
  8,
);

export const InodeRecord = struct(
  "mapdirect_record_inode",
  "INODE: the inode is now this. Creates it if need be; leaves extents, xattrs, entries and target as they are.",
  {
    ino: u64("inode number; 1 is the root; never used twice"),
    size: big64("bytes, at most 2^63 - 1; directories: 0"),
    parent: u64("directories: inode number of the parent; otherwise 0"),
    mode: u32("type and permissions as in stat(2)"),
    nlink: u32("number of names; 0: an orphan, freed by recovery"),
    uid: u32("owner"),
    gid: u32("group"),
    rdev: u32("device number of a device node, in the kernel's new_encode_dev form"),
    generation: u32("inode generation, for file handles"),
    atimeSec: i64("last access, seconds since 1970"),
    mtimeSec: i64("last change of data"),
    ctimeSec: i64("last change of the inode"),
    btimeSec: i64("creation"),
    atimeNsec: u32("nanoseconds, below 10^9"),
    mtimeNsec: u32("nanoseconds"),
    ctimeNsec: u32("nanoseconds"),
    btimeNsec: u32("nanoseconds"),
  },
  96,
);

export const InodeGoneRecord = struct(
  "mapdirect_record_inode_gone",
  "INODE_GONE: the inode and all that belongs to it is gone, its blocks are free.",
  { ino: u64("inode number") },
  8,
);

export const TouchRecord = struct(
  "mapdirect_record_touch",
  "TOUCH: what a write changes of an inode.",
  {
    ino: u64("inode number"),
    size: big64("bytes"),
    mtimeSec: i64("seconds"),
    ctimeSec: i64("seconds"),
    mtimeNsec: u32("nanoseconds"),
    ctimeNsec: u32("nanoseconds"),
    mode: u32("type and permissions (a write may clear setuid and setgid)"),
    reserved0: u32("zero"),
  },
  48,
);

export const DentryRecord = struct(
  "mapdirect_record_dentry",
  "DENTRY: the name in the directory now means this inode. The name follows.",
  {
    parent: u64("inode number of the directory"),
    ino: u64("inode number"),
    cookie: u64("position for readdir, never used twice in a directory; from 3"),
    type: u8("DT_ value: mode >> 12"),
    nameBytes: u8("length of the name, 1 to 255"),
    reserved0: bytes(6, "zero"),
  },
  32,
);

export const DentryGoneRecord = struct(
  "mapdirect_record_dentry_gone",
  "DENTRY_GONE: the directory has no such name any more. The name follows.",
  {
    parent: u64("inode number of the directory"),
    nameBytes: u8("length of the name, 1 to 255"),
    reserved0: bytes(7, "zero"),
  },
  16,
);

export const ExtentRecord = struct(
  "mapdirect_record_extent",
  "EXTENT: this run of file blocks is now mapped so, whatever it was.",
  {
    ino: u64("inode number"),
    block: u64("first block in the file"),
    physical: u64("first block in the region"),
    count: u32("blocks, at least 1"),
    state: u32(
      "1 unwritten, 2 written, 3 shared: written, and other extents of state 3 may name the same blocks",
    ),
  },
  32,
);

export const ExtentGoneRecord = struct(
  "mapdirect_record_extent_gone",
  "EXTENT_GONE: this run of file blocks is a hole now.",
  {
    ino: u64("inode number"),
    block: u64("first block in the file"),
    count: u64("blocks, at least 1; may reach past the last extent"),
  },
  24,
);

export const SymlinkRecord = struct(
  "mapdirect_record_symlink",
  "SYMLINK: the target follows.",
  {
    ino: u64("inode number"),
    targetBytes: u32("length of the target, 1 to 4095"),
    reserved0: u32("zero"),
  },
  16,
);

export const XattrRecord = struct(
  "mapdirect_record_xattr",
  "XATTR: the attribute now has this value. Name and value follow.",
  {
    ino: u64("inode number"),
    valueBytes: u32("length of the value, 0 to 65536"),
    nameBytes: u8("length of the name, 1 to 255"),
    reserved0: bytes(3, "zero"),
  },
  16,
);

export const XattrGoneRecord = struct(
  "mapdirect_record_xattr_gone",
  "XATTR_GONE: the attribute is gone. The name follows.",
  {
    ino: u64("inode number"),
    nameBytes: u8("length of the name, 1 to 255"),
    reserved0: bytes(7, "zero"),
  },
  16,
);

export const BarrierRecord = struct(
  "mapdirect_record_barrier",
  "BARRIER: all groups up to this number, and the data they refer to, were durable before this group was written.",
  { lsn: u64("log sequence number") },
  8,
);

export const LinkRecord = struct(
  "mapdirect_record_link",
  "LINK: the last group of a log segment; the log goes on in another.",
  {
    segment: u64("byte offset of the next segment"),
    index: u64("its index"),
    incarnation: u64("its incarnation"),
  },
  24,
);

export const EndRecord = struct(
  "mapdirect_record_end",
  "END: the last record of a checkpoint. Log groups before endLsn may already be contained in it.",
  {
    endLsn: u64("log sequence number when the checkpoint was complete"),
    records: u64("records in the checkpoint before this one"),
    nextIno: u64("next inode number to hand out"),
    nextGeneration: u64("next generation to hand out"),
  },
  32,
);

export const recordBodies = {
  INODE: InodeRecord,
  INODE_GONE: InodeGoneRecord,
  TOUCH: TouchRecord,
  DENTRY: DentryRecord,
  DENTRY_GONE: DentryGoneRecord,
  EXTENT: ExtentRecord,
  EXTENT_GONE: ExtentGoneRecord,
  SYMLINK: SymlinkRecord,
  XATTR: XattrRecord,
  XATTR_GONE: XattrGoneRecord,
  BARRIER: BarrierRecord,
  LINK: LinkRecord,
  END: EndRecord,
} as const;

/** Bytes that a LINK group takes: every log segment keeps this much room at its end. */
export const LINK_GROUP_BYTES = GroupHeader.size + RecordHeader.size + LinkRecord.size;
