/** Waiting for mounts, ending them, and clearing away what a benchmark that was killed (kill -9) left behind. */
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { hasEnded, run } from "./scope.mjs";

const MOUNT_MS = 20_000;
const COMMAND_MS = 10_000;

/** Reading mountinfo asks no file system anything. */
export const isMounted = (path) =>
  readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .some((line) => line.split(" ")[4] === path);

export async function waitForMount(mountpoint, server, signal) {
  const end = performance.now() + MOUNT_MS;
  while (!isMounted(mountpoint)) {
    signal.throwIfAborted();
    if (server.failure) throw server.failure;
    if (hasEnded(server.child)) throw new Error(server.said() || "it ended without a word");
    if (performance.now() > end) throw new Error(`no mount after ${MOUNT_MS / 1000} s: ${server.said()}`);
    await sleep(20);
  }
  await run("stat", ["--file-system", mountpoint], { limitMs: COMMAND_MS, signal });
}

export async function unmount(mountpoint) {
  if (!isMounted(mountpoint)) return;
  const [command, ...args] = process.geteuid() === 0 ? ["umount"] : ["fusermount3", "-u"];
  try {
    await run(command, [...args, mountpoint], { limitMs: COMMAND_MS });
  } catch {
    // In use, or its daemon is gone: detach it, whatever it is.
    const lazy = process.geteuid() === 0 ? ["-l"] : ["-z"];
    await run(command, [...args, ...lazy, mountpoint], { limitMs: COMMAND_MS });
  }
}

const PREFIX = "mapdirect-bench-";
export const folderName = () => `${PREFIX}${process.pid}`;

/** Folders of benchmarks that no longer run. Their daemons ended with them, their mounts and files did not. */
export async function sweep(parent) {
  for (const name of readdirSync(parent)) {
    if (!name.startsWith(PREFIX)) continue;
    if (isRunning(Number(name.slice(PREFIX.length)))) continue;
    const folder = join(parent, name);
    const left = readFileSync("/proc/self/mountinfo", "utf8")
      .split("\n")
      .map((line) => line.split(" ")[4] ?? "")
      .filter((path) => path.startsWith(`${folder}/`));
    for (const path of left) await unmount(path);
    rmSync(folder, { recursive: true, force: true });
  }
}

function isRunning(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}
