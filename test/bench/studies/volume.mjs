/** Volumes of their own for studies: made, mounted, killed. */
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { isMounted, unmount } from "../mounts.mjs";
import { mapdirect, mountMapdirect } from "../peers.mjs";
import { run } from "../scope.mjs";

const LONG_MS = 600_000;
const END_MS = 60_000;
const loadFile = (name) => fileURLToPath(new URL(`../load/${name}`, import.meta.url));

/** One of the programs in load/ that run on Node. */
export const node = (bench, name, ...words) =>
  run(process.execPath, [loadFile(name), ...words.map(String)], { limitMs: LONG_MS, signal: bench.signal });

export const statistics = async (bench, folder) => JSON.parse(await node(bench, "ask.mjs", folder));

/** The region is removed when the scope of the study closes, before the next one needs the memory. */
export async function makeRegion(bench, name, bytes) {
  const region = join(bench.folder, `${name}.region`);
  bench.scope.defer(region, async () => rmSync(region, { force: true }));
  await mapdirect(bench, "mkfs", "--size", `${bytes}`, region);
  return region;
}

let count = 0;

/** Resolves when it answers. */
export async function mount(bench, region) {
  count += 1;
  const folder = join(bench.folder, `study-${count}`);
  const from = performance.now();
  const { pid } = await mountMapdirect(bench, bench.scope, region, folder);
  return { folder, pid, seconds: (performance.now() - from) / 1000 };
}

const isAlive = (pid) => {
  try {
    return !/^State:\s*Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
};

async function waitForDeath(pid) {
  const end = performance.now() + END_MS;
  while (isAlive(pid)) {
    if (performance.now() > end) throw new Error(`the daemon ${pid} has not ended after ${END_MS / 1000} s`);
    await sleep(5);
  }
}

/** Seconds until its daemon has closed the volume. */
export async function end(_bench, { folder, pid }) {
  const from = performance.now();
  await unmount(folder);
  await waitForDeath(pid);
  return (performance.now() - from) / 1000;
}

/** As if it had crashed. */
export async function kill(_bench, { folder, pid }) {
  process.kill(pid, "SIGKILL");
  await waitForDeath(pid);
  if (isMounted(folder)) await unmount(folder);
}

/** In MB (10^6): now, and at most so far. */
export function memoryOf(pid) {
  const text = readFileSync(`/proc/${pid}/status`, "utf8");
  const of = (key) => (Number(new RegExp(`${key}:\\s*(\\d+)`).exec(text)[1]) * 1024) / 1e6;
  // The region is mapped: pages of it that the daemon has touched are the file's memory, not its own.
  return { own: of("RssAnon"), all: of("VmRSS") };
}

export function makeFolder(bench, name) {
  const folder = join(bench.folder, name);
  mkdirSync(folder);
  return folder;
}
