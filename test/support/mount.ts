/**
 * Real mounts for tests: region and file system made, mounted and unmounted through the real command line.
 *
 * Invariants:
 * - however a test ends (passed, failed, timed out), its mount is gone afterwards, and so are its daemon and its files:
 *   first asked to, then forced;
 * - everything lies in a folder whose name tells the run of vitest, so that the end of the run can check for leftovers.
 */
import { mkdtempSync } from "node:fs";
import { chmod, chown, mkdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, onTestFinished } from "vitest";
import { isRunning, lockHolder, mountAt, mountOfRegion } from "../../src/daemon/mounts.ts";
import { folderPrefix } from "./leftovers.ts";
import { cli, type Result, type RunOptions, run, succeed } from "./run.ts";
import { transport, transportUnavailable } from "./transport.ts";

export interface MountRequest {
  /** Size of the region in bytes; 64 MiB if left out. */
  sizeBytes?: number;
  blockSizeBytes?: number;
  assumePmem?: boolean;
  /** The list for -o. */
  options?: string;
  /** Uid to mount as, through fusermount3; the tests' own user if left out. */
  user?: number;
  /** Where the region lies: memory (default) or the disk behind the temporary folder. */
  on?: "memory" | "disk";
}

export class TestMount {
  readonly request: MountRequest;
  readonly folder: string;
  readonly region: string;
  /** The mountpoint. */
  readonly path: string;
  #fresh = 0;

  constructor(request: MountRequest) {
    this.request = request;
    this.folder = mkdtempSync(folderPrefix(request.on === "disk" ? tmpdir() : "/dev/shm"));
    this.region = join(this.folder, "region");
    this.path = join(this.folder, "mnt");
  }

  get #user(): RunOptions {
    return this.request.user === undefined ? {} : { user: this.request.user };
  }

  /** Make the region and mount it. */
  async begin(): Promise<void> {
    if (transportUnavailable() !== null) return; // Every test is skipped.
    const { sizeBytes = 64 * 1024 * 1024, blockSizeBytes = 4096, user } = this.request;
    await mkdir(this.path);
    await chmod(this.folder, 0o755);
    if (user !== undefined) for (const path of [this.folder, this.path]) await chown(path, user, user);
    const made = await this.cli(
      "mkfs",
      "--size",
      `${sizeBytes}`,
      "--block-size",
      `${blockSizeBytes}`,
      this.region,
    );
    expect(made, made.stderr).toMatchObject({ code: 0 });
    await this.mount();
  }

  /** The real command line, as the user who mounts. */
  cli(...args: readonly string[]): Promise<Result> {
    return cli(args, this.#user);
  }

  /** Mount (again), with other -o options if given. */
  async mount(options = this.request.options): Promise<void> {
    const args = ["mount", ...(this.request.assumePmem ? ["--assume-pmem"] : [])];
    if (options !== undefined) args.push("-o", options);
    if (transport !== "kernel") args.push("--transport", transport);
    const debug = process.env.MAPDIRECT_TEST_LOG;
    // The log of this machine is not for what tests provoke.
    args.push("--log", debug ?? "none");
    const { code, stderr } = await this.cli(...args, this.region, this.path);
    if (code !== 0) throw new Error(`mount ended with exit code ${code}: ${stderr}`);
  }

  /** As root, in place of begin(): the mountpoint, and a disk of 24 MiB in memory beside it, to be unmounted by the caller. */
  async besideSmallDisk(): Promise<string> {
    const small = join(this.folder, "small");
    for (const path of [small, this.path]) await mkdir(path);
    await chmod(this.folder, 0o755);
    await succeed("mount", ["-t", "tmpfs", "-o", "size=24M", "small", small]);
    return small;
  }

  async unmount(): Promise<void> {
    const { code, stderr } = await this.cli("unmount", this.path);
    if (code !== 0) throw new Error(`unmount ended with exit code ${code}: ${stderr}`);
  }

  async remount(): Promise<void> {
    await this.unmount();
    await this.mount();
  }

  /** A path below the mountpoint. */
  at(...parts: readonly string[]): string {
    return join(this.path, ...parts);
  }

  /** A new, empty directory of its own for a test. */
  async fresh(): Promise<string> {
    this.#fresh += 1;
    const path = this.at(`test-${this.#fresh}`);
    await mkdir(path);
    return path;
  }

  daemonPid(): number {
    const pid = lockHolder(this.region);
    if (pid === undefined) throw new Error(`no daemon holds ${this.region}`);
    return pid;
  }

  async kill9(): Promise<void> {
    const pid = this.daemonPid();
    process.kill(pid, "SIGKILL");
    while (isRunning(pid)) await sleep(1);
  }

  /** As after a crash of the daemon: the dead mount is still there, and mount takes its place. */
  async kill9AndRemount(): Promise<void> {
    await this.kill9();
    await this.mount();
  }

  /** The daemon's own check of the whole volume, or that of fsck where the daemon cannot be asked: it must find nothing. */
  async check(): Promise<void> {
    if (transport === "fuse-native") {
      await this.unmount();
      const { code, stdout, stderr } = await this.cli("fsck", this.region);
      expect(code, stdout + stderr).toBe(0);
      return;
    }
    const { code, stderr } = await this.cli("check", this.path);
    expect(code, stderr).toBe(0);
  }

  /** Never throws, may be called twice; says on stderr what did not go as it should. */
  async dispose(): Promise<void> {
    const daemon = lockHolder(this.region);
    for (let tries = 0; tries < 8 && mountAt(this.path) !== undefined; tries += 1) {
      const done = await this.#patiently("unmount", this.path);
      if (done !== undefined && mountAt(this.path) !== undefined) {
        if (lockHolder(this.region) !== undefined)
          process.stderr.write(`forced unmount of ${this.path}: ${done}\n`);
        // A daemon that does not answer holds everybody who asked it: its death lets them go.
        if (daemon !== undefined && isRunning(daemon)) process.kill(daemon, "SIGKILL");
        await run("umount", ["-l", this.path], { timeoutMs: 10_000 }).catch(() => {});
      }
    }
    if (daemon !== undefined) {
      for (let waited = 0; waited < 5_000 && isRunning(daemon); waited += 10) await sleep(10);
      if (isRunning(daemon)) process.kill(daemon, "SIGKILL");
    }
    if (mountOfRegion(this.region) === undefined) await rm(this.folder, { recursive: true, force: true });
  }

  async #patiently(...args: readonly string[]): Promise<string | undefined> {
    try {
      const { code, stderr } = await cli(args, {
        timeoutMs: 20_000,
        ...this.#user,
      });
      return code === 0 ? undefined : stderr;
    } catch (error) {
      return String(error);
    }
  }
}

/** A mount for one test. */
export async function withMount(
  request: MountRequest,
  action: (mount: TestMount) => Promise<void>,
): Promise<void> {
  const mount = new TestMount(request);
  // Not a `finally` alone: after a timeout the action never comes back.
  onTestFinished(() => mount.dispose(), 60_000);
  await mount.begin();
  await action(mount);
}

/** One mount for all tests of a file or of a `describe`, checked by the daemon itself at the end. */
export function useMount(request: MountRequest = {}): TestMount {
  const mount = new TestMount(request);
  beforeAll(() => mount.begin());
  afterAll(async () => {
    try {
      if (mountAt(mount.path) !== undefined) await mount.check();
    } finally {
      await mount.dispose();
    }
  });
  return mount;
}
