/**
 * What is compared. Every peer keeps its bytes in memory, and is a mount (or a folder) that programs use as any other.
 *
 * A peer: name, note (for the table), `start(bench)` → { folder, pid? }, or throws `Missing` with the reason.
 */
import { existsSync, mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { hasCommand, root } from "../../scripts/setup.mjs";
import { unmount, waitForMount } from "./mounts.mjs";
import { run, startServer } from "./scope.mjs";

/** The peer cannot be measured here; the message is why. */
export class Missing extends Error {}

const here = dirname(fileURLToPath(import.meta.url));
const COMPILE_MS = 60_000;
const COMMAND_MS = 30_000;

export async function compile(bench, source, output, flags = []) {
  if (!hasCommand("cc")) throw new Missing("there is no C compiler (cc)");
  await run("cc", ["-std=gnu11", "-O2", "-Wall", "-o", output, join(here, source), ...flags], {
    limitMs: COMPILE_MS,
    signal: bench.signal,
  });
}

/** A server that mounts `folder`; unmounted, then ended, when the run ends. */
async function serve(bench, folder, command, args, options) {
  mkdirSync(folder);
  const server = startServer(bench.scope, command, args, options);
  bench.scope.defer(folder, () => unmount(folder));
  await waitForMount(folder, server, bench.signal);
  return { folder, pid: server.child.pid };
}

/** A process that ends (SIGTERM) with this one, however this one ends, where there is a command for that. */
const bound = (command, args) =>
  hasCommand("setpriv") ? ["setpriv", ["--pdeathsig", "TERM", command, ...args]] : [command, args];

const mapdirect = {
  name: "mapdirect",
  note: "a region on tmpfs",
  async start(bench) {
    const program = join(root, "dist/bin/mapdirect.js");
    const region = join(bench.folder, "region");
    const options = { limitMs: COMMAND_MS, signal: bench.signal };
    await run(process.execPath, [program, "mkfs", "--size", `${bench.regionBytes}`, region], options);
    const folder = join(bench.folder, "mapdirect");
    const mount = ["mount", "--foreground", region, folder];
    return serve(bench, folder, ...bound(process.execPath, [...bench.nodeArguments, program, ...mount]));
  },
};

const fuseNative = (name, note, ...flags) => ({
  name,
  note,
  async start(bench) {
    const require = createRequire(import.meta.url);
    let installed;
    try {
      installed = dirname(require.resolve("fuse-native/package.json"));
    } catch {
      throw new Missing("the optional package fuse-native is not installed");
    }
    const { version } = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"));
    bench.versions["fuse-native"] = version;
    // It ships libfuse 2.9, under a name that the loader does not look for.
    const library = join(installed, `prebuilds/${process.platform}-${process.arch}/libfuse.so`);
    const libraries = join(bench.folder, "libraries");
    mkdirSync(libraries, { recursive: true });
    const link = join(libraries, "libfuse.so.2");
    if (existsSync(library) && !existsSync(link)) symlinkSync(library, link);
    const folder = join(bench.folder, name);
    const program = join(here, "peers/fuse-native-memfs.mjs");
    return serve(bench, folder, process.execPath, [program, folder, ...flags], {
      env: { ...process.env, LD_LIBRARY_PATH: `${libraries}:${process.env.LD_LIBRARY_PATH ?? ""}` },
    });
  },
});

const libfuse = {
  name: "libfuse3-c",
  note: "in C, low-level interface, one thread",
  async start(bench) {
    const query = (...words) =>
      run("pkg-config", [...words, "fuse3"], { limitMs: 5000, signal: bench.signal });
    let flags;
    try {
      flags = (await query("--cflags", "--libs")).trim().split(/\s+/);
      bench.versions.libfuse3 = (await query("--modversion")).trim();
    } catch (error) {
      bench.signal.throwIfAborted();
      throw new Missing(`pkg-config does not find fuse3 (libfuse3-dev): ${error.message.split("|")[0]}`);
    }
    const program = join(bench.folder, "memfs_ll");
    await compile(bench, "peers/memfs_ll.c", program, flags);
    const folder = join(bench.folder, "libfuse3-c");
    return serve(bench, folder, program, [folder]);
  },
};

const tmpfs = {
  name: "tmpfs",
  note: "for scale: no FUSE at all",
  async start(bench) {
    const folder = join(bench.folder, "tmpfs");
    mkdirSync(folder);
    return { folder };
  },
};

/** In the order of the table; ratios are those of the first to each other one. */
export const PEERS = [
  mapdirect,
  fuseNative("fuse-native", "the options that its interface has"),
  fuseNative(
    "fuse-native-tuned",
    "with direct_io,big_writes,max_write=131072, past its interface",
    "--tuned",
  ),
  libfuse,
  tmpfs,
];
