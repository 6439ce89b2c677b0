import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { MIB } from "../support/volume.ts";
import { Bench, type Command, type Cut } from "./bench.ts";

const runs = Number(process.env.MAPDIRECT_RUNS ?? 120);
const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));

const BIG = 2n ** 63n - 1n;
const index = fc.nat({ max: 1000 });
const name = fc.oneof(
  { weight: 12, arbitrary: fc.constantFrom("a", "b", "c", "d", "\u00e9\u00ff") },
  { weight: 1, arbitrary: fc.constantFrom("n".repeat(255), "n".repeat(256), "none") },
);
const edge = fc
  .tuple(fc.bigInt(0n, 40n), fc.constantFrom(-1n, 0n, 1n))
  .map(([block, delta]) => (block * 4096n + delta < 0n ? 0n : block * 4096n + delta));
const offset = fc.oneof(
  { weight: 6, arbitrary: fc.bigInt(0n, 65536n) },
  { weight: 4, arbitrary: edge },
  { weight: 1, arbitrary: fc.bigInt(0n, 1n << 22n) },
  { weight: 1, arbitrary: fc.bigInt(0n, BIG) },
  { weight: 1, arbitrary: fc.bigInt(0n, 10000n).map((back) => BIG - back) },
);
const aligned = fc.bigInt(0n, 20n).map((block) => block * 4096n);
const length = fc.oneof(
  { weight: 5, arbitrary: fc.nat({ max: 9000 }) },
  { weight: 2, arbitrary: fc.nat({ max: 20 }).map((blocks) => blocks * 4096) },
  { weight: 1, arbitrary: fc.nat({ max: 150_000 }) },
);
const kill = fc.boolean();
const fill = fc.nat({ max: 250 });

const command: fc.Arbitrary<Command> = fc.oneof(
  {
    weight: 10,
    arbitrary: fc.record({
      do: fc.constant("create" as const),
      dir: index,
      name,
      kind: fc.constantFrom(0, 0, 0, 1, 1, 2, 3),
      mode: fc.nat({ max: 0o7777 }),
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("link" as const), inode: index, dir: index, name }) },
  {
    weight: 6,
    arbitrary: fc.record({ do: fc.constantFrom("unlink" as const, "rmdir" as const), dir: index, name }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("rename" as const),
      dir: index,
      name,
      toDir: index,
      toName: name,
      flags: fc.constantFrom(0, 0, 0, 1, 2, 2, 3, 4),
    }),
  },
  {
    weight: 14,
    arbitrary: fc.record({ do: fc.constant("write" as const), inode: index, offset, length, fill, kill }),
  },
  {
    weight: 12,
    arbitrary: fc.record({
      do: fc.constantFrom("copy" as const, "clone" as const),
      source: index,
      sourceOffset: fc.oneof({ weight: 3, arbitrary: aligned }, { weight: 1, arbitrary: offset }),
      target: index,
      targetOffset: fc.oneof({ weight: 3, arbitrary: aligned }, { weight: 1, arbitrary: offset }),
      length: fc.oneof(
        { weight: 3, arbitrary: fc.constant(-1n) },
        { weight: 2, arbitrary: fc.bigInt(0n, 30n).map((blocks) => blocks * 4096n) },
        { weight: 2, arbitrary: fc.bigInt(0n, 100_000n) },
      ),
      kill,
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({ do: fc.constant("truncate" as const), inode: index, size: offset, kill }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant("fallocate" as const),
      inode: index,
      mode: fc.constantFrom(0, 1, 3, 3, 0x10, 0x11, 2, 0x20),
      offset,
      length: fc.oneof(
        { weight: 8, arbitrary: fc.bigInt(0n, 100_000n) },
        { weight: 1, arbitrary: fc.bigInt(0n, 1n << 24n) },
        { weight: 1, arbitrary: fc.bigInt(-1n, BIG) },
      ),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("prepare" as const),
      inode: index,
      block: fc.nat({ max: 40 }),
      count: fc.nat({ max: 40 }),
      limit: fc.integer({ min: 1, max: 16 }),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("setattr" as const),
      inode: index,
      mode: fc.option(fc.nat({ max: 0o7777 }), { nil: undefined }),
      gid: fc.option(fc.nat({ max: 0xffff_ffff }), { nil: undefined }),
      kill,
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant("setXattr" as const),
      inode: index,
      name: fc.constantFrom("user.a", "user.b", "user.c", `user.${"x".repeat(251)}`),
      length: fc.oneof(
        { weight: 6, arbitrary: fc.nat({ max: 200 }) },
        { weight: 1, arbitrary: fc.nat({ max: 65537 }) },
      ),
      fill,
      flags: fc.nat({ max: 4 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("removeXattr" as const),
      inode: index,
      name: fc.constantFrom("user.a", "user.b", "user.c"),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("flood" as const),
      inode: index,
      count: fc.integer({ min: 1, max: 12 }),
      fill,
    }),
  },
  {
    weight: 9,
    arbitrary: fc.record({
      do: fc.constantFrom("open" as const, "release" as const, "defrag" as const),
      inode: index,
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constantFrom(
        "sync" as const,
        "startSync" as const,
        "checkpoint" as const,
        "startCheckpoint" as const,
        "tick" as const,
        "tick" as const,
        "writeBack" as const,
        "remount" as const,
      ),
    }),
  },
  { weight: 1, arbitrary: fc.constant({ do: "die" as const }) },
);

const commands = fc.array(command, { maxLength: 60, size: "max" });

/** Seed and counterexample are in the message of a failure: MAPDIRECT_SEED repeats it, MAPDIRECT_RUNS asks for more. */
function property(
  body: (list: Command[], cut: Cut) => Promise<void>,
  kind: Cut["kind"],
  numRuns = runs,
): Promise<void> {
  const cut = fc.record({
    afterStores: fc.integer({ min: 1, max: 400 }),
    kind: fc.constant(kind),
    seed: fc.nat({ max: 2 ** 31 - 1 }),
  });
  return fc.assert(fc.asyncProperty(commands, cut, body), {
    numRuns,
    seed,
    endOnFailure: process.env.MAPDIRECT_NO_SHRINK === "1",
  });
}

async function play(bench: Bench, list: readonly Command[]): Promise<void> {
  for (const command of list) await bench.run(command);
  if (!bench.cutTaken) bench.takeImage("kill");
  await bench.end();
}

describe(`a volume and a model of it (seed ${seed}, ${runs} runs)`, () => {
  for (const granularity of ["cacheline", "page"] as const) {
    for (const kind of ["kill", "power"] as const) {
      test(`answer alike, and ${kind === "kill" ? "the daemon's death" : "a power cut"} at any store loses nothing that was promised (${granularity})`, async () => {
        await property(async (list, cut) => {
          await play(await Bench.begin(4 * MIB, granularity, cut), list);
        }, kind);
      });
    }
  }

  test("answer alike with blocks of 64 KiB", async () => {
    await property(
      async (list, cut) => {
        await play(await Bench.begin(16 * MIB, "page", cut, 65536), list);
      },
      "power",
      Math.ceil(runs / 8),
    );
  });
  test("the list of commands reaches every kind", () => {
    const kinds = new Set(fc.sample(command, 2000).map((one) => one.do));
    expect(kinds.size).toBe(26);
  });
});
