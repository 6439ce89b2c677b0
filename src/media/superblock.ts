/**
 * The superblock and its two copies.
 *
 * Invariants:
 * - the copies are written one after the other, each durable before the next is begun: at every instant one of them is
 *   whole and names a checkpoint and a log that are whole;
 * - nothing that the older copy names is reused before both copies are durable.
 */
import { readFileSync } from "node:fs";
import { CorruptionError, FsError } from "../base/errors.ts";
import { type StructValue, viewOf } from "../layout/struct.ts";
import type { Region } from "../region/region.ts";
import { crc32c } from "./checksum.ts";
import {
  BLOCK_BYTES_MAX,
  BLOCK_BYTES_MIN,
  COUNTER_MAX,
  END_COPY_BYTES,
  FORMAT_VERSION,
  KNOWN_INCOMPATIBLE,
  KNOWN_READ_ONLY_COMPATIBLE,
  REGION_BYTES_MIN,
  RESERVED_BYTES,
  SEGMENT_BYTES_MAX,
  SEGMENT_BYTES_MIN,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_OFFSETS,
  Superblock,
  VolumeState,
} from "./format.ts";
import { findTrace, isBlank } from "./traces.ts";

export type SuperblockValue = StructValue<typeof Superblock>;

/** Where a client finds the uuid, to check that it opened the right region. */
export const SUPERBLOCK_UUID_OFFSET = SUPERBLOCK_OFFSETS[0] + Superblock.at.uuid;

export function encodeSuperblock(value: SuperblockValue): Buffer {
  const data = Buffer.alloc(Superblock.size);
  const view = viewOf(data);
  Superblock.encode(view, 0, { ...value, crc: 0 });
  view.setUint32(Superblock.at.crc, crc32c(data, 0, data.length), true);
  return data;
}

const counters = [
  "sequence",
  "incarnations",
  "checkpointIncarnation",
  "logIndex",
  "logIncarnation",
  "logLsn",
  "tailLsn",
] as const;

export type CopyVerdict =
  | { readonly kind: "valid"; readonly value: SuperblockValue }
  /** Whole, but of a format version that this program does not know. */
  | { readonly kind: "foreign"; readonly version: number }
  | { readonly kind: "absent" }
  | { readonly kind: "damaged"; readonly reason: string };

/** Judge one copy: absent (no magic), damaged, or valid. Ranges are checked here, so that nobody else needs to. */
export function judgeCopy(data: Uint8Array, offset: number): CopyVerdict {
  const view = viewOf(data);
  if (view.getBigUint64(Superblock.at.magic, true) !== SUPERBLOCK_MAGIC) return { kind: "absent" };
  const found = view.getUint32(Superblock.at.crc, true);
  const copy = Buffer.from(data);
  copy.fill(0, Superblock.at.crc, Superblock.at.crc + 4);
  const expected = crc32c(copy, 0, Superblock.size);
  if (found !== expected) {
    return {
      kind: "damaged",
      reason: `superblock at byte ${offset}: checksum ${found.toString(16)}, expected ${expected.toString(16)}`,
    };
  }
  const version = view.getUint32(Superblock.at.version, true);
  // Written by another version: magic, version and checksum are where they always were, the rest is what that one says.
  if (version !== FORMAT_VERSION) return { kind: "foreign", version };
  let value: SuperblockValue;
  try {
    value = Superblock.decode(view, 0);
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
    return { kind: "damaged", reason: `superblock at byte ${offset}: ${error.message}` };
  }
  const power = (n: number): boolean => n > 0 && (n & (n - 1)) === 0;
  const complaint = !(
    power(value.blockBytes) &&
    value.blockBytes >= BLOCK_BYTES_MIN &&
    value.blockBytes <= BLOCK_BYTES_MAX
  )
    ? `block size ${value.blockBytes}`
    : !(
          power(value.segmentBytes) &&
          value.segmentBytes >= Math.max(SEGMENT_BYTES_MIN, value.blockBytes) &&
          value.segmentBytes <= SEGMENT_BYTES_MAX
        )
      ? `segment size ${value.segmentBytes}`
      : value.regionBytes < REGION_BYTES_MIN || value.regionBytes % value.blockBytes !== 0
        ? `volume size ${value.regionBytes}`
        : value.state !== VolumeState.CLEAN && value.state !== VolumeState.MOUNTED
          ? `state ${value.state}`
          : (counters.find((name) => value[name] >= COUNTER_MAX) ?? null);
  if (complaint !== null)
    return { kind: "damaged", reason: `superblock at byte ${offset}: impossible ${complaint}` };
  return { kind: "valid", value };
}

function copyAt(region: Region, offset: number): CopyVerdict {
  const data = Buffer.alloc(Superblock.size);
  try {
    region.read(offset, data, 0, data.length);
  } catch (error) {
    if (!(error instanceof FsError)) throw error;
    return { kind: "damaged", reason: `superblock at byte ${offset}: ${error.message}` };
  }
  return judgeCopy(data, offset);
}

/** The largest size of a volume that a valid copy names, whichever copy counts; 0 without one. */
export function largestNamedBytes(region: Region): number {
  return SUPERBLOCK_OFFSETS.reduce<number>((largest, offset) => {
    const verdict = copyAt(region, offset);
    return verdict.kind === "valid" ? Math.max(largest, verdict.value.regionBytes) : largest;
  }, 0);
}

export interface SuperblockChoice {
  readonly value: SuperblockValue;
  /** One sentence for each copy that was not usable or lags behind. */
  readonly warnings: readonly string[];
}

/**
 * Read both copies and choose.
 * @throws FsError EINVAL if this is no mapdirect volume or a version or feature that this program does not know;
 *   CorruptionError if no copy is usable.
 */
export function readSuperblock(region: Region): SuperblockChoice {
  if (region.facts.sizeBytes < REGION_BYTES_MIN) {
    throw new FsError(
      "EINVAL",
      `${region.facts.path} has ${region.facts.sizeBytes} bytes: too small for a volume`,
    );
  }
  const verdicts = SUPERBLOCK_OFFSETS.map((offset) => copyAt(region, offset));
  for (const verdict of verdicts) {
    // Whichever copy is newer: a volume that another version has begun to write is that one's.
    if (verdict.kind === "foreign") {
      throw new FsError("EINVAL", `format version ${verdict.version}; this program knows ${FORMAT_VERSION}`);
    }
  }
  let best: SuperblockValue | null = null;
  const warnings: string[] = [];
  for (const [index, verdict] of verdicts.entries()) {
    if (verdict.kind === "damaged") warnings.push(verdict.reason);
    if (verdict.kind === "absent")
      warnings.push(`superblock at byte ${SUPERBLOCK_OFFSETS[index]}: no magic number`);
    if (verdict.kind === "valid" && (best === null || verdict.value.sequence > best.sequence))
      best = verdict.value;
  }
  if (best === null) {
    if (verdicts.every((verdict) => verdict.kind === "absent")) {
      const { path } = region.facts;
      if (findTrace(region) !== null)
        throw new CorruptionError("superblocks", "one copy of two", "none, but metadata");
      // To make one is no advice where anything else may lie.
      const todo = isBlank(region) ? "make one with 'mapdirect mkfs'" : "see 'blkid' for what it may hold";
      throw new FsError("EINVAL", `${path} holds no mapdirect file system; ${todo}`);
    }
    throw new CorruptionError("superblocks", "one valid copy of two", warnings.join("; "));
  }
  for (const [index, verdict] of verdicts.entries()) {
    // One write behind is what an interrupted write leaves.
    if (verdict.kind !== "valid" || verdict.value.sequence >= best.sequence - 1) continue;
    const { sequence } = verdict.value;
    warnings.push(
      `superblock at byte ${SUPERBLOCK_OFFSETS[index]}: an older one, number ${sequence} and not ${best.sequence}`,
    );
  }
  const unknown = best.featuresIncompatible & ~KNOWN_INCOMPATIBLE;
  if (unknown !== 0) {
    throw new FsError("EINVAL", `needs features 0x${unknown.toString(16)} that this program does not know`);
  }
  if (best.regionBytes > region.facts.sizeBytes) {
    throw new CorruptionError(
      "region size",
      `at least ${best.regionBytes} bytes, as the superblock says`,
      `${region.facts.sizeBytes}: the region was cut short`,
    );
  }
  for (const [name, at] of [
    ["checkpoint", best.checkpointSegment],
    ["log", best.logSegment],
  ] as const) {
    if (at % best.segmentBytes !== 0 || at < RESERVED_BYTES || at + best.segmentBytes > best.regionBytes) {
      throw new CorruptionError(
        `superblock: ${name} segment`,
        "an aligned place in the region",
        `byte ${at}`,
      );
    }
  }
  return { value: best, warnings };
}

export function mustBeReadOnly(value: SuperblockValue): string | null {
  const unknown = value.featuresReadOnly & ~KNOWN_READ_ONLY_COMPATIBLE;
  return unknown === 0 ? null : `has features 0x${unknown.toString(16)} that this program can only read`;
}

/**
 * Write both copies, each durable before the next step. The caller has made durable what they name. The copy that a reader
 * would choose now comes last: when one of two is damaged or lags behind, a write of the other that is cut short would
 * leave none.
 * @param atEnd a third goes to the end of the volume, whose last block nobody has
 */
export async function writeSuperblock(region: Region, value: SuperblockValue, atEnd = false): Promise<void> {
  const data = encodeSuperblock(value);
  // Durable with the first of the others: nobody looks there as long as one of them is whole.
  if (atEnd) writeAtEnd(region, value.regionBytes, data);
  for (const offset of weakerFirst(region)) {
    region.write(offset, data, 0, data.length);
    region.drain();
    await region.sync();
  }
}

/** As well as it can be: what a sparse region lies on may be full. */
function writeAtEnd(region: Region, regionBytes: number, data: Uint8Array): void {
  try {
    region.write(endOffset(regionBytes), data, 0, data.length);
  } catch (error) {
    if (!(error instanceof FsError)) throw error;
  }
}

/** Where the copy at the end of a volume lies, if its last block is free for it. */
export function endOffset(regionBytes: number): number {
  return regionBytes - END_COPY_BYTES;
}

/** The copy at the end, for when both others are gone: the size of the region tells where it can be. */
export function copyAtEnd(region: Region): SuperblockValue | null {
  const { sizeBytes } = region.facts;
  for (let blockBytes = BLOCK_BYTES_MIN; blockBytes <= BLOCK_BYTES_MAX; blockBytes *= 2) {
    const regionBytes = Math.floor(sizeBytes / blockBytes) * blockBytes;
    if (regionBytes < REGION_BYTES_MIN) continue;
    const verdict = copyAt(region, endOffset(regionBytes));
    if (verdict.kind === "valid" && verdict.value.regionBytes === regionBytes) return verdict.value;
  }
  return null;
}

function weakerFirst(region: Region): readonly number[] {
  const sequenceAt = (offset: number): number => {
    const verdict = copyAt(region, offset);
    return verdict.kind === "valid" ? verdict.value.sequence : -1;
  };
  const [first, second] = SUPERBLOCK_OFFSETS;
  return sequenceAt(first) > sequenceAt(second) ? [second, first] : [first, second];
}

let bootId: Uint8Array | null = null;

/** This boot of the kernel: tells a crash of the daemon from a crash of the machine. All zero if unknown. */
export function currentBootId(): Uint8Array {
  // No process outlives its boot.
  bootId ??= readBootId();
  return bootId;
}

function readBootId(): Uint8Array {
  try {
    const hex = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim().replaceAll("-", "");
    const id = Buffer.from(hex, "hex");
    return id.length === 16 ? id : new Uint8Array(16);
  } catch {
    return new Uint8Array(16);
  }
}
