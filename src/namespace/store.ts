/**
 * A volume in use: state, free space and log together, and the one way to change them.
 *
 * Every change is: validate → (store data, drain) → commit() = log the records, then apply the same records to the
 * state. Nothing is changed in memory before it is in the log, nothing is in the log that was not validated.
 *
 * Invariants (check.ts runs them over the whole volume):
 * - every block is free, withheld, pending, in quarantine, in the reserve, in a metadata segment, in exactly one extent, or in
 *   SHARED extents alone (sharing.ts);
 * - blocks leave a file's map by a record, and are allocated again, or discarded, only when that record survives a power cut;
 * - the reserve can take the next checkpoint and the log until it is complete, or growing operations get ENOSPC;
 * - times alone may be newer in memory than in the log (`dirtyTimes`): they are logged within flushTimes().
 */
import { CorruptionError, FsError, MediaError } from "../base/errors.ts";
import { guarded } from "../base/faults.ts";
import { retrying, Wait } from "../base/wait.ts";
import { ChainWriter, groupCapacity } from "../media/chain.ts";
import { Checkpoint } from "../media/checkpoint.ts";
import { type CheckpointPlaces, copyCheckpoint, isCopyOf } from "../media/copies.ts";
import { readCopyTable } from "../media/copy-table.ts";
import { RESERVED_BYTES, SegmentRole, VolumeState } from "../media/format.ts";
import { GroupBuilder, readRecords, SHARED } from "../media/group.ts";
import { Journal } from "../media/journal.ts";
import { ROOT_INO } from "../media/mkfs.ts";
import type { Recovery } from "../media/recovery.ts";
import {
  checkpointSegments,
  fullReserve,
  leastReserve,
  logBudget,
  type ReserveOf,
  rewriteReserve,
} from "../media/reserve.ts";
import { currentBootId, mustBeReadOnly, type SuperblockValue, writeSuperblock } from "../media/superblock.ts";
import type { Region } from "../region/region.ts";
import type { Allocator, Run } from "../space/allocator.ts";
import { Discards } from "../space/discard.ts";
import { Freeing } from "../space/freeing.ts";
import { Quarantine } from "../space/quarantine.ts";
import { SegmentPool } from "../space/segment-pool.ts";
import type { RunTable } from "../tables/run-table.ts";
import { SegmentClearer } from "./clear-segments.ts";
import { fieldsOf, type Inode } from "./inode.ts";
import { type BroughtBack, bringBack } from "./recovered.ts";
import { rewrite } from "./rewrite.ts";
import type { State } from "./state.ts";

/** Blocks of a file. */
export interface BlockRange {
  readonly block: number;
  readonly count: number;
}

/** Who may object to a change of a file's block map (the lease floor). Throws FsError ETXTBSY or Wait to refuse. */
/** Room for metadata that is about to grow. */
export interface Room {
  /** So many bytes of it are in use now. */
  used(bytes: number): void;
  end(): void;
}

export interface MapGuard {
  /**
   * These blocks of the file would be mapped otherwise than now. All that an operation changes has to be named at once:
   * what is refused for one of them must not have broken a lease on another.
   */
  beforeMapChange(inode: Inode, changes: readonly BlockRange[]): void;
  beforeSizeChange(inode: Inode): void;
  /** A lease pins blocks of this range. */
  isLeased(inode: Inode, block: number, count: number): boolean;
  /** No file is to have a block of the region from `end` on any more. A lease of any kind on one refuses: ETXTBSY. */
  beforeTailMoves(end: number): void;
}

const noGuard: MapGuard = {
  beforeMapChange() {},
  beforeSizeChange() {},
  isLeased: () => false,
  beforeTailMoves() {},
};

/** Blocks that are asked for at a time, and for how long in vain, milliseconds, where what a sparse region lies on is full. */
const BACKED_BLOCKS = 16;
const BACKED_MS_MAX = 50;
/** Segments that are cleared beyond those that metadata lacks. */
const CLEAR_AHEAD = 4;
/** How soon clearing is tried again after it was in vain, milliseconds. */
const CLEAR_AGAIN_MS = 1000;
/** A checkpoint slice: how long the event loop is kept at most, in milliseconds. */
const SLICE_MS = 2;
export interface StoreOptions {
  readonly readOnly: boolean;
  /**
   * Who can reach blocks of the region from before this mount, by an owner's number that is never used again. What they
   * reach is not allocated before releaseQuarantine() says that they are gone.
   */
  readonly reachable?: (
    found: Found,
  ) => Promise<readonly { readonly owner: number; readonly runs: readonly Run[] }[]>;
  /** A line for whoever runs the daemon. */
  readonly tell?: (text: string) => void;
}

/** What an earlier mount has left behind. */
export interface Found {
  readonly blockBytes: number;
  /** Nobody can map it from before: it was closed cleanly, or never mounted since the machine started. */
  readonly unused: boolean;
  /** Blocks that files have. */
  inUse(): Run[];
}

export class Store {
  readonly region: Region;
  readonly state: State;
  readonly allocator: Allocator;
  readonly pool: SegmentPool;
  readonly recovery: Recovery;
  readonly blockBytes: number;
  readonly blockShift: bigint;
  readonly blockMask: bigint;
  /** Null when mounted read-only; `readOnlyReason` says why. */
  readonly journal: Journal | null;
  readonly readOnlyReason: string | null;
  superblock: SuperblockValue;
  guard: MapGuard = noGuard;
  readonly quarantine: Quarantine;
  /** Blocks that changes under way have claimed and not written a record of: the region's are the `value` of each row. */
  readonly claimed = new Set<RunTable>();
  readonly freeing = new Freeing((extent, lsn) => this.state.extentCut(extent, lsn));
  readonly discards: Discards;
  /** It is being given another size. */
  resizing = false;
  /** Inodes whose times are newer than in the log. */
  readonly dirtyTimes = new Set<Inode>();
  readonly #group: GroupBuilder;
  #checkpointPlaces: CheckpointPlaces;
  #checkpointing: Promise<void> | null = null;
  #checkpoint: Checkpoint | null = null;
  #segmentBudget: number;
  /** Size of the state when a checkpoint found no room; Infinity after one that did. */
  #tooManyBytes = Number.POSITIVE_INFINITY;
  /** By which metadata may still grow in changes that have been promised room. */
  #promisedBytes = 0;
  #closing = false;
  #toldNoRoom = false;
  readonly #clearer: SegmentClearer;
  #clearing: Promise<void> | null = null;
  /** When the last clearing was in vain, and with how many blocks free. */
  #cleared = { atMs: Number.NEGATIVE_INFINITY, free: 0 };
  /** Orphans that could not be freed: the next mount tries again. */
  readonly #setAside = new Set<Inode>();
  #tell: (text: string) => void = () => {};
  /** Counted for `info` and tests. */
  readonly counters = { checkpoints: 0, groups: 0, longestSliceMs: 0 };

  private constructor(
    region: Region,
    state: State,
    recovery: Recovery,
    space: { allocator: Allocator; pool: SegmentPool; quarantine: Quarantine },
    journal: Journal | null,
    superblock: SuperblockValue,
    checkpointPlaces: CheckpointPlaces,
    readOnlyReason: string | null,
  ) {
    this.region = region;
    this.state = state;
    this.recovery = recovery;
    this.allocator = space.allocator;
    this.pool = space.pool;
    this.quarantine = space.quarantine;
    this.journal = journal;
    this.superblock = superblock;
    this.readOnlyReason = readOnlyReason;
    this.blockBytes = superblock.blockBytes;
    this.discards = new Discards({
      ...{ region, allocator: space.allocator, blockBytes: superblock.blockBytes },
      spared: () => this.#placesOfNextMount(),
    });
    this.blockShift = BigInt(Math.log2(superblock.blockBytes));
    this.blockMask = BigInt(superblock.blockBytes - 1);
    this.#group = new GroupBuilder(groupCapacity(recovery.geometry));
    this.#checkpointPlaces = checkpointPlaces;
    this.#clearer = new SegmentClearer(this);
    this.#segmentBudget = this.#budget(superblock.regionBytes);
    if (journal === null) return;
    state.onFreed = (physical, count, lsn) => {
      for (const run of this.quarantine.hold(physical, count, lsn)) {
        if (lsn > journal.durableLsn) this.allocator.freeAfter(run.start, run.count, lsn);
        else this.allocator.free(run.start, run.count);
      }
    };
    state.onManyCut = (extents, own, lsn) => this.freeing.add(extents, own, lsn);
    journal.onDurable = (lsn) => this.#releaseThrough(lsn);
  }

  /**
   * Recover and open. @throws CorruptionError (damage: nothing was written), FsError EINVAL, EROFS.
   */
  static async open(region: Region, options: StoreOptions): Promise<Store> {
    const broughtBack = bringBack(region);
    const { state, recovery, allocator } = broughtBack;
    const { superblock } = recovery;
    const pool = new SegmentPool(allocator, superblock.segmentBytes, superblock.blockBytes, region);
    const quarantine = new Quarantine();
    const space = { allocator, pool, quarantine };

    const forced = mustBeReadOnly(superblock);
    const readOnly = (reason: string): Store =>
      new Store(region, state, recovery, space, null, superblock, placesOf(recovery), reason);
    if (options.readOnly || forced !== null) return readOnly(forced ?? "mounted read-only");
    const tell = options.tell ?? (() => {});
    try {
      return await Store.#openToWrite(region, broughtBack, space, options);
    } catch (error) {
      // Damage is for fsck, and what a medium that cannot be written holds is uncertain. Anything else must not keep
      // anybody from the files: what was recovered is whole, and the next mount recovers the same.
      if (error instanceof CorruptionError || error instanceof MediaError) throw error;
      const why =
        error instanceof FsError && error.code === "ENOSPC"
          ? "there is no room for its metadata; make it larger with 'mapdirect resize'"
          : error instanceof Error
            ? error.message
            : error;
      const reason = `it could not be opened for writing: ${why}`;
      tell(`the volume is read-only: ${reason}`);
      return readOnly(reason);
    }
  }

  /** To be read alone: what was found of a damaged volume. */
  static openRescued(region: Region, { state, recovery, allocator }: BroughtBack): Store {
    const { segmentBytes, blockBytes } = recovery.superblock;
    const pool = new SegmentPool(allocator, segmentBytes, blockBytes);
    const space = { allocator, pool, quarantine: new Quarantine() };
    const places = placesOf(recovery);
    return new Store(
      region,
      state,
      recovery,
      space,
      null,
      recovery.superblock,
      places,
      "mounted to be rescued",
    );
  }

  static async #openToWrite(
    region: Region,
    { state, recovery, allocator, segments, spareTaken }: BroughtBack,
    space: { allocator: Allocator; pool: SegmentPool; quarantine: Quarantine },
    options: StoreOptions,
  ): Promise<Store> {
    const { superblock } = recovery;
    const { pool, quarantine } = space;
    // The log's spare segment is named on the media: it is ours, whoever maps it.
    const { spare } = recovery.log;
    // What is damaged is not gone on with, but written anew.
    const isWhole = recovery.mended.size === 0 && spareTaken === 0;
    if (isWhole && recovery.label === "clean" && spare !== 0)
      allocator.claim(spare / superblock.blockBytes, superblock.segmentBytes / superblock.blockBytes);
    const found: Found = {
      blockBytes: superblock.blockBytes,
      unused: recovery.label === "clean" || Buffer.compare(superblock.bootId, currentBootId()) !== 0,
      inUse: () => usedRuns(state),
    };
    for (const { owner, runs } of (await options.reachable?.(found)) ?? []) {
      quarantine.claim(owner, runs);
      for (const { start, count } of runs) {
        for (const run of allocator.claimFree(start, start + count)) quarantine.adopt(run.start, run.count);
      }
    }
    let opened: SuperblockValue = {
      ...superblock,
      bootId: currentBootId(),
      mountedSec: BigInt(Math.floor(Date.now() / 1000)),
      state: VolumeState.MOUNTED,
      tailLsn: 0,
    };
    let journal: Journal;
    let checkpoint = placesOf(recovery);
    if (isWhole) adoptCopies(region, recovery, pool, checkpoint);
    // Until it is, the copies that were read instead are needed as well.
    const blocksOfCopy = superblock.segmentBytes / superblock.blockBytes;
    const read = [...recovery.mended.values()].filter((at) =>
      allocator.claim(at / superblock.blockBytes, blocksOfCopy),
    );
    // Without room to write all metadata anew, what an interrupted mount left is gone on with as it is.
    const size = { ...superblock, snapshotBytes: state.snapshotBytes };
    const resumes = isWhole && recovery.resumable && !pool.ensure(rewriteReserve(size));
    if ((isWhole && recovery.label === "clean") || resumes) {
      const end = { ...recovery.log };
      if (recovery.label !== "clean") {
        pool.trim(0);
        const blocks = superblock.segmentBytes / superblock.blockBytes;
        if (end.spare !== 0 && !allocator.claim(end.spare / superblock.blockBytes, blocks)) end.spare = 0;
      }
      const chain = ChainWriter.resume(region, recovery.geometry, SegmentRole.LOG, pool, end);
      journal = new Journal(region, chain, recovery.durableLsn);
      // What recovery found is what others build upon from now on.
      if (journal.durableLsn < journal.lastLsn) await journal.sync();
      opened.sequence += 1;
      await writeSuperblock(region, opened);
    } else {
      // Everything that was recovered goes into a fresh checkpoint, and the log begins anew behind it. Until the
      // superblocks name them, the old ones stay as they are: a crash from here on finds what we found.
      const from = { index: recovery.log.index + 1, lsn: recovery.nextLsn + 1 };
      const anew = await rewrite(region, recovery.geometry, pool, state, opened, from, false, () => false);
      journal = new Journal(region, anew.log);
      opened = anew.superblock;
      for (const copy of checkpoint.copies) if (copy !== null) pool.copies.give(copy);
      ({ checkpoint } = anew);
      for (const segment of [...segments, ...read]) pool.give(segment);
      if (!isWhole && recovery.warnings.length > 0)
        options.tell?.("its metadata was damaged, and is written anew: nothing is lost");
    }
    await copyCheckpoint(region, recovery.geometry, pool, checkpoint);
    const store = new Store(region, state, recovery, space, journal, opened, checkpoint, null);
    store.#fillReserve();
    const { tell } = options;
    if (tell !== undefined) {
      store.#tell = tell;
      journal.onFailure = (error) => tell(`nothing is written to the volume any more: ${error.message}`);
    }
    await retrying(() => store.#dropOrphans());
    if (store.#reserveIsSpent())
      tell?.(
        "metadata has too little room in reserve: until there is more, nothing works but what frees space",
      );
    return store;
  }

  get root(): Inode {
    return this.state.inodes.get(ROOT_INO) as Inode;
  }

  /** @throws FsError ESTALE if there is no such inode. */
  inode(ino: number): Inode {
    const inode = this.state.inodes.get(ino);
    if (inode === undefined) throw new FsError("ESTALE", `inode ${ino}`);
    return inode;
  }

  /**
   * Begin a change; returns the group to put records into, for commit().
   * @param grows the change adds metadata: needs the reserve to be complete. Others need what keeps them from being the last.
   * @throws FsError EROFS, ENOSPC; Wait while a checkpoint must finish first.
   */
  begin(grows: boolean): GroupBuilder {
    const journal = this.writable();
    if (grows ? !this.pool.ensure(this.#reserveTarget()) : this.#reserveIsSpent()) this.#waitForRoom(journal);
    return this.#beginAnyway(journal);
  }

  /** @throws FsError ENOSPC; Wait */
  #waitForRoom(journal: Journal): never {
    this.waitForPending("no space for metadata");
    // A checkpoint gives back the log behind it, and the checkpoint before.
    if (this.#checkpointing !== null || (journal.chain.segments.length > 1 && this.#checkpointFits()))
      throw new Wait("no space for metadata", this.checkpoint());
    this.#waitForClearing();
    throw this.#noRoomForMetadata();
  }

  /**
   * For a change of more than one group: room for metadata that grows by `bytes`, which no other change takes; no begin() of
   * it fails for want of room. @throws FsError ENOSPC; Wait
   */
  makeRoom(bytes: number): Room {
    this.#promisedBytes += bytes;
    try {
      const journal = this.writable();
      if (!this.pool.ensure(this.#reserveTarget())) this.#waitForRoom(journal);
    } catch (error) {
      this.#promisedBytes -= bytes;
      throw error;
    }
    let left = bytes;
    const used = (some: number): void => {
      const less = Math.min(some, left);
      left -= less;
      this.#promisedBytes -= less;
    };
    return { used, end: () => used(left) };
  }

  /**
   * Begin a change that takes something away, for which there is always room: what the reserve has is for these, and for
   * the checkpoints that follow them. @throws FsError EROFS; Wait.
   */
  beginFreeing(): GroupBuilder {
    const journal = this.writable();
    // What was freed before may be a segment by now, or be one when it is durable.
    if (this.#reserveIsSpent()) {
      this.waitForPending("no space for metadata");
      this.#waitForClearing();
    }
    return this.#beginAnyway(journal);
  }

  /** Begin a change that makes room for metadata (clear-segments.ts). @throws FsError EROFS; Wait. */
  beginMove(): GroupBuilder {
    return this.#beginAnyway(this.writable());
  }

  /** If there is free space, but none in one piece, wait until some is; otherwise return. @throws Wait */
  #waitForClearing(): void {
    if (this.#clearing !== null) throw new Wait("room for metadata", this.#clearing);
    const { freeBlocks } = this.allocator;
    const worthwhile = 2 * (this.superblock.segmentBytes / this.blockBytes);
    if (this.resizing || freeBlocks < worthwhile) return;
    // It was in vain the last time, and little has changed since.
    const { atMs, free } = this.#cleared;
    if (performance.now() < atMs + CLEAR_AGAIN_MS && freeBlocks < free + worthwhile) return;
    throw new Wait("room for metadata", this.#clearSegments());
  }

  /** Make the reserve full by moving what is in the way of it, and a little more: looking for that is what takes long. */
  #clearSegments(): Promise<void> {
    const wanted = Math.max(0, this.#reserveTarget() - this.pool.available) + CLEAR_AHEAD;
    const before = this.allocator.freeBlocks;
    const clearing = this.#clearer.clear(wanted).then(
      (cleared) => {
        if (cleared === 0) this.#cleared = { atMs: performance.now(), free: before };
      },
      (error: unknown) => {
        this.#cleared = { atMs: performance.now(), free: before };
        if (!(error instanceof FsError)) throw error;
      },
    );
    this.#clearing = clearing.finally(() => {
      this.#clearing = null;
    });
    return this.#clearing;
  }

  /** Nothing is being cleared for metadata any more, and as long as `resizing` is set nothing will be. */
  async cleared(): Promise<void> {
    while (this.#clearing !== null) await this.#clearing.catch(() => {});
  }

  /** Where blocks are free besides, who looks at df does not see why: the log says it, once. */
  #noRoomForMetadata(): FsError {
    const { segmentBytes } = this.superblock;
    const freeBytes = this.allocator.freeBlocks * this.blockBytes;
    if (freeBytes >= segmentBytes && !this.#toldNoRoom) {
      this.#toldNoRoom = true;
      this.#tell(
        `no room for more metadata: ${freeBytes} bytes are free, but not ${segmentBytes} in one piece; delete or truncate files`,
      );
    }
    return new FsError("ENOSPC", "no space for metadata");
  }

  /** Segments in reserve, and how many must be there for metadata to grow. */
  get reserve(): { readonly held: number; readonly wanted: number } {
    return { held: this.pool.available, wanted: this.journal === null ? 0 : this.#reserveTarget() };
  }

  #beginAnyway(journal: Journal): GroupBuilder {
    // A change takes at most one segment of log besides the spare one. What the checkpoint under way still needs is
    // not for the log: it could not be completed, and only that frees the log.
    if (this.#checkpointing !== null) {
      if (this.#lacksLogSpace()) this.#hurryCheckpoint();
      if (this.#lacksLogSpace()) {
        // If it fails for lack of room, this change takes what is left: it may be the one that makes room.
        throw new Wait("log space", this.#checkpointing.catch(butNoSpace));
      }
    } else if (this.#checkpointDue(journal.chain.segments.length) && this.#checkpointFits()) {
      void this.checkpoint().catch(() => {});
    }
    this.#group.reset();
    return this.#group;
  }

  /** Log the group and apply it. Returns its number. */
  commit(): number {
    const journal = this.writable();
    const group = this.#group;
    if (group.count === 0) return journal.lastLsn;
    const before = journal.lastLsn;
    let lsn: number;
    try {
      lsn = journal.commit(group);
      this.counters.groups += 1;
      this.state.lsn = lsn;
      readRecords(group.data, group.view, 0, group.length, 0, this.state);
    } catch (error) {
      // Validation has let through what replay refuses. The state is not what the log says, nor what it was before.
      if (journal.lastLsn !== before) journal.retract(group, before, error as Error);
      throw error;
    }
    // On cache-line granularity the record is durable already, and so are the blocks that it freed.
    this.#releaseThrough(journal.durableLsn);
    return lsn;
  }

  /** @throws FsError EROFS with the reason when nothing may be written. */
  writable(): Journal {
    if (this.journal === null) throw new FsError("EROFS", this.readOnlyReason ?? "read-only");
    if (this.journal.failure !== null) {
      throw new FsError("EROFS", `after an error: ${this.journal.failure.message}`);
    }
    if (this.#closing) throw new FsError("EROFS", "being unmounted");
    return this.journal;
  }

  /** The state in memory is not to be trusted any more: nothing of it gets onto the media from now on. */
  distrust(why: unknown): void {
    if (this.journal !== null) this.journal.failure ??= why instanceof Error ? why : new Error(String(why));
  }

  /** Blocks that become free without anybody doing anything more than waiting. */
  get pendingBlocks(): number {
    return this.allocator.pendingBlocks + this.freeing.pendingBlocks;
  }

  /** Runs that nobody has any more and nobody can have yet. */
  *pendingRuns(): IterableIterator<Readonly<Run>> {
    yield* this.allocator.pendingRuns();
    for (const { physical, count, state } of this.freeing.left())
      if (state !== SHARED) yield { start: physical, count };
  }

  /** If space is on its way (freed, but not yet durably so, or being discarded), wait for it; otherwise return. */
  waitForPending(reason: string): void {
    if (this.freeing.running !== null) throw new Wait(reason, this.freeing.running);
    if (this.pendingBlocks > 0 && this.journal !== null && this.journal.failure === null) {
      const { underWay } = this.discards;
      throw new Wait(
        reason,
        this.journal.sync().then(() => underWay ?? undefined),
      );
    }
  }

  /**
   * Allocate up to `want` blocks for a file from `fileBlock` on, in as few runs as possible. Fewer than wanted means that the volume is full.
   * The runs are nobody's until a record says otherwise: give them back with `giveBack` if it is not written.
   */
  allocate(want: number, goal: number, fileBlock: number): Run[] {
    const runs: Run[] = [];
    let left = want;
    let next = goal;
    // A file that has grown to a multiple of 2 MiB goes on at one in the region as well, at the price of one more
    // extent: from there on a mapping can use huge pages.
    const chunk = this.allocator.chunkBlocks;
    const goesOn = goal % chunk === 0 && goal < this.allocator.blockCount && this.allocator.isFree(goal);
    if (fileBlock > 0 && fileBlock % chunk === 0 && !goesOn) {
      const run = this.allocator.allocateChunks(left);
      if (run !== null) {
        runs.push(run);
        left -= run.count;
        next = run.start + run.count;
      }
    }
    // A sparse region that can take no more has what it took for files that are gone.
    const backed = this.region.isFullBelow === true ? this.#allocateBacked(left) : null;
    if (backed !== null) {
      this.giveBack(runs);
      return backed;
    }
    while (left > 0) {
      const run = this.allocator.allocate(left, next);
      if (run === null) break;
      runs.push(run);
      left -= run.count;
      next = run.start + run.count;
    }
    if (left > 0 && this.pendingBlocks > 0) {
      this.giveBack(runs);
      this.waitForPending("space");
    }
    return runs;
  }

  /** Of what is free, what the region has room for already, though what it lies on is full. */
  #allocateBacked(want: number): Run[] {
    const backed: Run[] = [];
    const hollow: Run[] = [];
    const until = performance.now() + BACKED_MS_MAX;
    for (let left = want; left > 0 && performance.now() < until; ) {
      const run = this.allocator.allocate(Math.min(left, BACKED_BLOCKS), 0);
      if (run === null) break;
      try {
        this.region.allocate?.(run.start * this.blockBytes, run.count * this.blockBytes);
        backed.push(run);
        left -= run.count;
      } catch (error) {
        hollow.push(run);
        if (!(error instanceof FsError && error.code === "ENOSPC")) {
          this.giveBack([...backed, ...hollow]);
          throw error;
        }
      }
    }
    this.giveBack(hollow);
    return backed;
  }

  giveBack(runs: readonly Run[]): void {
    for (const run of runs) this.allocator.free(run.start, run.count);
  }

  /** Nothing is allocated from block `end` on any more: until cut() or restoreTail(). */
  withholdTail(end: number): void {
    this.allocator.withhold(end);
    this.pool.leaveTail();
    // A smaller volume has a shorter log, and with it a smaller reserve.
    this.#segmentBudget = this.#budget(end * this.blockBytes);
    this.pool.trim(this.#reserveTarget());
  }

  /** Whether metadata has the room before the withheld tail that it needs there. */
  hasReserve(): boolean {
    return this.pool.ensure(this.#reserveTarget());
  }

  restoreTail(): void {
    this.allocator.restore();
    this.#segmentBudget = this.#budget(this.superblock.regionBytes);
  }

  #budget(regionBytes: number): number {
    return logBudget({ ...this.#size(), regionBytes });
  }

  /** @param more bytes of records beyond those that there are */
  #size(more = 0): ReserveOf {
    const { segmentBytes, regionBytes } = this.superblock;
    return { segmentBytes, regionBytes, snapshotBytes: this.state.snapshotBytes + more };
  }

  /** Nobody has these blocks, but somebody can reach them: what is free of them goes into quarantine. */
  #adopt({ start, count }: Run): void {
    for (const run of this.allocator.claimFree(start, start + count))
      this.quarantine.adopt(run.start, run.count);
  }

  #releaseThrough(lsn: number): void {
    this.allocator.releaseThrough(lsn);
    this.freeing.releaseThrough(lsn);
  }

  /** Nobody named `owner` can reach blocks any more: those that nobody else can reach are free. */
  releaseQuarantine(owner: number): void {
    for (const run of this.quarantine.release(owner)) this.allocator.freeAfter(run.start, run.count, run.lsn);
    if (this.journal !== null) this.#releaseThrough(this.journal.durableLsn);
  }

  /** Times were changed in memory alone. */
  noteTimes(inode: Inode): void {
    if (this.journal !== null) this.dirtyTimes.add(inode);
  }

  /** Log what noteTimes() has gathered; without room for that they stay in memory. @throws FsError EROFS; Wait */
  flushTimes(): void {
    if (this.dirtyTimes.size === 0 || this.#closing) return;
    if (this.journal === null || this.journal.failure !== null) return;
    try {
      while (this.dirtyTimes.size > 0) this.#flushSomeTimes();
    } catch (error) {
      if (!(error instanceof FsError && error.code === "ENOSPC")) throw error;
    }
  }

  #flushSomeTimes(): void {
    const group = this.begin(false);
    const flushed: Inode[] = [];
    for (const inode of this.dirtyTimes) {
      if (this.state.inodes.get(inode.ino) === inode) group.inode(fieldsOf(inode));
      flushed.push(inode);
      if (group.length > group.capacity / 2) break;
    }
    this.commit();
    for (const inode of flushed) this.dirtyTimes.delete(inode);
  }

  /** Make everything that was done before this call survive a power cut. */
  async sync(): Promise<void> {
    await retrying(() => this.flushTimes());
    if (this.journal !== null) await this.journal.sync();
  }

  /** Free an inode that has no name and no user left. */
  reap(inode: Inode): void {
    if (inode.nlink > 0 || inode.lookups > 0 || inode.opens > 0) return;
    if (this.state.inodes.get(inode.ino) !== inode || this.journal === null) return;
    this.beginFreeing().inodeGone(inode.ino);
    this.commit();
    this.dirtyTimes.delete(inode);
  }

  /** reap() now, or as soon as the log has room; after a failure of the log the next mount does it. */
  reapSoon(inode: Inode): void {
    try {
      this.reap(inode);
    } catch (error) {
      if (error instanceof Wait) {
        error.until.then(
          guarded("freeing an inode", () => this.reapSoon(inode)),
          () => {},
        );
      } else if (!(error instanceof FsError)) throw error;
    }
  }

  async #idle(): Promise<void> {
    while (this.#checkpointing !== null) await this.#checkpointing.catch(() => {});
  }

  #dropOrphans(): void {
    for (const inode of [...this.state.inodes.values()]) {
      if (this.#setAside.has(inode)) continue;
      try {
        this.reap(inode);
      } catch (error) {
        if (error instanceof Wait) throw error;
        // Nothing but its blocks depends on it.
        this.#setAside.add(inode);
        const why = error instanceof Error ? error.message : error;
        this.#tell(`inode ${inode.ino}, which has no name any more, could not be freed: ${why}`);
        if (this.journal?.failure) return;
      }
    }
  }

  /** Segments that the reserve must hold: the next checkpoint, and the log until that is complete. */
  #reserveTarget(): number {
    const log = this.journal?.chain.segments.length ?? 0;
    // The checkpoint under way takes from the reserve, and gives back the one before when it is complete.
    const running = Math.max(0, this.#checkpointNeeds() - this.#checkpointPlaces.segments.length);
    const full = fullReserve(this.#size(this.#promisedBytes), log, this.#segmentBudget) + running;
    return Math.max(full + this.#promisedSegments(), this.#tailReserve());
  }

  /** What the checkpoint that is there will be larger by when all that was promised room is in it. */
  #promisedSegments(): number {
    if (this.#promisedBytes === 0) return 0;
    const { snapshotBytes, segmentBytes } = this.#size(this.#promisedBytes);
    return Math.max(
      0,
      checkpointSegments(snapshotBytes, segmentBytes) - this.#checkpointPlaces.segments.length,
    );
  }

  /**
   * Where the next mount of a sparse region looks first for segments, in a volume as it is now. What metadata has today is free
   * then, but for a checkpoint and the beginning of a log; these may lie anywhere, so there are as many places more.
   */
  #placesOfNextMount(): Run[] {
    if (this.region.allocate === undefined) return [];
    const { segmentBytes } = this.superblock;
    const taken: Run[] = [];
    for (const { name, start, count } of this.metadataRuns())
      if (SEGMENTS.has(name) && start + count <= this.allocator.end) taken.push({ start, count });
    const places = fullReserve(this.#size(), 1, this.#segmentBudget) + this.#snapshotSegments() + 3;
    return this.allocator.alignedPlaces(places, segmentBytes / this.blockBytes, taken);
  }

  /**
   * As many segments as there must be, and some more: for the log, so that it takes none from between the blocks of files that
   * grow; and where there is plenty of room, for the copies of the next checkpoint beside those of this one.
   */
  #fillReserve(): void {
    const wanted = this.#reserveTarget();
    const copies = this.#snapshotSegments() + 4;
    const plenty = 16 * copies * (this.superblock.segmentBytes / this.blockBytes);
    if (this.allocator.freeBlocks < plenty) {
      this.pool.ensure(wanted);
      this.pool.trim(wanted + 4);
    } else {
      this.pool.ensure(wanted + copies);
      this.pool.trim(wanted + copies + 4);
    }
  }

  /** The log is long, or takes what the next checkpoint needs; a log of one segment gives nothing back. */
  #checkpointDue(logSegments: number): boolean {
    return (
      logSegments > this.#segmentBudget || (logSegments > 1 && this.pool.available < this.#leastReserve())
    );
  }

  /** While the tail is withheld: what is to be left when metadata has been written anew before it, and what that takes. */
  #tailReserve(): number {
    const { end, blockCount } = this.allocator;
    if (end === blockCount) return 0;
    let kept = 0;
    for (const { name, start, count } of this.metadataRuns())
      if (start + count <= end && GIVEN_BACK.has(name)) kept += 1;
    return leastReserve(this.#size()) + Math.max(0, this.#snapshotSegments() + 2 - kept);
  }

  #leastReserve(): number {
    return leastReserve(this.#size()) + this.#checkpointNeeds();
  }

  /** Nothing is left but what the next checkpoint needs: what makes metadata larger had better not go on. */
  reserveIsLow(): boolean {
    return !this.pool.ensure(this.#leastReserve());
  }

  /**
   * A further change might be the last: it would leave less than the next checkpoint takes. No change gets there by itself;
   * a volume that an earlier version made, or that was cut out of a damaged one, may begin there.
   */
  #reserveIsSpent(): boolean {
    if (this.#checkpointing !== null || this.pool.ensure(this.#leastReserve())) return false;
    const log = this.journal?.chain.segments.length ?? 0;
    return this.pool.available + (log > 1 ? 1 : 0) < this.#snapshotSegments() + 2;
  }

  /** Segments that the checkpoint under way will still take, at most. */
  #checkpointNeeds(): number {
    const checkpoint = this.#checkpoint;
    if (checkpoint === null || checkpoint.captured) return 0;
    return Math.max(1, this.#snapshotSegments() - checkpoint.segments.length);
  }

  #lacksLogSpace(): boolean {
    return this.#checkpoint?.failed !== true && this.pool.available < 3 + this.#checkpointNeeds();
  }

  /** A longer slice than usual; if it fails, whoever runs the checkpoint hears of it. */
  #hurryCheckpoint(): void {
    try {
      this.#checkpoint?.step(50);
    } catch (error) {
      if (!(error instanceof FsError)) throw error;
    }
  }

  /**
   * One that found no room is tried again only when there is enough for certain, or the state has become smaller: each
   * attempt costs log, too, and who waits for it would wait for the next, and so on.
   */
  #checkpointFits(): boolean {
    const tooMany = this.#tooManyBytes;
    if (this.pool.available > this.#snapshotSegments()) return true;
    return this.state.snapshotBytes < Math.max(tooMany * 0.75, tooMany - 2 * this.superblock.segmentBytes);
  }

  #snapshotSegments(): number {
    return checkpointSegments(this.state.snapshotBytes, this.superblock.segmentBytes);
  }

  /** A checkpoint is being written. */
  get checkpointing(): boolean {
    return this.#checkpointing !== null;
  }

  /** Write a checkpoint in slices. Resolves when the superblocks name it; a second call joins the first. */
  checkpoint(): Promise<void> {
    return this.#checkpointing ?? this.#alone(this.#runCheckpoint(false));
  }

  /**
   * The volume has so many bytes from now on; the region reaches that far, durably. Nothing behind the old end is
   * allocated before both superblocks say so. @throws FsError EROFS, EIO
   */
  async extend(regionBytes: number): Promise<void> {
    const before = this.allocator.blockCount;
    await this.#rewriteSuperblock({ regionBytes }, () => {
      this.state.setBlockCount(regionBytes / this.blockBytes);
      this.allocator.extend(regionBytes / this.blockBytes);
      // From before a time when the volume was smaller.
      for (const run of this.quarantine.claimedRuns(before, this.allocator.blockCount - before))
        this.#adopt(run);
      this.#segmentBudget = this.#budget(regionBytes);
      // One that found no room may find it now.
      this.#tooManyBytes = Number.POSITIVE_INFINITY;
    });
  }

  /** Both superblocks with a change, durably; `after` runs at once when they are. @throws FsError EROFS, EIO */
  async #rewriteSuperblock(change: Partial<SuperblockValue>, after: () => void = () => {}): Promise<void> {
    // Not #idle(): between its end and ours the next one may begin.
    while (this.#checkpointing !== null) await this.#checkpointing.catch(() => {});
    const journal = this.writable();
    const write = async (): Promise<void> => {
      const { superblock } = this;
      const changed = { ...superblock, ...change, sequence: superblock.sequence + 1 };
      try {
        await writeSuperblock(this.region, changed);
      } catch (error) {
        journal.failure ??= error as Error;
        throw error;
      }
      this.superblock = changed;
      after();
    };
    // In place of a checkpoint: that would write the superblocks as well.
    await this.#alone(write());
  }

  /** The volume has another label, durably. @throws FsError EROFS, EIO */
  async relabel(label: string): Promise<void> {
    await this.#rewriteSuperblock({ label });
  }

  /**
   * What the allocator withholds is no part of the volume any more: metadata moves before the new end, and then the
   * superblocks say so. False, and nothing has changed, if a file still has a block there, or a freed one is not
   * durably so. @throws FsError EROFS, ENOSPC (metadata does not fit), EIO
   */
  async cut(): Promise<boolean> {
    while (this.#checkpointing !== null) await this.#checkpointing.catch(() => {});
    const journal = this.writable();
    const { end } = this.allocator;
    let metadata = 0;
    for (const run of this.metadataRuns()) {
      if (run.name !== "quarantine")
        metadata += Math.max(0, run.start + run.count - Math.max(run.start, end));
    }
    if (this.allocator.usedBehindEnd > metadata) return false;
    // Nothing can come there any more. The log from here on, and the checkpoint that begins with it, know of nothing
    // there; until both superblocks name them the old ones stay as they are.
    journal.leaveTail(end * this.blockBytes);
    await this.#alone(this.#runCheckpoint(false, end * this.blockBytes));
    return true;
  }

  #alone(running: Promise<void>): Promise<void> {
    this.#checkpointing = running.finally(() => {
      this.#checkpointing = null;
      this.#checkpoint = null;
    });
    return this.#checkpointing;
  }

  /** @param regionBytes a smaller size that the volume has from its end on */
  async #runCheckpoint(clean: boolean, regionBytes = this.superblock.regionBytes): Promise<void> {
    const journal = this.journal;
    if (journal === null) throw new FsError("EROFS", "read-only");
    if (journal.failure !== null) throw journal.failure;
    let checkpoint: Checkpoint;
    try {
      checkpoint = new Checkpoint(
        this.region,
        this.recovery.geometry,
        this.pool,
        this.state,
        this.superblock.incarnations + 1,
        journal,
      );
    } catch (error) {
      if (error instanceof FsError && error.code === "ENOSPC") this.#tooManyBytes = this.state.snapshotBytes;
      else journal.failure ??= error as Error;
      throw error;
    }
    this.#checkpoint = checkpoint;
    try {
      for (;;) {
        if (journal.failure !== null) throw journal.failure;
        const from = performance.now();
        const done = checkpoint.step(clean ? 1000 : SLICE_MS);
        this.counters.longestSliceMs = Math.max(this.counters.longestSliceMs, performance.now() - from);
        if (done) break;
        if (!clean) await new Promise((resolve) => setImmediate(resolve));
      }
    } catch (error) {
      checkpoint.abandon(this.pool);
      if (error instanceof FsError && error.code === "ENOSPC") this.#tooManyBytes = this.state.snapshotBytes;
      else journal.failure ??= error as Error;
      throw error;
    }
    const { places } = checkpoint;
    await copyCheckpoint(this.region, this.recovery.geometry, this.pool, places);
    try {
      this.superblock = await checkpoint.finish(
        { ...this.superblock, regionBytes },
        clean,
        clean && this.allocator.isLastFree,
      );
    } catch (error) {
      // Half written: the old checkpoint and log may still be the truth, so nothing may be reused.
      journal.failure ??= error as Error;
      throw error;
    }
    // Nothing on the media names the old segments any more.
    const before = this.#checkpointPlaces;
    for (const segment of before.segments) this.pool.give(segment);
    for (const copy of before.copies) if (copy !== null) this.pool.copies.give(copy);
    for (const segment of journal.chain.dropBefore(this.superblock.logSegment)) this.pool.give(segment);
    this.#checkpointPlaces = places;
    if (regionBytes < this.allocator.blockCount * this.blockBytes) {
      this.state.setBlockCount(regionBytes / this.blockBytes);
      this.allocator.cut();
    }
    this.counters.checkpoints += 1;
    this.#tooManyBytes = Number.POSITIVE_INFINITY;
    this.#segmentBudget = this.#budget(this.allocator.end * this.blockBytes);
    // Those for which there was no room before; the next mount looks for them where the table says.
    await copyCheckpoint(this.region, this.recovery.geometry, this.pool, places, clean);
    if (clean) await this.region.sync();
    this.#fillReserve();
  }

  /** Final checkpoint; afterwards the volume is clean and this object of no use. The region stays open. */
  async close(): Promise<void> {
    // One that comes late would destroy what the next mount has stored.
    await this.discards.end();
    const journal = this.journal;
    if (journal === null) return;
    for (const inode of this.state.inodes.values()) {
      inode.lookups = 0;
      inode.opens = 0;
    }
    await this.#idle();
    if (journal.failure !== null) throw journal.failure;
    await retrying(() => this.#dropOrphans());
    await retrying(() => this.flushTimes());
    await this.#idle();
    await this.cleared();
    if (!this.pool.ensure(this.#snapshotSegments())) await this.#clearSegments().catch(() => {});
    // No change from here on, and the last barrier before the final checkpoint: a clean log is an empty one.
    this.#closing = true;
    await journal.sync();
    if (this.pool.ensure(this.#snapshotSegments())) {
      try {
        await this.#alone(this.#runCheckpoint(true));
        return;
      } catch (error) {
        if (!(error instanceof FsError && error.code === "ENOSPC")) throw error;
      }
    }
    await this.#closeWithLog(journal);
  }

  /** There is no room for a checkpoint: the superblocks say where the log ends, and the next mount goes on there. */
  async #closeWithLog(journal: Journal): Promise<void> {
    const { nextLsn } = journal.chain;
    const empty = nextLsn === this.superblock.logLsn;
    this.region.drain();
    await this.region.sync();
    this.superblock = {
      ...this.superblock,
      sequence: this.superblock.sequence + 1,
      state: empty ? VolumeState.CLEAN : VolumeState.MOUNTED,
      tailLsn: nextLsn,
    };
    await writeSuperblock(this.region, this.superblock, this.allocator.isLastFree);
    if (!empty)
      this.#tell(
        "there was no room for a checkpoint: the log keeps what was done, and the next mount reads it",
      );
  }

  /** Runs that metadata occupies or holds in reserve, for the invariants. */
  *metadataRuns(): IterableIterator<{ name: string; start: number; count: number }> {
    const count = this.superblock.segmentBytes / this.blockBytes;
    yield { name: "superblocks", start: 0, count: Math.ceil(RESERVED_BYTES / this.blockBytes) };
    for (const segment of this.#checkpointPlaces.segments)
      yield { name: "checkpoint", start: segment / this.blockBytes, count };
    for (const segment of this.#checkpoint?.segments ?? []) {
      if (!this.#checkpointPlaces.segments.includes(segment))
        yield { name: "next checkpoint", start: segment / this.blockBytes, count };
    }
    const checkpointSpare = this.#checkpoint?.spare ?? 0;
    if (checkpointSpare !== 0)
      yield { name: "next checkpoint's spare", start: checkpointSpare / this.blockBytes, count };
    const chain = this.journal?.chain;
    if (chain === undefined) {
      for (const segment of this.recovery.log.segments)
        yield { name: "log", start: segment / this.blockBytes, count };
    } else {
      for (const segment of chain.segments) yield { name: "log", start: segment / this.blockBytes, count };
      if (chain.spare !== 0) yield { name: "log spare", start: chain.spare / this.blockBytes, count };
    }
    for (const run of this.quarantine.heldRuns()) yield { name: "quarantine", ...run };
    for (const run of this.pool.runs()) yield { name: "reserve", ...run };
    for (const run of this.#clearer.runs()) yield { name: "reserve being cleared", ...run };
  }
}

/** What a checkpoint gives back when it is complete (metadataRuns). */
const GIVEN_BACK: ReadonlySet<string> = new Set(["checkpoint", "log", "log spare"]);

function placesOf({ checkpoint, superblock }: Recovery): CheckpointPlaces {
  const { segments, offset } = checkpoint;
  return { incarnation: superblock.checkpointIncarnation, segments, lastBytes: offset, copies: [] };
}

/** Keep the copies that are on the media, as far as nobody else has their blocks. */
function adoptCopies(
  region: Region,
  { geometry }: Recovery,
  pool: SegmentPool,
  checkpoint: CheckpointPlaces,
): void {
  const { incarnation, segments } = checkpoint;
  const role = SegmentRole.CHECKPOINT;
  const table = readCopyTable(region, role, geometry.seed);
  if (table === null || table === "damaged" || table.incarnation !== incarnation) return;
  checkpoint.copies = segments.map((segment, index) => {
    const copy = table.copies[index - table.firstIndex] ?? 0;
    const isThere = isCopyOf(region, geometry, copy, { role, index, incarnation, segment });
    return isThere ? pool.adoptCopy(copy) : null;
  });
}
/** What is a whole segment (metadataRuns). */
const SEGMENTS: ReadonlySet<string> = new Set([
  ...GIVEN_BACK,
  "next checkpoint",
  "next checkpoint's spare",
  "reserve",
]);

/** Blocks of all files, unordered. */
function usedRuns(state: State): Run[] {
  const runs: Run[] = [];
  for (const inode of state.inodes.values()) {
    for (const { physical, count } of inode.extents ?? []) runs.push({ start: physical, count });
  }
  return runs;
}

/** For a promise that may be rejected for lack of space, which is then no failure. */
function butNoSpace(error: unknown): void {
  if (!(error instanceof FsError && error.code === "ENOSPC")) throw error;
}
