/**
 * The client library on a mount whose daemon lies: inputs at random (the same each time, or MAPDIRECT_SEED), and those that
 * were found once. `npm run fuzz -- --target client` is guided by coverage.
 */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { folderPrefix } from "../support/leftovers.ts";
import { missing, run } from "../support/run.ts";
import { buildClient } from "./client/build.mjs";

const cc = process.env.CC ?? "cc";
const noCompiler = missing(cc);
const seed = process.env.MAPDIRECT_SEED ?? "1";
const folder = join(import.meta.dirname, "client", "inputs");
const RUNS = 2000;

describe.skipIf(noCompiler !== undefined)(
  `a daemon that lies to the client library${noCompiler === undefined ? "" : `: ${noCompiler}`}`,
  () => {
    let built = "";
    let program = "";
    beforeAll(() => {
      built = mkdtempSync(folderPrefix(tmpdir()));
      program = join(built, "client");
      buildClient(cc, program, false);
    });
    afterAll(() => {
      if (built !== "") rmSync(built, { recursive: true, force: true });
    });

    test(`reaches no memory but the mapping's, and nothing hangs (seed ${seed})`, async () => {
      const done = await run(program, ["--random", `${RUNS}`, seed]);
      expect(done.code, done.stderr).toBe(0);
    });

    test("inputs that have led far, or were found, hold", async () => {
      const inputs = readdirSync(folder).map((name) => join(folder, name));
      const done = await run(program, inputs);
      expect(done.code, done.stderr).toBe(0);
    });
  },
);
