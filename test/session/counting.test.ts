/** Counting requests and their times. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { Opcode } from "../../src/fuse/kernel.ts";
import { BUCKETS, boundMicros, Counting, percentileMicros } from "../../src/session/counting.ts";

test("a percentile is never more than a bucket off, whatever was counted", () => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: 0.001, max: 10_000, noNaN: true }), { minLength: 1, maxLength: 300 }),
      fc.double({ min: 0.01, max: 1, noNaN: true }),
      (times, share) => {
        const counting = new Counting();
        for (const ms of times) counting.answered(Opcode.READ, ms);
        const [read] = [...counting.latencies()];
        const sorted = times.map((ms) => ms * 1000).sort((a, b) => a - b);
        const exact = sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] as number;
        const found = percentileMicros(read?.counts ?? [], share);
        expect(found).toBeLessThanOrEqual(Math.max(1, exact) * 2 ** 0.25 * 1.0001);
        expect(found).toBeGreaterThanOrEqual(exact <= 1 ? 0 : exact / 2 ** 0.25 / 1.0001);
      },
    ),
  );
});

test("each operation has its own row, errors are counted by name, and strange opcodes do no harm", () => {
  const counting = new Counting();
  counting.received(Opcode.LOOKUP);
  counting.received(Opcode.LOOKUP);
  counting.received(4_000_000_000);
  counting.answered(4_000_000_000, 1);
  counting.failed(2);
  counting.failed(99_999);
  expect(counting.operations()).toEqual({ lookup: 2, unknown: 1 });
  expect(counting.errorsByName()).toEqual({ ENOENT: 1, "errno 99999": 1 });
  expect(counting.errors).toBe(2);
  expect([...counting.latencies()].map(({ operation, count }) => [operation, count])).toEqual([
    ["unknown", 1],
  ]);
});

test("the last bucket takes what is longer than all bounds; nothing counted is no time", () => {
  const counting = new Counting();
  counting.answered(Opcode.READ, 1e9);
  const [read] = [...counting.latencies()];
  expect(read?.counts[BUCKETS - 1]).toBe(1);
  expect(boundMicros(BUCKETS - 1)).toBe(Number.POSITIVE_INFINITY);
  expect(percentileMicros(read?.counts ?? [], 0.5)).toBe(2 ** 24);
  expect(percentileMicros(new Float64Array(BUCKETS), 0.5)).toBe(0);
});
