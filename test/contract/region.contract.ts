/**
 * What every Region backend keeps, said once. A runner calls `regionContract` with a way to make a region; a backend
 * that this machine cannot offer is skipped with its reason.
 */
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { InvariantError } from "../../src/base/errors.ts";
import type { Granularity, Region } from "../../src/region/region.ts";

export interface RegionUnderTest {
  readonly region: Region;
  /** Make what lies behind it larger, if it does not grow by itself. */
  enlarge?(sizeBytes: number): void;
  /** The stored bytes as another process sees them. */
  outside(offset: number, length: number): Uint8Array;
  /** Close the region and open the same bytes again. */
  reopen(): Region;
  dispose(): void;
}

export interface RegionBackend {
  readonly name: string;
  readonly kind: Region["facts"]["kind"];
  readonly granularity: Granularity;
  /** Why it cannot be had here, or null. */
  readonly unavailable: string | null;
  make(sizeBytes: number): RegionUnderTest;
}

const SIZE = 1 << 20;

/** Bytes that differ from their neighbours and from zero. */
export function pattern(length: number, seed = 1): Uint8Array {
  let state = seed >>> 0 || 1;
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 24) | 1;
  });
}

export function regionContract(backend: RegionBackend): void {
  const title =
    backend.unavailable === null ? backend.name : `${backend.name} (skipped: ${backend.unavailable})`;

  describe.skipIf(backend.unavailable !== null)(`region contract: ${title}`, () => {
    let made: RegionUnderTest;
    let region: Region;

    beforeEach(() => {
      made = backend.make(SIZE);
      region = made.region;
    });
    afterEach(() => made.dispose());

    const readBack = (from: Region, offset: number, length: number): Uint8Array => {
      const bytes = new Uint8Array(length);
      from.read(offset, bytes, 0, length);
      return bytes;
    };

    test("its facts say what it is", () => {
      const { facts } = region;
      expect(facts.kind).toBe(backend.kind);
      expect(facts.granularity).toBe(backend.granularity);
      expect(facts.sizeBytes).toBe(SIZE);
      expect(facts.mapAlignmentBytes % 4096).toBe(0);
      expect(facts.flushMethod === "msync").toBe(backend.granularity === "page");
      expect(facts.assumed && facts.mapSync).toBe(false);
    });

    test("a new region reads as zeros", () => {
      expect(readBack(region, 0, SIZE).every((byte) => byte === 0)).toBe(true);
    });

    test("whoever asked for it is called before bytes change, with the bytes as they were", () => {
      const seen: [number, number, Uint8Array][] = [];
      region.write(4096, pattern(64), 0, 64);
      region.beforeStore = (offset, length) => seen.push([offset, length, readBack(region, offset, length)]);
      region.write(4100, pattern(8, 2), 0, 8);
      region.zero(4096, 16);
      region.copy(4096, 8192, 64);
      region.beforeStore = null;
      region.zero(0, SIZE);
      const changed = pattern(64);
      changed.set(pattern(8, 2), 4);
      expect(seen).toEqual([
        [4100, 8, pattern(64).subarray(4, 12)],
        [4096, 16, changed.subarray(0, 16)],
        [8192, 64, new Uint8Array(64)],
      ]);
    });

    test("what was written is read back, at any alignment and length", () => {
      const source = pattern(9000);
      for (const offset of [0, 1, 7, 63, 64, 65, 4095, 4096, 100_001, SIZE - 9000]) {
        for (const length of [0, 1, 8, 63, 64, 65, 255, 256, 257, 4096, 8999]) {
          region.zero(offset, 9000);
          region.write(offset, source, 1, length);
          region.drain();
          const expected = new Uint8Array(9000);
          expected.set(source.subarray(1, 1 + length));
          expect(Buffer.compare(readBack(region, offset, 9000), expected), `${length} at ${offset}`).toBe(0);
        }
      }
    });

    test("reading fills only its slice of the array", () => {
      region.write(500, pattern(100), 0, 100);
      const target = new Uint8Array(120).fill(0xee);
      region.read(500, target, 10, 100);
      expect([...target.subarray(0, 10), ...target.subarray(110)].every((byte) => byte === 0xee)).toBe(true);
      expect(target.subarray(10, 110)).toEqual(pattern(100));
    });

    test("what was written is visible outside at once, without drain or sync", () => {
      region.write(12_345, pattern(70_000, 2), 0, 70_000);
      expect(Buffer.compare(made.outside(12_345, 70_000), pattern(70_000, 2))).toBe(0);
    });

    test("a discard leaves what is around it, and what is stored there afterwards is kept", async () => {
      if (region.discard === undefined) return;
      region.write(0, pattern(SIZE), 0, SIZE);
      await region.discard(65_536, 131_072);
      expect(Buffer.compare(readBack(region, 0, 65_536), pattern(SIZE).subarray(0, 65_536))).toBe(0);
      const behind = 65_536 + 131_072;
      expect(Buffer.compare(readBack(region, behind, SIZE - behind), pattern(SIZE).subarray(behind))).toBe(0);
      region.write(70_000, pattern(5000, 3), 0, 5000);
      await region.sync();
      expect(Buffer.compare(made.outside(70_000, 5000), pattern(5000, 3))).toBe(0);
      await expect(region.discard(SIZE - 4096, 8192)).rejects.toBeInstanceOf(InvariantError);
      region.beforeStore = () => {};
      await expect(region.discard(0, 4096)).rejects.toBeInstanceOf(InvariantError);
      region.beforeStore = null;
    });

    test("what was stored stays when its pages are unloaded", () => {
      region.write(1000, pattern(20_000), 0, 20_000);
      region.unload(0, 24_576);
      region.unload(5000, 10);
      expect(Buffer.compare(readBack(region, 1000, 20_000), pattern(20_000))).toBe(0);
    });

    test("zero clears its range and nothing beside it", () => {
      region.write(0, pattern(5000), 0, 5000);
      region.zero(101, 4001);
      const expected = pattern(5000).fill(0, 101, 4102);
      expect(Buffer.compare(readBack(region, 0, 5000), expected)).toBe(0);
    });

    test("copy moves bytes within the region and leaves the source", () => {
      region.write(1000, pattern(5000, 3), 0, 5000);
      region.copy(1000, 300_001, 5000);
      expect(Buffer.compare(readBack(region, 300_001, 5000), pattern(5000, 3))).toBe(0);
      expect(Buffer.compare(readBack(region, 1000, 5000), pattern(5000, 3))).toBe(0);
      region.copy(1000, 6000, 5000);
      expect(Buffer.compare(readBack(region, 6000, 5000), pattern(5000, 3))).toBe(0);
    });

    test("a range outside the region is an invariant error and touches nothing", () => {
      const bytes = pattern(64);
      const bad: [number, number][] = [
        [-1, 1],
        [SIZE, 1],
        [SIZE - 63, 64],
        [0, SIZE + 1],
        [0, -1],
        [0.5, 1],
        [Number.NaN, 1],
        [Number.MAX_SAFE_INTEGER, 64],
      ];
      for (const [offset, length] of bad) {
        expect(() => region.read(offset, new Uint8Array(SIZE + 1), 0, length)).toThrow(InvariantError);
        expect(() => region.write(offset, new Uint8Array(SIZE + 1).fill(1), 0, length)).toThrow(
          InvariantError,
        );
        expect(() => region.zero(offset, length)).toThrow(InvariantError);
        expect(() => region.copy(offset, 0, length)).toThrow(InvariantError);
        expect(() => region.copy(0, offset, length)).toThrow(InvariantError);
      }
      expect(() => region.write(0, bytes, 1, 64)).toThrow(InvariantError);
      expect(() => region.write(0, bytes, -1, 2)).toThrow(InvariantError);
      expect(() => region.read(0, bytes, 60, 5)).toThrow(InvariantError);
      expect(made.outside(0, SIZE).every((byte) => byte === 0)).toBe(true);
    });

    test("a copy onto itself is an invariant error", () => {
      expect(() => region.copy(0, 99, 100)).toThrow(InvariantError);
      expect(() => region.copy(99, 0, 100)).toThrow(InvariantError);
      expect(() => region.copy(0, 100, 100)).not.toThrow();
    });

    test("an empty range at the end is allowed", () => {
      region.read(SIZE, new Uint8Array(0), 0, 0);
      region.write(SIZE, new Uint8Array(0), 0, 0);
      region.zero(SIZE, 0);
    });

    test("sync resolves, several at once too, and leaves no error behind", async () => {
      region.write(0, pattern(10), 0, 10);
      await Promise.all([region.sync(), region.sync(), region.sync()]);
      expect(region.syncError).toBeNull();
    });

    test("what was stored survives closing and opening again", async () => {
      region.write(77, pattern(1000, 4), 0, 1000);
      region.zero(100, 50);
      region.copy(77, 9000, 1000);
      region.drain();
      await region.sync();
      const before = readBack(region, 0, SIZE);
      const again = made.reopen();
      expect(Buffer.compare(readBack(again, 0, SIZE), before)).toBe(0);
    });

    test("it grows while it is in use, keeps every byte, and ends where it says", async () => {
      region.write(SIZE - 100, pattern(100, 5), 0, 100);
      expect(region.measure()).toBe(SIZE);
      // No multiple of anything but what every device has.
      for (const larger of [SIZE + 512, SIZE + 8192, 5 * SIZE]) {
        made.enlarge?.(larger);
        const syncing = region.sync();
        await region.grow(larger);
        await syncing;
        expect(region.measure()).toBe(larger);
        expect(region.facts.sizeBytes).toBe(larger);
        expect(Buffer.compare(readBack(region, SIZE - 100, 100), pattern(100, 5))).toBe(0);
        region.write(larger - 512, pattern(512, 6), 0, 512);
        expect(Buffer.compare(made.outside(larger - 512, 512), pattern(512, 6))).toBe(0);
        expect(() => region.write(larger - 511, new Uint8Array(512), 0, 512)).toThrow(InvariantError);
      }
      region.copy(SIZE - 100, 3 * SIZE, 100);
      expect(Buffer.compare(readBack(region, 3 * SIZE, 100), pattern(100, 5))).toBe(0);
      await region.sync();
      await region.grow(SIZE);
      expect(region.facts.sizeBytes).toBe(5 * SIZE);
      const again = made.reopen();
      expect(again.facts.sizeBytes).toBe(5 * SIZE);
      expect(Buffer.compare(readBack(again, 3 * SIZE, 100), pattern(100, 5))).toBe(0);
    });

    test("after close every access is refused, and closing again is harmless", async () => {
      region.close();
      region.close();
      expect(() => region.read(0, new Uint8Array(1), 0, 1)).toThrow(InvariantError);
      expect(() => region.write(0, new Uint8Array(1), 0, 1)).toThrow(InvariantError);
      expect(() => region.zero(0, 1)).toThrow(InvariantError);
      await expect(region.grow(2 * SIZE)).rejects.toThrow(InvariantError);
      await expect(region.sync()).rejects.toThrow();
    });
  });
}
