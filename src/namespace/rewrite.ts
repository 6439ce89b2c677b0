/**
 * All metadata written anew: a fresh checkpoint of the whole state, and an empty log behind it.
 *
 * Invariant: until the superblocks name them, what was there before stays as it is. A crash at any moment finds the old
 * metadata or the new.
 */
import { progress } from "../base/progress.ts";
import { type ChainGeometry, ChainWriter, type SegmentSource } from "../media/chain.ts";
import { Checkpoint } from "../media/checkpoint.ts";
import { type CheckpointPlaces, copyCheckpoint } from "../media/copies.ts";
import { SegmentRole } from "../media/format.ts";
import type { SuperblockValue } from "../media/superblock.ts";
import type { Region } from "../region/region.ts";
import type { State } from "./state.ts";

/** From one word of progress to the next, milliseconds. */
const STEP_MS = 100;

export interface Rewritten {
  readonly log: ChainWriter;
  readonly checkpoint: CheckpointPlaces;
  readonly superblock: SuperblockValue;
}

/**
 * @param source segments that nothing on the media uses
 * @param from numbers above all that the old log has used
 * @param clean the volume is not in use afterwards
 * @param atEnd its last block is free for a copy of the superblock, when all else is stored
 */
export async function rewrite(
  region: Region,
  geometry: ChainGeometry,
  source: SegmentSource,
  state: State,
  superblock: SuperblockValue,
  from: { readonly index: number; readonly lsn: number },
  clean: boolean,
  atEnd: () => boolean,
): Promise<Rewritten> {
  const incarnation = superblock.incarnations + 1;
  const log = ChainWriter.begin(region, geometry, SegmentRole.LOG, source, { ...from, incarnation });
  const checkpoint = new Checkpoint(region, geometry, source, state, incarnation + 1, log.rotate());
  while (!checkpoint.step(STEP_MS)) {
    const bytes = checkpoint.segments.length * geometry.segmentBytes;
    progress("writing metadata", Math.min(bytes, state.snapshotBytes), state.snapshotBytes);
  }
  const { places } = checkpoint;
  await copyCheckpoint(region, geometry, source, places);
  const written = await checkpoint.finish(superblock, clean, clean && atEnd());
  return { log, checkpoint: places, superblock: written };
}
