/**
 * A short run of every fuzzing target, the same each time. `npm run fuzz` has longer ones:
 *
 *   MAPDIRECT_FUZZ_TARGET=NAME      this target alone
 *   MAPDIRECT_FUZZ_SECONDS=N        instead of a number of executions
 *   MAPDIRECT_FUZZ_CORPUS=FOLDER    begin with the inputs in there, and leave new ones there
 *   MAPDIRECT_FUZZ_FINDINGS=FOLDER  where what was found goes
 *   MAPDIRECT_SEED=N                other choices
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { fuzz } from "./fuzzer.ts";
import { makeTarget, targetNames } from "./targets.ts";

const { MAPDIRECT_FUZZ_TARGET: only, MAPDIRECT_FUZZ_SECONDS: seconds, MAPDIRECT_SEED: seed } = process.env;
const corpus = process.env.MAPDIRECT_FUZZ_CORPUS ?? null;
const ownFolder = process.env.MAPDIRECT_FUZZ_FINDINGS === undefined;
const findings = process.env.MAPDIRECT_FUZZ_FINDINGS ?? mkdtempSync(join(tmpdir(), "mapdirect-fuzz-"));
const EXECUTIONS = 300;

let found = 0;
afterAll(() => {
  // What was found stays where its message says.
  if (ownFolder && found === 0) rmSync(findings, { recursive: true, force: true });
});

describe("no input of a target breaks what has to hold", () => {
  for (const name of targetNames) {
    test.skipIf(only !== undefined && only !== name)(
      name,
      async () => {
        const report = await fuzz(await makeTarget(name), {
          ...{ seed: Number(seed ?? 1), corpus, findings },
          executions: seconds === undefined ? EXECUTIONS : Number.POSITIVE_INFINITY,
          seconds: seconds === undefined ? Number.POSITIVE_INFINITY : Number(seconds),
          say: (text) => void process.stdout.write(`fuzz ${text}\n`),
        });
        found += report.findings.length;
        expect(report.findings).toEqual([]);
        expect(report.corpus).toBeGreaterThan(10);
      },
      Number(seconds ?? 0) * 2000 + 300_000,
    );
  }
});
