import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { InvariantError } from "../../src/base/errors.ts";
import { References } from "../../src/space/references.ts";

const runs = Number(process.env.MAPDIRECT_RUNS ?? 200);
const SPAN = 50;

const run = fc.record({ start: fc.nat({ max: SPAN }), count: fc.integer({ min: 1, max: 15 }) });

describe("reference counts", () => {
  test("say of each block how often it was added, whichever way, and report what nobody refers to", () => {
    fc.assert(
      fc.property(
        fc.array(run, { maxLength: 20 }),
        fc.array(fc.nat(), { maxLength: 25 }),
        (added, removals) => {
          const counted = new References();
          const naive = new Array<number>(SPAN + 20).fill(0);
          const agree = (references: References): void => {
            references.check();
            for (let block = 0; block < naive.length; ) {
              const { references: found, count } = references.at(block, naive.length - block);
              for (const end = block + count; block < end; block += 1) {
                if (naive[block] !== found) throw new Error(`block ${block}: ${found}, not ${naive[block]}`);
              }
            }
          };
          for (const { start, count } of added) {
            counted.add(start, count);
            for (let block = start; block < start + count; block += 1)
              naive[block] = (naive[block] as number) + 1;
            agree(counted);
          }
          const built = new References();
          built.build(added);
          agree(built);
          expect([...built]).toEqual([...counted]);
          const left = [...added];
          for (const removal of removals) {
            if (left.length === 0) break;
            const [{ start, count }] = left.splice(removal % left.length, 1) as [(typeof left)[0]];
            const gone = new Set<number>();
            for (let block = start; block < start + count; block += 1) {
              naive[block] = (naive[block] as number) - 1;
              if (naive[block] === 0) gone.add(block);
            }
            for (const one of counted.remove(start, count)) {
              for (let block = one.start; block < one.start + one.count; block += 1) {
                if (!gone.delete(block)) throw new Error(`block ${block} is reported, wrongly or twice`);
              }
            }
            expect(gone.size).toBe(0);
            agree(counted);
          }
        },
      ),
      { numRuns: runs },
    );
  });

  test("stop on a reference that there is not", () => {
    const references = new References();
    references.add(10, 5);
    expect(() => references.remove(9, 2)).toThrow(InvariantError);
    expect(() => references.remove(12, 4)).toThrow(InvariantError);
  });

  test("are changed in one step, however many runs of others lie in the range", () => {
    const PAIRS = 150_000;
    const references = new References();
    references.build([
      { start: 0, count: 2 * PAIRS },
      { start: 0, count: 2 * PAIRS },
      ...Array.from({ length: PAIRS }, (_, index) => ({ start: 2 * index, count: 1 })),
    ]);
    expect(references.length).toBe(2 * PAIRS);
    expect(references.remove(0, 2 * PAIRS)).toEqual([]);
    expect(references.length).toBe(2 * PAIRS);
    references.check();
    expect(references.remove(0, 2 * PAIRS)).toHaveLength(PAIRS);
    expect(references.length).toBe(PAIRS);
    references.check();
    references.add(0, 2 * PAIRS);
    expect(references.at(1, 9)).toEqual({ references: 1, count: 1 });
    references.check();
  });
});
