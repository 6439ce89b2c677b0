/**
 * Reading damaged media: superblock, checkpoint and log as far as anything can be made of them.
 *
 * Invariants:
 * - nothing is written;
 * - no content of the region throws, but for a region that is no volume of a version we know.
 */
import { CorruptionError } from "../base/errors.ts";
import { viewOf } from "../layout/struct.ts";
import type { ChainGeometry } from "../media/chain.ts";
import { findCopies, Mended } from "../media/copies.ts";
import { GroupHeader, GroupKind, SegmentRole, VolumeState } from "../media/format.ts";
import { type GroupInfo, readRecords, refusingSink } from "../media/group.ts";
import { type Media, readSome } from "../media/reading.ts";
import { geometryOf } from "../media/recovery.ts";
import { currentBootId, type SuperblockValue } from "../media/superblock.ts";
import type { Region } from "../region/region.ts";
import { ChainReader, type FoundGroup, SegmentFinder } from "./chains.ts";
import { Draft } from "./draft.ts";
import { type Glimpsed, glimpse } from "./loss.ts";
import type { Problems } from "./problem.ts";
import { findSuperblock } from "./superblock.ts";

export interface Survey {
  readonly superblock: SuperblockValue;
  /** Size of the volume before the region was cut, if it was. */
  readonly namedBytes: number;
  readonly geometry: ChainGeometry;
  readonly draft: Draft;
  /** What can be seen of records that were passed over. */
  readonly glimpsed: Glimpsed;
  /** Parts of the metadata hold nothing whole. */
  readonly passedOver: boolean;
  /** Byte offsets of the segments that metadata was read from. */
  readonly segments: readonly number[];
  /** Of the copies that were used where these are damaged. */
  readonly copies: readonly number[];
  /** Above every number that the log was found to use. */
  readonly nextLsn: number;
  /** Above every index of the log's segments. */
  readonly nextIndex: number;
}

/** null: nothing tells where anything is. @throws FsError EINVAL (no volume, or not one that we know). */
export function survey(region: Region, problems: Problems): Survey | null {
  const superblockFound = findSuperblock(region, problems);
  if (superblockFound === null) return null;
  const { value: superblock, namedBytes } = superblockFound;
  const geometry = geometryOf(superblock);
  const draft = new Draft(problems);
  const media = new Mended(region, geometry, findCopies(region, geometry, superblock, "anywhere"));
  const finder = new SegmentFinder(media, geometry);
  const checkpoint = readCheckpoint(media, superblock, finder, draft, problems);
  const log = readLog(media, superblock, finder, checkpoint.endLsn, draft, problems);
  for (const [segment, copy] of media.segments) {
    const place = `metadata segment at byte ${segment}`;
    problems.add("segment", place, "to be whole", "damage", `it is read from its copy at byte ${copy}`);
  }
  const glimpsed: Glimpsed = new Map();
  const passedOver = [...checkpoint.passedOver, ...log.passedOver];
  for (const { from, to } of passedOver) glimpse(readSome(media, from, to - from), geometry, glimpsed);
  return {
    ...{ superblock, namedBytes, geometry, draft, glimpsed, passedOver: passedOver.length > 0 },
    segments: [...new Set([...checkpoint.segments, ...log.segments])],
    copies: [...media.segments.values()],
    nextLsn: Math.max(log.nextLsn, superblock.logLsn, checkpoint.endLsn) + 1,
    nextIndex: log.lastIndex + 1,
  };
}

function readCheckpoint(
  region: Media,
  superblock: SuperblockValue,
  finder: SegmentFinder,
  draft: Draft,
  problems: Problems,
): Pick<ChainReader, "segments" | "passedOver"> & { endLsn: number } {
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
  return { segments: chain.segments, passedOver: chain.passedOver, endLsn };
}

function readLog(
  region: Media,
  superblock: SuperblockValue,
  finder: SegmentFinder,
  checkpointEndLsn: number,
  draft: Draft,
  problems: Problems,
): ChainReader {
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
