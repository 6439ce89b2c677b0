/**
 * From the bytes of a region back to the state: which superblock, which checkpoint, how much of the log.
 *
 * The judgement is a table (`recoveryCases`): the first row whose condition holds decides. Tests name its labels.
 *
 * Invariant: recovery writes nothing. A crash during it changes nothing, and it can be run on a read-only region.
 */
import { CorruptionError } from "../base/errors.ts";
import { progress } from "../base/progress.ts";
import type { Region } from "../region/region.ts";
import { type ChainEnd, type ChainGeometry, type ChainGroup, walkChain } from "./chain.ts";
import { crc32c } from "./checksum.ts";
import { Mended } from "./copies.ts";
import { GroupHeader, GroupKind, SegmentRole, VolumeState } from "./format.ts";
import { type RecordSink, readRecords, refusingSink } from "./group.ts";
import type { Media } from "./reading.ts";
import { currentBootId, readSuperblock, type SuperblockChoice, type SuperblockValue } from "./superblock.ts";

/** What is known when the log has been walked. */
export interface RecoveryFacts {
  readonly clean: boolean;
  /** Groups that were found, by number: [logLsn, endLsn). */
  readonly logLsn: number;
  readonly endLsn: number;
  readonly tailLsn: number;
  /** The checkpoint contains changes of groups below this number. */
  readonly checkpointEndLsn: number;
  /** Everything stored before the crash is there: only the daemon died, or stores are durable one by one. */
  readonly allStoresKept: boolean;
  /** Highest number vouched for by a barrier or the checkpoint. */
  readonly vouchedLsn: number;
  /** Behind the end of the log there are further groups of it. */
  readonly groupsBeyond: boolean;
  readonly barrierBeyondLsn: number;
}

export interface RecoveryCase {
  readonly label: string;
  readonly when: (facts: RecoveryFacts) => boolean;
  readonly verdict: "use" | "refuse";
  /** Last group to apply; only of meaning for "use". */
  readonly through: (facts: RecoveryFacts) => number;
  readonly why: string;
}

const all = (facts: RecoveryFacts): number => facts.endLsn - 1;

export const recoveryCases: readonly RecoveryCase[] = [
  {
    label: "clean",
    when: (f) => f.clean && f.endLsn === f.tailLsn && !f.groupsBeyond,
    verdict: "use",
    through: all,
    why: "unmounted cleanly; the checkpoint says everything",
  },
  {
    label: "clean-but-different",
    when: (f) => f.clean,
    verdict: "refuse",
    through: all,
    why: "the superblock says that the volume was unmounted cleanly, but the log does not end where it says",
  },
  {
    label: "checkpoint-ahead-of-log",
    when: (f) => f.endLsn < f.checkpointEndLsn,
    verdict: "refuse",
    through: all,
    why: "the log ends before the moment at which the checkpoint was complete: a part of it is damaged",
  },
  {
    label: "closed-with-log",
    when: (f) => f.tailLsn !== 0 && f.endLsn === f.tailLsn && !f.groupsBeyond,
    verdict: "use",
    through: all,
    why: "unmounted in order, without room for a checkpoint; the log says the rest, and all of it was synced",
  },
  {
    label: "closed-with-another-log",
    when: (f) => f.tailLsn !== 0,
    verdict: "refuse",
    through: all,
    why: "the superblock says where the log ended when the volume was unmounted, and it ends elsewhere",
  },
  {
    label: "hole-in-synced-log",
    when: (f) => f.barrierBeyondLsn >= f.endLsn,
    verdict: "refuse",
    through: all,
    why: "a group is damaged of which a later barrier says that it was durable",
  },
  {
    label: "hole-in-log",
    when: (f) => f.allStoresKept && f.groupsBeyond,
    verdict: "refuse",
    through: all,
    why: "a group is damaged though later ones are whole: this is no interrupted write",
  },
  {
    label: "replay",
    when: (f) => f.allStoresKept,
    verdict: "use",
    through: all,
    why: "not unmounted; every group that was written is applied, an interrupted last one is not",
  },
  {
    label: "replay-to-barrier",
    when: () => true,
    verdict: "use",
    through: (f) => Math.max(f.vouchedLsn, f.checkpointEndLsn - 1),
    why: "the machine went down; what was written after the last sync may be incomplete and is not applied",
  },
];

/** Volumes that were unmounted in order. */
const ALL_SYNCED: ReadonlySet<string> = new Set(["clean", "closed-with-log"]);

export function judge(facts: RecoveryFacts): RecoveryCase {
  const found = recoveryCases.find((row) => row.when(facts));
  if (found === undefined) throw new Error("the recovery table has no last row");
  return found;
}

/** The state being rebuilt. `phase` tells how strict to be about records for things that are not there. */
export interface RecoverySink extends RecordSink {
  /** checkpoint: in any order; fuzzy: may refer to what the checkpoint already lacks; exact: must fit. */
  phase(name: "checkpoint" | "fuzzy" | "exact"): void;
}

export interface Recovery {
  readonly label: string;
  readonly why: string;
  readonly superblock: SuperblockValue;
  readonly geometry: ChainGeometry;
  readonly warnings: readonly string[];
  /** Segments that are damaged, and the copy that was used. */
  readonly mended: ReadonlyMap<number, number>;
  readonly checkpoint: ChainEnd;
  /** The checkpoint contains changes of groups below this number. */
  readonly checkpointEndLsn: number;
  readonly log: ChainEnd;
  /** Groups of the log that were applied, and valid ones that were not. */
  readonly groupsApplied: number;
  readonly groupsDropped: number;
  /** Number after the last applied group. */
  readonly nextLsn: number;
  /** Groups up to this number, and what they refer to, survive a power cut. */
  readonly durableLsn: number;
  /** The log can be gone on with where it ends: all of it is applied, and nothing of it can lie behind its end. */
  readonly resumable: boolean;
  readonly nextIno: number;
  readonly nextGeneration: number;
}

export function geometryOf(superblock: SuperblockValue): ChainGeometry {
  return {
    segmentBytes: superblock.segmentBytes,
    regionBytes: superblock.regionBytes,
    seed: crc32c(superblock.uuid, 0, superblock.uuid.length),
  };
}

interface CheckpointEnd {
  readonly endLsn: number;
  readonly records: number;
  readonly nextIno: number;
  readonly nextGeneration: number;
}

/** Where metadata is read from: the region itself, as its superblock says, if nothing else is named. */
export interface Sources {
  readonly media: Media;
  readonly superblock?: SuperblockChoice;
  /** If the superblock has another uuid than its segments. */
  readonly geometry?: ChainGeometry;
}

/** @throws CorruptionError (refused by the table, or damage in a structure), FsError EINVAL (no volume, unknown version). */
export function recover(region: Region, sink: RecoverySink, found: Sources = { media: region }): Recovery {
  const { media } = found;
  const { value: superblock, warnings } = found.superblock ?? readSuperblock(region);
  const geometry = found.geometry ?? geometryOf(superblock);

  let end: CheckpointEnd | null = null;
  let records = 0;
  sink.phase("checkpoint");
  const checkpoint = walkChain(
    media,
    geometry,
    SegmentRole.CHECKPOINT,
    {
      segment: superblock.checkpointSegment,
      index: 0,
      incarnation: superblock.checkpointIncarnation,
      lsn: 0,
    },
    (group) => {
      if (group.kind === GroupKind.END) {
        tell(group, {
          ...refusingSink("end of the checkpoint"),
          end: (endLsn, count, nextIno, nextGeneration) => {
            end = { endLsn, records: count, nextIno, nextGeneration };
          },
        });
        return;
      }
      records += group.view.getUint16(group.at + GroupHeader.at.count, true);
      progress("reading the checkpoint: records", records, 0);
      tell(group, sink);
    },
  );
  const checkpointEnd = end as CheckpointEnd | null;
  if (!checkpoint.complete || checkpointEnd === null) {
    throw new CorruptionError(
      `checkpoint at byte ${checkpoint.segment + checkpoint.offset}`,
      `group ${checkpoint.lsn} or the end of the checkpoint`,
      "neither: the checkpoint is cut short or damaged",
    );
  }
  if (checkpointEnd.records !== records) {
    throw new CorruptionError("checkpoint", `${checkpointEnd.records} records`, `${records}`);
  }

  const logStart = {
    segment: superblock.logSegment,
    index: superblock.logIndex,
    incarnation: superblock.logIncarnation,
    lsn: superblock.logLsn,
  };
  let vouchedLsn = superblock.logLsn - 1;
  const log = walkChain(media, geometry, SegmentRole.LOG, logStart, (group) => {
    if (group.kind === GroupKind.BARRIER) {
      tell(group, {
        ...refusingSink("barrier"),
        barrier: (lsn) => {
          vouchedLsn = Math.max(vouchedLsn, lsn);
        },
      });
    }
  });
  const sameBoot =
    superblock.bootId.some((byte) => byte !== 0) && Buffer.compare(superblock.bootId, currentBootId()) === 0;
  const facts: RecoveryFacts = {
    clean: superblock.state === VolumeState.CLEAN,
    logLsn: superblock.logLsn,
    endLsn: log.lsn,
    tailLsn: superblock.tailLsn,
    checkpointEndLsn: checkpointEnd.endLsn,
    allStoresKept: sameBoot || region.facts.granularity === "cacheline",
    vouchedLsn,
    groupsBeyond: log.beyond.groups,
    barrierBeyondLsn: log.beyond.barrierLsn,
  };
  const verdict = judge(facts);
  if (verdict.verdict === "refuse") {
    throw new CorruptionError(
      `log at byte ${log.segment + log.offset} (${verdict.label})`,
      `group ${log.lsn}`,
      `something else; ${verdict.why}`,
    );
  }

  const through = verdict.through(facts);
  let applied = 0;
  let dropped = 0;
  if (log.lsn > superblock.logLsn) {
    walkChain(media, geometry, SegmentRole.LOG, logStart, (group) => {
      if (group.kind !== GroupKind.RECORDS) return;
      progress("replaying the log", group.lsn - superblock.logLsn, log.lsn - superblock.logLsn);
      if (group.lsn > through) {
        dropped += 1;
        return;
      }
      sink.phase(group.lsn < facts.checkpointEndLsn ? "fuzzy" : "exact");
      tell(group, sink);
      applied += 1;
    });
  }
  const mended = media instanceof Mended ? media.segments : new Map<number, number>();
  return {
    label: verdict.label,
    why: verdict.why,
    superblock,
    geometry,
    warnings: [...warnings, ...[...mended].map(mendedInWords)],
    mended,
    checkpoint,
    checkpointEndLsn: checkpointEnd.endLsn,
    log,
    groupsApplied: applied,
    groupsDropped: dropped,
    nextLsn: log.lsn,
    durableLsn: ALL_SYNCED.has(verdict.label) ? log.lsn - 1 : vouchedLsn,
    resumable: ALL_SYNCED.has(verdict.label) || facts.allStoresKept,
    nextIno: checkpointEnd.nextIno,
    nextGeneration: checkpointEnd.nextGeneration,
  };
}

function mendedInWords([segment, copy]: [number, number]): string {
  return `metadata segment at byte ${segment}: damaged, and read from its copy at byte ${copy}`;
}

function tell(group: ChainGroup, sink: RecordSink): void {
  readRecords(group.data, group.view, group.at, group.length, group.place, sink);
}
