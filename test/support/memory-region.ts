/**
 * A region in memory, for tests that need thousands of file systems or a medium that fails when told to. The daemon
 * never imports it.
 *
 * Invariants:
 * - it keeps the contract of every backend (test/contract/region.contract.ts);
 * - a fault is answered before any byte moves: a failed write changed nothing;
 * - `image()` and `fromImage()` copy: no two regions share bytes.
 */
import { FsError, InvariantError } from "../../src/base/errors.ts";
import { checkDisjoint, checkRange, checkSlice } from "../../src/region/bounds.ts";
import type { Granularity, Region, RegionFacts } from "../../src/region/region.ts";

export interface MemoryRegionOptions {
  granularity?: Granularity;
  path?: string;
  mapAlignmentBytes?: number;
}

interface Range {
  readonly begin: number;
  readonly end: number;
}

export class MemoryRegion implements Region {
  readonly facts: RegionFacts;
  readonly #bytes: Uint8Array;
  #syncError: Error | null = null;
  #closed = false;
  #badReads: Range[] = [];
  #badWrites: Range[] = [];
  #nextSyncFails = false;

  private constructor(bytes: Uint8Array, options: MemoryRegionOptions) {
    const { granularity = "cacheline", path = "memory", mapAlignmentBytes = 4096 } = options;
    this.#bytes = bytes;
    this.facts = {
      path,
      kind: "memory",
      sizeBytes: bytes.length,
      granularity,
      mapSync: false,
      assumed: false,
      mapAlignmentBytes,
      flushMethod: granularity === "cacheline" ? "clwb" : "msync",
      device: 0n,
      inode: 0n,
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

  /** A copy of all bytes as they are now; also after close. */
  image(): Uint8Array {
    return this.#bytes.slice();
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
    this.#bytes.set(source.subarray(sourceStart, sourceStart + length), offset);
  }

  zero(offset: number, length: number): void {
    this.#check(offset, length);
    if (this.#badWrites.length > 0) strike(this.#badWrites, "zero", offset, length);
    this.#bytes.fill(0, offset, offset + length);
  }

  copy(sourceOffset: number, targetOffset: number, length: number): void {
    this.#check(sourceOffset, length);
    this.#check(targetOffset, length);
    checkDisjoint(sourceOffset, targetOffset, length);
    if (this.#badReads.length > 0) strike(this.#badReads, "copy", sourceOffset, length);
    if (this.#badWrites.length > 0) strike(this.#badWrites, "copy", targetOffset, length);
    this.#bytes.copyWithin(targetOffset, sourceOffset, sourceOffset + length);
  }

  drain(): void {
    if (this.#closed) throw new InvariantError("the region is closed");
  }

  async sync(): Promise<void> {
    if (this.#closed) throw new InvariantError("the region is closed");
    if (this.#nextSyncFails) this.#syncError ??= new FsError("EIO", "sync of the region (injected)");
    if (this.#syncError !== null) throw this.#syncError;
  }

  close(): void {
    this.#closed = true;
  }

  #check(offset: number, length: number): void {
    if (this.#closed) throw new InvariantError("the region is closed");
    checkRange(this.#bytes.length, offset, length);
  }
}

function strike(bad: readonly Range[], operation: string, offset: number, length: number): void {
  for (const { begin, end } of bad) {
    if (offset < end && begin < offset + length) {
      throw new FsError("EIO", `${operation} ${length} bytes at ${offset} of the region (injected)`);
    }
  }
}
