/**
 * What is compared. Every peer keeps its bytes in memory.
 *
 * A peer: name, note (for the table), `start(bench)` → { folder, pid? }, or throws `Missing` with the reason. A peer with
 * `variantOf` is the mount of another one used in another way (`env` for the programs that use it); one without a
 * folder is compared only by the workloads that know it.
 */
import {
  existsSync,
  mkdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { hasCommand, root } from "../../scripts/setup.mjs";
import { unmount, waitForMount } from "./mounts.mjs";
import { run, startServer } from "./scope.mjs";

/** The peer, or one workload on it, cannot be measured here; the message is why. */
export class Missing extends Error {}

const here = dirname(fileURLToPath(import.meta.url));
const COMPILE_MS = 60_000;
const COMMAND_MS = 30_000;
const MIB = 1024 * 1024;
const ENABLE_URING = "/sys/module/fuse/parameters/enable_uring";

export const mapdirectProgram = join(root, "dist/bin/mapdirect.js");
export const preloadLibrary = join(root, "dist/lib/libmapdirect_preload.so");
/** To compile a program that uses the client library. */
export const clientFlags = [
  ...[`-I${join(root, "dist/include")}`, `-L${join(root, "dist/lib")}`, "-lmapdirect"],
  `-Wl,-rpath,${join(root, "dist/lib")}`,
];

export async function compile(bench, source, output, flags = []) {
  if (!hasCommand("cc")) throw new Missing("there is no C compiler (cc)");
  await run("cc", ["-std=gnu11", "-O2", "-Wall", "-o", output, join(here, source), ...flags], {
    limitMs: COMPILE_MS,
    signal: bench.signal,
  });
}

/** Once per run, whoever asks. Resolves to the program's path. */
export function compiled(bench, source, flags = []) {
  const output = join(bench.folder, source.replace(/^.*\//, "").replace(/\.c$/, ""));
  bench.programs.set(source, bench.programs.get(source) ?? compile(bench, source, output, flags));
  return bench.programs.get(source).then(() => output);
}

/** A server that mounts `folder`; unmounted, then ended, when the scope closes. */
async function serve(bench, scope, folder, command, args, options) {
  mkdirSync(folder);
  const server = startServer(scope, command, args, options);
  scope.defer(folder, () => unmount(folder));
  await waitForMount(folder, server, bench.signal);
  return { folder, pid: server.child.pid };
}

/** A process that ends (SIGTERM) with this one, however this one ends, where there is a command for that. */
const bound = (command, args) =>
  hasCommand("setpriv") ? ["setpriv", ["--pdeathsig", "TERM", command, ...args]] : [command, args];

export const mapdirect = (bench, ...args) =>
  run(process.execPath, [mapdirectProgram, ...args], { limitMs: COMMAND_MS, signal: bench.signal });

/** Mount an existing region, in the foreground of a process that ends with us. */
export const mountMapdirect = (bench, scope, region, folder, ...options) =>
  serve(
    ...[bench, scope, folder],
    ...bound(process.execPath, [
      ...[...bench.nodeArguments, mapdirectProgram],
      ...["mount", "--foreground", ...options, region, folder],
    ]),
  );

async function startMapdirect(bench, name, regionBytes, parent, ...options) {
  const region = join(parent, `${name}.region`);
  await mapdirect(bench, "mkfs", "--size", `${regionBytes}`, region);
  const folder = join(bench.folder, name);
  return { ...(await mountMapdirect(bench, bench.scope, region, folder, ...options)), region };
}

/**
 * Mounts of mapdirect besides the peer, made when they are first asked for: `pmem` declares its region to be persistent
 * memory; that of `huge` lies on a tmpfs with huge pages.
 */
export function stage(bench, name) {
  const starts = {
    pmem: () => startMapdirect(bench, "pmem", bench.fileBytes + 128 * MIB, bench.folder, "--assume-pmem"),
    huge: async () => {
      if (process.geteuid() !== 0) throw new Missing("mounting a tmpfs with huge pages takes root");
      const parent = join(bench.folder, "huge-tmpfs");
      mkdirSync(parent);
      const size = (bench.hugeMib + 192) * MIB;
      try {
        await run("mount", ["-t", "tmpfs", "-o", `huge=always,size=${size}`, "bench-huge", parent], {
          limitMs: COMMAND_MS,
          signal: bench.signal,
        });
      } catch (error) {
        bench.signal.throwIfAborted();
        throw new Missing(`no tmpfs with huge pages: ${error.message}`);
      }
      bench.scope.defer(parent, () => unmount(parent));
      return startMapdirect(bench, "huge", (bench.hugeMib + 128) * MIB, parent);
    },
  };
  bench.stages.set(name, bench.stages.get(name) ?? starts[name]());
  return bench.stages.get(name);
}

const mapdirectPeer = {
  name: "mapdirect",
  note: "a region on tmpfs",
  start: (bench) => startMapdirect(bench, "mapdirect", bench.regionBytes, bench.folder),
};

const preloadPeer = {
  name: "mapdirect-preload",
  note: "the same mount, programs under the preload library with MAPDIRECT=auto",
  variantOf: "mapdirect",
  env: { LD_PRELOAD: preloadLibrary, MAPDIRECT: "auto" },
};

const preloadIoPeer = {
  name: "mapdirect-preload-io",
  note: "the same with MAPDIRECT=auto,io: pread and pwrite from a mapping",
  variantOf: "mapdirect",
  env: { LD_PRELOAD: preloadLibrary, MAPDIRECT: "auto,io" },
};

/** The kernel asks once, when a server connects, whether this is allowed. */
const uringPeer = {
  name: "mapdirect-io_uring",
  note: "FUSE over io_uring (transport=io_uring)",
  async start(bench) {
    if (!existsSync(ENABLE_URING)) throw new Missing("this kernel has no FUSE over io_uring (Linux 6.14)");
    const before = readFileSync(ENABLE_URING, "utf8").trim();
    if (before !== "Y" && process.geteuid() !== 0) throw new Missing(`${ENABLE_URING} is off`);
    const restore = async () => writeFileSync(ENABLE_URING, before);
    try {
      if (before !== "Y") writeFileSync(ENABLE_URING, "Y");
      const options = ["-o", "transport=io_uring"];
      const started = await startMapdirect(bench, this.name, bench.regionBytes, bench.folder, ...options);
      const { fuse } = JSON.parse(await mapdirect(bench, "info", "--json", started.folder));
      if (!JSON.stringify(fuse).includes("io_uring")) throw new Missing("the daemon did not get it");
      return started;
    } catch (error) {
      bench.signal.throwIfAborted();
      if (/transport/.test(error.message)) throw new Missing("mapdirect has no option transport=io_uring");
      throw error;
    } finally {
      await restore();
    }
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
    return serve(bench, bench.scope, folder, process.execPath, [program, folder, ...flags], {
      env: { ...process.env, LD_LIBRARY_PATH: `${libraries}:${process.env.LD_LIBRARY_PATH ?? ""}` },
    });
  },
});

const libfuse = (name, note, ...flags) => ({
  name,
  note,
  async start(bench) {
    const query = (...words) =>
      run("pkg-config", [...words, "fuse3"], { limitMs: 5000, signal: bench.signal });
    let libraries;
    try {
      libraries = (await query("--cflags", "--libs")).trim().split(/\s+/);
      bench.versions.libfuse3 = (await query("--modversion")).trim();
    } catch (error) {
      bench.signal.throwIfAborted();
      throw new Missing(`pkg-config does not find fuse3 (libfuse3-dev): ${error.message.split("|")[0]}`);
    }
    const program = await compiled(bench, "peers/memfs_ll.c", libraries);
    const folder = join(bench.folder, name);
    return serve(bench, bench.scope, folder, program, [folder, ...flags]);
  },
});

const tmpfs = {
  name: "tmpfs",
  note: "for scale: no FUSE at all",
  async start(bench) {
    const folder = join(bench.folder, "tmpfs");
    mkdirSync(folder);
    return { folder };
  },
};

/** Its journal and its blocks are in memory too: a file on tmpfs behind a loop device. */
const ext4 = {
  name: "ext4",
  note: "on a loop device over a file on tmpfs",
  async start(bench) {
    if (process.geteuid() !== 0) throw new Missing("a loop device takes root");
    if (!hasCommand("mkfs.ext4")) throw new Missing("mkfs.ext4 is not installed (e2fsprogs)");
    if (!existsSync("/dev/loop-control")) throw new Missing("the kernel has no loop devices");
    const file = join(bench.folder, "ext4.image");
    const folder = join(bench.folder, "ext4");
    const env = { PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
    const options = { limitMs: COMMAND_MS, signal: bench.signal, env };
    writeFileSync(file, "");
    truncateSync(file, bench.regionBytes);
    mkdirSync(folder);
    try {
      await run("mkfs.ext4", ["-q", "-F", file], options);
      // The loop device goes with the mount.
      await run("mount", ["-o", "loop", file, folder], options);
    } catch (error) {
      bench.signal.throwIfAborted();
      throw new Missing(`it cannot be mounted here: ${error.message}`);
    }
    bench.scope.defer(folder, () => unmount(folder));
    return { folder };
  },
};

const rawMmap = {
  name: "raw-mmap",
  note: "mmap(2) of the region's own bytes: the limit of a direct mapping",
  start: async () => ({}),
};

/** In the order of the table; ratios are those of the first to each other one. */
export const PEERS = [
  mapdirectPeer,
  uringPeer,
  preloadPeer,
  preloadIoPeer,
  libfuse("libfuse3-c", "in C, low-level interface, one thread"),
  libfuse("libfuse3-c-mt", "the same, several threads", "threads"),
  libfuse(
    "libfuse3-c-cached",
    "one thread; the kernel caches and writes back (each read and write is no request)",
    "cached",
  ),
  fuseNative("fuse-native", "the options that its interface has"),
  fuseNative(
    "fuse-native-tuned",
    "with direct_io,big_writes,max_write=131072, past its interface",
    "--tuned",
  ),
  tmpfs,
  ext4,
  rawMmap,
];

/** Bytes that a file holds, whatever the mount: the file lies on tmpfs, which answers at once. */
export const allocatedBytes = (file) => statSync(file).blocks * 512;
