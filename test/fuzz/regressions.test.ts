/** What fuzzing has found, each as small as it could be made: regressions/*.json, as a run of it writes them. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "vitest";
import { makeTarget } from "./targets.ts";

interface Regression {
  readonly target: string;
  /** What went wrong before it was put right. */
  readonly was: string;
  readonly input: unknown;
}

const folder = join(import.meta.dirname, "regressions");
const regressions = readdirSync(folder)
  .filter((name) => name.endsWith(".json"))
  .map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as Regression);

describe("what fuzzing has found holds now", () => {
  const targets = new Map<string, ReturnType<typeof makeTarget>>();
  test.each(regressions)("$target: $was", async ({ target: name, input }) => {
    const target = targets.get(name) ?? makeTarget(name);
    targets.set(name, target);
    await (await target).run(input);
  });
});
