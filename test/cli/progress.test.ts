/** Progress of what takes long: a bar on a terminal, nothing elsewhere. */
import { writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { listenToProgress, progress } from "../../src/base/progress.ts";
import { readReadyLine, takeProgress } from "../../src/daemon/readiness.ts";
import { write } from "../../src/namespace/data.ts";
import { S_IFREG } from "../../src/namespace/inode.ts";
import { create } from "../../src/namespace/names.ts";
import { resize } from "../../src/namespace/resize.ts";
import { Store } from "../../src/namespace/store.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { missing, run } from "../support/run.ts";
import { MIB, makeVolume, owner } from "../support/volume.ts";

const ESC = String.fromCharCode(27);

/** A program that is busy for a second and says so, as resize and others do. */
async function busyProgram(): Promise<string> {
  const folder = await mkdtemp(folderPrefix(tmpdir()));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  const file = join(folder, "busy.mjs");
  writeFileSync(
    file,
    `import { showingProgress } from ${JSON.stringify(join(packageRoot, "dist/cli/progress.js"))};
     import { progress } from ${JSON.stringify(join(packageRoot, "dist/base/progress.js"))};
     const wait = (until) => { while (performance.now() < until); };
     const from = performance.now();
     const result = showingProgress(() => {
       for (let done = 0; done <= 100; done += 1) {
         progress("moving blocks", done, 100);
         wait(from + done * 10);
       }
       return "moved";
     });
     if (process.argv[2] === "fail") showingProgress(() => { throw new Error("failed"); });
     console.log(result);`,
  );
  return file;
}

describe("on the terminal", () => {
  test("there is a bar while it lasts; afterwards it is gone, and nothing of the terminal was changed", async ({
    skip,
  }) => {
    const lacking = missing("script");
    if (lacking !== undefined) skip(lacking);
    const file = await busyProgram();
    const { code, stdout } = await run("script", ["-qec", `${process.execPath} ${file}`, "/dev/null"], {
      env: { TERM: "xterm" },
    });
    expect(code).toBe(0);
    expect(stdout).toMatch(/moving blocks \[=+-+\] \d+ %/);
    // Neither the cursor nor the wrapping of lines.
    expect(stdout).not.toContain(`${ESC}[?`);
    // What is left on the line is what the program says.
    expect(stdout.slice(stdout.lastIndexOf(ESC)).trim()).toMatch(/moved$/);
  });

  test("elsewhere there is nothing of it", async () => {
    const file = await busyProgram();
    expect(await run(process.execPath, [file])).toEqual({ code: 0, stdout: "moved\n", stderr: "" });
  });
});

describe("what takes long", () => {
  test("says how far it is, never more than all of it, and never less than before", async () => {
    const region = await makeVolume(64 * MIB, "cacheline");
    const store = await Store.open(region, { readOnly: false });
    const file = create(store, store.root, "file", S_IFREG | 0o644, 0, owner, null);
    // Something behind the new end: what lies before it is taken first.
    const filler = create(store, store.root, "filler", S_IFREG | 0o644, 0, owner, null);
    for (let at = 0; at < 24; at += 1)
      write(store, filler, BigInt(at * MIB), new Uint8Array(MIB), 0, MIB, false);
    for (let at = 0; at < 16; at += 1)
      write(store, file, BigInt(at * MIB), new Uint8Array(MIB), 0, MIB, false);
    await store.close();
    const said: [string, number, number][] = [];
    listenToProgress((...one) => said.push(one));
    onTestFinished(() => listenToProgress(null));
    const { movedBytes } = await resize(region, 48 * MIB);
    for (const [index, [step, done, total]] of said.entries()) {
      const [before, earlier] = said[index - 1] ?? [];
      if (total > 0) expect(done).toBeLessThanOrEqual(total);
      if (before === step) expect(done).toBeGreaterThanOrEqual(earlier ?? 0);
    }
    expect(said.some(([step]) => step.startsWith("reading the checkpoint"))).toBe(true);
    if (movedBytes > 0) expect(said.some(([step]) => step === "moving blocks")).toBe(true);
  });

  test("says it to nobody when nobody listens", () => {
    listenToProgress(null);
    expect(() => progress("step", 1, 2)).not.toThrow();
  });
});

describe("a daemon that recovers", () => {
  const step = (done: number): string =>
    `${JSON.stringify({ pid: 7, progress: { step: "replaying the log", done, total: 9 } })}\n`;

  test("tells how far it is before it tells that it is ready, in pieces of any size", () => {
    const whole = `${step(1)}${step(2)}${JSON.stringify({ pid: 7 })}\n`;
    let rest = "";
    const seen: number[] = [];
    for (const char of whole) {
      const taken = takeProgress(rest + char);
      seen.push(...taken.steps.map(({ done }) => done));
      rest = taken.rest;
    }
    expect(seen).toEqual([1, 2]);
    expect(readReadyLine(rest)).toBe(7);
  });

  test("that dies half-way is not taken for one that is ready", () => {
    const { rest } = takeProgress(step(1));
    expect(() => readReadyLine(rest)).toThrow("the daemon ended");
  });
});
