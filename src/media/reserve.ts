/**
 * How many segments metadata needs: the arithmetic that mkfs, mount, resize and fsck share.
 *
 * A volume keeps segments in reserve, so that what frees space always works: a change takes log, only a checkpoint gives
 * log back, and a checkpoint is written beside the one before it. Whoever makes a volume, or gives it another size, leaves
 * it the least reserve at least, and no change goes below it but those that take something away.
 */
import { REGION_BYTES_MIN } from "./format.ts";

/** Largest transaction of a checkpoint: one of 16 KiB that the longest attribute was added to last. */
const CHECKPOINT_GROUP_BYTES_MAX = 84 * 1024;

/** A smaller volume would have room for its metadata and for little else, bytes. */
export function leastVolumeBytes(segmentBytes: number): number {
  return Math.max(REGION_BYTES_MIN, segmentBytes * 32);
}

/**
 * Share of a segment that the records of a checkpoint fill at worst. A transaction that does not fit goes into the next
 * segment and leaves less than its own size; and what a segment holds and the transaction that did not fit are more than
 * one segment.
 */
function segmentFill(segmentBytes: number): number {
  return 0.98 * Math.max(0.5, 1 - CHECKPOINT_GROUP_BYTES_MAX / segmentBytes);
}

/** Segments that a checkpoint of so many bytes of records takes at most. */
export function checkpointSegments(snapshotBytes: number, segmentBytes: number): number {
  return 1 + Math.ceil(snapshotBytes / (segmentBytes * segmentFill(segmentBytes)));
}

export interface ReserveOf {
  readonly segmentBytes: number;
  /** Of the volume. */
  readonly regionBytes: number;
  /** Of the records of a checkpoint. */
  readonly snapshotBytes: number;
}

/** Log segments after which a checkpoint is due: at most a sixteenth of a small volume, 8 of a large one. */
export function logBudget({ segmentBytes, regionBytes, snapshotBytes }: ReserveOf): number {
  const ofVolume = Math.max(2, Math.min(8, Math.floor(regionBytes / segmentBytes / 16)));
  return Math.max(ofVolume, Math.ceil(checkpointSegments(snapshotBytes, segmentBytes) / 2));
}

/**
 * The least reserve: with less, a change might be the last one. The change takes at most one segment for the log; the
 * checkpoint that follows one more to begin a segment of log, its own, and one that it sets aside; and if the daemon dies
 * meanwhile, recovery writes a checkpoint again, with a log of two segments, before anything is given back.
 */
export function leastReserve(of: ReserveOf): number {
  return checkpointSegments(of.snapshotBytes, of.segmentBytes) + 4;
}

/**
 * The full reserve: what a change that makes metadata larger needs. It takes a segment for the log and may add one to the
 * checkpoint, and must leave the least reserve; and the log gets what it may take until a checkpoint is due and complete.
 * @param logSegments in use already
 */
export function fullReserve(of: ReserveOf, logSegments: number, budget = logBudget(of)): number {
  return leastReserve(of) + Math.max(2 * budget - logSegments - 2, 2);
}

/**
 * Segments that must be free when all metadata is written anew beside the old (recovery, another size): the checkpoint
 * and the segment that it sets aside, and two for the log.
 */
export function rewriteReserve(of: ReserveOf): number {
  return checkpointSegments(of.snapshotBytes, of.segmentBytes) + 3;
}
