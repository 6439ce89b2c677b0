/**
 * The newest whole metadata that a region holds, whatever a superblock says: segments tell themselves what they are.
 *
 * Invariants:
 * - nothing is written;
 * - what is returned has passed the strict way that a mount takes, as a whole.
 */
import { largest } from "../base/arrays.ts";
import { CorruptionError, FsError } from "../base/errors.ts";
import { viewOf } from "../layout/struct.ts";
import { type ChainGeometry, segmentHead, segmentPlaces } from "../media/chain.ts";
import { crc32c } from "../media/checksum.ts";
import { findCopies, Mended } from "../media/copies.ts";
import {
  BLOCK_BYTES_MIN,
  COPY_ROLE,
  COUNTER_MAX,
  FeatureIncompatible,
  FORMAT_VERSION,
  RESERVED_BYTES,
  SEGMENT_BYTES_MAX,
  SEGMENT_BYTES_MIN,
  SEGMENT_MAGIC,
  SegmentHeader,
  SegmentRole,
  SUPERBLOCK_MAGIC,
  VolumeState,
} from "../media/format.ts";
import { randomUuid } from "../media/mkfs.ts";
import { readSome } from "../media/reading.ts";
import type { SuperblockValue } from "../media/superblock.ts";
import { S_IFMT, S_IFREG } from "../namespace/inode.ts";
import { type BroughtBack, bringBackFrom } from "../namespace/recovered.ts";
import type { Region } from "../region/region.ts";

/** Checkpoints and logs that are tried, newest first: each is read as a whole. */
const CHECKPOINTS_MAX = 4;
const LOGS_MAX = 2;
/** Volumes whose segments lie on one region. */
const SEEDS_MAX = 4;

/**
 * @param base what is known of the volume: uuid, sizes, label
 * @param seed checksum seed of its segments, if its uuid is not known any more
 */
export function findNewest(
  region: Region,
  base: SuperblockValue,
  seed = crc32c(base.uuid, 0, base.uuid.length),
): BroughtBack | null {
  const { segmentBytes } = base;
  const geometry: ChainGeometry = { segmentBytes, regionBytes: base.regionBytes, seed };
  const { checkpoints, logs, incarnations } = segmentsOf(region, geometry);
  for (const checkpoint of checkpoints.slice(0, CHECKPOINTS_MAX)) {
    for (const log of logs.slice(0, LOGS_MAX)) {
      const value: SuperblockValue = {
        ...base,
        ...{ state: VolumeState.MOUNTED, tailLsn: 0 },
        // How what is newer was left is not known: only what a sync vouches for counts.
        bootId: checkpoint.incarnation > base.checkpointIncarnation ? new Uint8Array(16) : base.bootId,
        incarnations: Math.max(base.incarnations, incarnations),
        ...{ checkpointSegment: checkpoint.place, checkpointIncarnation: checkpoint.incarnation },
        ...{
          logSegment: log.place,
          logIndex: log.index,
          logIncarnation: log.incarnation,
          logLsn: log.firstLsn,
        },
      };
      const found = whole(region, geometry, value);
      if (found !== null && found.recovery.checkpointEndLsn >= log.firstLsn) return found;
    }
  }
  return null;
}

function whole(region: Region, geometry: ChainGeometry, value: SuperblockValue): BroughtBack | null {
  const media = new Mended(region, geometry, findCopies(region, geometry, value, "anywhere"));
  try {
    return bringBackFrom(region, { media, geometry, superblock: { value, warnings: [] } });
  } catch (error) {
    if (error instanceof CorruptionError || error instanceof FsError) return null;
    throw error;
  }
}

interface Start {
  readonly place: number;
  readonly index: number;
  readonly incarnation: number;
  readonly firstLsn: number;
}

/** Where each checkpoint and each log begins, newest first. Of a segment that is damaged its copy says where it was. */
function segmentsOf(
  region: Region,
  geometry: ChainGeometry,
): { checkpoints: Start[]; logs: Start[]; incarnations: number } {
  const checkpoints = new Map<number, Start>();
  const logs = new Map<number, Map<number, Start>>();
  let incarnations = 0;
  for (const at of segmentPlaces(geometry)) {
    const head = segmentHead(readSome(region, at, SegmentHeader.size), at, geometry);
    if (typeof head === "string") continue;
    const { index, incarnation, firstLsn } = head;
    incarnations = Math.max(incarnations, incarnation);
    const place = head.role > COPY_ROLE ? head.next : at;
    const found = { place, index, incarnation, firstLsn };
    const isLog = head.role === SegmentRole.LOG || head.role === SegmentRole.LOG_COPY;
    if (isLog) {
      const segments = logs.get(incarnation) ?? new Map<number, Start>();
      logs.set(incarnation, segments.set(index, found));
    } else if (index === 0) checkpoints.set(incarnation, found);
  }
  const newestFirst = (a: Start, b: Start): number => b.incarnation - a.incarnation;
  return {
    checkpoints: [...checkpoints.values()].sort(newestFirst),
    logs: [...logs.values()].map(firstOf).sort(newestFirst),
    incarnations,
  };
}

/**
 * The first segment from which on a log is there without a gap. Replay may begin long before the checkpoint: a record says
 * what is, and the last word on each thing comes last.
 */
function firstOf(segments: ReadonlyMap<number, Start>): Start {
  let index = largest(segments.keys(), (other) => other);
  while (segments.has(index - 1)) index -= 1;
  return segments.get(index) as Start;
}

/** A volume of which no superblock is left: what its segments tell. Its uuid is lost, and it gets another. */
export function findWithoutSuperblock(region: Region): BroughtBack | null {
  let best: { found: BroughtBack; changedSec: bigint } | null = null;
  for (const { seed, alignment } of seedsOf(region)) {
    const found = ofSeed(region, seed, alignment);
    if (found === null) continue;
    const changedSec = lastChange(found);
    if (best === null || changedSec > best.changedSec) best = { found, changedSec };
  }
  return best?.found ?? null;
}

/** Sizes of blocks and segments are not written in a segment: those that everything fits with. */
function ofSeed(region: Region, seed: number, alignment: number): BroughtBack | null {
  let best: { found: BroughtBack; score: number } | null = null;
  for (let blockBytes = BLOCK_BYTES_MIN; blockBytes <= alignment; blockBytes *= 2) {
    for (let segmentBytes = alignment; segmentBytes >= SEGMENT_BYTES_MIN; segmentBytes /= 2) {
      if (segmentBytes < blockBytes) break;
      const found = findNewest(region, unknownVolume(region, blockBytes, segmentBytes), seed);
      if (found === null) continue;
      const score = filesThatFit(found, blockBytes);
      if (best === null || score > best.score) best = { found, score };
      break;
    }
  }
  return best?.found ?? null;
}

function unknownVolume(region: Region, blockBytes: number, segmentBytes: number): SuperblockValue {
  return {
    ...{
      magic: SUPERBLOCK_MAGIC,
      version: FORMAT_VERSION,
      crc: 0,
      uuid: randomUuid(),
      label: "",
      sequence: 1,
    },
    regionBytes: Math.floor(region.facts.sizeBytes / blockBytes) * blockBytes,
    ...{ blockBytes, segmentBytes, featuresCompatible: 0, featuresReadOnly: 0 },
    featuresIncompatible: FeatureIncompatible.SHARED_EXTENTS,
    ...{
      state: VolumeState.MOUNTED,
      createdSec: 0n,
      mountedSec: 0n,
      incarnations: 0,
      bootId: new Uint8Array(16),
    },
    ...{ checkpointSegment: 0, checkpointIncarnation: 0, logSegment: 0, logIndex: 0, logIncarnation: 0 },
    ...{ logLsn: 0, tailLsn: 0, reserved: new Uint8Array(280) },
  };
}

/** Files whose last block is where blocks of this size put it. */
function filesThatFit({ state }: BroughtBack, blockBytes: number): number {
  let files = 0;
  for (const { mode, size, extents } of state.inodes.values()) {
    if ((mode & S_IFMT) !== S_IFREG || extents === null) continue;
    if (BigInt(extents.end) === (size + BigInt(blockBytes - 1)) / BigInt(blockBytes)) files += 1;
  }
  return files;
}

function lastChange({ state }: BroughtBack): bigint {
  let last = 0n;
  for (const { ctimeSec } of state.inodes.values()) if (BigInt(ctimeSec) > last) last = BigInt(ctimeSec);
  return last;
}

/** Checksum seeds of what looks like segments, the most frequent first, and by what their places can be divided. */
function seedsOf(region: Region): { seed: number; alignment: number }[] {
  const found = new Map<number, { count: number; alignment: number }>();
  for (let at = RESERVED_BYTES; at + SEGMENT_BYTES_MIN <= region.facts.sizeBytes; at += SEGMENT_BYTES_MIN) {
    const seed = seedOf(readSome(region, at, SegmentHeader.size), at);
    if (seed === null) continue;
    const { count, alignment } = found.get(seed) ?? { count: 0, alignment: SEGMENT_BYTES_MAX };
    let divisor = alignment;
    while (at % divisor !== 0) divisor /= 2;
    found.set(seed, { count: count + 1, alignment: divisor });
  }
  return [...found]
    .filter(([, { count }]) => count > 1)
    .sort(([, a], [, b]) => b.count - a.count)
    .slice(0, SEEDS_MAX)
    .map(([seed, { alignment }]) => ({ seed, alignment }));
}

/** With which seed its checksum would be right; null if it is no header. */
function seedOf(header: Buffer, at: number): number | null {
  const view = viewOf(header);
  if (view.getUint32(0, true) !== SEGMENT_MAGIC) return null;
  const self = view.getBigUint64(SegmentHeader.at.self, true);
  const incarnation = view.getBigUint64(SegmentHeader.at.incarnation, true);
  if (self !== BigInt(at) || incarnation === 0n || incarnation >= BigInt(COUNTER_MAX)) return null;
  const wanted = view.getUint32(SegmentHeader.at.crc, true);
  view.setUint32(SegmentHeader.at.crc, 0, true);
  return solve(wanted ^ crc32c(header, 0, header.length, 0));
}

/** A checksum depends on its seed linearly (over GF(2)): the seed whose part in the checksum of 64 bytes is this. */
function solve(part: number): number {
  const zeros = Buffer.alloc(SegmentHeader.size);
  const none = crc32c(zeros, 0, zeros.length, 0);
  // Gauss: each row is what some bits of a seed together contribute, and its highest bit is no other row's.
  const rows: { value: number; bits: number }[] = [];
  const reduced = (value: number, bits: number): { value: number; bits: number } => {
    let row = { value: value >>> 0, bits: bits >>> 0 };
    for (const other of rows) {
      if ((row.value ^ other.value) >>> 0 < row.value)
        row = { value: (row.value ^ other.value) >>> 0, bits: (row.bits ^ other.bits) >>> 0 };
    }
    return row;
  };
  for (let bit = 0; bit < 32; bit += 1) {
    const seed = (1 << bit) >>> 0;
    rows.push(reduced(crc32c(zeros, 0, zeros.length, seed) ^ none, seed));
    rows.sort((a, b) => b.value - a.value);
  }
  return reduced(part, 0).bits;
}
