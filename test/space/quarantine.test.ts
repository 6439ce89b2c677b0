/** Quarantine against a naive model: one set of claims for each block. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Quarantine } from "../../src/space/quarantine.ts";

const BLOCKS = 64;

const run = fc
  .tuple(fc.nat(BLOCKS - 1), fc.integer({ min: 1, max: 16 }))
  .map(([start, count]) => ({ start, count: Math.min(count, BLOCKS - start) }));

type Runs = readonly { start: number; count: number }[];
const blocksOf = (runs: Runs): number[] =>
  runs.flatMap(({ start, count }) => Array.from({ length: count }, (_, index) => start + index));
const ascending = (a: number, b: number): number => a - b;

describe("quarantine", () => {
  test("holds exactly the freed blocks that somebody claims, until nobody does", () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.oneof(
            fc.record({ kind: fc.constant("claim" as const), runs: fc.array(run, { maxLength: 3 }) }),
            fc.record({ kind: fc.constant("free" as const), run }),
            fc.record({ kind: fc.constant("release" as const), which: fc.nat(20) }),
          ),
          { maxLength: 40 },
        ),
        (commands) => {
          const quarantine = new Quarantine();
          const claims = new Map<number, Set<number>>();
          const held = new Set<number>();
          let next = 1;
          const isClaimed = (block: number): boolean => [...claims.values()].some((set) => set.has(block));
          for (const command of commands) {
            if (command.kind === "claim") {
              quarantine.claim(next, command.runs);
              claims.set(next, new Set(blocksOf(command.runs)));
              next += 1;
            } else if (command.kind === "free") {
              const blocks = blocksOf([command.run]);
              // A block is freed once: those that are held already belong to nobody.
              if (blocks.some((block) => held.has(block))) continue;
              const free = blocksOf(quarantine.hold(command.run.start, command.run.count, 1)).sort(ascending);
              expect(free).toEqual(blocks.filter((block) => !isClaimed(block)));
              for (const block of blocks) if (isClaimed(block)) held.add(block);
            } else {
              const owners = [...claims.keys()];
              const owner = owners[command.which % Math.max(1, owners.length)];
              if (owner === undefined) continue;
              claims.delete(owner);
              const free = blocksOf(quarantine.release(owner)).sort(ascending);
              const expected = [...held].filter((block) => !isClaimed(block)).sort(ascending);
              expect(free).toEqual(expected);
              for (const block of expected) held.delete(block);
            }
            quarantine.check();
            expect(quarantine.blocks).toBe(held.size);
          }
        },
      ),
    );
  });
});
