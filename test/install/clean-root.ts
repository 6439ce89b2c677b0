/**
 * A Debian 12 with nothing in it but the essential packages: no compiler, no Python, no Node. Made by debootstrap, once, and
 * kept packed under .cache; each test has its own copy, in which programs run in mount and pid namespaces of their own, so
 * that no mount and no process outlives them.
 */
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { copyFile, cp, mkdir, symlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { packageRoot } from "../../src/region/addon.ts";
import { debianMirror } from "../support/debian.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { missing, notRoot, type Result, run, succeed } from "../support/run.ts";

const archive = join(packageRoot, ".cache", "clean-root-bookworm.tar");

let unavailable: Promise<string | null> | undefined;

/** Why there is no clean root here, or null. Makes it, if there is none yet. */
export function cleanRootUnavailable(): Promise<string | null> {
  unavailable ??= make();
  return unavailable;
}

async function make(): Promise<string | null> {
  const reason = notRoot ?? missing("debootstrap", "unshare", "chroot", "tar");
  if (reason !== undefined) return reason;
  if (existsSync(archive)) return null;
  const mirror = debianMirror();
  if (mirror === undefined) return "apt knows no Debian archive";
  mkdirSync(dirname(archive), { recursive: true });
  const folder = mkdtempSync(folderPrefix("/dev/shm"));
  const options = { timeoutMs: 560_000 };
  try {
    const made = await run("debootstrap", ["--variant=minbase", "bookworm", folder, mirror], options);
    if (made.code !== 0) return `debootstrap failed: ${made.stdout.trim().split("\n").at(-1)}`;
    const fresh = `${archive}.${process.pid}`;
    const what = ["--exclude=./var/cache/apt/*", "--directory", folder, "."];
    await succeed("tar", ["--create", "--file", fresh, ...what], options);
    renameSync(fresh, archive);
    return null;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

export class CleanRoot {
  readonly folder = mkdtempSync(folderPrefix("/dev/shm"));

  async begin(): Promise<void> {
    await succeed("tar", ["--extract", "--file", archive, "--directory", this.folder], {
      timeoutMs: 300_000,
    });
  }

  at(...parts: string[]): string {
    return join(this.folder, ...parts);
  }

  /** The Node of this machine, as one that was unpacked in /usr/local. */
  async addNode(): Promise<void> {
    await copyFile(process.execPath, this.at("usr/local/bin/node"));
    const npm = await succeed("sh", ["-c", 'dirname "$(dirname "$(readlink -f "$(command -v npm)")")"']);
    await mkdir(this.at("usr/local/lib/node_modules"), { recursive: true });
    await cp(npm.trim(), this.at("usr/local/lib/node_modules/npm"), { recursive: true });
    await symlink("../lib/node_modules/npm/bin/npm-cli.js", this.at("usr/local/bin/npm"));
  }

  /** Run a shell script in it, with /dev, /proc and the network of this machine. All that it began ends with it. */
  async run(script: string, env: Record<string, string> = {}): Promise<Result> {
    const setup = `
      set -e
      mount --rbind /dev "$1/dev"
      mount -t proc proc "$1/proc"
      exec chroot "$1" /usr/bin/env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
        "$@" sh -euc "$SCRIPT"`;
    const words = Object.entries(env).map(([name, value]) => `${name}=${value}`);
    const wrapped = setup.replace('"$@"', words.map((word) => `'${word}'`).join(" "));
    return run(
      "unshare",
      [
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--propagation",
        "private",
        "sh",
        "-c",
        wrapped,
        "sh",
        this.folder,
      ],
      { env: { SCRIPT: script }, timeoutMs: 500_000 },
    );
  }

  dispose(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}
