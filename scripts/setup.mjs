/**
 * Makes a clone ready to build: system packages, node_modules, git hook. Uses only what Node itself brings, since it
 * runs before anything is installed.
 *
 * Invariants:
 * - does nothing, quickly, when nothing is missing;
 * - installs system packages in CI only (CI=true, as root); elsewhere it names the command and stops;
 * - `npm ci` runs without install scripts: the one native build is scripts/build.mjs.
 */
import { spawnSync } from "node:child_process";
import { accessSync, chmodSync, constants, existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

export const root = join(dirname(fileURLToPath(import.meta.url)), "..");

/** What each command is needed for, and the Debian package that brings it. */
const BUILD_TOOLS = { "g++": "g++", make: "make", python3: "python3" };
const TEST_TOOLS = {
  fusermount3: "fuse3",
  rsync: "rsync",
  sqlite3: "sqlite3",
  git: "git",
  fio: "fio",
  setfattr: "attr",
  setfacl: "acl",
  strace: "strace",
  findmnt: "mount",
  setpriv: "util-linux",
  "mkfs.ext4": "e2fsprogs",
  "clang-format": "clang-format",
  pmempool: "pmdk-tools",
  mdb_stat: "lmdb-utils",
  debootstrap: "debootstrap",
  lintian: "lintian",
  "dpkg-shlibdeps": "dpkg-dev",
  "pkg-config": "pkg-config",
  chromium: "chromium",
  tmux: "tmux",
  mandoc: "mandoc",
  man: "man-db",
  groff: "groff-base",
  fish: "fish",
  zsh: "zsh",
  mypy: "mypy",
  go: "golang-go",
};
/** For guests in QEMU (`npm run test:vm`): without the first ones there are none, without the others fewer tests. */
const VM_TOOLS = {
  "qemu-system-x86_64": "qemu-system-x86",
  busybox: "busybox-static",
  dpkg: "dpkg",
  xz: "xz-utils",
  zstd: "zstd",
};
const GUEST_TOOLS = {
  ndctl: "ndctl",
  "mkfs.xfs": "xfsprogs",
  "mkfs.ext4": "e2fsprogs",
  "nbd-server": "nbd-server",
  "nbd-client": "nbd-client",
  fio: "fio",
};
/** The same for what is no command. */
const TEST_FILES = {
  "/usr/include/libpmemobj.h": "libpmemobj-dev",
  "/usr/include/lmdb.h": "liblmdb-dev",
  "/usr/lib/python3/dist-packages/numpy": "python3-numpy",
};

export class SetupError extends Error {}

/** Say what happened on stderr, in the form the commands of mapdirect use. */
export function fail(error) {
  if (!(error instanceof SetupError)) throw error;
  process.stderr.write(`mapdirect: ${error.message}\n`);
  process.exit(1);
}

export function hasCommand(name) {
  // /usr/sbin is not on every user's PATH, but mkfs.ext4 lives there.
  const folders = [...(process.env.PATH ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  return folders.some((folder) => {
    try {
      const file = join(folder, name);
      accessSync(file, constants.X_OK);
      return statSync(file).isFile();
    } catch {
      return false;
    }
  });
}

/** Run a command in the package root; a failure is ours to report, not a stack trace. */
export function run(command, args, options = {}) {
  const done = spawnSync(command, args, { cwd: root, stdio: "inherit", ...options });
  if (done.error) throw new SetupError(`${command}: ${done.error.message}`);
  if (done.status !== 0) {
    const how = done.signal ? `was ended by ${done.signal}` : `ended with exit code ${done.status}`;
    throw new SetupError(`setup: '${[command, ...args].join(" ")}' ${how}; see its output above`);
  }
}

const missingPackages = (tools) =>
  Object.entries(tools)
    .filter(([command]) => !hasCommand(command))
    .map(([, name]) => name);

/** Debian packages that a build of the native parts lacks. */
export const missingBuildPackages = () => missingPackages(BUILD_TOOLS);

function ensureSystemPackages({ vm }) {
  const inCi = process.env.CI === "true";
  const forVm = vm ? { ...VM_TOOLS, ...GUEST_TOOLS } : {};
  const missing = missingPackages(inCi ? { ...BUILD_TOOLS, ...TEST_TOOLS, ...forVm } : BUILD_TOOLS);
  for (const [file, name] of Object.entries(TEST_FILES)) if (inCi && !existsSync(file)) missing.push(name);
  if (missing.length === 0) return;
  const install = ["install", "-y", "--no-install-recommends", ...missing];
  if (!inCi || process.getuid?.() !== 0 || !hasCommand("apt-get")) {
    const need = missingBuildPackages();
    if (need.length === 0) return; // Tests that miss their tool are skipped, with that reason.
    const sudo = process.getuid?.() === 0 ? "" : "sudo ";
    throw new SetupError(
      `setup: missing to build the native parts: ${need.join(", ")}; run '${sudo}apt-get install -y ${need.join(" ")}'`,
    );
  }
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  // A machine that has just been started may be updating itself.
  const patient = ["-o", "DPkg::Lock::Timeout=600"];
  run("apt-get", [...patient, "update", "-q"], { env });
  run("apt-get", [...patient, ...install], { env });
}

/** Mounting as an ordinary user needs what udev sets up everywhere but on a bare machine. */
function ensureFuseDevice() {
  if (process.env.CI !== "true" || process.getuid?.() !== 0) return;
  if (existsSync("/dev/fuse")) chmodSync("/dev/fuse", 0o666);
}

/** Whether node_modules holds what the lock file names: compared by content, since a checkout changes times. */
function modulesAreCurrent() {
  const installed = join(root, "node_modules", ".package-lock.json");
  if (!existsSync(installed)) return false;
  const wanted = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")).packages;
  const present = JSON.parse(readFileSync(installed, "utf8")).packages;
  return Object.entries(wanted).every(([path, entry]) => {
    if (path === "") return true;
    const found = present[path];
    if (found === undefined) return entry.optional === true;
    return found.version === entry.version && found.integrity === entry.integrity;
  });
}

function ensureModules() {
  if (modulesAreCurrent()) return;
  run("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
}

/** The checked-in pre-commit hook, unless the user has hooks of their own. */
function ensureHook() {
  if (!existsSync(join(root, ".git")) || !hasCommand("git")) return;
  const git = (...args) => spawnSync("git", args, { cwd: root, encoding: "utf8" });
  if (git("config", "--get", "core.hooksPath").status !== 1) return;
  git("config", "core.hooksPath", ".githooks");
}

/** Guests need QEMU, and what they do their work with. */
function ensureGuests() {
  if (process.arch !== "x64")
    throw new SetupError("vm: guests need an x86-64 machine: they are like their host");
  const missing = missingPackages({ ...VM_TOOLS, ...GUEST_TOOLS });
  if (missing.length === 0) return;
  throw new SetupError(
    `vm: missing for guests: ${missing.join(", ")}; run 'apt-get install -y --no-install-recommends ${missing.join(" ")}' as root`,
  );
}

/** @param options vm: also what guests in QEMU need. */
export function setup({ vm = false } = {}) {
  if (process.platform !== "linux") throw new SetupError("setup: mapdirect runs on Linux only");
  ensureSystemPackages({ vm });
  if (vm) ensureGuests();
  ensureFuseDevice();
  ensureModules();
  ensureHook();
}

/** The file behind a name in node_modules/.bin, or undefined. */
export function localBin(name) {
  const file = join(root, "node_modules", ".bin", name);
  return existsSync(file) ? file : undefined;
}

/** Every C and C++ file of ours. */
export function nativeSources(folder = join(root, "native")) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return nativeSources(path);
    return /\.(c|cc|cpp|h|hpp)$/.test(entry.name) ? [path] : [];
  });
}

export const pythonSources = (folder) =>
  readdirSync(folder)
    .filter((name) => name.endsWith(".py"))
    .map((name) => join(folder, name));

export const isMain = (url) => process.argv[1] !== undefined && url === pathToFileURL(process.argv[1]).href;

if (isMain(import.meta.url)) {
  try {
    setup();
  } catch (error) {
    fail(error);
  }
}
