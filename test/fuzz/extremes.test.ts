/**
 * Numbers at their ends, with right sums around them: a mount, fsck and a repair agree about each (image.ts says what has to
 * hold), and none of them throws, hangs or takes a number for another.
 *
 * A run tries one part in MAPDIRECT_EXTREMES (8) of them, another one each time; 1 tries all.
 */
import { describe, expect, test } from "vitest";
import { ImageTarget } from "./image.ts";

/** Unmounted cleanly, and killed; one of each granularity. */
const BASES = [1, 3];
const parts = Number(process.env.MAPDIRECT_EXTREMES ?? 8);
const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * parts));

describe("numbers at their ends", () => {
  test.each(BASES)(
    `in the fields of a volume (base %i, seed ${seed} of ${parts})`,
    async (base) => {
      const target = await ImageTarget.make();
      const failures: string[] = [];
      let tried = 0;
      for (const [index, input] of [...target.extremes(base)].entries()) {
        if (index % parts !== seed % parts) continue;
        tried += 1;
        try {
          await target.run(input);
        } catch (error) {
          failures.push(`${JSON.stringify(input)}: ${error}`);
        }
      }
      expect(failures.slice(0, 20)).toEqual([]);
      expect(tried).toBeGreaterThan(50);
    },
    600_000,
  );
});
