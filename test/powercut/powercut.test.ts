/**
 * The power fails at every moment of sequences of operations, and leaves every state that it could.
 *
 *   MAPDIRECT_POWERCUT_TRIPLES=N   sequences of three, chosen at random; "all" for all of them (hours)
 *   MAPDIRECT_POWERCUT_STATES=N    states of one epoch at most
 *   MAPDIRECT_SEED=N               the same choices again
 */
import { describe, expect, test } from "vitest";
import type { Granularity } from "../../src/region/region.ts";
import { randomOf } from "../support/volume.ts";
import { baseImage, OPERATIONS, type Scene } from "./operations.ts";
import * as sabotage from "./sabotage.ts";
import { Search, Violation } from "./search.ts";

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));
const limit = Number(process.env.MAPDIRECT_POWERCUT_STATES ?? 64);
const triples = process.env.MAPDIRECT_POWERCUT_TRIPLES ?? "200";

const names = Object.keys(OPERATIONS);

function* sequences(random: () => number): IterableIterator<string[]> {
  for (const one of names) yield [one];
  for (const one of names) for (const two of names) yield [one, two];
  if (triples === "all") {
    for (const one of names) for (const two of names) for (const three of names) yield [one, two, three];
    return;
  }
  const any = (): string => names[Math.floor(random() * names.length)] as string;
  for (let left = Number(triples); left > 0; left -= 1) yield [any(), any(), any()];
}

async function searchOf(
  granularity: Granularity,
  options: { sabotage?: (scene: Scene) => void; recoverEvery?: number } = {},
): Promise<Search> {
  const { recoverEvery = 100 } = options;
  const random = randomOf(seed);
  return new Search(await baseImage(granularity), { limit, random, recoverEvery, granularity, ...options });
}

describe("a power cut leaves each operation whole or not at all", () => {
  for (const granularity of ["cacheline", "page"] as const) {
    test(`at any moment of all pairs of ${names.length} operations, and some triples (${granularity})`, async () => {
      process.stdout.write(`power cuts, ${granularity}: MAPDIRECT_SEED=${seed}\n`);
      const search = await searchOf(granularity);
      const begun = performance.now();
      for (const sequence of sequences(randomOf(seed + 1))) await search.run(sequence);
      const { figures } = search;
      const seconds = ((performance.now() - begun) / 1000).toFixed(1);
      process.stdout.write(
        `power cuts, ${granularity}: ${figures.sequences} sequences, ${figures.fences} fences, ` +
          `${figures.states} states (${figures.recoveries} during recovery), 0 violations, ${seconds} s\n`,
      );
      expect(figures.states).toBeGreaterThan(granularity === "cacheline" ? 50_000 : 20_000);
      expect(figures.recoveries).toBeGreaterThan(1000);
    }, 36_000_000);
  }

  test.each([
    [
      "nothing is fenced",
      "cacheline",
      sabotage.noFence,
      ["create", "create"],
      /missing|should not be|entries/,
    ],
    [
      "no fence between data and its record",
      "cacheline",
      sabotage.noFenceBeforeRecords,
      ["append"],
      /never was/,
    ],
    ["a record before its data", "cacheline", sabotage.recordBeforeData, ["append"], /never was/],
    [
      "blocks are free before the log says so durably",
      "page",
      sabotage.freeAtOnce,
      ["unlink", "write"],
      /never was/,
    ],
    ["a barrier that nobody has synced for", "page", sabotage.barrierWithoutSync, ["append", "fsync"], /./],
  ] as const)("a mistake is found: %s", async (_what, granularity, mistake, sequence, complaint) => {
    const search = await searchOf(granularity, { sabotage: mistake });
    const failure = await search.run(sequence).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(Violation);
    expect((failure as Violation).message).toMatch(complaint);
    await (await searchOf(granularity)).run(sequence);
  });

  test("every operation does something", async () => {
    for (const name of names.filter((one) => !["release", "persist", "lease end", "fsync"].includes(one))) {
      for (const granularity of ["cacheline", "page"] as const) {
        const search = await searchOf(granularity);
        await search.run([name]);
        expect(search.figures.states, name).toBeGreaterThan(1);
      }
    }
  });
});
