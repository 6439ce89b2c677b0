/**
 * Builds what is out of date, by content:
 *
 *   dist/**            TypeScript, compiled; dist/bin/mapdirect.js is executable
 *   build/Release/     the native addon (node-gyp)
 *   dist/lib/*.so      the client libraries, dist/include/mapdirect.h their header (scripts/build-client.mjs)
 *   dist/share/        man pages and completion for shells (scripts/man.mjs)
 *   dist/demo/story    the program that the demonstration drives
 *   dist/sbin/         mount.mapdirect and fsck.mapdirect, the helpers of mount(8) and fsck(8); dist/system/ a systemd unit and a
 *                      udev rule as examples, and what file(1) knows a volume by
 *
 * Invariants:
 * - a part is built again exactly when the content of its sources, or its output, changed: no step runs twice;
 * - two builds of one tree never run at the same time (a lock file names the process that builds);
 * - a failed step leaves its stamp out, so the next build repeats it.
 */
import { createHash } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, extname, join, relative } from "node:path";
import { fail, hasCommand, isMain, localBin, root, run, SetupError, setup } from "./setup.mjs";

const cache = join(root, ".cache");
const SYSTEM_FILES = [
  ["mount.mapdirect", "sbin", 0o755],
  ["fsck.mapdirect", "sbin", 0o755],
  ["mapdirect.magic", "system", 0o644],
  ["mapdirect@.service", "system", 0o644],
  ["60-mapdirect.rules", "system", 0o644],
];
const at = (...parts) => join(root, ...parts);

function walk(path) {
  if (!existsSync(path)) return [];
  if (statSync(path).isFile()) return [path];
  return readdirSync(path)
    .sort()
    .flatMap((name) => walk(join(path, name)));
}

export function digest(paths, ...salt) {
  const hash = createHash("sha256");
  for (const text of salt) hash.update(text);
  for (const file of paths.flatMap(walk)) {
    hash.update(relative(root, file)).update("\0").update(readFileSync(file)).update("\0");
  }
  return hash.digest("hex");
}

function readStamps() {
  try {
    return JSON.parse(readFileSync(join(cache, "build.json"), "utf8"));
  } catch {
    return {};
  }
}

/** Run `make` for the part unless its inputs and outputs are as they were after the last success. */
function part(name, inputs, outputs, make, ...salt) {
  const now = digest(
    inputs.map((input) => at(input)),
    process.version,
    process.arch,
    ...salt,
  );
  const stamps = readStamps();
  if (stamps[name] === now && outputs.every((output) => existsSync(at(output)))) return;
  process.stderr.write(`build: ${name}\n`);
  make();
  writeFileSync(join(cache, "build.json"), JSON.stringify({ ...readStamps(), [name]: now }, null, 2));
}

/** Outputs whose source is gone would still be imported, and shipped. */
function removeOrphans() {
  const kept = new Set(["lib", "include", "demo", "sbin", "share", "system"]);
  for (const file of walk(at("dist"))) {
    const path = relative(at("dist"), file);
    if (kept.has(path.split("/")[0])) continue;
    const source = path.replace(/\.(d\.ts|js|js\.map|d\.ts\.map)$/, ".ts");
    if (!existsSync(at("src", source))) rmSync(file);
  }
}

function buildTypeScript() {
  run(localBin("tsc") ?? "tsc", ["-p", "tsconfig.build.json"]);
  removeOrphans();
  for (const file of walk(at("dist/bin"))) if (extname(file) === ".js") chmodSync(file, 0o755);
}

function buildAddon() {
  const gyp = localBin("node-gyp");
  const command = gyp ?? process.env.npm_config_node_gyp ?? "node-gyp";
  // Headers that came with this Node spare the download of the same ones.
  const prefix = join(dirname(process.execPath), "..");
  const headers = existsSync(join(prefix, "include/node/node_api.h")) ? [`--nodedir=${prefix}`] : [];
  const verb = existsSync(at("build/Makefile")) ? ["configure", "build"] : ["rebuild"];
  const args = [...verb, "--loglevel=warn", "--jobs=2", ...headers];
  if (command.endsWith(".js")) run(process.execPath, [command, ...args]);
  else run(command, args);
}

function buildClient() {
  run(process.execPath, ["scripts/build-client.mjs"]);
  const header = ["native/client/mapdirect.h", "native/client/include/mapdirect.h"].map((path) => at(path));
  const found = header.find((path) => existsSync(path));
  if (found === undefined) throw new SetupError("build: native/client/mapdirect.h is missing");
  mkdirSync(at("dist/include"), { recursive: true });
  copyFileSync(found, at("dist/include/mapdirect.h"));
}

function buildDemo() {
  mkdirSync(at("dist/demo"), { recursive: true });
  const cc = hasCommand("cc") ? "cc" : "g++";
  const flags = ["-O2", "-Wall", "-Wextra", "-D_GNU_SOURCE"];
  run(cc, [
    ...(cc === "cc" ? ["-std=gnu11"] : ["-xc"]),
    ...flags,
    "-o",
    "dist/demo/story",
    "native/demo/story.c",
  ]);
}

/** For the system's own folders; a package copies them there, or links to them. */
function buildSystem() {
  for (const [name, folder, mode] of SYSTEM_FILES) {
    mkdirSync(at("dist", folder), { recursive: true });
    copyFileSync(at("scripts/system", name), at("dist", folder, name));
    chmodSync(at("dist", folder, name), mode);
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}

function withLock(action) {
  mkdirSync(cache, { recursive: true });
  const lock = join(cache, "build.lock");
  for (;;) {
    try {
      writeFileSync(lock, `${process.pid}`, { flag: "wx" });
      break;
    } catch (error) {
      if (error.code !== "EEXIST") throw error;
      const owner = Number(existsSync(lock) ? readFileSync(lock, "utf8") : "0");
      // An empty file is a lock being written this very moment, unless it stays so.
      const abandoned =
        owner > 0
          ? !isAlive(owner)
          : Date.now() - (statSync(lock, { throwIfNoEntry: false })?.mtimeMs ?? Date.now()) > 2000;
      if (abandoned) rmSync(lock, { force: true });
      else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
    }
  }
  try {
    action();
  } finally {
    rmSync(lock, { force: true });
  }
}

export function build({ nativeOnly = false } = {}) {
  withLock(() => {
    if (!nativeOnly) {
      part(
        "typescript",
        ["src", "tsconfig.json", "tsconfig.build.json", "package-lock.json"],
        ["dist/bin/mapdirect.js"],
        buildTypeScript,
      );
    }
    if (existsSync(at("binding.gyp"))) {
      const inputs = ["client", "fuse", "layout", "napi", "persist", "region"].map(
        (folder) => `native/${folder}`,
      );
      const products = ["mapdirect", "mapdirect_client"].map((name) => `build/Release/${name}.node`);
      part("addon", ["binding.gyp", ...inputs], products, buildAddon);
    }
    if (existsSync(at("scripts/build-client.mjs"))) {
      part(
        "client",
        ["native/client", "scripts/build-client.mjs"],
        ["dist/lib", "dist/include/mapdirect.h"],
        buildClient,
      );
    }
    // In a process of its own: what was imported once is not imported again after a change.
    if (!nativeOnly) {
      part(
        "man pages",
        [
          "docs",
          "src/cli",
          "src/daemon/options.ts",
          "native/client/mapdirect.h",
          "scripts/man.mjs",
          "package.json",
        ],
        ["dist/share/man/man1/mapdirect.1"],
        () => run(process.execPath, ["scripts/man.mjs"]),
      );
    }
    if (existsSync(at("native/demo/story.c"))) {
      part("demo", ["native/demo"], ["dist/demo/story"], buildDemo);
    }
    part(
      "system",
      ["scripts/system"],
      SYSTEM_FILES.map(([name, folder]) => join("dist", folder, name)),
      buildSystem,
    );
  });
}

if (isMain(import.meta.url)) {
  try {
    const nativeOnly = process.argv.includes("--native");
    if (!nativeOnly) setup();
    build({ nativeOnly });
  } catch (error) {
    fail(error);
  }
}
