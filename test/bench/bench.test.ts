/** The benchmark itself, with sizes that measure nothing: that it runs, says what it found, and leaves nothing behind. */
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { readMounts } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { missing } from "../support/run.ts";

const program = join(packageRoot, "test", "bench", "main.mjs");
/** One of each kind of workload; nothing that needs packages that a machine may not have. */
const ONLY = "direct-page-1,touch4k,grant-16,randomRead4k,tightRead4k,one,tree,log,directory";
const PEERS = "mapdirect,mapdirect-preload-io,tmpfs,raw-mmap";
const LIMIT_MS = 170_000;

interface Figure {
  median: number;
  least: number;
  most: number;
  values: number[];
}

interface Row {
  group: string;
  key: string;
  title: string;
  unit: string;
  better: "more" | "less";
  byPeer: Record<string, Figure>;
  ratioTo: Record<string, Figure>;
}

interface Result {
  at: string;
  profile: string;
  machine: {
    kernel: string;
    cpu: { model: string; count: number };
    backing: { path: string };
    loadAverage: number[];
  };
  settings: { rounds: number };
  peers: { name: string; note: string; skipped?: string }[];
  rows: Row[];
  cpuRows: { title: string; byPeer: Record<string, Figure> }[];
  curves: { name: string; x: number[]; series: { title: string; values: (Figure | null)[] }[] }[];
  goals: { title: string; unit: string; measured: Figure | null; reached: boolean | null }[];
  skipped: { workload: string; peer: string; reason: string }[];
  failures: string[];
  samples: unknown[];
}

interface Run {
  pid: number;
  said: () => string;
  ended: Promise<number | null>;
  interrupt: () => void;
}

function start(words: readonly string[]): Run {
  const child = spawn(process.execPath, [program, ...words], { stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  const listen = (chunk: Buffer): void => {
    text += chunk.toString();
  };
  child.stdout.on("data", listen);
  child.stderr.on("data", listen);
  const ended = new Promise<number | null>((done) => child.on("close", done));
  return { pid: child.pid ?? 0, said: () => text, ended, interrupt: () => child.kill("SIGINT") };
}

const folderOf = ({ pid }: Run): string => join("/dev/shm", `mapdirect-bench-${pid}`);

function leftBehind(run: Run): string[] {
  const mounts = readMounts().filter(({ mountpoint }) => mountpoint.startsWith(`${folderOf(run)}/`));
  return [
    ...mounts.map(({ mountpoint }) => mountpoint),
    ...(existsSync(folderOf(run)) ? [folderOf(run)] : []),
  ];
}

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(folderPrefix(tmpdir()));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

/** As root it mounts by itself. */
const reason = process.geteuid?.() === 0 ? undefined : missing("fusermount3");

test("a run says what it measured, in a form that programs can read, and clears up", {
  timeout: LIMIT_MS,
}, async ({ skip }) => {
  if (reason !== undefined) skip(reason);
  const run = start(["--smoke", "--only", ONLY, "--peers", PEERS, "--output", folder]);
  expect(await run.ended, run.said()).toBe(0);
  expect(leftBehind(run)).toEqual([]);

  const names = readdirSync(folder).sort();
  expect(names.map((name) => name.replace(/^.*\./, ""))).toEqual(["html", "json", "md"]);
  const [page, json, tables] = names.map((name) => readFileSync(join(folder, name), "utf8")) as [
    string,
    string,
    string,
  ];
  expect(tables).toMatch(/^### Goals\n\n\| goal \| wanted \| measured \| {2}\|\n\| --- /);
  expect(tables).toContain("| MAP_DIRECT, µs |");
  const result = JSON.parse(json) as Result;
  expect(result.failures).toEqual([]);
  expect(result.skipped).toEqual([]);
  expect(result).toMatchObject({
    profile: "smoke",
    settings: { rounds: 1 },
    machine: { kernel: expect.stringContaining("Linux"), backing: { path: "/dev/shm" } },
  });
  expect(result.machine.loadAverage).toHaveLength(3);
  expect(result.peers.map(({ name, skipped }) => (skipped === undefined ? name : skipped))).toEqual(
    PEERS.split(","),
  );

  const rows = new Map(result.rows.map((row) => [row.key, row]));
  for (const row of result.rows) {
    for (const { median, least, most, values } of [
      ...Object.values(row.byPeer),
      ...Object.values(row.ratioTo),
    ]) {
      expect(Number.isFinite(median), row.title).toBe(true);
      expect(least).toBeLessThanOrEqual(median);
      expect(median).toBeLessThanOrEqual(most);
      expect(values.length).toBeGreaterThan(0);
    }
  }
  const peersOf = (key: string): string[] => Object.keys(rows.get(key)?.byPeer ?? {});
  expect(peersOf("store64-page-1")).toEqual(["mapdirect", "raw-mmap"]);
  expect(peersOf("touch4k")).toEqual(["mapdirect", "raw-mmap"]);
  expect(peersOf("grant-map-16")).toEqual(["mapdirect"]);
  expect(peersOf("randomRead4k")).toEqual(["mapdirect", "tmpfs"]);
  expect(peersOf("tightRead4k")).toEqual(["mapdirect", "mapdirect-preload-io", "tmpfs"]);
  expect(peersOf("one-create")).toEqual(["mapdirect", "tmpfs"]);
  expect(peersOf("treeAll")).toEqual(["mapdirect", "tmpfs"]);
  expect(peersOf("log-create")).toEqual(["mapdirect"]);
  expect(peersOf("bigMountSec-300")).toEqual(["mapdirect"]);
  expect(rows.get("log-create")?.byPeer.mapdirect?.median).toBeGreaterThan(0);
  expect(rows.get("one-create")?.ratioTo.tmpfs?.median).toBeGreaterThan(0);
  expect(result.curves.find(({ name }) => name === "directory")?.x).toEqual([100, 300]);

  const goal = result.goals.find(({ title }) => title.startsWith("pread of 4 KiB"));
  expect(goal?.measured?.median).toBeGreaterThan(0);
  expect(
    result.goals.filter(({ measured }) => measured === null).every(({ reached }) => reached === null),
  ).toBe(true);
  expect(page).toContain("<svg");
  for (const { title } of result.goals) expect(page).toContain(title);
});

test("a run that is interrupted clears up", { timeout: LIMIT_MS }, async ({ skip }) => {
  if (reason !== undefined) skip(reason);
  const run = start(["--smoke", "--only", "randomRead4k", "--rounds", "10000", "--output", folder]);
  while (!readMounts().some(({ mountpoint }) => mountpoint.startsWith(`${folderOf(run)}/`))) await sleep(20);
  run.interrupt();
  expect(await run.ended, run.said()).toBe(130);
  expect(leftBehind(run)).toEqual([]);
  expect(readdirSync(folder)).toEqual([]);
});

test("what does not exist is refused before anything is measured", async () => {
  for (const [words, said] of [
    [["--only", "nonsense"], "no workload is called 'nonsense'"],
    [["--peers", "nonsense"], "no peer is called 'nonsense'"],
    [["--rounds", "0"], "--rounds wants a whole number from 1"],
  ] as const) {
    const run = start([...words, "--output", folder]);
    expect(await run.ended).toBe(1);
    expect(run.said()).toContain(said);
  }
  expect(readdirSync(folder)).toEqual([]);
});
