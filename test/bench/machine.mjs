/** Where the figures were measured: they mean nothing without it. */
import { readFileSync } from "node:fs";
import { cpus, getPriority, loadavg, release, totalmem } from "node:os";
import { join } from "node:path";
import { root } from "../../scripts/setup.mjs";
import { run } from "./scope.mjs";

const firstLine = async (command, ...args) => {
  try {
    const text = await run(command, args, { limitMs: 5000, cwd: root });
    return text.split("\n")[0];
  } catch {
    return null;
  }
};

const read = (path) => {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return null;
  }
};

export async function describeMachine(backing) {
  const processors = cpus();
  return {
    kernel: `Linux ${release()} ${process.arch}`,
    cpu: { model: processors[0]?.model ?? "unknown", count: processors.length },
    memoryBytes: totalmem(),
    backing: {
      path: backing,
      fileSystem: await firstLine("stat", "--file-system", "--format=%T", backing),
      hugePages: read("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
    },
    loadAverage: loadavg(),
    niceness: getPriority(),
    asRoot: process.geteuid() === 0,
    versions: {
      mapdirect: JSON.parse(read(join(root, "package.json"))).version,
      commit: await firstLine("git", "describe", "--always", "--dirty"),
      node: process.version,
      fio: await firstLine("fio", "--version"),
      fusermount3: await firstLine("fusermount3", "--version"),
    },
  };
}
