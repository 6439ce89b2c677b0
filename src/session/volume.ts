/** A volume with its leases: what a session serves, and what tests use without a mount. */
import { dateInWords } from "../base/clock.ts";
import { FsError } from "../base/errors.ts";
import { every } from "../base/faults.ts";
import { rescue } from "../fsck/fsck.ts";
import type { Mapper } from "../lease/ghosts.ts";
import { type LeasePolicy, LeaseTable } from "../lease/table.ts";
import { FORMAT_VERSION } from "../media/format.ts";
import { formatUuid } from "../media/mkfs.ts";
import { Store } from "../namespace/store.ts";
import type { Granularity, Region, RegionKindName } from "../region/region.ts";
import { blocksIn, union } from "../space/runs.ts";
import { DirectStores } from "./direct-stores.ts";
import { orphanedMappers } from "./orphan-report.ts";
import { Orphans } from "./orphans.ts";

export interface VolumeOptions extends LeasePolicy {
  readonly readOnly: boolean;
  /** Read-only, and though it be damaged: what can be read of it. */
  readonly rescue?: boolean;
  /** What has been free for so long is told to what the region lies on; null: never. */
  readonly discardAfterSeconds?: number | null;
  /** A line for whoever runs the daemon. */
  readonly tell?: (text: string) => void;
}

/** What `mapdirect info --json` shows; keys are stable. Sizes are bytes. */
export interface VolumeInfo {
  readonly uuid: string;
  readonly label: string;
  readonly format_version: number;
  readonly block_size: number;
  readonly segment_size: number;
  readonly size: number;
  readonly used: number;
  readonly free: number;
  readonly metadata: number;
  /** Of that, kept free for what frees space; and what it takes for metadata to grow: with less it is ENOSPC. */
  readonly metadata_reserve: number;
  readonly metadata_reserve_needed: number;
  /** Freed, but still within reach of somebody who has not let go. */
  readonly quarantined: number;
  /** Processes that still map files from before this mount, and how much of them, bytes. */
  readonly orphaned_mappings: { readonly processes: number; readonly bytes: number };
  readonly inodes: number;
  readonly created: string;
  readonly read_only: string | null;
  readonly region: {
    readonly path: string;
    readonly kind: RegionKindName;
    /** What it lies on, and what that means for mappings, in words. */
    readonly found: string;
    readonly means: string;
    readonly size: number;
    readonly granularity: Granularity;
    readonly dax: boolean;
    readonly map_sync: boolean;
    readonly assumed: boolean;
    readonly map_alignment: number;
    readonly flush_method: string;
    readonly fallbacks: readonly string[];
    /** Free where it lies, null where that has no bound; and whether a store has found no room there. */
    readonly free_below: number | null;
    readonly full_below: boolean;
    /** Whether something lies below that may take discards, and how many bytes it has been told of since the mount. */
    readonly discards: boolean;
    readonly discarded: number;
  };
  readonly recovery: {
    readonly label: string;
    readonly why: string;
    readonly groups_applied: number;
    readonly groups_dropped: number;
    readonly warnings: readonly string[];
  };
}

/** Write-back of page-granular regions, and of times: nothing is older than this when the power fails, milliseconds. */
const WRITE_BACK_MS = 4000;

/** What cannot be written is in the journal's failure, and lacking space mends itself. */
function butRefused(error: unknown): void {
  if (!(error instanceof FsError)) throw error;
}

export class Volume {
  readonly store: Store;
  readonly leases: LeaseTable;
  readonly directStores: DirectStores;
  readonly options: VolumeOptions;
  readonly #timers: NodeJS.Timeout[] = [];
  readonly #orphans: Orphans | null;
  #toldFull = false;

  private constructor(store: Store, options: VolumeOptions, orphans: Orphans | null) {
    this.#orphans = orphans;
    orphans?.watch(store);
    this.store = store;
    this.options = options;
    this.leases = new LeaseTable(options);
    this.directStores = new DirectStores(store, this.leases);
    store.guard = this.leases;
    this.leases.events = {
      onBreak: () => {},
      onRefusal: () => {},
      onRevoked: (lease) => {
        try {
          store.quarantine.claim(lease.id, lease.runs);
        } catch (error) {
          // Its blocks would be given to others while its holder can still store to them.
          store.distrust(error);
          throw error;
        }
      },
      onEnded: (lease) => store.releaseQuarantine(lease.id),
    };
    this.#every(WRITE_BACK_MS, "write-back", async () => {
      this.#lookBelow();
      // A failure is sticky in the journal, which tells of it; who writes next hears of it, too.
      if (this.store.journal?.failure === null) await this.store.sync().catch(butRefused);
    });
    const { discardAfterSeconds: seconds = null } = options;
    if (seconds === null || store.journal === null) return;
    store.discards.follow((text) => options.tell?.(text));
    this.#every(seconds * 1000, "discarding", () => store.discards.discardFreed());
  }

  #every(milliseconds: number, what: string, run: () => unknown): void {
    this.#timers.push(every(milliseconds, what, run).unref());
  }

  /** @throws CorruptionError, FsError EINVAL: see Store.open. */
  static async open(region: Region, options: VolumeOptions): Promise<Volume> {
    if (options.rescue === true) return new Volume(Store.openRescued(region, rescue(region)), options, null);
    let orphans: Orphans | null = null;
    const store = await Store.open(region, {
      readOnly: options.readOnly,
      ...(options.tell === undefined ? {} : { tell: options.tell }),
      reachable: async (found) => {
        orphans = await Orphans.find(region, found);
        return orphans.claim;
      },
    });
    return new Volume(store, options, orphans);
  }

  /** Who may still map files from before, and what blocks. */
  get orphanedMappers(): readonly Mapper[] {
    return this.#orphans?.mappers ?? [];
  }

  /** What whoever mounts should know of those who may still map the region from before. */
  get orphanWarnings(): readonly string[] {
    return this.#orphans?.warnings ?? [];
  }

  summary(): VolumeInfo {
    const { store } = this;
    const { superblock, recovery } = store;
    const facts = store.region.facts;
    const free = this.freeBlocks;
    let metadataBlocks = 0;
    for (const run of store.metadataRuns()) metadataBlocks += run.count;
    const orphaned = orphanedMappers(this);
    return {
      uuid: formatUuid(superblock.uuid),
      label: superblock.label,
      format_version: FORMAT_VERSION,
      block_size: store.blockBytes,
      segment_size: superblock.segmentBytes,
      size: superblock.regionBytes,
      used: superblock.regionBytes - free * store.blockBytes,
      free: free * store.blockBytes,
      metadata: metadataBlocks * store.blockBytes,
      metadata_reserve: store.reserve.held * superblock.segmentBytes,
      metadata_reserve_needed: store.reserve.wanted * superblock.segmentBytes,
      quarantined: store.quarantine.blocks * store.blockBytes,
      orphaned_mappings: {
        processes: orphaned.length,
        bytes: blocksIn(union(orphaned.flatMap(({ runs }) => runs))) * store.blockBytes,
      },
      inodes: store.state.inodes.size,
      created: dateInWords(superblock.createdSec),
      read_only: store.readOnlyReason ?? store.journal?.failure?.message ?? null,
      region: {
        path: facts.path,
        kind: facts.kind,
        found: facts.found,
        means: facts.means,
        size: facts.sizeBytes,
        granularity: facts.granularity,
        dax: facts.dax,
        map_sync: facts.mapSync,
        assumed: facts.assumed,
        map_alignment: facts.mapAlignmentBytes,
        flush_method: facts.flushMethod,
        fallbacks: facts.fallbacks,
        free_below: store.region.below?.()?.freeBytes ?? null,
        full_below: store.region.isFullBelow === true,
        discards: store.discards.arePossible,
        discarded: store.discards.blocks * store.blockBytes,
      },
      recovery: {
        label: recovery.label,
        why: recovery.why,
        groups_applied: recovery.groupsApplied,
        groups_dropped: recovery.groupsDropped,
        warnings: recovery.warnings,
      },
    };
  }

  /**
   * Blocks that a file could get: free ones, and those that the next sync frees; of a sparse region no more than it has
   * taken room for, or can still take.
   */
  get freeBlocks(): number {
    const { allocator, region, blockBytes } = this.store;
    const free = allocator.freeBlocks + this.store.pendingBlocks;
    const below = region.below?.() ?? null;
    if (below === null) return free;
    const usedBytes = (allocator.blockCount - free) * blockBytes;
    const room = Math.max(0, below.allocatedBytes - usedBytes) + below.freeBytes;
    return Math.min(free, Math.floor(room / blockBytes));
  }

  /** Whether the region has just found no room where it lies: told once, and once when there is some again. */
  #lookBelow(): void {
    const { region, superblock } = this.store;
    const isFull = region.isFullBelow === true;
    if (isFull) {
      const freeBytes = region.below?.()?.freeBytes ?? Number.POSITIVE_INFINITY;
      if (freeBytes >= superblock.segmentBytes) region.isFullBelow = false;
    }
    if (isFull === this.#toldFull) return;
    this.#toldFull = isFull;
    const { path } = region.facts;
    this.options.tell?.(
      isFull
        ? `the disk below is full: ${path} is sparse, and can take no more (ENOSPC); make room where it lies`
        : `the disk below has room again for ${path}`,
    );
  }

  /** Final checkpoint. The region stays open. @throws what made the log fail; then the next mount recovers. */
  async close(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    this.#lookBelow();
    this.#orphans?.close();
    this.leases.close();
    try {
      await this.store.close();
    } catch (error) {
      if (error instanceof Error) {
        throw new Error(`the volume could not be closed cleanly: ${error.message}`, { cause: error });
      }
      throw error;
    }
  }
}
