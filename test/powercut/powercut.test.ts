/**
 * The power fails at every moment of sequences of operations, and leaves every state that it could.
 *
 *   MAPDIRECT_POWERCUT_TRIPLES=N     sequences of three, chosen at random; "all" for all of them (hours)
 *   MAPDIRECT_POWERCUT_STATES=N      states of one epoch at most
 *   MAPDIRECT_POWERCUT_SHARE=K/N     of all these sequences every Nth, from the Kth on: N runs make a whole
 *   MAPDIRECT_POWERCUT_SEQUENCE=A,B  this one sequence alone, as a complaint names it
 *   MAPDIRECT_SEED=N                 the same choices again
 */
import { describe, expect, test } from "vitest";
import type { Granularity } from "../../src/region/region.ts";
import { randomOf } from "../support/volume.ts";
import { baseImage, checkpointSequences, OPERATIONS, type Scene } from "./operations.ts";
import * as sabotage from "./sabotage.ts";
import { Search, Violation } from "./search.ts";

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));
const limit = Number(process.env.MAPDIRECT_POWERCUT_STATES ?? 64);
const triples = process.env.MAPDIRECT_POWERCUT_TRIPLES ?? "200";
const [share = 1, shares = 1] = (process.env.MAPDIRECT_POWERCUT_SHARE ?? "1/1").split("/").map(Number);
const single = process.env.MAPDIRECT_POWERCUT_SEQUENCE?.split(",").map((name) => name.trim());
/** A long run says every so often how far it is. */
const PROGRESS_MS = 30_000;
/** More of them say nothing more. */
const VIOLATIONS_MAX = 20;

const names = Object.keys(OPERATIONS);

function* sequences(random: () => number): IterableIterator<string[]> {
  for (const one of names) yield [one];
  for (const one of names) for (const two of names) yield [one, two];
  yield* checkpointSequences();
  if (triples === "all") {
    for (const one of names) for (const two of names) for (const three of names) yield [one, two, three];
    return;
  }
  const any = (): string => names[Math.floor(random() * names.length)] as string;
  for (let left = Number(triples); left > 0; left -= 1) yield [any(), any(), any()];
}

async function searchOf(
  granularity: Granularity,
  options: { sabotage?: (scene: Scene) => void } = {},
): Promise<Search> {
  return new Search(await baseImage(granularity), {
    ...{ limit, seed, recoverEvery: 100, granularity },
    ...options,
  });
}

/** All sequences of this run, in order. */
function chosen(): string[][] {
  if (single !== undefined) return [single];
  return [...sequences(randomOf(seed + 1))].filter((_, number) => number % shares === share - 1);
}

describe("a power cut leaves each operation whole or not at all", () => {
  for (const granularity of ["cacheline", "page"] as const) {
    test(`at any moment of all pairs of ${names.length} operations, and some triples (${granularity})`, async () => {
      const say = (text: string): void => void process.stdout.write(`power cuts, ${granularity}: ${text}\n`);
      say(`MAPDIRECT_SEED=${seed}`);
      const search = await searchOf(granularity);
      const { figures } = search;
      const all = chosen();
      const violations: string[] = [];
      const begun = performance.now();
      let said = begun;
      const sofar = (): string =>
        `${figures.sequences} sequences, ${figures.fences} fences, ${figures.states} states ` +
        `(${figures.recoveries} during recovery), ${violations.length} violations, ` +
        `${((performance.now() - begun) / 1000).toFixed(1)} s`;
      for (const sequence of all) {
        try {
          await search.run(sequence);
        } catch (error) {
          violations.push(`${sequence.join(", ")}: ${error instanceof Error ? error.stack : error}`);
          say(violations.at(-1) as string);
          if (violations.length === VIOLATIONS_MAX) break;
        }
        if (performance.now() - said < PROGRESS_MS) continue;
        said = performance.now();
        say(`of ${all.length} ${sofar()}`);
      }
      say(sofar());
      expect(violations).toEqual([]);
      if (single !== undefined) return;
      expect(figures.states).toBeGreaterThan((granularity === "cacheline" ? 50_000 : 20_000) / shares);
      expect(figures.recoveries).toBeGreaterThan(1000 / shares);
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
    [
      "a record before the zeros around what is written into allocated space",
      "cacheline",
      sabotage.recordBeforeZeros,
      ["fallocate", "write within"],
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
    [
      "blocks are discarded before the log says durably that they are free",
      "page",
      sabotage.discardPending,
      ["unlink", "discard"],
      /never was/,
    ],
    [
      "segments of metadata are discarded while the superblocks name them",
      "cacheline",
      sabotage.discardMetadata,
      ["create", "discard"],
      /./,
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
  }, 300_000);
});
