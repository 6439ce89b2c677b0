/** The table against a sorted array, with enough rows that leaves are split, merged and dropped. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Row, RunTable } from "../../src/tables/run-table.ts";

const runs = Number(process.env.MAPDIRECT_RUNS ?? 200);
/** Rows start at multiples of it, and are shorter, so that there is room between them. */
const STEP = 8;
const ROWS = 2000;

type Change = { from: number; width: number; every: number; count: number };

const change: fc.Arbitrary<Change> = fc.record({
  from: fc.nat({ max: ROWS }),
  width: fc.oneof({ weight: 3, arbitrary: fc.nat({ max: 4 }) }, fc.nat({ max: ROWS })),
  /** Of the places in between every so many has a row afterwards; 0: none. */
  every: fc.nat({ max: 3 }),
  count: fc.integer({ min: 1, max: STEP }),
});

function agree(table: RunTable, rows: readonly Row[]): void {
  table.check();
  expect(table.length).toBe(rows.length);
  expect([...table]).toEqual(rows);
  expect(table.last()).toEqual(rows.at(-1));
}

describe("a table of runs", () => {
  test("says what a sorted array says, whatever is replaced by whatever", () => {
    fc.assert(
      fc.property(
        fc.array(change, { maxLength: 30 }),
        fc.array(fc.nat({ max: ROWS * STEP }), { maxLength: 20 }),
        (changes, places) => {
          const table = new RunTable();
          let naive: Row[] = [];
          for (const [index, { from, width, every, count }] of changes.entries()) {
            const start = from * STEP;
            const end = (from + width) * STEP;
            const rows: Row[] = [];
            for (let at = start; every > 0 && at < end; at += every * STEP) {
              rows.push({ start: at, count, value: index * 1000 + at, tag: index % 3 });
            }
            table.replace(start, end, rows);
            naive = [
              ...naive.filter((row) => row.start < start),
              ...rows,
              ...naive.filter((row) => row.start >= end),
            ];
            table.check();
            for (const at of places) {
              expect(table.first(at)).toEqual(naive.find((row) => row.start + row.count > at));
              expect(table.lastBefore(at)).toEqual(naive.findLast((row) => row.start < at));
            }
          }
          agree(table, naive);
        },
      ),
      { numRuns: runs },
    );
  });

  test("a part of it becomes a table of its own, and both are what they should be", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: STEP }), { maxLength: 3000 }),
        fc.nat({ max: 3000 }),
        fc.nat({ max: 3000 }),
        (counts, one, other) => {
          const rows = counts.map((count, index) => ({
            start: index * STEP,
            count,
            value: index,
            tag: index % 3,
          }));
          const table = new RunTable();
          table.replace(0, 0, rows);
          const [from, end] = [Math.min(one, other) * STEP + 1, Math.max(one, other) * STEP + 1];
          const among = ({ start }: Row): boolean => start >= from && start < end;
          expect(table.leavesOf(from, end) * 256).toBeGreaterThanOrEqual(rows.filter(among).length);
          const taken = table.take(from, end);
          agree(
            table,
            rows.filter((row) => !among(row)),
          );
          agree(taken, rows.filter(among));
          const sum = (of: readonly Row[]): number => of.reduce((all, row) => all + row.count, 0);
          for (const tag of [0, 1, 2]) {
            expect(taken.sums(tag)).toEqual({
              all: sum(rows.filter(among)),
              tagged: sum(rows.filter((row) => among(row) && row.tag === tag)),
            });
          }
          // They share nothing: a change of the one leaves the other as it was.
          for (const { start } of rows) table.replace(start, start + 1, []);
          agree(taken, rows.filter(among));
        },
      ),
      { numRuns: Math.ceil(runs / 4) },
    );
  });

  test("takes rows one by one in any order, and gives them back one by one", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 3000 }), fc.nat(), (rows, seed) => {
        const table = new RunTable();
        // A walk through all places that depends on the seed: steps that have no divisor in common with their number.
        const prime = 4999;
        const stride = 1 + (seed % (prime - 1));
        const places = Array.from({ length: rows }, (_, index) => ((index * stride) % prime) * STEP);
        const row = (start: number): Row => ({ start, count: STEP, value: -start, tag: 1 });
        for (const place of places) table.replace(place, place, [row(place)]);
        agree(table, [...places].sort((a, b) => a - b).map(row));
        const gone = places.slice(0, Math.floor(rows * 0.9));
        for (const place of gone) table.replace(place, place + 1, []);
        agree(
          table,
          places
            .slice(gone.length)
            .sort((a, b) => a - b)
            .map(row),
        );
      }),
      { numRuns: Math.ceil(runs / 10) },
    );
  });

  test("goes on where it stood when it is changed while somebody walks through it", () => {
    const table = new RunTable();
    const row = (start: number): Row => ({ start, count: 1, value: 0, tag: 0 });
    table.replace(
      0,
      0,
      Array.from({ length: 1000 }, (_, index) => row(index * 2)),
    );
    const seen: number[] = [];
    for (const { start } of table) {
      seen.push(start);
      if (start === 500) table.replace(0, 1000, []);
      if (start === 1200) table.replace(1301, 1301, [row(1301)]);
    }
    expect(seen.filter((start) => start <= 500)).toHaveLength(251);
    expect(seen.filter((start) => start > 500 && start < 1000)).toEqual([]);
    expect(seen).toContain(1301);
    expect(seen.at(-1)).toBe(1998);
    expect(new Set(seen).size).toBe(seen.length);
  });

  test("holds numbers up to the largest exact ones", () => {
    const table = new RunTable();
    const start = Number.MAX_SAFE_INTEGER - 1;
    table.replace(start, start, [{ start, count: 1, value: Number.MAX_SAFE_INTEGER, tag: 3 }]);
    expect(table.first(start)).toEqual({ start, count: 1, value: Number.MAX_SAFE_INTEGER, tag: 3 });
    expect(table.first(start + 1)).toBeUndefined();
    table.replace(0, Number.MAX_SAFE_INTEGER, []);
    expect(table.length).toBe(0);
  });
});
