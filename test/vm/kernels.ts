/**
 * The kernels that the guests run, and how they come: Debian packages, downloaded by apt and unpacked, never installed.
 *
 * Invariants:
 * - versions are asked for, not written down here: a suite's newest kernel of this moment, kept in .cache/vm/kernels/VERSION;
 * - apt works in a folder of its own (sources, lists, state): the machine's own sources stay as they are;
 * - without network a kernel that is in the cache serves; a suite that has none any more is a kernel that is left out, with
 *   its reason, unless it is the baseline.
 */
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { debianMirror } from "../support/debian.ts";

export interface KernelRow {
  /** As tests and documents call it. */
  readonly name: string;
  /** Of Debian. */
  readonly suite: string;
  /** Must be there. */
  readonly baseline: boolean;
}

export interface Kernel extends KernelRow {
  /** As `uname -r` says it. */
  readonly version: string;
  readonly image: string;
  /** The folder of its modules. */
  readonly modules: string;
}

/** The matrix. */
export const KERNELS: readonly KernelRow[] = [
  { name: "6.1", suite: "bookworm", baseline: true },
  { name: "6.12", suite: "bookworm-backports", baseline: false },
  { name: "newest", suite: "trixie-backports", baseline: false },
];

const KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LISTS_FRESH_MS = 12 * 3600 * 1000;

export class Unavailable extends Error {}

function run(
  command: string,
  args: readonly string[],
  options: { cwd?: string; timeout?: number } = {},
): string {
  const done = spawnSync(command, args, { ...options, encoding: "utf8", maxBuffer: 1 << 28 });
  if (done.error) throw new Unavailable(`${command}: ${done.error.message}`);
  if (done.status !== 0) {
    throw new Unavailable(`${command} ${args.at(-1)}: ${done.stderr.trim().split("\n").at(-1)}`);
  }
  return done.stdout;
}

/** apt, for one suite alone. */
class Apt {
  readonly #options: readonly string[];
  readonly #folder: string;

  constructor(cache: string, suite: string) {
    this.#folder = join(cache, "apt", suite);
    for (const part of ["state/lists/partial", "cache/archives/partial"]) {
      mkdirSync(join(this.#folder, part), { recursive: true });
    }
    const mirror = debianMirror();
    if (mirror === undefined) throw new Unavailable("apt knows no Debian archive: see /etc/apt/sources.list");
    const sources = join(this.#folder, "sources.list");
    const signed = existsSync(KEYRING) ? `[arch=amd64 signed-by=${KEYRING}]` : "[arch=amd64]";
    writeFileSync(sources, `deb ${signed} ${mirror} ${suite} main\n`);
    const settings = {
      "Dir::Etc::sourcelist": sources,
      "Dir::Etc::sourceparts": "/dev/null",
      "Dir::State": join(this.#folder, "state"),
      "Dir::Cache": join(this.#folder, "cache"),
      "APT::Architecture": "amd64",
      "APT::Sandbox::User": "root",
      "APT::Get::List-Cleanup": "0",
      "Acquire::Languages": "none",
      "Acquire::Retries": "3",
      "Acquire::http::Timeout": "60",
    };
    this.#options = Object.entries(settings).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  }

  update(): void {
    const stamp = join(this.#folder, "updated");
    const age = Date.now() - (statSync(stamp, { throwIfNoEntry: false })?.mtimeMs ?? 0);
    if (age < LISTS_FRESH_MS) return;
    run("apt-get", [...this.#options, "-qq", "--error-on=any", "update"]);
    writeFileSync(stamp, "");
  }

  /** The fields Version and Depends of a package. */
  show(name: string): { version: string; depends: string } {
    const text = run("apt-cache", [...this.#options, "show", "--no-all-versions", name]);
    const field = (key: string): string => new RegExp(`^${key}: (.*)$`, "m").exec(text)?.[1] ?? "";
    return { version: field("Version"), depends: field("Depends") };
  }

  download(names: readonly string[], folder: string): void {
    run("apt-get", [...this.#options, "-qq", "download", ...names], { cwd: folder, timeout: 600_000 });
  }
}

/** The packages that hold the image and the modules of a suite's newest kernel. */
function packagesOf(apt: Apt): { version: string; packages: string[] } {
  const image = /linux-image-[0-9][^ ,(]*-amd64/.exec(apt.show("linux-image-amd64").depends)?.[0];
  if (image === undefined) throw new Unavailable("linux-image-amd64 names no image");
  // Newer packages split what used to be one.
  const parts = apt.show(image).depends.match(/linux-(binary|modules)-[0-9][^ ,(]*-amd64/g) ?? [];
  return { version: image.slice("linux-image-".length), packages: parts.length > 0 ? parts : [image] };
}

function filesUnder(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
}

/** The bytes of the kernel itself within a bzImage: booted directly, they spare the guest its decompression. */
function uncompressedKernel(image: Buffer): Buffer {
  const formats: readonly (readonly [Buffer, string, readonly string[]])[] = [
    [Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]), "xz", ["-dc"]],
    [Buffer.from([0x28, 0xb5, 0x2f, 0xfd]), "zstd", ["-dcq"]],
  ];
  for (const [magic, command, args] of formats) {
    const at = image.indexOf(magic, 0x4000);
    if (at < 0) continue;
    // What follows the payload makes the tool complain, after it has written everything.
    const { stdout } = spawnSync(command, args, { input: image.subarray(at), maxBuffer: 1 << 28 });
    if (stdout?.subarray(0, 4).equals(Buffer.from("\x7fELF", "latin1"))) return stdout;
  }
  return image;
}

function unpack(cache: string, apt: Apt, version: string, packages: readonly string[]): string {
  const target = join(cache, "kernels", version);
  if (existsSync(target)) return target;
  mkdirSync(join(cache, "kernels"), { recursive: true });
  const work = mkdtempSync(join(cache, "kernels", "fetching-"));
  try {
    apt.download(packages, work);
    const tree = join(work, "tree");
    const made = join(work, "made");
    for (const file of readdirSync(work).filter((name) => name.endsWith(".deb"))) {
      run("dpkg", ["-x", join(work, file), tree]);
    }
    mkdirSync(made);
    const files = filesUnder(tree);
    const image = files.find((file) => /\/vmlinuz(-[^/]*)?$/.test(file));
    const modules = files
      .map((file) => /^.*\/lib\/modules\/[^/]+(?=\/.*\.ko(\.|$))/.exec(file)?.[0])
      .find(Boolean);
    if (image === undefined || modules === undefined)
      throw new Unavailable(`${version}: no kernel in its packages`);
    writeFileSync(join(made, "vmlinux"), uncompressedKernel(readFileSync(image)));
    renameSync(modules, join(made, "modules"));
    renameSync(made, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return target;
}

/** A suite's newest kernel. @throws Unavailable. */
export function fetchKernel(kernel: KernelRow, cache: string): Kernel {
  const known = join(cache, "kernels", `${kernel.suite}.json`);
  let found: { version: string; packages: string[] };
  try {
    const apt = new Apt(cache, kernel.suite);
    apt.update();
    found = packagesOf(apt);
    unpack(cache, apt, found.version, found.packages);
    writeFileSync(known, JSON.stringify(found));
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    if (!existsSync(known)) throw error;
    found = JSON.parse(readFileSync(known, "utf8"));
    process.stderr.write(`vm: ${kernel.suite}: ${error.message}; ${found.version} from the cache serves\n`);
  }
  const folder = join(cache, "kernels", found.version);
  return {
    ...kernel,
    version: found.version,
    image: join(folder, "vmlinux"),
    modules: join(folder, "modules"),
  };
}
