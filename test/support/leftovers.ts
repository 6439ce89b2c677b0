/** What tests may leave behind when they go wrong: mounts, daemons, loop devices, files. Found by the name of the run. */
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isRunning, readMounts } from "../../src/daemon/mounts.ts";

const NAME = "mapdirect-test-";

/** The pid of the vitest process that began the run; its workers inherit the variable. */
const runId = (): string => process.env.MAPDIRECT_TEST_RUN ?? `${process.pid}`;

/** What mkdtemp takes: the folders of this run have names of their own. */
export function folderPrefix(parent: string): string {
  return join(parent, `${NAME}${runId()}-`);
}

const parents = ["/dev/shm", tmpdir()];

export interface Leftover {
  kind: "mount" | "process" | "loop device" | "folder";
  name: string;
  run: number;
  pid?: number;
}

const runOf = (text: string): number | undefined => {
  const match = /mapdirect-test-([0-9]+)-/.exec(text);
  return match === null ? undefined : Number(match[1]);
};

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // It ended meanwhile.
  }
}

/** Everything that carries the name of some run, this one or another. */
export function findLeftovers(): Leftover[] {
  const found: Leftover[] = [];
  const add = (kind: Leftover["kind"], name: string, text: string, pid?: number): void => {
    const run = runOf(text);
    if (run !== undefined) found.push({ kind, name, run, ...(pid === undefined ? {} : { pid }) });
  };
  for (const { mountpoint } of readMounts()) add("mount", mountpoint, mountpoint);
  for (const name of readdirSync("/proc")) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    const command = read(`/proc/${name}/cmdline`).replaceAll("\0", " ");
    if (command.includes(NAME) && isRunning(pid)) add("process", `${name} ${command}`, command, pid);
  }
  for (const name of readdirSync("/sys/block")) {
    if (!name.startsWith("loop")) continue;
    const backing = read(`/sys/block/${name}/loop/backing_file`).trim();
    add("loop device", `/dev/${name} of ${backing}`, backing);
  }
  for (const parent of parents) {
    for (const name of readdirSync(parent))
      if (name.startsWith(NAME)) add("folder", join(parent, name), name);
  }
  return found;
}

/** Remove the folders of a run: last of all, when nothing is mounted in them. */
export function removeFolders(leftovers: readonly Leftover[]): void {
  for (const { kind, name } of leftovers) {
    if (kind !== "folder") continue;
    if (readMounts().some(({ mountpoint }) => mountpoint.startsWith(`${name}/`))) continue;
    rmSync(name, { recursive: true, force: true });
  }
}
