/**
 * The power goes while programs change files, sync them and store through direct mappings: by sysrq-b in the guest, by a
 * reset of the machine (QMP), by kill -9 of QEMU. The guest's memory is a file, and the region a part of it that keeps its
 * bytes as persistent memory does.
 *
 * After each cut the host takes the region out of that file, runs fsck on it, mounts it, and compares every name and byte
 * with what was acknowledged; the next guest recovers the same region itself, and goes on.
 *
 * MAPDIRECT_POWERCUT_CYCLES: how often (20). MAPDIRECT_SEED: repeats the choices of a run; the moments are the machine's.
 */
import { randomInt } from "node:crypto";
import {
  closeSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, describe, expect, test } from "vitest";
import { Model, parseLog } from "../crash/model.ts";
import { cli as anyCli, type Result } from "../support/run.ts";
import type { Kernel } from "./kernels.ts";
import { type Booted, bootToScript, keep, kernelNamed, readLines, workFolder } from "./machine.ts";
import { acknowledged, recordsProblem } from "./records.ts";

const CYCLES = Number(process.env.MAPDIRECT_POWERCUT_CYCLES ?? 20);
const seed = Number(process.env.MAPDIRECT_SEED ?? randomInt(2 ** 31));
const LIMIT_MS = Number(process.env.MAPDIRECT_VM_LIMIT_S ?? 900) * 1000;
const MEMORY_MIB = 1400;
const REGION = { sizeMib: 128, atMib: 1024 } as const;
const WAYS = ["sysrq-b", "system_reset", "kill -9"] as const;
type Way = (typeof WAYS)[number];
/** A cut comes so long after the first acknowledged operation, at most. */
const LOAD_MS = 3000;
const DIRECT_WRITERS = 2;

let state = seed >>> 0;
/** Linear congruential, for choices that a seed repeats. */
function choose(below: number): number {
  state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
  return Math.floor((state / 2 ** 32) * below);
}

/** On a host that its guests keep busy. */
const cli = (args: readonly string[]): Promise<Result> => anyCli(args, { timeoutMs: 300_000 });

interface Cycle {
  readonly index: number;
  readonly way: Way;
  readonly kernel: string;
  readonly operations: number;
  readonly stores: number;
  /** How the guest found what the cut before had left; null for the first. */
  readonly recovery: string | null;
}

const read = (file: string): string => {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
};

/** Until something was acknowledged, or the guest ended without. */
async function loadBegins({ guest, out }: Booted, ended: Promise<unknown>): Promise<void> {
  let over = false;
  void ended.then(() => {
    over = true;
  });
  const logs = ["log", ...Array.from({ length: DIRECT_WRITERS }, (_, id) => `direct-${id}`)];
  for (;;) {
    if (logs.every((name) => /^(<|\d+)$/m.test(read(join(out, name))))) return;
    if (over)
      throw new Error(`the guest ended before its load began\n${guest.console()}\n${read(join(out, "log"))}`);
    await sleep(5);
  }
}

function extractRegion(memory: string, where: { offset: number; bytes: number }, target: string): void {
  const from = openSync(memory, "r");
  const to = openSync(target, "w");
  const buffer = Buffer.alloc(1 << 22);
  for (let at = 0; at < where.bytes; ) {
    const count = readSync(from, buffer, 0, Math.min(buffer.length, where.bytes - at), where.offset + at);
    if (count === 0) throw new Error("the guest's memory ends before its region");
    writeSync(to, buffer, 0, count);
    at += count;
  }
  closeSync(from);
  closeSync(to);
}

async function verify(
  folder: string,
  out: string,
  index: number,
  context: string,
): Promise<{ operations: number; stores: number }> {
  const region = join(folder, "region");
  const mountpoint = join(folder, "mnt");
  const log = parseLog(read(join(out, "log")));
  expect(log.complaint, context).toBeUndefined();

  const fsck = await cli(["fsck", region]);
  expect(fsck, `${context}: fsck: ${fsck.stdout}${fsck.stderr}`).toMatchObject({ code: 0 });
  await mkdir(mountpoint, { recursive: true });
  const mounted = await cli(["mount", "--assume-pmem", region, mountpoint]);
  expect(mounted, `${context}: mount: ${mounted.stderr}`).toMatchObject({ code: 0 });
  try {
    const without = new Model();
    for (const operation of log.done) without.apply(operation);
    const place = join(mountpoint, `cycle-${index}`);
    let difference = without.differenceFrom(place);
    if (difference !== undefined && log.pending !== undefined) {
      const whole = without.clone();
      whole.apply(log.pending);
      const other = whole.differenceFrom(place);
      difference =
        other === undefined
          ? undefined
          : `without ${JSON.stringify(log.pending)}: ${difference}; with it: ${other}`;
    }
    expect(difference, `${context}, ${log.done.length} operations`).toBeUndefined();

    let stores = 0;
    for (let id = 0; id < DIRECT_WRITERS; id += 1) {
      const last = acknowledged(read(join(out, `direct-${id}`)));
      const data = await readFile(join(mountpoint, `direct-${index}-${id}`));
      expect(recordsProblem(data, last), `${context}, direct writer ${id}`).toBeUndefined();
      stores += last;
    }
    const checked = await cli(["check", mountpoint]);
    expect(checked, `${context}: check: ${checked.stderr}`).toMatchObject({ code: 0 });
    return { operations: log.done.length, stores };
  } finally {
    const { code } = await cli(["unmount", mountpoint]);
    if (code !== 0) await cli(["unmount", "--lazy", mountpoint]);
    await rm(region, { force: true });
  }
}

async function cycle(index: number, kernel: Kernel, folder: string, memory: string): Promise<Cycle> {
  const way = WAYS[index % WAYS.length] as Way;
  const delayMs = choose(LOAD_MS);
  const context = `seed ${seed}, cycle ${index} (${way})`;
  const qmp = join(folder, `qmp-${index}`);
  const request = {
    kernel,
    folder,
    name: `cycle-${index}`,
    script: "powercut.sh",
    request: {
      cycle: index,
      seed: choose(2 ** 31),
      fresh: index === 0,
      sysrqAfterMs: way === "sysrq-b" ? delayMs : null,
    },
    memory: `${MEMORY_MIB}M`,
    qmp,
    machine: "pc,memory-backend=ram",
    commands: [`memmap=${REGION.sizeMib}M!${REGION.atMib}M`],
    devices: ["-object", `memory-backend-file,id=ram,share=on,mem-path=${memory},size=${MEMORY_MIB}M`],
  };
  const booted = await bootToScript(request, LIMIT_MS);
  const { guest, out, ended } = booted;
  try {
    await loadBegins(booted, ended);
    if (way !== "sysrq-b") await sleep(delayMs);
    if (way === "system_reset") await guest.command("system_reset");
    if (way === "kill -9") guest.kill();
    const end = await ended;
    expect(end.late, `${context}: the guest did not end\n${guest.console()}`).toBe(false);
    // The script never ends by itself: an exit code would be one of a guest that failed.
    expect(end.code, `${context}\n${guest.console()}`).toBeUndefined();
  } finally {
    guest.kill();
    await ended;
  }
  const where = JSON.parse(read(join(out, "where.json"))) as { offset: number; bytes: number };
  extractRegion(memory, where, join(folder, "region"));
  const counted = await verify(folder, out, index, context);
  const [recovery] = readLines<{ label: string }>(join(out, "recovery.json"));
  rmSync(out, { recursive: true });
  return { index, way, kernel: kernel.version, ...counted, recovery: recovery?.label ?? null };
}

describe("power cuts", () => {
  const folder = workFolder();
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const kernels = ["6.1", "newest"].map(kernelNamed).filter((kernel) => typeof kernel !== "string");

  test(
    `nothing that was acknowledged is lost, ${CYCLES} times (seed ${seed})`,
    async () => {
      console.log(`powercut: MAPDIRECT_SEED=${seed} MAPDIRECT_POWERCUT_CYCLES=${CYCLES}`);
      const memory = join(folder, "memory");
      writeFileSync(memory, "");
      truncateSync(memory, MEMORY_MIB << 20);
      const cycles: Cycle[] = [];
      for (let index = 0; index < CYCLES; index += 1) {
        const done = await cycle(index, kernels[index % kernels.length] as Kernel, folder, memory);
        cycles.push(done);
        console.log(
          `powercut: cycle ${index}, ${done.way}, ${done.kernel}: ${done.operations} operations and ${done.stores} stores acknowledged, 0 lost; found ${done.recovery ?? "a new volume"}`,
        );
      }
      const sum = (what: "operations" | "stores"): number =>
        cycles.reduce((total, one) => total + one[what], 0);
      console.log(
        `powercut: ${cycles.length} cycles, ${sum("operations")} operations and ${sum("stores")} direct stores acknowledged, 0 lost`,
      );
      keep("powercut", { seed, cycles, operations: sum("operations"), stores: sum("stores"), lost: 0 });
      expect(sum("operations")).toBeGreaterThan(CYCLES);
      expect(sum("stores")).toBeGreaterThan(CYCLES);
      expect(statSync(memory).size).toBe(MEMORY_MIB << 20);
    },
    CYCLES * LIMIT_MS,
  );
});
