import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { FsError, InvariantError } from "../../src/base/errors.ts";
import { Allocator } from "../../src/space/allocator.ts";
import { SegmentPool } from "../../src/space/segment-pool.ts";

const runs = Number(process.env.MAPDIRECT_RUNS ?? 150);

type Step =
  | { do: "allocate"; want: number; goal: number }
  | { do: "aligned"; power: number }
  | { do: "free" | "freeAfter"; index: number; from: number; share: number }
  | { do: "claim"; start: number; count: number }
  | { do: "release"; lsn: number }
  | { do: "withhold"; share: number }
  | { do: "discard"; from: number; limit: number }
  | { do: "discarded"; index: number }
  | { do: "places"; power: number; count: number }
  | { do: "restore" | "cut" }
  | { do: "extend"; by: number };

const share = fc.double({ min: 0, max: 1, noNaN: true });
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    do: fc.constant("allocate" as const),
    want: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 3000 })),
    goal: fc.nat({ max: 2100 }),
  }),
  fc.record({ do: fc.constant("aligned" as const), power: fc.nat({ max: 9 }) }),
  fc.record({
    do: fc.constantFrom("free" as const, "freeAfter" as const),
    index: fc.nat(),
    from: share,
    share,
  }),
  fc.record({
    do: fc.constant("claim" as const),
    start: fc.nat({ max: 2100 }),
    count: fc.integer({ min: 1, max: 70 }),
  }),
  fc.record({ do: fc.constant("release" as const), lsn: fc.nat({ max: 50 }) }),
  fc.record({ do: fc.constant("withhold" as const), share }),
  fc.record({ do: fc.constant("discard" as const), from: share, limit: fc.integer({ min: 1, max: 900 }) }),
  fc.record({ do: fc.constant("discarded" as const), index: fc.nat() }),
  fc.record({
    do: fc.constant("places" as const),
    power: fc.nat({ max: 6 }),
    count: fc.integer({ min: 1, max: 5 }),
  }),
  fc.record({ do: fc.constantFrom("restore" as const, "cut" as const) }),
  fc.record({ do: fc.constant("extend" as const), by: fc.nat({ max: 1200 }) }),
);

describe("the allocator", () => {
  test("never gives a block twice, loses none, and counts right, whatever its size: as a naive one does", () => {
    const sizes = fc.constantFrom(
      [1, 4096],
      [31, 4096],
      [1000, 4096],
      [2048, 4096],
      [2011, 4096],
      [70, 2097152],
      [300, 65536],
    );
    fc.assert(
      fc.property(sizes, fc.array(step, { maxLength: 60 }), ([blocks, blockBytes], steps) => {
        let count = blocks as number;
        /** Nothing is free from here on. */
        let end = count;
        let withheld = false;
        const allocator = new Allocator(count, blockBytes as number);
        const used = new Array<boolean>(count).fill(false);
        const held: { start: number; count: number }[] = [];
        const pending: { start: number; count: number; lsn: number }[] = [];
        const discarding: { start: number; count: number }[] = [];
        let lsn = 0;
        const take = (start: number, length: number): void => {
          for (let block = start; block < start + length; block += 1) {
            if (used[block] !== false || block >= end)
              throw new Error(`block ${block} was given twice, or is none`);
            used[block] = true;
          }
          held.push({ start, count: length });
        };
        const give = (start: number, length: number): void => {
          used.fill(false, start, start + length);
        };
        const isFree = (inUse: boolean, block: number): boolean => !inUse && block < end;
        for (const one of steps) {
          const free = used.filter(isFree).length;
          switch (one.do) {
            case "allocate": {
              const run = allocator.allocate(one.want, one.goal);
              expect(run === null).toBe(free === 0);
              if (run === null) break;
              expect(run.count).toBeGreaterThan(0);
              expect(run.count).toBeLessThanOrEqual(one.want);
              take(run.start, run.count);
              break;
            }
            case "aligned": {
              const want = 2 ** one.power;
              const run = allocator.allocateAligned(want);
              let possible = false;
              for (let at = 0; at + want <= end; at += want)
                possible ||= !used.slice(at, at + want).includes(true);
              expect(run !== null).toBe(possible);
              if (run === null) break;
              expect([run.start % want, run.count]).toEqual([0, want]);
              take(run.start, run.count);
              break;
            }
            case "claim": {
              const fits = one.start + one.count <= end;
              const possible = fits && !used.slice(one.start, one.start + one.count).includes(true);
              expect(allocator.claim(one.start, one.count)).toBe(possible);
              if (possible) take(one.start, one.count);
              break;
            }
            case "free":
            case "freeAfter": {
              if (held.length === 0) break;
              const index = one.index % held.length;
              const [run] = held.splice(index, 1) as [(typeof held)[0]];
              // Only a part of it: the rest stays.
              const from = Math.min(run.count - 1, Math.floor(one.from * run.count));
              const length = Math.max(1, Math.floor(one.share * (run.count - from)));
              if (from > 0) held.push({ start: run.start, count: from });
              const rest = run.count - from - length;
              if (rest > 0) held.push({ start: run.start + from + length, count: rest });
              if (one.do === "free") {
                allocator.free(run.start + from, length);
                give(run.start + from, length);
              } else {
                lsn += 1;
                allocator.freeAfter(run.start + from, length, lsn);
                pending.push({ start: run.start + from, count: length, lsn });
              }
              break;
            }
            case "release":
              allocator.releaseThrough(one.lsn);
              for (const run of pending.splice(0)) {
                if (run.lsn <= one.lsn) give(run.start, run.count);
                else pending.push(run);
              }
              break;
            case "discard": {
              const from = Math.floor(one.from * end);
              const run = allocator.nextFree(from, end, one.limit);
              const first = used.findIndex((inUse, block) => block >= from && isFree(inUse, block));
              expect(run?.start ?? -1).toBe(first);
              if (run === null) break;
              const row = used.slice(first, end).indexOf(true);
              expect(run.count).toBe(Math.min(one.limit, row < 0 ? end - first : row));
              discarding.push(allocator.beginDiscard(run.start, run.count));
              used.fill(true, run.start, run.start + run.count);
              break;
            }
            case "discarded": {
              if (discarding.length === 0) break;
              const [run] = discarding.splice(one.index % discarding.length, 1) as [(typeof discarding)[0]];
              allocator.endDiscard(run);
              give(run.start, run.count);
              break;
            }
            case "places": {
              const want = 2 ** one.power;
              // Those that could be given back, all of them before the end.
              const taken = held.filter(({ start, count: length }) => start + length <= end);
              const without = used.slice();
              for (const run of taken) without.fill(false, run.start, run.start + run.count);
              const places = allocator.alignedPlaces(one.count, want, taken);
              let possible = 0;
              for (let at = 0; at + want <= end; at += want)
                if (!without.slice(at, at + want).includes(true)) possible += 1;
              expect(places.length).toBe(Math.min(one.count, possible));
              expect(new Set(places.map(({ start }) => start)).size).toBe(places.length);
              for (const { start, count: length } of places) {
                expect([start % want, length]).toEqual([0, want]);
                expect(without.slice(start, start + length)).not.toContain(true);
              }
              break;
            }
            case "withhold":
              if (withheld) break;
              withheld = true;
              end = Math.max(1, Math.floor(one.share * count));
              allocator.withhold(end);
              break;
            case "restore":
            case "cut": {
              if (!withheld) break;
              withheld = false;
              const left = used.slice(end).filter(Boolean).length;
              expect(allocator.usedBehindEnd).toBe(left);
              if (one.do === "cut" && left === 0) {
                allocator.cut();
                used.length = end;
                count = end;
              } else allocator.restore();
              end = count;
              break;
            }
            case "extend":
              if (withheld) break;
              count += one.by;
              end = count;
              allocator.extend(count);
              while (used.length < count) used.push(false);
              break;
          }
          allocator.check();
          expect(allocator.freeBlocks).toBe(used.filter(isFree).length);
          expect([allocator.blockCount, allocator.end]).toEqual([count, end]);
          const waiting = [...pending, ...discarding, ...allocator.pendingRuns()].map(({ count }) => count);
          const sum = waiting.reduce((total, blocks) => total + blocks, 0);
          expect(2 * allocator.pendingBlocks).toBe(sum);
        }
        expect(used.map((_, block) => allocator.isFree(block))).toEqual(used.map(isFree));
      }),
      { numRuns: runs },
    );
  });

  test("gives large requests whole chunks, side by side, and small ones the chunks that are begun", () => {
    const allocator = new Allocator(512 * 8, 4096);
    expect(allocator.allocate(10, 0)).toEqual({ start: 0, count: 10 });
    const large = allocator.allocate(1500, 0);
    expect(large).toEqual({ start: 512, count: 1500 });
    expect(allocator.allocate(10, 0)).toEqual({ start: 10, count: 10 });
    // The goal continues the run where it ended.
    expect(allocator.allocate(100, 2012)?.start).toBe(2012);
  });

  test("finds every last block of a volume in crumbs", () => {
    const allocator = new Allocator(4096, 4096);
    expect(allocator.claim(0, 4096)).toBe(true);
    for (let block = 1; block < 4096; block += 2) allocator.free(block, 1);
    let found = 0;
    while (allocator.allocate(1000, 0) !== null) found += 1;
    expect(found).toBe(2048);
    expect(allocator.freeBlocks).toBe(0);
  });

  test("stops on a block that is freed twice or lies outside", () => {
    const allocator = new Allocator(100, 4096);
    expect(() => allocator.free(5, 1)).toThrow(InvariantError);
    allocator.claim(5, 2);
    allocator.free(5, 2);
    expect(() => allocator.free(6, 1)).toThrow(InvariantError);
    expect(() => allocator.free(99, 2)).toThrow(InvariantError);
    expect(allocator.claim(99, 2)).toBe(false);
    expect(allocator.claim(2 ** 53, 1)).toBe(false);
  });

  test("keeps pending blocks until their record is durable, whatever else becomes free", () => {
    const allocator = new Allocator(10, 4096);
    allocator.claim(0, 10);
    allocator.freeAfter(0, 4, 5);
    allocator.freeAfter(4, 4, 7);
    allocator.releaseThrough(4);
    expect(allocator.allocate(1, 0)).toBeNull();
    allocator.releaseThrough(6);
    expect([allocator.freeBlocks, allocator.pendingBlocks]).toEqual([4, 4]);
    allocator.releaseThrough(7);
    expect([allocator.freeBlocks, allocator.pendingBlocks]).toEqual([8, 0]);
  });
});

describe("the segment pool", () => {
  const make = (blocks: number): { allocator: Allocator; pool: SegmentPool } => {
    const allocator = new Allocator(blocks, 4096);
    return { allocator, pool: new SegmentPool(allocator, 131072, 4096) };
  };

  test("takes aligned segments out of the free space, and gives them back", () => {
    const { allocator, pool } = make(32 * 10);
    expect(pool.ensure(4)).toBe(true);
    expect([pool.available, pool.blocks, allocator.freeBlocks]).toEqual([4, 128, 192]);
    const segment = pool.take();
    expect(segment % 131072).toBe(0);
    expect(pool.available).toBe(3);
    pool.give(segment);
    pool.trim(1);
    expect([pool.available, allocator.freeBlocks]).toEqual([1, 288]);
    expect([...pool.runs()]).toHaveLength(1);
  });

  test("keeps what it could get when there is not enough, and answers ENOSPC when nothing is left", () => {
    const { allocator, pool } = make(32 * 3);
    allocator.claim(32, 1);
    expect(pool.ensure(3)).toBe(false);
    expect(pool.available).toBe(2);
    const taken = new Set([pool.take(), pool.take()]);
    expect([...taken].sort((a, b) => a - b)).toEqual([0, 64 * 4096]);
    expect(() => pool.take()).toThrow(expect.objectContaining({ code: "ENOSPC" }));
  });

  test("takes no segment that a sparse region has no room for, and loses none of them", () => {
    const allocator = new Allocator(32 * 8, 4096);
    let lies = "ENOSPC" as "ENOSPC" | "EIO";
    const region = {
      allocate: (offset: number) => {
        if (offset < 4 * 131_072) throw new FsError(lies);
      },
    };
    const pool = new SegmentPool(allocator, 131_072, 4096, region);
    expect(pool.ensure(5)).toBe(false);
    expect([pool.available, allocator.freeBlocks]).toEqual([4, 128]);
    expect([...pool.runs()].every(({ start }) => start >= 128)).toBe(true);
    // With more free than when all were refused it looks again.
    lies = "EIO";
    pool.trim(3);
    expect(() => pool.ensure(5)).toThrow(expect.objectContaining({ code: "EIO" }));
    expect(allocator.freeBlocks).toBe(160);
  });
});

test("a volume of which every second block is free gives all of them, one by one, in as many searches of bounded length", () => {
  const blocks = 64 * 1024 * 256;
  const allocator = new Allocator(blocks, 4096);
  allocator.claim(0, blocks);
  const free = 200_000;
  for (let index = 0; index < free; index += 1) allocator.free(blocks - 1 - 2 * index, 1);
  const seen = new Set<number>();
  for (let left = free; left > 0; ) {
    const run = allocator.allocate(left, 0);
    if (run === null || run.count !== 1) break;
    seen.add(run.start);
    left -= run.count;
  }
  expect(seen.size).toBe(free);
  expect(allocator.freeBlocks).toBe(0);
  // A search of all 32,768 chunks for each block would take minutes.
}, 60_000);
