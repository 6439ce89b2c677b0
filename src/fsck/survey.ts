/**
 * Reading damaged media: superblock, checkpoint and log as far as anything can be made of them.
 *
 * A group's checksum covers its number and the incarnation of its chain, so a whole group is to be believed wherever it is
 * found: what is damaged is stepped over, and the chain is taken up again behind it.
 *
 * Invariants:
 * - nothing is written;
 * - no content of the region throws, but for a region that is no volume of a version we know.
 */
import { CorruptionError, FsError } from "../base/errors.ts";
import { viewOf } from "../layout/struct.ts";
import { type ChainGeometry, isSegmentPlace, type SegmentHead, segmentHead } from "../media/chain.ts";
import {
  GROUP_MAGIC,
  GroupHeader,
  GroupKind,
  REGION_BYTES_MIN,
  RESERVED_BYTES,
  SegmentHeader,
  SegmentRole,
  SUPERBLOCK_OFFSETS,
  Superblock,
  VolumeState,
} from "../media/format.ts";
import { type GroupInfo, groupAt, readRecords, refusingSink } from "../media/group.ts";
import { geometryOf } from "../media/recovery.ts";
import { currentBootId, judgeCopy, readSuperblock, type SuperblockValue } from "../media/superblock.ts";
import type { Region } from "../region/region.ts";
import { Draft } from "./draft.ts";
import type { Problems } from "./problem.ts";

export interface Survey {
  readonly superblock: SuperblockValue;
  readonly geometry: ChainGeometry;
  readonly draft: Draft;
  /** Byte offsets of the segments that metadata was read from. */
  readonly segments: readonly number[];
  /** Above every number that the log was found to use. */
  readonly nextLsn: number;
  /** Above every index of the log's segments. */
  readonly nextIndex: number;
}

/** null: nothing tells where anything is. @throws FsError EINVAL (no volume, or not one that we know). */
export function survey(region: Region, problems: Problems): Survey | null {
  const superblock = findSuperblock(region, problems);
  if (superblock === null) return null;
  const geometry = geometryOf(superblock);
  const draft = new Draft(problems);
  const finder = new SegmentFinder(region, geometry);
  const checkpoint = readCheckpoint(region, superblock, finder, draft, problems);
  const log = readLog(region, superblock, finder, checkpoint.endLsn, draft, problems);
  return {
    ...{ superblock, geometry, draft },
    segments: [...new Set([...checkpoint.segments, ...log.segments])],
    nextLsn: Math.max(log.nextLsn, superblock.logLsn, checkpoint.endLsn) + 1,
    nextIndex: log.lastIndex + 1,
  };
}

function readCheckpoint(
  region: Region,
  superblock: SuperblockValue,
  finder: SegmentFinder,
  draft: Draft,
  problems: Problems,
): { segments: readonly number[]; endLsn: number } {
  const place = `checkpoint at byte ${superblock.checkpointSegment}`;
  const chain = new ChainReader(region, geometryOf(superblock), SegmentRole.CHECKPOINT, finder);
  let records = 0;
  let endLsn = 0;
  const { checkpointSegment, checkpointIncarnation } = superblock;
  chain.read(checkpointSegment, 0, checkpointIncarnation, 0, ({ group, data, at }) => {
    if (group.kind === GroupKind.RECORDS) {
      records += viewOf(data).getUint16(at + GroupHeader.at.count, true);
      tell(group, data, at, draft, problems);
      return;
    }
    const end = (lsn: number, expected: number, nextIno: number, nextGeneration: number): void => {
      endLsn = lsn;
      draft.end(lsn, expected, nextIno, nextGeneration);
      if (expected !== records && chain.damages.length === 0)
        problems.add("checkpoint", place, `${expected} records`, `${records}`, "what is there counts");
    };
    tell(group, data, at, { ...refusingSink("end of the checkpoint"), end }, problems);
  });
  for (const { at, expected, found } of chain.damages)
    problems.add("checkpoint", `checkpoint at byte ${at}`, expected, found, "it is passed over");
  if (!chain.complete)
    problems.add("checkpoint", place, "its end", "none", "what could be read of it counts");
  return { segments: chain.segments, endLsn };
}

function readLog(
  region: Region,
  superblock: SuperblockValue,
  finder: SegmentFinder,
  checkpointEndLsn: number,
  draft: Draft,
  problems: Problems,
): { segments: readonly number[]; nextLsn: number; lastIndex: number } {
  const chain = new ChainReader(region, geometryOf(superblock), SegmentRole.LOG, finder);
  const { logSegment, logIndex, logIncarnation, logLsn, tailLsn } = superblock;
  const records: FoundGroup[] = [];
  let vouchedLsn = logLsn - 1;
  chain.read(logSegment, logIndex, logIncarnation, logLsn, (found) => {
    if (found.group.kind === GroupKind.RECORDS) {
      records.push(found);
      return;
    }
    const barrier = (lsn: number): void => {
      vouchedLsn = Math.max(vouchedLsn, lsn);
    };
    tell(found.group, found.data, found.at, { ...refusingSink("barrier"), barrier }, problems);
  });
  // As recovery does: after the machine went down, what was written behind the last sync may lack its data, and parts of it
  // may be missing without anything being wrong.
  const clean = superblock.state === VolumeState.CLEAN;
  const sameBoot = Buffer.compare(superblock.bootId, currentBootId()) === 0;
  const all = clean || sameBoot || region.facts.granularity === "cacheline";
  const through = all ? Number.POSITIVE_INFINITY : Math.max(vouchedLsn, checkpointEndLsn - 1);
  for (const { at, lsn, expected, found } of chain.damages) {
    if (lsn <= through) problems.add("log", `log at byte ${at}`, expected, found, "it is passed over");
  }
  for (const { group, data, at } of records) {
    if (group.lsn <= through) tell(group, data, at, draft, problems);
  }
  if (clean && chain.nextLsn !== tailLsn) {
    problems.add(
      "log",
      "log",
      `its end before group ${tailLsn}`,
      `before group ${chain.nextLsn}`,
      "what is there counts",
    );
  } else if (chain.nextLsn < checkpointEndLsn) {
    problems.add(
      "log",
      "log",
      `groups up to ${checkpointEndLsn - 1}`,
      `up to ${chain.nextLsn - 1}`,
      "what is there counts",
    );
  }
  return chain;
}

/** The records of a whole group; where one cannot be, those behind it are lost. */
function tell(
  group: GroupInfo,
  data: Buffer,
  at: number,
  sink: Parameters<typeof readRecords>[5],
  problems: Problems,
): void {
  try {
    readRecords(data, viewOf(data), at, group.length, at, sink);
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
    problems.add(
      "record",
      `group ${group.lsn}: ${error.where}`,
      error.expected,
      error.found,
      "the rest of the group is passed over",
    );
  }
}

// ---- superblock

function findSuperblock(region: Region, problems: Problems): SuperblockValue | null {
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
  const { blockBytes } = value;
  if (value.regionBytes > region.facts.sizeBytes) {
    const there = Math.floor(region.facts.sizeBytes / blockBytes) * blockBytes;
    problems.add(
      ...(["region-short", "region", `${value.regionBytes} bytes`, `${region.facts.sizeBytes}`] as const),
      "the volume gets the size of the region, files lose what lay behind its end",
    );
    value = { ...value, regionBytes: Math.max(there, REGION_BYTES_MIN) };
  }
  return value;
}

/** A whole copy whose pointers lead nowhere: its chains are searched for. */
function withoutPlaces(region: Region, problems: Problems): SuperblockValue | null {
  let best: SuperblockValue | null = null;
  for (const offset of SUPERBLOCK_OFFSETS) {
    const verdict = judgeCopy(readSome(region, offset, Superblock.size), offset);
    if (verdict.kind !== "valid") continue;
    if (best === null || verdict.value.sequence > best.sequence) best = verdict.value;
  }
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

/** Words in which the copies may differ to be tried both ways: 2^12 checksums take milliseconds. */
const MENDED_WORDS_MAX = 12;

/** Two copies that are damaged in different places are one whole copy, taken together. */
function mended(region: Region, problems: Problems): SuperblockValue | null {
  const [first, second] = SUPERBLOCK_OFFSETS.map((at) => readSome(region, at, Superblock.size)) as [
    Buffer,
    Buffer,
  ];
  const differing: number[] = [];
  for (let at = 0; at < Superblock.size; at += 8) {
    if (first.compare(second, at, at + 8, at, at + 8) !== 0) differing.push(at);
  }
  if (differing.length > MENDED_WORDS_MAX) return null;
  for (let choice = 0; choice < 2 ** differing.length; choice += 1) {
    const mix = Buffer.from(first);
    for (const [bit, at] of differing.entries()) {
      if ((choice & (1 << bit)) !== 0) second.copy(mix, at, at, at + 8);
    }
    const verdict = judgeCopy(mix, 0);
    if (verdict.kind !== "valid") continue;
    problems.add(
      ...([
        "superblock",
        "superblock",
        "one whole copy of two",
        `both damaged, in ${differing.length} words`,
      ] as const),
      "together they are whole; both are written anew",
    );
    return verdict.value;
  }
  return null;
}

// ---- chains

/** Bytes that cannot be read are zeros. */
function readSome(region: Region, offset: number, length: number): Buffer {
  const data = Buffer.alloc(length);
  const there = Math.min(length, region.facts.sizeBytes - offset);
  if (there <= 0) return data;
  try {
    region.read(offset, data, 0, there);
  } catch (error) {
    if (!(error instanceof FsError)) throw error;
    data.fill(0);
    readAround(region, offset, data, there);
  }
  return data;
}

const SECTOR_BYTES = 512;

/** Around a media error: by sectors. */
function readAround(region: Region, offset: number, data: Buffer, length: number): void {
  for (let at = 0; at < length; at += SECTOR_BYTES) {
    try {
      region.read(offset + at, data, at, Math.min(SECTOR_BYTES, length - at));
    } catch (error) {
      if (!(error instanceof FsError)) throw error;
    }
  }
}

/** Where a segment is whose predecessor does not tell. Looks at every place once, when first asked. */
class SegmentFinder {
  readonly #region: Region;
  readonly #geometry: ChainGeometry;
  #places: Map<string, number> | null = null;

  constructor(region: Region, geometry: ChainGeometry) {
    this.#region = region;
    this.#geometry = geometry;
  }

  find(role: number, incarnation: number, index: number): number | undefined {
    this.#places ??= this.#search();
    return this.#places.get(`${role} ${incarnation} ${index}`);
  }

  #search(): Map<string, number> {
    const places = new Map<string, number>();
    const { segmentBytes } = this.#geometry;
    const start = Math.ceil(RESERVED_BYTES / segmentBytes) * segmentBytes;
    for (let at = start; isSegmentPlace(at, this.#geometry); at += segmentBytes) {
      const head = segmentHead(readSome(this.#region, at, SegmentHeader.size), at, this.#geometry);
      if (typeof head !== "string") places.set(`${head.role} ${head.incarnation} ${head.index}`, at);
    }
    return places;
  }
}

interface FoundGroup {
  readonly group: GroupInfo;
  readonly data: Buffer;
  /** Where in `data`. */
  readonly at: number;
}

type OnGroup = (found: FoundGroup) => void;

interface Damage {
  /** Byte offset in the region. */
  readonly at: number;
  /** Number of the group that should be there. */
  readonly lsn: number;
  readonly expected: string;
  readonly found: string;
}

const magic = Buffer.alloc(4);
magic.writeUInt32LE(GROUP_MAGIC);

const KINDS: Readonly<Record<number, readonly number[]>> = {
  [SegmentRole.LOG]: [GroupKind.RECORDS, GroupKind.BARRIER, GroupKind.LINK],
  [SegmentRole.CHECKPOINT]: [GroupKind.RECORDS, GroupKind.LINK, GroupKind.END],
};

class ChainReader {
  readonly segments: number[] = [];
  readonly damages: Damage[] = [];
  /** Its END was found. */
  complete = false;
  nextLsn = 0;
  lastIndex = 0;
  readonly #region: Region;
  readonly #geometry: ChainGeometry;
  readonly #role: number;
  readonly #finder: SegmentFinder;

  constructor(region: Region, geometry: ChainGeometry, role: number, finder: SegmentFinder) {
    this.#region = region;
    this.#geometry = geometry;
    this.#role = role;
    this.#finder = finder;
  }

  /** Hand over every group from `lsn` on that can be found, in order. */
  read(start: number, firstIndex: number, incarnation: number, lsn: number, onGroup: OnGroup): void {
    this.lastIndex = firstIndex;
    this.nextLsn = lsn;
    let named = start;
    for (let index = firstIndex; ; index += 1) {
      const found = this.#segment(named, index, incarnation);
      if (found === null) {
        if (index === firstIndex) this.#damaged(named, `segment ${index}`, "none, there or elsewhere");
        return;
      }
      const { place, data, head } = found;
      this.segments.push(place);
      this.lastIndex = index;
      if (head === null) this.#damaged(place, `the header of segment ${index}`, "none that is whole");
      const { offset, linked } = this.#groups(place, data, incarnation, onGroup);
      if (this.complete) return;
      named = linked ?? head?.next ?? 0;
      // The log may end anywhere; that it went on, only a later segment of it can tell.
      if (linked !== null || this.#role === SegmentRole.CHECKPOINT) continue;
      const following = this.#segment(named, index + 1, incarnation);
      if (following === null || (following.head !== null && following.head.firstLsn < this.nextLsn)) return;
      this.#damaged(place + offset, `group ${this.nextLsn}`, "none, though the log goes on elsewhere");
    }
  }

  #damaged(at: number, expected: string, found: string): void {
    this.damages.push({ at, lsn: this.nextLsn, expected, found });
  }

  /** The segment where its predecessor says, or wherever else it is. `head` is null if that is damaged. */
  #segment(
    named: number,
    index: number,
    incarnation: number,
  ): { place: number; data: Buffer; head: SegmentHead | null } | null {
    const isRight = (head: SegmentHead | string): head is SegmentHead =>
      typeof head !== "string" &&
      head.role === this.#role &&
      head.index === index &&
      head.incarnation === incarnation;
    const load = (place: number): Buffer => readSome(this.#region, place, this.#geometry.segmentBytes);
    if (isSegmentPlace(named, this.#geometry) && !this.segments.includes(named)) {
      const data = load(named);
      const head = segmentHead(data, named, this.#geometry);
      if (isRight(head)) return { place: named, data, head };
      // Its groups say whose they are.
      const { nextLsn } = this;
      if (
        typeof head === "string" &&
        laterGroup(data, SegmentHeader.size, this.#geometry, incarnation, nextLsn)
      )
        return { place: named, data, head: null };
    }
    const place = this.#finder.find(this.#role, incarnation, index);
    if (place === undefined || this.segments.includes(place)) return null;
    const data = load(place);
    const head = segmentHead(data, place, this.#geometry);
    return isRight(head) ? { place, data, head } : null;
  }

  #groups(
    place: number,
    data: Buffer,
    incarnation: number,
    onGroup: OnGroup,
  ): { offset: number; linked: number | null } {
    const view = viewOf(data);
    let offset: number = SegmentHeader.size;
    for (;;) {
      const later = laterGroup(data, offset, this.#geometry, incarnation, this.nextLsn);
      if (later === null) return { offset, linked: null };
      const { group, at } = later;
      if (at !== offset)
        this.#damaged(place + offset, `group ${this.nextLsn}`, `nothing whole up to byte ${place + at}`);
      else if (group.lsn > this.nextLsn)
        this.#damaged(place + offset, `group ${this.nextLsn}`, `group ${group.lsn}`);
      this.nextLsn = group.lsn + 1;
      offset = at + group.length;
      if (!KINDS[this.#role]?.includes(group.kind)) {
        this.#damaged(place + at, "a group of another kind", `kind ${group.kind}`);
        continue;
      }
      if (group.kind === GroupKind.LINK) return { offset, linked: linkOf(data, view, at, group) };
      onGroup({ group, data, at });
      if (group.kind === GroupKind.END) {
        this.complete = true;
        return { offset, linked: null };
      }
    }
  }
}

/** 0: it leads nowhere. */
function linkOf(data: Buffer, view: DataView, at: number, group: GroupInfo): number {
  let linked = 0;
  try {
    readRecords(data, view, at, group.length, at, {
      ...refusingSink("link"),
      link: (segment) => {
        linked = segment;
      },
    });
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
  }
  return linked;
}

/** The first whole group of the chain at or behind `from` with this number or a higher one. */
function laterGroup(
  data: Buffer,
  from: number,
  geometry: ChainGeometry,
  incarnation: number,
  lsn: number,
): { group: GroupInfo; at: number } | null {
  const view = viewOf(data);
  // Old file data may hold anything, also what looks like thousands of overlapping groups: no more than this is summed.
  let budget = 16 * data.length;
  for (let at = data.indexOf(magic, from); at >= 0 && budget > 0; at = data.indexOf(magic, at + 1)) {
    if (at % 8 !== 0 || at + 12 > data.length) continue;
    budget -= Math.min(view.getUint32(at + 8, true), data.length - at);
    const group = groupAt(data, view, at, geometry.segmentBytes, geometry.seed);
    if (group !== null && group.incarnation === incarnation && group.lsn >= lsn) return { group, at };
  }
  return null;
}
