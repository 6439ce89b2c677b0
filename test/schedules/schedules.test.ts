/**
 * Random schedules of several processes that map, store, fork, conflict, break and die, against a model of the semantics.
 * A failing one is made smaller by fast-check. MAPDIRECT_SCHEDULES=10000 runs more of them, MAPDIRECT_SEED the same ones.
 */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { useMount } from "../support/mount.ts";
import { missing } from "../support/run.ts";
import { Bench, BREAK_TIME_MS, FILE_PAGES, FILES, type Step } from "./bench.ts";

const runs = Number(process.env.MAPDIRECT_SCHEDULES ?? 300);
const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));
const STEPS_MAX = 60;

const worker = fc.nat({ max: 9 });
const file = fc.nat({ max: FILES - 1 });
const page = fc.nat({ max: FILE_PAGES + 1 });
const count = fc.integer({ min: 1, max: 4 });
const slot = fc.nat({ max: 3 });
const value = fc.integer({ min: 1, max: 255 });
const kind = fc.constantFrom("seal" as const, "breakable" as const);

const kept = fc.boolean();

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 20,
    arbitrary: fc.record({ do: fc.constant("map" as const), worker, file, first: page, count, kind, kept }),
  },
  {
    weight: 12,
    arbitrary: fc.record({
      do: fc.constantFrom("unmap" as const, "unmap" as const, "cut" as const, "move" as const),
      worker,
      slot,
      page,
    }),
  },
  {
    weight: 20,
    arbitrary: fc.record({
      do: fc.constantFrom("load" as const, "store" as const),
      worker,
      slot,
      page,
      value,
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("read" as const),
      worker,
      file,
      page,
      kept,
      way: fc.nat({ max: 3 }),
    }),
  },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("sync" as const), worker, file }) },
  {
    weight: 20,
    arbitrary: fc.record({
      do: fc.constantFrom(
        "write" as const,
        "write" as const,
        "truncate" as const,
        "punch" as const,
        "allocate" as const,
        "prepare" as const,
      ),
      worker,
      file,
      first: page,
      count,
      value,
      aim: fc.nat({ max: 31 }),
      kept,
      nonblocking: fc.oneof(
        { weight: 4, arbitrary: fc.constant(false) },
        { weight: 1, arbitrary: fc.constant(true) },
      ),
    }),
  },
  { weight: 4, arbitrary: fc.record({ do: fc.constant("copy" as const), worker, file, to: file, count }) },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("race" as const),
      worker,
      other: worker,
      file,
      first: page,
      count,
      kind,
    }),
  },
  {
    weight: 10,
    arbitrary: fc.record({
      do: fc.constantFrom("fork" as const, "fork" as const, "kill" as const, "replace" as const),
      worker,
      file,
    }),
  },
);

/** Costs the break time, a second: rare. */
const stop = fc.record({ do: fc.constant("stop" as const), worker, file });
const steps = fc.array(fc.oneof({ weight: 800, arbitrary: step }, { weight: 1, arbitrary: stop }), {
  minLength: 20,
  size: "max",
  maxLength: STEPS_MAX,
});
const layouts = fc.array(fc.stringMatching(new RegExp(`^[WWWHU]{${FILE_PAGES}}$`)), {
  minLength: FILES,
  maxLength: FILES,
});

const noCompiler = missing("cc");

const plain = Array<string>(FILES).fill("WWWHUW");
const mapped: Step = { do: "map", worker: 0, file: 0, first: 0, count: 4, kind: "breakable", kept: true };
/** In every run, however few there are: a holder that is stopped, its range asked for by two others; so is one whose child is not. */
const always: [string[], Step[]][] = [
  [plain, [mapped, { do: "stop", worker: 0, file: 0 }, { do: "replace", worker: 1, file: 2 }]],
  [plain, [mapped, { do: "fork", worker: 0, file: 0 }, { do: "stop", worker: 0, file: 0 }]],
];

describe.skipIf(noCompiler !== undefined).for([{ assumePmem: false }, { assumePmem: true }])(
  `random schedules of real processes${noCompiler === undefined ? "" : `: ${noCompiler}`}, %o`,
  ({ assumePmem }) => {
    const options = `break_time=${BREAK_TIME_MS / 1000}`;
    // One of the two with files in the page cache.
    const mount = useMount({
      sizeBytes: 16 * 1024 * 1024,
      options: assumePmem ? options : `${options},cache=auto`,
      assumePmem,
    });
    let bench: Bench;
    beforeAll(async () => {
      bench = await Bench.begin(mount);
    }, 60_000);
    afterAll(() => bench?.end());

    test(`${runs / 2} of them do what the semantics say, and no block ever has two owners`, async () => {
      process.stdout.write(`schedules: MAPDIRECT_SEED=${seed} MAPDIRECT_SCHEDULES=${runs}\n`);
      await fc.assert(
        fc.asyncProperty(layouts, steps, async (files, schedule) => {
          try {
            await bench.run(files, schedule);
          } catch (error) {
            if (error instanceof Error) error.message += `\n${bench.log.join("\n")}`;
            throw error;
          }
        }),
        {
          numRuns: Math.ceil(runs / 2),
          seed: seed + Number(assumePmem),
          endOnFailure: runs > 1000,
          examples: always,
        },
      );
      const answers = Object.entries(bench.counts).sort(([one], [other]) => one.localeCompare(other));
      process.stdout.write(
        `schedules: ${answers.map(([answer, times]) => `${answer} ${times}`).join(", ")}\n`,
      );
      // It has seen what it is about.
      const rare = ["stop revoked", "stop refused"];
      const often = ["truncate ETXTBSY", "punch ok", "map EAGAIN", "load SIGBUS", "fork ok"];
      for (const needed of runs >= 200 ? [...rare, ...often] : rare)
        expect(bench.counts[needed] ?? 0, needed).toBeGreaterThan(0);
    }, 3_600_000);
  },
);
