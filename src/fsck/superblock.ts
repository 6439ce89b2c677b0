/** The superblock of a damaged volume: a whole copy, or what two damaged ones are together. */
import { CorruptionError } from "../base/errors.ts";
import { isSegmentPlace } from "../media/chain.ts";
import { REGION_BYTES_MIN, SUPERBLOCK_OFFSETS, Superblock } from "../media/format.ts";
import { readSome } from "../media/reading.ts";
import { geometryOf } from "../media/recovery.ts";
import { judgeCopy, readSuperblock, type SuperblockValue } from "../media/superblock.ts";
import type { Region } from "../region/region.ts";
import type { Problems } from "./problem.ts";

export interface FoundSuperblock {
  /** With the size that the region has now. */
  readonly value: SuperblockValue;
  /** The size of the volume as it was, if the region was cut since. */
  readonly namedBytes: number;
}

/** null: nothing tells where anything is. @throws FsError EINVAL (no volume, or not one that we know). */
export function findSuperblock(region: Region, problems: Problems): FoundSuperblock | null {
  let value: SuperblockValue | null;
  try {
    const choice = readSuperblock(region);
    for (const warning of choice.warnings)
      problems.add("superblock-copy", "superblock", "two whole copies", warning, "it is written anew");
    value = choice.value;
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
    value = withoutPlaces(region, problems) ?? mended(region, problems);
    if (value === null) {
      problems.add("superblock", error.where, error.expected, error.found, null);
      return null;
    }
  }
  const { blockBytes, regionBytes: namedBytes } = value;
  if (value.regionBytes > region.facts.sizeBytes) {
    const there = Math.floor(region.facts.sizeBytes / blockBytes) * blockBytes;
    problems.add(
      "region-short",
      "region",
      `${value.regionBytes} bytes`,
      `${region.facts.sizeBytes}`,
      "the volume gets the size of the region, files lose what lay behind its end",
    );
    value = { ...value, regionBytes: Math.max(there, REGION_BYTES_MIN) };
  }
  return { value, namedBytes };
}

/** The whole copy with the highest number, wherever it points. */
export function newestCopy(region: Region): SuperblockValue | null {
  let best: SuperblockValue | null = null;
  for (const offset of SUPERBLOCK_OFFSETS) {
    const verdict = judgeCopy(readSome(region, offset, Superblock.size), offset);
    if (verdict.kind !== "valid") continue;
    if (best === null || verdict.value.sequence > best.sequence) best = verdict.value;
  }
  return best;
}

/** A whole copy whose pointers lead nowhere: its chains are searched for. */
function withoutPlaces(region: Region, problems: Problems): SuperblockValue | null {
  const best = newestCopy(region);
  if (best === null) return null;
  for (const [name, at] of [
    ["checkpoint", best.checkpointSegment],
    ["log", best.logSegment],
  ] as const) {
    if (isSegmentPlace(at, geometryOf(best))) continue;
    problems.add(
      "superblock",
      `superblock: ${name} segment`,
      "an aligned place in the volume",
      `byte ${at}`,
      "it is searched for",
    );
  }
  return best;
}

function mended(region: Region, problems: Problems): SuperblockValue | null {
  const value = mendedSuperblock(region);
  if (value === null) return null;
  const [first, second] = copiesOf(region);
  problems.add(
    "superblock-copy",
    "superblock",
    "one whole copy of two",
    `both damaged, in ${differingWords(first, second).length} words`,
    "together they are whole; both are written anew",
  );
  return value;
}

function copiesOf(region: Region): [Buffer, Buffer] {
  return SUPERBLOCK_OFFSETS.map((at) => readSome(region, at, Superblock.size)) as [Buffer, Buffer];
}

/** Byte offsets of the words in which they differ. */
function differingWords(first: Buffer, second: Buffer): number[] {
  const differing: number[] = [];
  for (let at = 0; at < Superblock.size; at += 8) {
    if (first.compare(second, at, at + 8, at, at + 8) !== 0) differing.push(at);
  }
  return differing;
}

/** Words in which the copies may differ to be tried both ways: 2^12 checksums take milliseconds. */
const MENDED_WORDS_MAX = 12;

/** Two copies that are damaged in different places are one whole copy, taken together. */
export function mendedSuperblock(region: Region): SuperblockValue | null {
  const [first, second] = copiesOf(region);
  const differing = differingWords(first, second);
  if (differing.length > MENDED_WORDS_MAX) return null;
  for (let choice = 0; choice < 2 ** differing.length; choice += 1) {
    const mix = Buffer.from(first);
    for (const [bit, at] of differing.entries()) {
      if ((choice & (1 << bit)) !== 0) second.copy(mix, at, at, at + 8);
    }
    const verdict = judgeCopy(mix, 0);
    if (verdict.kind === "valid") return verdict.value;
  }
  return null;
}
