/**
 * A region in memory, for tests that need thousands of file systems or a medium that fails when told to. The daemon
 * never imports it.
 *
 * Invariants:
 * - it keeps the contract of every backend (test/contract/region.contract.ts);
 * - a fault is answered before any byte moves: a failed write changed nothing;
 * - with `recording`, `afterPowerCut()` is what the media could hold: everything that drain (cacheline) or a resolved
 *   sync (page) covered, and of what was stored since any choice of whole units: 8-byte words of non-temporal stores,
 *   512-byte sectors of written-back pages;
 * - `image()` and `fromImage()` copy: no two regions share bytes, but for those of `on()`.
 */
import { InvariantError, MediaError } from "../../src/base/errors.ts";
import { checkDisjoint, checkRange, checkSlice } from "../../src/region/bounds.ts";
import type { Granularity, Region, RegionFacts } from "../../src/region/region.ts";

export interface MemoryRegionOptions {
  granularity?: Granularity;
  path?: string;
  mapAlignmentBytes?: number;
  /** Keep account of what a power cut could take back. Costs a second copy of the region. */
  recording?: boolean;
}

interface Range {
  readonly begin: number;
  readonly end: number;
}

/** Hears of everything that is done to the bytes, right afterwards. Ranges are [begin, end). */
export interface RegionObserver {
  stored(begin: number, end: number): void;
  storedFromOutside(begin: number, end: number): void;
  discarded(begin: number, end: number): void;
  flushed(begin: number, end: number): void;
  drained(): void;
  /** Returns what to call when the sync is done. */
  syncBegun(): () => void;
}

/** What a power cut cannot take back, what it can, and what a sync under way is about to settle. */
interface Recording {
  readonly unitBytes: number;
  durable: Uint8Array;
  dirty: Range[];
  readonly syncing: Set<{ readonly range: Range; readonly bytes: Uint8Array }[]>;
}

/** What is read where it was discarded. */
const DISCARDED = 0xdd;

export class MemoryRegion implements Region {
  facts: RegionFacts;
  #bytes: Uint8Array;
  #syncError: Error | null = null;
  #closed = false;
  #badReads: Range[] = [];
  #badWrites: Range[] = [];
  #nextSyncFails = false;
  readonly #recording: Recording | null;
  /** Called after each store: a test may take an image here, in the middle of an operation. */
  onStore: () => void = () => {};
  beforeStore: Region["beforeStore"] = null;
  observer: RegionObserver | null = null;

  private constructor(bytes: Uint8Array, options: MemoryRegionOptions) {
    const { granularity = "cacheline", path = "memory", mapAlignmentBytes = 4096 } = options;
    this.#bytes = bytes;
    this.#recording =
      options.recording === true
        ? {
            unitBytes: granularity === "cacheline" ? 8 : 512,
            durable: bytes.slice(),
            dirty: [],
            syncing: new Set(),
          }
        : null;
    this.facts = {
      path,
      kind: "memory",
      sizeBytes: bytes.length,
      found: "memory of this process",
      means: "gone with it",
      dax: false,
      granularity,
      mapSync: false,
      assumed: false,
      mapAlignmentBytes,
      flushMethod: granularity === "cacheline" ? "clwb" : "msync",
      device: 0n,
      inode: 0n,
      access: { uid: 0, gid: 0, mode: 0o600 },
      fallbacks: [],
    };
  }

  /** All zeros. */
  static blank(sizeBytes: number, options: MemoryRegionOptions = {}): MemoryRegion {
    return new MemoryRegion(new Uint8Array(sizeBytes), options);
  }

  /** A region that starts with a copy of these bytes, as after a restart. */
  static fromImage(image: Uint8Array, options: MemoryRegionOptions = {}): MemoryRegion {
    return new MemoryRegion(Uint8Array.from(image), options);
  }

  /** A region on these very bytes, for many looks at images that differ by little. */
  static on(bytes: Uint8Array, options: MemoryRegionOptions = {}): MemoryRegion {
    return new MemoryRegion(bytes, options);
  }

  /** A copy of all bytes as they are now; also after close. */
  image(): Uint8Array {
    return this.#bytes.slice();
  }

  /**
   * The bytes as a power cut now could leave them; needs `recording`.
   * @param kept decides for each unit stored since the last drain or sync whether its store has reached the media.
   */
  afterPowerCut(kept: () => boolean): Uint8Array {
    const recording = this.#needRecording();
    const left = recording.durable.slice();
    for (const sync of recording.syncing) {
      for (const { range, bytes } of sync) choose(left, range, recording.unitBytes, bytes, range.begin, kept);
    }
    for (const range of recording.dirty) {
      choose(left, range, recording.unitBytes, this.#bytes.subarray(range.begin), range.begin, kept);
    }
    return left;
  }

  /** The kernel writes pages back, or the caches evict lines, whenever they like: some units now. */
  writeBack(kept: () => boolean): void {
    const recording = this.#needRecording();
    // A sync under way settles what it covers with the bytes of its beginning, which may not undo newer ones.
    if (recording.syncing.size === 0) recording.durable.set(this.afterPowerCut(kept));
  }

  /** From now on, reading any byte of the range is EIO. */
  failReads(offset: number, length: number): void {
    this.#badReads.push({ begin: offset, end: offset + length });
  }

  /** From now on, storing to any byte of the range is EIO. */
  failWrites(offset: number, length: number): void {
    this.#badWrites.push({ begin: offset, end: offset + length });
  }

  /** The next sync fails; and so, as on every region, does each one after it. */
  failSync(): void {
    this.#nextSyncFails = true;
  }

  /** Forget the ranges that fail. A failed sync stays failed: only reopening (fromImage) helps. */
  heal(): void {
    this.#badReads = [];
    this.#badWrites = [];
    this.#nextSyncFails = false;
  }

  get syncError(): Error | null {
    return this.#syncError;
  }

  read(offset: number, target: Uint8Array, targetStart: number, length: number): void {
    this.#check(offset, length);
    checkSlice(target, targetStart, length);
    if (this.#badReads.length > 0) strike(this.#badReads, "read", offset, length);
    target.set(this.#bytes.subarray(offset, offset + length), targetStart);
  }

  write(offset: number, source: Uint8Array, sourceStart: number, length: number): void {
    this.#check(offset, length);
    checkSlice(source, sourceStart, length);
    if (this.#badWrites.length > 0) strike(this.#badWrites, "write", offset, length);
    this.beforeStore?.(offset, length);
    this.#bytes.set(source.subarray(sourceStart, sourceStart + length), offset);
    this.#stored(offset, length);
  }

  zero(offset: number, length: number): void {
    this.#check(offset, length);
    if (this.#badWrites.length > 0) strike(this.#badWrites, "zero", offset, length);
    this.beforeStore?.(offset, length);
    this.#bytes.fill(0, offset, offset + length);
    this.#stored(offset, length);
  }

  copy(sourceOffset: number, targetOffset: number, length: number): void {
    this.#check(sourceOffset, length);
    this.#check(targetOffset, length);
    checkDisjoint(sourceOffset, targetOffset, length);
    if (this.#badReads.length > 0) strike(this.#badReads, "copy", sourceOffset, length);
    if (this.#badWrites.length > 0) strike(this.#badWrites, "copy", targetOffset, length);
    this.beforeStore?.(targetOffset, length);
    this.#bytes.copyWithin(targetOffset, sourceOffset, sourceOffset + length);
    this.#stored(targetOffset, length);
  }

  /** As a direct mapping of another process stores: seen at once, and in the CPU's caches until it is flushed. */
  storeFromOutside(offset: number, source: Uint8Array): void {
    this.#check(offset, source.length);
    this.#bytes.set(source, offset);
    this.observer?.storedFromOutside(offset, offset + source.length);
  }

  /** A copy of some bytes as they are now. */
  peek(offset: number, length: number): Uint8Array {
    return this.#bytes.slice(offset, offset + length);
  }

  flush(offset: number, length: number): void {
    this.#check(offset, length);
    if (this.facts.granularity !== "cacheline") return;
    this.#recording?.dirty.push({ begin: offset, end: offset + length });
    this.observer?.flushed(offset, offset + length);
  }

  unload(offset: number, length: number): void {
    this.#check(offset, length);
  }

  drain(): void {
    if (this.#closed) throw new InvariantError("the region is closed");
    if (this.#recording !== null && this.facts.granularity === "cacheline") {
      for (const { begin, end } of this.#recording.dirty) {
        this.#recording.durable.set(this.#bytes.subarray(begin, end), begin);
      }
      this.#recording.dirty = [];
    }
    this.observer?.drained();
  }

  async sync(): Promise<void> {
    if (this.#closed) throw new InvariantError("the region is closed");
    if (this.#nextSyncFails) this.#syncError ??= new MediaError("sync of the region (injected)");
    if (this.#syncError !== null) throw this.#syncError;
    const recording = this.#recording;
    if (this.facts.granularity === "cacheline") {
      this.drain();
      return;
    }
    const settled = this.observer?.syncBegun();
    if (recording === null) {
      if (settled !== undefined) await new Promise((resolve) => setImmediate(resolve));
      settled?.();
      return;
    }
    const covered = recording.dirty.map((range) => ({
      range,
      bytes: this.#bytes.slice(range.begin, range.end),
    }));
    recording.dirty = [];
    recording.syncing.add(covered);
    // Let others store, and tests cut the power, before it is done.
    await new Promise((resolve) => setImmediate(resolve));
    for (const { range, bytes } of covered) recording.durable.set(bytes, range.begin);
    recording.syncing.delete(covered);
    settled?.();
  }

  /** Whatever lies below may answer anything for what it was told is not used: here, what nobody has ever stored. */
  async discard(offset: number, length: number): Promise<void> {
    this.#check(offset, length);
    if (this.#closed) throw new InvariantError("the region is closed");
    if (this.beforeStore !== null)
      throw new InvariantError("a discard while somebody wants the bytes of before");
    // On another thread: others have their turn before it happens.
    await new Promise((resolve) => setImmediate(resolve));
    this.#bytes.fill(DISCARDED, offset, offset + length);
    this.#stored(offset, length, true);
  }

  measure(): number {
    return this.#bytes.length;
  }

  /** As a file grows: what is new reads as zeros. */
  async grow(sizeBytes: number): Promise<void> {
    if (this.#closed) throw new InvariantError("the region is closed");
    if (sizeBytes <= this.#bytes.length) return;
    const larger = (before: Uint8Array): Uint8Array => {
      const bytes = new Uint8Array(sizeBytes);
      bytes.set(before);
      return bytes;
    };
    this.#bytes = larger(this.#bytes);
    if (this.#recording !== null) this.#recording.durable = larger(this.#recording.durable);
    this.facts = { ...this.facts, sizeBytes };
  }

  close(): void {
    this.#closed = true;
  }

  #stored(offset: number, length: number, discarded = false): void {
    if (this.#recording !== null && length > 0) {
      // Whole units: the hardware writes no less.
      const unit = this.#recording.unitBytes;
      const begin = offset - (offset % unit);
      const end = Math.min(Math.ceil((offset + length) / unit) * unit, this.#bytes.length);
      this.#recording.dirty.push({ begin, end });
    }
    if (discarded) this.observer?.discarded(offset, offset + length);
    else if (length > 0) this.observer?.stored(offset, offset + length);
    this.onStore();
  }

  #needRecording(): Recording {
    if (this.#recording === null) throw new InvariantError("the region was made without recording");
    return this.#recording;
  }

  #check(offset: number, length: number): void {
    if (this.#closed) throw new InvariantError("the region is closed");
    checkRange(this.#bytes.length, offset, length);
  }
}

/** Copy some of the units of a range from `bytes`, which begins at `base`. */
function choose(
  target: Uint8Array,
  range: Range,
  unitBytes: number,
  bytes: Uint8Array,
  base: number,
  kept: () => boolean,
): void {
  for (let at = range.begin; at < range.end; at += unitBytes) {
    if (!kept()) continue;
    const end = Math.min(at + unitBytes, range.end);
    target.set(bytes.subarray(at - base, end - base), at);
  }
}

function strike(bad: readonly Range[], operation: string, offset: number, length: number): void {
  for (const { begin, end } of bad) {
    if (offset < end && begin < offset + length) {
      throw new MediaError(`${operation} ${length} bytes at ${offset} of the region (injected)`);
    }
  }
}
