/**
 * A checkpoint: the whole state as records in a chain of its own, written in slices while the volume is in use.
 *
 * It is *fuzzy*: each item is captured at another moment. That is sound because every record says what now is, not what
 * has changed, and the log is replayed from the moment the checkpoint began: whatever changed since then gets its last
 * word from the log, whatever did not was captured as it is.
 *
 * Invariants:
 * - the old checkpoint and the log behind it stay untouched until both superblock copies name the new ones;
 * - the superblock is written only after the new chain, the log up to the end of the capture, and the data that they
 *   refer to are durable;
 * - finish() calls durable what recovery takes to be durable: groups before the end of the capture, none behind it.
 */
import type { Region } from "../region/region.ts";
import {
  type ChainGeometry,
  type ChainStart,
  ChainWriter,
  groupCapacity,
  type SegmentSource,
} from "./chain.ts";
import type { CheckpointPlaces } from "./copies.ts";
import { GroupKind, SegmentRole, VolumeState } from "./format.ts";
import { GroupBuilder } from "./group.ts";
import type { Journal } from "./journal.ts";
import { type SuperblockValue, writeSuperblock } from "./superblock.ts";

/** The state, as something that can be written down. */
export interface Snapshot {
  /** Write records into `group`, yielding after each; every item that lives throughout is written once. */
  capture(group: GroupBuilder): Iterator<void>;
  readonly nextIno: number;
  readonly nextGeneration: number;
}

/** Groups of about this size: large enough to make headers negligible, small enough for a slice. */
const GROUP_BYTES = 16384;

export class Checkpoint {
  readonly #region: Region;
  readonly #journal: Journal | null;
  readonly #chain: ChainWriter;
  readonly #group: GroupBuilder;
  readonly #snapshot: Snapshot;
  readonly #capture: Iterator<void>;
  readonly #incarnation: number;
  readonly #logStart: ChainStart;
  #records = 0;
  #captured = false;
  /** Number of the first group that the capture does not contain for certain. */
  #endLsn = 0;
  #failure: Error | null = null;

  /**
   * @param journal the log to rotate; null when `logStart` names an empty log already (recovery, mkfs).
   * @throws FsError ENOSPC if no segment is free.
   */
  constructor(
    region: Region,
    geometry: ChainGeometry,
    source: SegmentSource,
    snapshot: Snapshot,
    incarnation: number,
    log: Journal | ChainStart,
  ) {
    this.#region = region;
    this.#snapshot = snapshot;
    this.#incarnation = incarnation;
    this.#group = new GroupBuilder(groupCapacity(geometry));
    if ("segment" in log) {
      this.#journal = null;
      this.#logStart = log;
    } else {
      this.#journal = log;
      this.#logStart = log.rotate();
    }
    this.#chain = ChainWriter.begin(region, geometry, SegmentRole.CHECKPOINT, source, {
      index: 0,
      incarnation,
      lsn: 0,
    });
    this.#capture = snapshot.capture(this.#group);
  }

  get segments(): readonly number[] {
    return this.#chain.segments;
  }

  /** Where it is, without copies as yet. */
  get places(): CheckpointPlaces {
    const { segments, tail: lastBytes } = this.#chain;
    return { incarnation: this.#incarnation, segments: [...segments], lastBytes, copies: [] };
  }

  /** The segment that its chain has set aside; 0 once complete. */
  get spare(): number {
    return this.#chain.spare;
  }

  /** Bytes written so far. */
  get bytes(): number {
    return this.#chain.bytesWritten;
  }

  /** All is captured: it takes no further segment. */
  get captured(): boolean {
    return this.#captured;
  }

  /** A step has thrown; the capture cannot be taken up again. */
  get failed(): boolean {
    return this.#failure !== null;
  }

  /** Capture for about `milliseconds`; true when all is captured. Once it has thrown, it throws the same again. */
  step(milliseconds: number): boolean {
    if (this.#failure !== null) throw this.#failure;
    try {
      return this.#step(milliseconds);
    } catch (error) {
      this.#failure = error as Error;
      throw error;
    }
  }

  #step(milliseconds: number): boolean {
    if (this.#captured) return true;
    const until = performance.now() + milliseconds;
    let untilLook = 64;
    for (;;) {
      if (this.#capture.next().done === true) {
        this.#flush();
        this.#endLsn = this.#journal === null ? this.#logStart.lsn : this.#journal.chain.nextLsn;
        this.#group.end(this.#endLsn, this.#records, this.#snapshot.nextIno, this.#snapshot.nextGeneration);
        this.#chain.append(this.#group, GroupKind.END);
        this.#chain.finish();
        this.#captured = true;
        return true;
      }
      if (this.#group.length >= GROUP_BYTES) this.#flush();
      untilLook -= 1;
      if (untilLook === 0) {
        if (performance.now() >= until) return false;
        untilLook = 64;
      }
    }
  }

  #flush(): void {
    if (this.#group.count === 0) return;
    this.#records += this.#group.count;
    this.#chain.append(this.#group, GroupKind.RECORDS);
    this.#group.reset();
  }

  /**
   * Make it the truth. `clean` marks the volume unmounted: nothing may have been logged since the log was rotated.
   * Returns the superblock as written.
   * @param atEnd with a copy at the end of the volume
   */
  async finish(previous: SuperblockValue, clean: boolean, atEnd: boolean): Promise<SuperblockValue> {
    // Changes may have been logged since the capture ended. They are stored when the sync is done, but recovery does not
    // know that: it takes the log to be durable up to the end of the capture. The rest waits for a barrier.
    const durable = this.#endLsn - 1;
    this.#region.drain();
    await this.#region.sync();
    const value: SuperblockValue = {
      ...previous,
      sequence: previous.sequence + 1,
      state: clean ? VolumeState.CLEAN : VolumeState.MOUNTED,
      incarnations: Math.max(previous.incarnations, this.#incarnation, this.#logStart.incarnation),
      checkpointSegment: this.#chain.segments[0] as number,
      checkpointIncarnation: this.#incarnation,
      logSegment: this.#logStart.segment,
      logIndex: this.#logStart.index,
      logIncarnation: this.#logStart.incarnation,
      logLsn: this.#logStart.lsn,
      tailLsn: clean ? this.#logStart.lsn : 0,
    };
    // What was captured may be what made the log fail.
    const failure = this.#journal?.failure ?? null;
    if (failure !== null) throw failure;
    await writeSuperblock(this.#region, value, atEnd);
    this.#journal?.noteDurable(durable);
    return value;
  }

  /** Give up: its segments go back. */
  abandon(source: SegmentSource): void {
    this.#chain.finish();
    for (const segment of this.#chain.segments.splice(0)) source.give(segment);
  }
}
