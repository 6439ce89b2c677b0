/**
 * Checking and repairing a volume that is not mounted.
 *
 * First the strict way, the very one that a mount takes: when that finds nothing, nothing is wrong. Otherwise everything that
 * can be read is read leniently, judged as a whole, and made to fit; the result has to pass the strict way again before it is
 * written, as a fresh checkpoint beside the old metadata (rewrite.ts).
 *
 * Invariants:
 * - without `repair`, and in a dry run, nothing is written;
 * - a repair that is interrupted has changed nothing; one that is complete leaves a volume in which nothing is found;
 * - whatever the region holds, the answer is a report or an FsError.
 */
import { CorruptionError, FsError, InvariantError } from "../base/errors.ts";
import type { ChainEnd, ChainGeometry } from "../media/chain.ts";
import {
  COUNTER_MAX,
  COUNTER_ROOM,
  END_COPY_BYTES,
  FeatureIncompatible,
  RESERVED_BYTES,
} from "../media/format.ts";
import { geometryOf, type Recovery } from "../media/recovery.ts";
import { leastReserve, rewriteReserve } from "../media/reserve.ts";
import { copyAtEnd, endOffset, mustBeReadOnly, type SuperblockValue } from "../media/superblock.ts";
import { type BroughtBack, bringBack, checkTree, claimAll } from "../namespace/recovered.ts";
import { rewrite } from "../namespace/rewrite.ts";
import { State } from "../namespace/state.ts";
import type { Region } from "../region/region.ts";
import { Allocator } from "../space/allocator.ts";
import { SegmentPool } from "../space/segment-pool.ts";
import { judgeBlocks } from "./blocks.ts";
import { checkCopies } from "./copies.ts";
import { type Loss, LossCounter, lossInWords } from "./loss.ts";
import { findNewest, findWithoutSuperblock } from "./newest.ts";
import { type Problem, Problems } from "./problem.ts";
import { mendedSuperblock, newestCopy } from "./superblock.ts";
import { type Survey, survey } from "./survey.ts";
import { TreeJudge } from "./tree.ts";

export interface FsckOptions {
  /** Write what was made to fit. */
  readonly repair: boolean;
  /** Asked before a repair that loses something; if left out, the answer is yes. */
  readonly mayLose?: (loss: Loss) => boolean;
  /** Where to keep what such a repair overwrites, and what it was concluded from; if left out, nowhere. */
  readonly undo?: () => Undo;
}

export interface Undo {
  /** Bytes of the region as they are now. */
  keep(region: Region, offset: number, length: number): void;
  /** All of them are durable. */
  finish(): void;
}

export interface FsckReport {
  /** Null when no superblock could be read. */
  readonly superblock: SuperblockValue | null;
  readonly problems: readonly Problem[];
  /** Of which `problems` shows the first 10,000. */
  readonly problemCount: number;
  /** Why a mount is refused; null: it is not. */
  readonly refusal: string | null;
  /** All of it can be repaired. */
  readonly repairable: boolean;
  /** What a repair gives up, or has given up; null: nothing. */
  readonly loss: Loss | null;
  /** It has been. */
  readonly repaired: boolean;
  /** What is no damage and should be known. */
  readonly warnings: readonly string[];
  /** Inodes and used blocks, as they are or, if something was wrong, as a repair leaves them. */
  readonly inodes: number;
  readonly usedBlocks: number;
}

/** @throws FsError EINVAL (no volume, or one of another version), ENOSPC (no room for the repaired metadata), EIO. */
export async function fsck(region: Region, options: FsckOptions): Promise<FsckReport> {
  const problems = new Problems();
  const strict = mountable(region);
  if ("state" in strict && strict.spareTaken !== 0) {
    const place = `end of the log: the segment set aside at byte ${strict.spareTaken}`;
    problems.add("spare", place, "a free segment", "one in use", "all metadata is written anew");
  }
  if ("state" in strict && strict.recovery.warnings.length === 0) {
    const { superblock } = strict.recovery;
    checkCopies(region, strict.recovery, problems);
    const verdict = { refusal: null, repairable: true, loss: null, repaired: false };
    if (problems.count === 0) return reportOf(problems, { ...strict, superblock }, verdict);
  }
  const refusal = "state" in strict ? null : strict.refusal.message;
  const basis = basisOf(region, strict, problems);
  if (basis === null) {
    return reportOf(problems, null, { refusal, repairable: false, loss: null, repaired: false });
  }
  const { whole, geometry, from } = basis;
  const { superblock, allocator, state } = whole;
  const highest = Math.max(superblock.sequence, superblock.incarnations, from.index, from.lsn - 1);
  if (highest > COUNTER_MAX - COUNTER_ROOM) {
    const limit = `counters below ${COUNTER_MAX - COUNTER_ROOM}`;
    problems.add("superblock", "superblock or log", limit, `${highest}`, null);
  }
  const repairable = !problems.beyondRepair && mustBeReadOnly(superblock) === null;
  const loss = problems.losesSomething ? (whole.loss ?? null) : null;
  const allowed = loss === null || options.mayLose === undefined || options.mayLose(loss);
  const repaired = options.repair && repairable && allowed;
  const report = reportOf(problems, whole, { refusal, repairable, loss, repaired });
  if (repaired) {
    // Until the superblocks name the new metadata, the old stays as it is, with what it was read from.
    for (const at of basis.copies)
      allocator.claim(at / superblock.blockBytes, superblock.segmentBytes / superblock.blockBytes);
    const pool = new SegmentPool(allocator, superblock.segmentBytes, superblock.blockBytes, region);
    if (loss !== null && options.undo !== undefined) keep(region, options.undo(), basis, pool);
    await rewrite(region, geometry, pool, state, superblock, from, true, () => allocator.isLastFree);
  }
  return report;
}

type Strict = BroughtBack | { readonly refusal: Error };

/** What a repair writes anew, and what it was read from. */
interface Basis {
  readonly whole: Whole;
  readonly geometry: ChainGeometry;
  readonly segments: readonly number[];
  readonly copies: readonly number[];
  /** Numbers above all that its log has used. */
  readonly from: { readonly index: number; readonly lsn: number };
}

/** null: nothing tells where anything is. */
function basisOf(region: Region, strict: Strict, problems: Problems): Basis | null {
  const newer = "state" in strict ? null : newest(region, problems);
  if (newer !== null) return newer;
  const found = survey(region, problems);
  if (found === null) return null;
  // But for copies nothing may be wrong.
  const whole =
    "state" in strict ? { ...strict, superblock: strict.recovery.superblock } : madeToFit(found, problems);
  if (!("state" in strict) && problems.count === 0) {
    // Links and headers that contradict each other, say: all groups could be found without them.
    const { refusal: error } = strict;
    const seen =
      error instanceof CorruptionError
        ? error
        : new CorruptionError("metadata", "to be readable", error.message);
    problems.add("layout", seen.where, seen.expected, seen.found, "all metadata is written anew");
  }
  const { geometry, segments, copies } = found;
  return { whole, geometry, segments, copies, from: { index: found.nextIndex, lsn: found.nextLsn + 1 } };
}

/** Metadata that is whole, and at least as new as what the superblock names and a mount refuses. */
function newestWhole(region: Region): BroughtBack | null {
  const base = newestCopy(region);
  if (base === null) {
    if (mendedSuperblock(region) !== null) return null;
    const atEnd = copyAtEnd(region);
    return (atEnd === null ? null : findNewest(region, atEnd)) ?? findWithoutSuperblock(region);
  }
  if (base.regionBytes > region.facts.sizeBytes) return null;
  const found = findNewest(region, base);
  if (found === null) return null;
  const { superblock, nextLsn } = found.recovery;
  const isNewer = superblock.checkpointIncarnation > base.checkpointIncarnation;
  const goesAsFar =
    superblock.logIncarnation === base.logIncarnation && nextLsn >= Math.max(base.tailLsn, base.logLsn);
  return isNewer || goesAsFar ? found : null;
}

function newest(region: Region, problems: Problems): Basis | null {
  const found = newestWhole(region);
  if (found === null) return null;
  const basis = basisFrom(found);
  if (newestCopy(region) !== null) {
    const expected = "to name metadata that is whole and the newest";
    problems.add(
      "superblock-old",
      "superblock",
      expected,
      "other metadata",
      "what is whole and newest counts",
    );
    return basis;
  }
  // Anybody who could store on the region could have made what is found there: a person has to say that this is it.
  const isNamed =
    Buffer.compare(copyAtEnd(region)?.uuid ?? Buffer.alloc(16), found.recovery.superblock.uuid) === 0;
  problems.add(
    "superblock",
    "superblock",
    "one whole copy of two",
    isNamed ? "none but one at the end of the volume" : "none",
    isNamed
      ? "the newest metadata of its volume counts"
      : "metadata that is whole counts; the volume gets another uuid and no label",
  );
  const loss = { inodes: 0, ofInodes: found.state.inodes.size, bytes: 0, atLeast: false };
  return { ...basis, whole: { ...basis.whole, loss } };
}

function basisFrom(found: BroughtBack): Basis {
  const { recovery, segments } = found;
  const { superblock, mended, log, nextLsn } = recovery;
  return {
    whole: { ...found, superblock },
    // Of the uuid that it gets, if its own is lost.
    geometry: geometryOf(superblock),
    segments,
    copies: [...mended.values()],
    from: { index: log.index + 1, lsn: nextLsn + 1 },
  };
}

/** What can be read of a volume, damaged or not; its recovery says what is not there. Nothing is written. */
export function rescue(region: Region): BroughtBack {
  const strict = mountable(region);
  if ("state" in strict) return strict;
  const problems = new Problems();
  const whole = newestWhole(region);
  if (whole !== null) {
    const warning = `not what the superblock names, but other metadata that is whole: ${strict.refusal.message}`;
    return { ...whole, recovery: { ...whole.recovery, warnings: [warning, ...whole.recovery.warnings] } };
  }
  const found = survey(region, problems);
  if (found === null) throw strict.refusal;
  const { state, superblock, allocator, loss } = madeToFit(found, problems);
  const warnings = problems.list.map(
    ({ place, expected, found: is }) => `${place}: expected ${expected}, found ${is}`,
  );
  if (loss !== undefined) warnings.unshift(`the volume is damaged: ${lossInWords(loss, "lost")}`);
  const chain: ChainEnd = {
    ...{ segments: [], segment: 0, offset: 0, lsn: 0, index: 0, incarnation: 0, spare: 0, complete: false },
    beyond: { groups: false, barrierLsn: -1 },
  };
  const recovery: Recovery = {
    ...{ label: "rescue", why: "what could be read of a damaged volume", superblock, warnings },
    ...{ geometry: found.geometry, mended: new Map(), groupsApplied: 0, groupsDropped: 0 },
    ...{ checkpoint: { ...chain, segments: found.segments }, log: chain, resumable: false },
    ...{ checkpointEndLsn: 0, nextLsn: found.nextLsn, durableLsn: 0 },
    ...{ nextIno: state.nextIno, nextGeneration: state.nextGeneration },
  };
  return { state, recovery, allocator, segments: found.segments, spareTaken: 0 };
}

/** What the repair was concluded from, and what it will overwrite. */
function keep(
  region: Region,
  undo: Undo,
  { whole: { superblock, state }, segments, copies }: Basis,
  pool: SegmentPool,
): void {
  const { segmentBytes } = superblock;
  undo.keep(region, 0, RESERVED_BYTES);
  undo.keep(region, endOffset(superblock.regionBytes), END_COPY_BYTES);
  for (const at of [...segments, ...copies]) undo.keep(region, at, segmentBytes);
  // All of it twice, at most.
  pool.ensure(2 * rewriteReserve({ ...superblock, snapshotBytes: state.snapshotBytes }));
  for (const { start, count } of pool.runs())
    undo.keep(region, start * superblock.blockBytes, count * superblock.blockBytes);
  undo.finish();
}

/** A volume in which nothing contradicts anything. */
interface Whole {
  readonly state: State;
  readonly superblock: SuperblockValue;
  readonly allocator: Allocator;
  /** Where a mount would find it as it is. */
  readonly recovery?: Pick<Recovery, "label" | "log">;
  /** What it lacks of what the volume seems to have had. */
  readonly loss?: Loss;
}

function reportOf(
  problems: Problems,
  whole: Whole | null,
  verdict: Pick<FsckReport, "refusal" | "repairable" | "loss" | "repaired">,
): FsckReport {
  return {
    superblock: whole?.superblock ?? null,
    problems: problems.list,
    problemCount: problems.count,
    ...verdict,
    warnings: whole === null ? [] : warningsOf(whole),
    inodes: whole?.state.inodes.size ?? 0,
    usedBlocks: whole === null ? 0 : whole.allocator.blockCount - whole.allocator.freeBlocks,
  };
}

/** The same arithmetic as that of the mount, which would go on with as much as there is. */
function warningsOf({ allocator, state, superblock, recovery }: Whole): string[] {
  const { segmentBytes, blockBytes } = superblock;
  const needed = leastReserve({ ...superblock, snapshotBytes: state.snapshotBytes });
  const pool = new SegmentPool(allocator, segmentBytes, blockBytes);
  // The log's spare segment is not free once it is mounted.
  const spare = recovery?.label === "clean" && recovery.log.spare !== 0 ? 1 : 0;
  pool.ensure(needed + spare);
  const available = pool.available - spare;
  pool.trim(0);
  if (available >= needed) return [];
  return [
    `metadata has ${available * segmentBytes} bytes in reserve and needs ${needed * segmentBytes}: ` +
      "mounted, little may work but what frees space; delete files, or make the volume larger",
  ];
}

/** What a mount would find, or why it would refuse. */
function mountable(region: Region): Strict {
  try {
    return bringBack(region);
  } catch (error) {
    if (error instanceof CorruptionError) return { refusal: error };
    // A part that cannot be read.
    if (error instanceof FsError && error.code === "EIO") return { refusal: error };
    throw error;
  }
}

function madeToFit(found: Survey, problems: Problems): Whole {
  const { draft, superblock: before } = found;
  const { blockBytes, regionBytes, segmentBytes } = before;
  const blockCount = regionBytes / blockBytes;
  const inBlocks = (at: number, bytes: number) => ({
    start: at / blockBytes,
    count: Math.ceil(bytes / blockBytes),
  });
  const losses = new LossCounter(draft, found.glimpsed, found.passedOver);
  const tree = new TreeJudge(draft, problems, { nowSec: Math.floor(Date.now() / 1000), blockBytes });
  tree.run();
  const shared = judgeBlocks(
    draft,
    {
      blockCount,
      namedBlockCount: found.namedBytes / blockBytes,
      metadata: [inBlocks(0, RESERVED_BYTES), ...found.segments.map((at) => inBlocks(at, segmentBytes))],
      knowsSharing: (before.featuresIncompatible & FeatureIncompatible.SHARED_EXTENTS) !== 0,
    },
    problems,
  );
  const superblock = shared
    ? { ...before, featuresIncompatible: before.featuresIncompatible | FeatureIncompatible.SHARED_EXTENTS }
    : before;
  const state = new State();
  state.setBlockCount(blockCount);
  for (const { fields } of draft.inodes.values()) if (fields !== null) state.inode(fields);
  for (const { ino, entries, extents, target, xattrs } of draft.inodes.values()) {
    for (const [name, entry] of entries) state.dentry(ino, name, entry.ino, entry.type, entry.cookie);
    for (const { block, physical, count, state: kind } of extents)
      state.extent(ino, block, physical, count, kind);
    if (target !== null) state.symlink(ino, target);
    for (const [name, value] of xattrs) state.xattr(ino, name, value);
  }
  state.nextIno = Math.max(state.nextIno, draft.nextIno);
  state.nextGeneration = Math.max(state.nextGeneration, draft.nextGeneration);
  const loss = losses.count(draft, tree.rescued, blockBytes);
  return { state, superblock, allocator: spaceOf(state, found, superblock), loss };
}

/** The strict way again: what was made to fit has to, or we have made a mistake. */
function spaceOf(state: State, found: Survey, superblock: SuperblockValue): Allocator {
  const { regionBytes, blockBytes } = superblock;
  const allocator = new Allocator(regionBytes / blockBytes, blockBytes);
  try {
    checkTree(state);
    state.countReferences();
    claimAll(allocator, state, { superblock, segments: found.segments });
  } catch (error) {
    if (error instanceof CorruptionError) throw new InvariantError(`after repair: ${error.message}`);
    throw error;
  }
  return allocator;
}
