/** Making a new volume: an empty log, a checkpoint with nothing but the root directory, two superblocks. */
import { randomBytes } from "node:crypto";
import { FsError } from "../base/errors.ts";
import type { Region } from "../region/region.ts";
import { ChainWriter, type SegmentSource } from "./chain.ts";
import { Checkpoint, type Snapshot } from "./checkpoint.ts";
import { crc32c } from "./checksum.ts";
import { copyCheckpoint } from "./copies.ts";
import {
  BLOCK_BYTES_MAX,
  BLOCK_BYTES_MIN,
  FeatureIncompatible,
  FORMAT_VERSION,
  LABEL_BYTES_MAX,
  RESERVED_BYTES,
  SEGMENT_BYTES_MAX,
  SEGMENT_BYTES_MIN,
  SegmentRole,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_OFFSETS,
  Superblock,
  VolumeState,
} from "./format.ts";
import { leastReserve, leastVolumeBytes } from "./reserve.ts";
import { judgeCopy, type SuperblockValue } from "./superblock.ts";
import { findTrace } from "./traces.ts";

export const ROOT_INO = 1;
const DEFAULT_BLOCK_SIZE_BYTES = 4096;
const S_IFDIR = 0o040000;

export interface MkfsOptions {
  /** At most 64 bytes of UTF-8. */
  readonly label: string;
  /** Allocation unit: a power of two, 4096 to 2 MiB, at least the region's mapping alignment; that or 4096 if left out. */
  readonly blockSizeBytes?: number | undefined;
  /** 16 bytes; random if left out. */
  readonly uuid?: Uint8Array;
  /** Owner of the root directory. */
  readonly uid: number;
  readonly gid: number;
  /** What the region lies on may use the room of whatever is stored there, as far as it takes that. */
  readonly discard?: boolean;
}

/** Discarded at a time. */
const DISCARD_BYTES = 1024 ** 3;

/** Segments of about a thousandth of the region. */
function segmentBytesFor(regionBytes: number, blockBytes: number): number {
  let bytes = Math.max(SEGMENT_BYTES_MIN, blockBytes);
  while (bytes < SEGMENT_BYTES_MAX && bytes * 1024 < regionBytes) bytes *= 2;
  return bytes;
}

/** Returns the block size, bytes. @throws FsError EINVAL with the reason. Everything that the region held is lost. */
export async function makeFileSystem(region: Region, options: MkfsOptions): Promise<number> {
  const { mapAlignmentBytes } = region.facts;
  if (mapAlignmentBytes > BLOCK_BYTES_MAX) {
    throw new FsError(
      "EINVAL",
      `this region can be mapped in units of ${mapAlignmentBytes} bytes only, and blocks have at most ${BLOCK_BYTES_MAX}: give the device an alignment of 2 MiB or 4 KiB`,
    );
  }
  const blockBytes = options.blockSizeBytes ?? Math.max(DEFAULT_BLOCK_SIZE_BYTES, mapAlignmentBytes);
  if ((blockBytes & (blockBytes - 1)) !== 0 || blockBytes < BLOCK_BYTES_MIN || blockBytes > BLOCK_BYTES_MAX) {
    throw new FsError("EINVAL", `block size ${blockBytes}: a power of two from 4096 to 2097152 is needed`);
  }
  if (blockBytes < mapAlignmentBytes) {
    throw new FsError(
      "EINVAL",
      `block size ${blockBytes}: this region can be mapped in units of ${mapAlignmentBytes} bytes only; use --block-size ${mapAlignmentBytes}`,
    );
  }
  if (new TextEncoder().encode(options.label).length > LABEL_BYTES_MAX) {
    throw new FsError("EINVAL", `label: at most ${LABEL_BYTES_MAX} bytes`);
  }
  const segmentBytes = segmentBytesFor(region.facts.sizeBytes, blockBytes);
  const regionBytes = Math.floor(region.facts.sizeBytes / blockBytes) * blockBytes;
  const least = leastVolumeBytes(segmentBytes);
  if (regionBytes < least) {
    throw new FsError(
      "EINVAL",
      `a region of ${region.facts.sizeBytes} bytes is too small: at least ${least} are needed`,
    );
  }
  const uuid = options.uuid ?? randomUuid();
  const geometry = { segmentBytes, regionBytes, seed: crc32c(uuid, 0, uuid.length) };
  // Old superblocks go first: an interrupted mkfs leaves no volume rather than half of one.
  region.zero(0, RESERVED_BYTES);
  region.drain();
  await region.sync();

  if (options.discard === true) await discardAll(region);
  let free = Math.ceil(RESERVED_BYTES / segmentBytes) * segmentBytes;
  // Sparse as a file may be, what metadata cannot do without is there: its first segments, and the least reserve.
  const ahead = 4 + leastReserve({ segmentBytes, regionBytes, snapshotBytes: segmentBytes / 4 });
  region.allocate?.(0, free + ahead * segmentBytes);
  const take = (): number => {
    free += segmentBytes;
    return free - segmentBytes;
  };
  const give = (): void => {};
  const source: SegmentSource = {
    take,
    give,
    copies: { take: () => ({ place: take() }), give, holds: () => true },
  };
  const nowMs = Date.now();
  const seconds = Math.floor(nowMs / 1000);
  const nanoseconds = (nowMs % 1000) * 1_000_000;
  const snapshot: Snapshot = {
    nextIno: ROOT_INO + 1,
    nextGeneration: 1,
    *capture(group) {
      group.inode({
        ino: ROOT_INO,
        size: 0n,
        parent: ROOT_INO,
        mode: S_IFDIR | 0o755,
        nlink: 2,
        uid: options.uid,
        gid: options.gid,
        rdev: 0,
        generation: 0,
        atimeSec: seconds,
        mtimeSec: seconds,
        ctimeSec: seconds,
        btimeSec: seconds,
        atimeNsec: nanoseconds,
        mtimeNsec: nanoseconds,
        ctimeNsec: nanoseconds,
        btimeNsec: nanoseconds,
      });
      yield;
    },
  };
  const log = ChainWriter.begin(region, geometry, SegmentRole.LOG, source, {
    index: 0,
    incarnation: 1,
    lsn: 1,
  });
  const checkpoint = new Checkpoint(region, geometry, source, snapshot, 2, log.rotate());
  while (!checkpoint.step(10));
  const superblock: SuperblockValue = {
    magic: SUPERBLOCK_MAGIC,
    version: FORMAT_VERSION,
    crc: 0,
    uuid,
    label: options.label,
    sequence: 0,
    regionBytes,
    blockBytes,
    segmentBytes,
    featuresCompatible: 0,
    featuresReadOnly: 0,
    featuresIncompatible: FeatureIncompatible.SHARED_EXTENTS,
    state: VolumeState.CLEAN,
    createdSec: BigInt(seconds),
    mountedSec: 0n,
    incarnations: 2,
    bootId: new Uint8Array(16),
    checkpointSegment: 0,
    checkpointIncarnation: 0,
    logSegment: 0,
    logIndex: 0,
    logIncarnation: 0,
    logLsn: 0,
    tailLsn: 0,
    reserved: new Uint8Array(280),
  };
  await copyCheckpoint(region, geometry, source, checkpoint.places);
  await checkpoint.finish(superblock, true, true);
  return blockBytes;
}

/** All but the superblocks. Where it is not possible, nothing is lost but that. */
async function discardAll(region: Region): Promise<void> {
  const { sizeBytes } = region.facts;
  try {
    for (let at = RESERVED_BYTES; at < sizeBytes; at += DISCARD_BYTES)
      await region.discard?.(at, Math.min(DISCARD_BYTES, sizeBytes - at));
  } catch (error) {
    if (!(error instanceof FsError && error.code === "EOPNOTSUPP")) throw error;
  }
}

export function randomUuid(): Uint8Array {
  const uuid = randomBytes(16);
  uuid[6] = ((uuid[6] as number) & 0x0f) | 0x40;
  uuid[8] = ((uuid[8] as number) & 0x3f) | 0x80;
  return uuid;
}

/** Of 32 hexadecimal digits in five groups (RFC 9562); undefined for anything else, and for the nil uuid. */
export function parseUuid(text: string): Uint8Array | undefined {
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text) || /^[0-]+$/.test(text)) return undefined;
  return new Uint8Array(Buffer.from(text.replaceAll("-", ""), "hex"));
}

export function formatUuid(uuid: Uint8Array): string {
  const hex = Buffer.from(uuid).toString("hex");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

interface Signature {
  readonly name: string;
  readonly offset: number;
  readonly magic: string | readonly number[];
}

/** Where others keep their magic numbers (their own documentation, and libblkid's probes). */
const signatures: readonly Signature[] = [
  { name: "ext2/3/4 file system", offset: 1080, magic: [0x53, 0xef] },
  { name: "xfs file system", offset: 0, magic: "XFSB" },
  { name: "btrfs file system", offset: 0x10040, magic: "_BHRfS_M" },
  { name: "f2fs file system", offset: 1024, magic: [0x10, 0x20, 0xf5, 0xf2] },
  { name: "squashfs file system", offset: 0, magic: "hsqs" },
  { name: "erofs file system", offset: 1024, magic: [0xe2, 0xe1, 0xf5, 0xe0] },
  { name: "iso9660 file system", offset: 0x8001, magic: "CD001" },
  { name: "ntfs file system", offset: 3, magic: "NTFS    " },
  { name: "exfat file system", offset: 3, magic: "EXFAT   " },
  { name: "vfat file system", offset: 82, magic: "FAT32   " },
  { name: "vfat file system", offset: 54, magic: "FAT1" },
  { name: "swap area", offset: 4086, magic: "SWAPSPACE2" },
  { name: "LUKS volume", offset: 0, magic: "LUKS" },
  // Its label may be in any of the first four sectors.
  ...[24, 536, 1048, 1560].map((offset) => ({ name: "LVM physical volume", offset, magic: "LVM2 001" })),
  { name: "Linux RAID member", offset: 4096, magic: [0xfc, 0x4e, 0x2b, 0xa9] },
  { name: "bcache device", offset: 4120, magic: [0xc6, 0x85, 0x73, 0xf6] },
  { name: "GPT partition table", offset: 512, magic: "EFI PART" },
  { name: "DOS partition table or boot sector", offset: 510, magic: [0x55, 0xaa] },
];

/** What the region holds already, in words; null if nothing that is known. */
export function identifyContent(region: Region): string | null {
  const bytes = Math.min(region.facts.sizeBytes, RESERVED_BYTES);
  const data = Buffer.alloc(RESERVED_BYTES);
  region.read(0, data, 0, bytes);
  for (const offset of SUPERBLOCK_OFFSETS) {
    const verdict = judgeCopy(data.subarray(offset, offset + Superblock.size), offset);
    if (verdict.kind === "valid") {
      const label = verdict.value.label === "" ? "no label" : `label ${verdict.value.label}`;
      return `mapdirect file system (uuid ${formatUuid(verdict.value.uuid)}, ${label})`;
    }
    if (verdict.kind === "foreign") return `mapdirect file system (format version ${verdict.version})`;
    if (verdict.kind === "damaged") return "damaged mapdirect file system";
  }
  for (const { name, offset, magic } of signatures) {
    const expected = typeof magic === "string" ? Buffer.from(magic, "latin1") : Buffer.from(magic);
    if (data.subarray(offset, offset + expected.length).equals(expected)) return name;
  }
  const trace = findTrace(region);
  return trace === null ? null : `mapdirect file system without a superblock (metadata at byte ${trace})`;
}
