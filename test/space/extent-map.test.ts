import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { UNWRITTEN, WRITTEN } from "../../src/media/group.ts";
import { ExtentMap, extentOf, type OnCut } from "../../src/space/extent-map.ts";
import type { RunTable } from "../../src/tables/run-table.ts";

const runs = Number(process.env.MAPDIRECT_RUNS ?? 200);
const SPAN = 60;

type Step =
  | { do: "set"; block: number; count: number; physical: number; state: 1 | 2 }
  | { do: "remove"; block: number; count: number };

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    do: fc.constant("set" as const),
    block: fc.nat({ max: SPAN }),
    count: fc.integer({ min: 1, max: 12 }),
    // Few places, so that runs join, and sometimes replace themselves.
    physical: fc.nat({ max: 3 }).map((index) => 1000 + index * 200),
    state: fc.constantFrom(UNWRITTEN, WRITTEN),
  }),
  fc.record({
    do: fc.constant("remove" as const),
    block: fc.nat({ max: SPAN }),
    count: fc.oneof(fc.integer({ min: 1, max: 20 }), fc.constant(Number.MAX_SAFE_INTEGER)),
  }),
);

describe("an extent map", () => {
  test("says of each block what an array says, whatever was set and removed, and reports each freed block once", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const map = new ExtentMap();
        const naive: ({ physical: number; state: number } | undefined)[] = [];
        for (const one of steps) {
          const freed: number[] = [];
          const expected: number[] = [];
          const onCut: OnCut = (physical, count, _state, stays) => {
            if (stays) return;
            for (let block = physical; block < physical + count; block += 1) freed.push(block);
          };
          // Physical follows the file block, so that neighbours join and a run may replace itself.
          const base = one.do === "set" ? one.physical + one.block : 0;
          for (let at = one.block; at < Math.min(one.block + one.count, SPAN + 40); at += 1) {
            const old = naive[at];
            const physical = one.do === "set" ? base + at - one.block : -1;
            if (old !== undefined && old.physical !== physical) expected.push(old.physical);
            if (one.do === "set") naive[at] = { physical, state: one.state };
            else delete naive[at];
          }
          const before = map.length;
          const splits = one.do === "remove" && map.splitBy(one.block, one.count);
          if (one.do === "set") map.set(one.block, one.count, base, one.state, onCut);
          else map.remove(one.block, one.count, onCut);
          if (one.do === "remove") expect(map.length > before).toBe(splits);
          map.check();
          expect(freed).toEqual(expected);
        }
        // Plain comparisons: an expect() for each block of each run would take most of the time.
        const must = (holds: boolean, at: number): void => {
          if (!holds) throw new Error(`block ${at} of ${JSON.stringify(naive)}`);
        };
        let blocks = 0;
        for (let at = 0; at < SPAN + 40; at += 1) {
          const piece = map.at(at, 1000);
          const old = naive[at];
          must(piece.state === (old?.state ?? 0), at);
          if (old !== undefined) {
            must(piece.physical === old.physical, at);
            blocks += 1;
          }
          // The piece is as long as it says, and no other begins within.
          for (let next = at; next < Math.min(at + piece.count, SPAN + 40); next += 1) {
            must((naive[next]?.state ?? 0) === piece.state, next);
          }
          const next = map.next(at);
          must(
            (next?.block ?? -1) === naive.findIndex((entry, index) => index >= at && entry !== undefined),
            at,
          );
          const written = [0, 1, 2, 3, 4].every((index) => naive[at + index]?.state === WRITTEN);
          must(map.isWritten(at, 5) === written, at);
        }
        expect(map.blocks).toBe(blocks);
        expect([...map].reduce((sum, extent) => sum + extent.count, 0)).toBe(blocks);
        expect(map.end).toBe(naive.findLastIndex((entry) => entry !== undefined) + 1);
      }),
      { numRuns: runs },
    );
  });

  test("joins what is appended in order to one extent", () => {
    const map = new ExtentMap();
    for (let block = 0; block < 1000; block += 1) map.set(block, 1, 5000 + block, WRITTEN, () => {});
    expect(map.length).toBe(1);
    map.set(1000, 1, 9000, WRITTEN, () => {});
    map.set(1001, 1, 9001, UNWRITTEN, () => {});
    expect(map.length).toBe(3);
    map.check();
  });

  test("keeps a block that is set to what it was: unwritten becomes written, and nothing is freed", () => {
    const map = new ExtentMap();
    const freed: number[] = [];
    map.set(10, 10, 100, UNWRITTEN, () => {});
    const onCut: OnCut = (physical, count, _state, stays) => {
      if (!stays) freed.push(physical, count);
    };
    map.set(13, 2, 103, WRITTEN, onCut);
    expect(freed).toEqual([]);
    expect(map.length).toBe(3);
    map.set(13, 2, 200, WRITTEN, onCut);
    expect(freed).toEqual([103, 2]);
    map.check();
  });

  test("reaches to the last block that a file can have", () => {
    const map = new ExtentMap();
    const last = 2 ** 51 - 1;
    map.set(last, 1, 7, WRITTEN, () => {});
    expect(map.at(last, 10)).toMatchObject({ count: 1, physical: 7, state: WRITTEN });
    expect(map.at(0, Number.MAX_SAFE_INTEGER).count).toBe(last);
    map.remove(0, Number.MAX_SAFE_INTEGER, () => {});
    expect(map.length).toBe(0);
  });

  test("of a file that is written at random block by block says what an array says, and ends as one extent", () => {
    const blocks = 100_003;
    const map = new ExtentMap();
    map.set(0, blocks, 1_000_000, UNWRITTEN, () => {});
    const written = new Uint8Array(blocks);
    let longest = 0;
    for (let index = 0; index < blocks; index += 1) {
      // 7,919 and the prime number of blocks have no divisor in common: each block comes once.
      const block = (index * 7919) % blocks;
      map.set(block, 1, 1_000_000 + block, WRITTEN, () => {});
      written[block] = 1;
      longest = Math.max(longest, map.length);
      if (index % 25_000 === 0) {
        map.check();
        for (const extent of map) {
          const holds = extent.state === WRITTEN ? 1 : 0;
          const part = written.subarray(extent.block, extent.block + extent.count);
          if (!part.every((is) => is === holds)) throw new Error(`extent at ${extent.block}`);
        }
      }
    }
    expect(longest).toBeGreaterThan(20_000);
    expect([...map]).toEqual([{ block: 0, count: blocks, physical: 1_000_000, state: WRITTEN }]);
  });

  test("hands over very many extents at once, those that reach beyond cut, and keeps the others", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 30_000 }), fc.integer({ min: 0, max: 30_000 }), (one, other) => {
        const [from, end] = [Math.min(one, other), Math.max(one, other) + 1];
        const map = new ExtentMap();
        const naive = new Map<number, number>();
        for (let block = 0; block < 30_000; block += 6) {
          // Each three blocks long, and no neighbour of the next.
          map.set(block, 3, 1_000_000 - block, block % 4 === 0 ? WRITTEN : UNWRITTEN, () => {});
          for (let at = 0; at < 3; at += 1) naive.set(block + at, 1_000_000 - block + at);
        }
        const freed: number[] = [];
        const free = (physical: number, count: number): void => {
          for (let at = 0; at < count; at += 1) freed.push(physical + at);
        };
        let many = 0;
        const onMany = (extents: RunTable): void => {
          many += 1;
          for (const row of extents) free(extentOf(row).physical, row.count);
        };
        map.remove(from, end - from, free, onMany);
        map.check();
        expect(many).toBeLessThanOrEqual(1);
        if (end - from > 20_000) expect(many).toBe(1);
        const gone = [...naive]
          .filter(([block]) => block >= from && block < end)
          .map(([, physical]) => physical);
        expect(freed.sort((a, b) => a - b)).toEqual(gone.sort((a, b) => a - b));
        expect(map.blocks).toBe(naive.size - gone.length);
        expect(map.end).toBe(
          Math.max(0, ...[...naive.keys()].filter((block) => block < from || block >= end).slice(-1)) +
            (naive.size > gone.length ? 1 : 0),
        );
      }),
      { numRuns: Math.ceil(runs / 4) },
    );
  });
});
