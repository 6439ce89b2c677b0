/**
 * The log of a mounted volume.
 *
 * Invariants:
 * - commit() returns only when the group is on the region in order (see chain.ts); on cache-line granularity it is then
 *   durable, on page granularity it survives the death of the daemon, and a power cut once sync() has resolved;
 * - durableLsn never goes back, and everything up to it survives a power cut;
 * - page granularity: a BARRIER for n is written only after a sync that began after group n and its data were stored;
 * - after a failed write or sync no further group is ever written: `failure` says why, callers get EROFS.
 */
import { FsError } from "../base/errors.ts";
import type { Region } from "../region/region.ts";
import type { ChainStart, ChainWriter } from "./chain.ts";
import { GroupKind } from "./format.ts";
import { GroupBuilder } from "./group.ts";

export class Journal {
  readonly #region: Region;
  readonly #chain: ChainWriter;
  readonly #cacheline: boolean;
  readonly #barrier = new GroupBuilder(4096);
  #lastRecordLsn: number;
  #barrierLsn: number;
  #running: Promise<void> | null = null;
  #following: Promise<void> | null = null;
  /** Called with the new durableLsn whenever it grows. */
  onDurable: (lsn: number) => void = () => {};
  #failure: Error | null = null;
  /** Called once, with what made it fail. */
  onFailure: (error: Error) => void = () => {};

  /** @param durableLsn groups of the chain up to this number are durable already */
  constructor(region: Region, chain: ChainWriter, durableLsn = chain.nextLsn - 1) {
    this.#region = region;
    this.#chain = chain;
    this.#cacheline = region.facts.granularity === "cacheline";
    this.#lastRecordLsn = chain.nextLsn - 1;
    this.#barrierLsn = durableLsn;
  }

  get failure(): Error | null {
    return this.#failure;
  }

  set failure(error: Error | null) {
    const first = this.#failure === null && error !== null;
    this.#failure = error;
    if (first) this.onFailure(error);
  }

  get chain(): ChainWriter {
    return this.#chain;
  }

  get lastLsn(): number {
    return this.#lastRecordLsn;
  }

  /** Highest number that a power cut cannot take back. */
  get durableLsn(): number {
    return this.#cacheline ? this.#lastRecordLsn : this.#barrierLsn;
  }

  /** Append a group; returns its number. @throws FsError ENOSPC (nothing changed), EROFS after a failure. */
  commit(group: GroupBuilder): number {
    if (this.failure !== null) throw new FsError("EROFS", `the log has failed: ${this.failure.message}`);
    try {
      this.#lastRecordLsn = this.#chain.append(group, GroupKind.RECORDS);
    } catch (error) {
      if (!(error instanceof FsError && error.code === "ENOSPC")) this.failure = error as Error;
      throw error;
    }
    if (this.#cacheline) this.onDurable(this.#lastRecordLsn);
    return this.#lastRecordLsn;
  }

  /**
   * The group that was committed last cannot be applied: it must not be in the log either, or no later mount could replay
   * it. Nothing is written any more from then on. @param before number of the group before it
   */
  retract(group: GroupBuilder, before: number, why: Error): void {
    this.failure ??= why;
    this.#lastRecordLsn = before;
    this.#chain.retract(group.length);
  }

  rotate(): ChainStart {
    return this.#moving(() => this.#chain.rotate());
  }

  /** Go on in segments that end at or before byte `end`. @throws FsError ENOSPC (it goes on where it is) */
  leaveTail(end: number): void {
    this.#moving(() => this.#chain.leaveTail(end));
  }

  #moving<T>(move: () => T): T {
    try {
      return move();
    } catch (error) {
      if (!(error instanceof FsError && error.code === "ENOSPC")) this.failure = error as Error;
      throw error;
    }
  }

  /** Make durable everything stored before this call. Calls that wait share one sync. */
  sync(): Promise<void> {
    if (this.#cacheline) {
      this.#region.drain();
      return Promise.resolve();
    }
    if (this.#running === null) {
      this.#running = this.#syncOnce().finally(() => {
        this.#running = null;
      });
      return this.#running;
    }
    // One is under way and may have begun before our stores: the next one counts, and serves all who wait.
    this.#following ??= this.#running
      .catch(() => {})
      .then(() => {
        this.#following = null;
        return this.sync();
      });
    return this.#following;
  }

  async #syncOnce(): Promise<void> {
    if (this.failure !== null) throw asFsError(this.failure);
    const covered = this.#lastRecordLsn;
    try {
      await this.#region.sync();
      if (covered > this.#barrierLsn) {
        this.#barrier.reset();
        this.#barrier.barrier(covered);
        this.#chain.append(this.#barrier, GroupKind.BARRIER);
        await this.#region.sync();
      }
    } catch (error) {
      this.failure = error as Error;
      throw error;
    }
    this.noteDurable(covered);
  }

  /** A checkpoint has made everything up to this number durable. */
  noteDurable(lsn: number): void {
    if (lsn <= this.#barrierLsn) return;
    this.#barrierLsn = lsn;
    this.onDurable(lsn);
  }
}

/** For whoever waits for a sync: nothing that was written since can be vouched for. */
function asFsError(failure: Error): FsError {
  return failure instanceof FsError ? failure : new FsError("EIO", `the log has failed: ${failure.message}`);
}
