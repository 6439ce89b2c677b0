/**
 * kill -9 of the daemon at any moment: every operation that had returned is there after the next mount, the one that
 * had not is there whole or not at all, and the volume is consistent.
 *
 * MAPDIRECT_KILL_CYCLES: how often (10). MAPDIRECT_SEED: repeats the choices of a run; the moments are the machine's.
 */
import { spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { isRunning } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { type TestMount, withMount } from "../support/mount.ts";
import { programPath } from "../support/run.ts";
import { Model, parseLog } from "./model.ts";

const CYCLES = Number(process.env.MAPDIRECT_KILL_CYCLES ?? 10);
const seed = Number(process.env.MAPDIRECT_SEED ?? randomInt(2 ** 31));
const WRITERS = 2;
/** A long run says every so often how far it is. */
const PROGRESS_CYCLES = 100;

/** Linear congruential, for choices that a seed repeats. */
function chooser(start: number): (below: number) => number {
  let state = start >>> 0;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

interface Writer {
  folder: string;
  /** It has begun to write. */
  begun: Promise<void>;
  log: Promise<string>;
}

function startWriter(folder: string, writerSeed: number): Writer {
  const child = spawn(process.execPath, [join(packageRoot, "test/crash/load.mjs"), folder, `${writerSeed}`], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  onTestFinished(() => {
    child.kill("SIGKILL");
  });
  let begin: () => void = () => {};
  const begun = new Promise<void>((done) => {
    begin = done;
  });
  const log = new Promise<string>((done) => {
    let text = "";
    child.stdout.setEncoding("utf8").on("data", (part: string) => {
      text += part;
      begin();
    });
    child.on("close", () => {
      begin();
      done(text);
    });
  });
  return { folder, begun, log };
}

/** A mount that is killed in turn while it recovers. */
async function killDuringRecovery(mount: TestMount, delayMs: number): Promise<void> {
  const daemon = spawn(process.execPath, [programPath, "mount", "--foreground", mount.region, mount.path], {
    stdio: "ignore",
  });
  const { pid } = daemon;
  await sleep(delayMs);
  daemon.kill("SIGKILL");
  while (pid !== undefined && isRunning(pid)) await sleep(1);
}

async function cycle(mount: TestMount, index: number, choose: (below: number) => number): Promise<number> {
  const context = `seed ${seed}, cycle ${index}`;
  const writers: Writer[] = [];
  for (let id = 0; id < WRITERS; id += 1) {
    const folder = mount.at(`cycle-${index}-${id}`);
    await mkdir(folder);
    writers.push(startWriter(folder, choose(2 ** 31)));
  }
  // Most kills come early, some after a checkpoint or two.
  await Promise.all(writers.map(({ begun }) => begun));
  await sleep(choose(5) === 0 ? choose(1500) : choose(250));
  await mount.kill9();
  const logs = await Promise.all(writers.map(({ log }) => log));
  if (choose(3) === 0) await killDuringRecovery(mount, 100 + choose(200));
  await mount.mount();
  let operations = 0;
  for (const [id, writer] of writers.entries()) {
    const { done, pending, complaint } = parseLog(logs[id] ?? "");
    expect(complaint, context).toBeUndefined();
    operations += done.length;
    const without = new Model();
    for (const operation of done) without.apply(operation);
    const difference = without.differenceFrom(writer.folder);
    if (difference === undefined) continue;
    const whole = without.clone();
    if (pending !== undefined) whole.apply(pending);
    const other = pending === undefined ? difference : whole.differenceFrom(writer.folder);
    expect(
      other,
      `${context}, writer ${id}, ${done.length} operations; without the pending ${JSON.stringify(pending)}: ${difference}; with it: ${other}`,
    ).toBeUndefined();
  }
  await mount.check();
  for (const name of await readdir(mount.path)) {
    // Some of what earlier cycles left stays, so that recovery has more than one cycle to remember.
    if (!name.startsWith(`cycle-${index}-`) || choose(2) === 0) await rm(mount.at(name), { recursive: true });
  }
  return operations;
}

describe("kill -9 of the daemon", () => {
  test.for([
    ["a page-cached region", false],
    ["a region declared as pmem", true],
  ] as const)(
    `loses nothing that was acknowledged, on %s, ${CYCLES} times (seed ${seed})`,
    { timeout: 60_000 + CYCLES * 15_000 },
    async ([_, assumePmem]) => {
      console.log(`kill9: MAPDIRECT_SEED=${seed} MAPDIRECT_KILL_CYCLES=${CYCLES}`);
      const choose = chooser(seed);
      let operations = 0;
      await withMount({ assumePmem, sizeBytes: 128 * 1024 * 1024 }, async (mount) => {
        for (let index = 0; index < CYCLES; index += 1) {
          operations += await cycle(mount, index, choose);
          if ((index + 1) % PROGRESS_CYCLES === 0)
            console.log(
              `kill9: ${index + 1} of ${CYCLES} cycles, ${operations} acknowledged operations checked`,
            );
        }
      });
      console.log(`kill9: ${operations} acknowledged operations checked`);
      expect(operations).toBeGreaterThan(CYCLES);
    },
  );
});
