import fc from "fast-check";
import { expect, test } from "vitest";
import { BitTree } from "../../src/space/bit-tree.ts";

const runs = Number(process.env.MAPDIRECT_RUNS ?? 150);

test("a tree of bits finds the next member as a sorted list does, whatever its size", () => {
  const sizes = fc.constantFrom(0, 1, 31, 32, 33, 1024, 1025, 40_000);
  const steps = fc.array(fc.record({ add: fc.boolean(), value: fc.nat(), from: fc.nat() }), {
    maxLength: 100,
  });
  fc.assert(
    fc.property(sizes, steps, (size, list) => {
      const tree = new BitTree(size);
      const model = new Set<number>();
      for (const { add, value, from } of list) {
        if (size > 0) {
          const member = value % size;
          if (add) {
            tree.add(member);
            model.add(member);
          } else {
            tree.delete(member);
            model.delete(member);
          }
          expect(tree.has(member)).toBe(add);
        }
        tree.check();
        const start = from % (size + 40);
        const next = [...model].filter((one) => one >= start).toSorted((a, b) => a - b)[0] ?? -1;
        expect(tree.next(start)).toBe(next);
      }
    }),
    { numRuns: runs },
  );
});
