/**
 * What reaches the media when: every store, flush, fence and sync that the daemon issues to a region, cut into *epochs*.
 * Within an epoch the hardware may have carried out any choice of what was stored; at its end all of it is there.
 *
 * - cache-line granularity: units are words of 8 bytes (the largest that a CPU stores whole); a fence ends an epoch;
 *   what was stored through a mapping by somebody else stays open until it has been flushed and fenced;
 * - page granularity: units are sectors of 512 bytes; a sync that is done settles what was stored before it began;
 * - what is discarded is a unit of its own for each block.
 */
import type { MemoryRegion, RegionObserver } from "../support/memory-region.ts";

/** A unit and what it could hold besides what the media held before: oldest first. */
export interface OpenUnit {
  /** Byte offset in the region. */
  readonly at: number;
  readonly versions: readonly Uint8Array[];
}

export interface Epoch {
  readonly units: readonly OpenUnit[];
  /** What is on the media for certain when it is over: for each settled unit its bytes. */
  readonly settled: readonly { readonly at: number; readonly bytes: Uint8Array }[];
}

/** The smallest block. */
const DISCARD_UNIT_BYTES = 4096;

type Versions = Map<number, Uint8Array[]>;

export class Recorder implements RegionObserver {
  readonly unitBytes: number;
  readonly epochs: Epoch[] = [];
  readonly #region: MemoryRegion;
  readonly #cacheline: boolean;
  /** Stored, and due to be settled by the next fence or sync. */
  #open: Versions = new Map();
  /** In somebody's cache, until flushed. */
  readonly #cached: Versions = new Map();
  /** Fences and syncs, for the figures. */
  fences = 0;

  constructor(region: MemoryRegion) {
    this.#region = region;
    this.#cacheline = region.facts.granularity === "cacheline";
    this.unitBytes = this.#cacheline ? 8 : 512;
    region.observer = this;
  }

  /** Epochs since the last call; what is still open is one, too, that settles nothing. */
  take(): Epoch[] {
    this.#finish(new Map());
    return this.epochs.splice(0);
  }

  #note(versions: Versions, begin: number, end: number): void {
    for (let at = begin - (begin % this.unitBytes); at < end; at += this.unitBytes) {
      const bytes = this.#region.peek(at, this.unitBytes);
      const known = versions.get(at);
      if (known === undefined) versions.set(at, [bytes]);
      else known.push(bytes);
    }
  }

  stored(begin: number, end: number): void {
    // Caches are coherent: what somebody else's has of these bytes can be written back before this store, not after it.
    for (const [at, versions] of this.#cached) {
      if (at + this.unitBytes <= begin || at >= end) continue;
      this.#cached.delete(at);
      this.#open.set(at, [...(this.#open.get(at) ?? []), ...versions]);
    }
    this.#note(this.#open, begin, end);
  }

  storedFromOutside(begin: number, end: number): void {
    this.#note(this.#cacheline ? this.#cached : this.#open, begin, end);
  }

  /**
   * What lies below may carry it out at once, later or not at all, block by block, and keeps it in order with the stores to
   * the same block that come after it.
   */
  discarded(begin: number, end: number): void {
    for (let at = begin; at < end; at += DISCARD_UNIT_BYTES) {
      const bytes = this.#region.peek(at, DISCARD_UNIT_BYTES);
      const known = this.#open.get(at);
      // Stored to and freed since the last fence: then it was never durably anybody's.
      if (known !== undefined) known.push(bytes);
      else this.#open.set(at, [bytes]);
    }
  }

  flushed(begin: number, end: number): void {
    for (const [at, versions] of this.#cached) {
      if (at < begin - (begin % 64) || at >= end) continue;
      this.#cached.delete(at);
      this.#open.set(at, [...(this.#open.get(at) ?? []), ...versions]);
    }
  }

  drained(): void {
    if (!this.#cacheline) return;
    this.fences += 1;
    this.#finish(this.#open);
    this.#open = new Map();
  }

  /** Returns what to call when the sync is done. */
  syncBegun(): () => void {
    const covered = this.#open;
    this.#open = new Map();
    // Until it is done, both what it covers and what is stored meanwhile are open.
    const merged: Versions = new Map(covered);
    return () => {
      this.fences += 1;
      for (const [at, versions] of this.#open) merged.set(at, [...(merged.get(at) ?? []), ...versions]);
      const later = this.#open;
      this.#open = merged;
      this.#finish(covered);
      this.#open = later;
    };
  }

  #finish(settled: Versions): void {
    const units = new Map(this.#open);
    for (const [at, versions] of this.#cached) units.set(at, [...(units.get(at) ?? []), ...versions]);
    if (units.size === 0) return;
    this.epochs.push({
      units: [...units].map(([at, versions]) => ({ at, versions: distinct(versions) })),
      settled: [...settled].map(([at, versions]) => ({ at, bytes: versions.at(-1) as Uint8Array })),
    });
  }
}

function distinct(versions: readonly Uint8Array[]): Uint8Array[] {
  return versions.filter(
    (bytes, index) => versions.findIndex((other) => Buffer.compare(other, bytes) === 0) === index,
  );
}
