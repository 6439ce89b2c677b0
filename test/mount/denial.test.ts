/**
 * What an ordinary user can do to others with direct mappings: next to nothing. The attacker has write permission on a
 * file of the victim's, and does with leases whatever it can think of; the victim's operations end in the time that
 * docs/LEASES.md promises, and others notice nothing.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import {
  chmod,
  chown,
  mkdir,
  open,
  readFile,
  rename,
  stat,
  statfs,
  truncate,
  unlink,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { ask, withOpen } from "../../src/daemon/client.ts";
import { packageRoot } from "../../src/region/addon.ts";
import type { LeaseReport } from "../../src/session/control.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { useMount } from "../support/mount.ts";
import { cli, missing, noOtherUser, OTHER_UID, run } from "../support/run.ts";

const reason = noOtherUser() ?? missing("cc");
const BREAK_S = 1;
/** The break time, and what a loaded machine may add. */
const BOUND_MS = BREAK_S * 1000 + 2500;
const PAGE = 4096;
const MIB = 1024 * 1024;
const VICTIM = 1234;

describe.skipIf(reason !== undefined)(
  `an unprivileged attacker${reason === undefined ? "" : ` (${reason})`}`,
  () => {
    const mount = useMount({
      options: `break_time=${BREAK_S},max_leases=64,max_leased=8M`,
      sizeBytes: 64 * MIB,
    });
    const attackers: ChildProcess[] = [];
    let program = "";

    beforeAll(() => {
      const folder = mkdtempSync(folderPrefix(tmpdir()));
      chmodSync(folder, 0o755);
      program = join(folder, "attacker");
      const source = join(packageRoot, "test", "mount", "attacker.c");
      const wire = join(packageRoot, "native", "client");
      execFileSync("cc", ["-O1", "-Wall", "-Wextra", "-D_GNU_SOURCE", `-I${wire}`, "-o", program, source], {
        stdio: "inherit",
      });
    });
    afterAll(() => {
      if (program !== "") rmSync(join(program, ".."), { recursive: true, force: true });
    });
    afterEach(async () => {
      for (const attacker of attackers.splice(0)) {
        if (attacker.exitCode !== null || attacker.signalCode !== null) continue;
        const ended = new Promise((resolve) => attacker.once("exit", resolve));
        process.kill(-(attacker.pid as number), "SIGKILL");
        await ended;
      }
    });

    /** The victim's file, which the attacker may write. */
    async function victimFile(pages = 16): Promise<string> {
      const folder = await mount.fresh();
      await chmod(folder, 0o755);
      await chown(folder, VICTIM, VICTIM);
      const path = join(folder, "file");
      await writeFile(path, Buffer.alloc(pages * PAGE, "v"));
      await chmod(path, 0o666);
      await chown(path, VICTIM, VICTIM);
      await chmod(mount.region, 0o666);
      return path;
    }

    async function ownFolder(): Promise<string> {
      const folder = await mount.fresh();
      await chown(folder, OTHER_UID, OTHER_UID);
      await chmod(mount.region, 0o666);
      return folder;
    }

    /** Start an attack in a process group of its own; resolves when it says that it has begun. */
    async function attack(how: string, ...args: string[]): Promise<string> {
      const identity = [`--reuid=${OTHER_UID}`, `--regid=${OTHER_UID}`, "--clear-groups"];
      const child = spawn("setpriv", [...identity, "--", program, how, ...args], {
        detached: true,
        stdio: ["ignore", "pipe", "inherit"],
      });
      attackers.push(child);
      return new Promise((resolve, reject) => {
        child.stdout?.once("data", (data) => resolve(String(data).trim()));
        child.once("exit", (code) => reject(new Error(`the attacker ended with ${code}`)));
      });
    }

    /** The operation ends within the bound, and while it may be waiting everybody else is served at once. */
    async function bounded(operation: Promise<unknown>, boundMs = BOUND_MS): Promise<void> {
      const begun = performance.now();
      let over = false;
      const done = operation.finally(() => {
        over = true;
      });
      done.catch(() => {});
      let slowest = 0;
      while (!over && performance.now() - begun < boundMs) {
        const from = performance.now();
        await stat(mount.at(`nothing-${Math.random()}`)).catch(() => {});
        slowest = Math.max(slowest, performance.now() - from);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      expect(over, `still waiting after ${boundMs} ms`).toBe(true);
      await done;
      expect(slowest).toBeLessThan(1000);
    }

    const leases = (): LeaseReport[] => withOpen(mount.path, (fd) => ask(fd, "LEASES") as LeaseReport[]);
    const quarantined = (): number =>
      (withOpen(mount.path, (fd) => ask(fd, "INFO")) as { quarantined: number }).quarantined;

    test("gets no seal on a file of somebody else's", async () => {
      const path = await victimFile();
      expect(await attack("grant", path, "seal")).toBe("EACCES");
      await bounded(truncate(path, 0), 1000);
    });

    for (const [what, how] of [
      ["holds as many leases as it may and ignores every notice", "hoard"],
      ["asks again at once, from eight processes, whenever it has lost a lease", "again"],
      ["is stopped while it holds a lease", "stop"],
      ["says that it has let go, and has not", "liar"],
    ] as const) {
      test(`cannot hold up truncate, unlink, rename, writes and reads, though it ${what}`, async () => {
        const path = await victimFile();
        await attack(how, path);
        // What is no conflict does not wait at all.
        await bounded(readFile(path), 1000);
        const file = await open(path, "r+");
        try {
          await bounded(file.write(Buffer.alloc(100), 0, 100, 0), 1000);
          await bounded(file.write(Buffer.alloc(PAGE), 0, PAGE, 100 * PAGE), 1000);
          await bounded(chmod(path, 0o666), 1000);
          await bounded(truncate(path, PAGE));
          await bounded(file.truncate(0));
          await bounded(file.write(Buffer.alloc(5000), 0, 5000, 0));
          const other = `${path}-renamed`;
          await bounded(rename(path, other), BOUND_MS);
          await bounded(unlink(other), BOUND_MS);
        } finally {
          await file.close();
        }
      });
    }

    test("gets no more into quarantine than its limit, and its end gives it back", async () => {
      const folder = await ownFolder();
      const { bfree: before, bsize } = await statfs(mount.path);
      // Files of its own: mapped, let go of or not, truncated; the blocks stay within its reach.
      expect(await attack("hold-space", folder)).toMatch(/^EAGAIN/);
      expect(leases().filter((lease) => lease.uid === OTHER_UID).length).toBeLessThanOrEqual(64);
      const held = quarantined();
      expect(held).toBeGreaterThan(0);
      expect(held).toBeLessThanOrEqual(8 * MIB);
      const [attacker] = attackers;
      process.kill(-(attacker?.pid as number), "SIGKILL");
      await expect.poll(quarantined, { timeout: 5000 }).toBe(0);
      await run("rm", ["-rf", folder]);
      await expect
        .poll(async () => (before - (await statfs(mount.path)).bfree) * bsize, { timeout: 10_000 })
        .toBeLessThan(MIB);
    });

    test("cannot take all space by asking for more than there is", async () => {
      const folder = await ownFolder();
      const { bfree } = await statfs(mount.path);
      expect(await attack("prepare-all", folder)).toBe("ENOSPC");
      await expect
        .poll(async () => bfree - (await statfs(mount.path)).bfree, { timeout: 15_000 })
        .toBeLessThan(100);
    });

    test("slows nobody down with a storm of requests", async () => {
      const path = await victimFile();
      await attack("storm", path);
      const quiet: number[] = [];
      for (let round = 0; round < 30; round += 1) {
        const from = performance.now();
        await bounded(
          writeFile(`${path}-${round}`, "x").then(() => unlink(`${path}-${round}`)),
          2000,
        );
        quiet.push(performance.now() - from);
      }
      expect(leases().filter((lease) => lease.uid === OTHER_UID).length).toBeLessThanOrEqual(64);
    });

    test("cannot keep a mount from being detached", async () => {
      const path = await victimFile();
      await attack("hoard", path);
      const busy = await cli(["unmount", mount.path]);
      expect(busy).toMatchObject({ code: 1, stderr: expect.stringContaining("attacker") });
      const begun = performance.now();
      expect(await cli(["unmount", "--lazy", mount.path])).toMatchObject({ code: 0 });
      expect(performance.now() - begun).toBeLessThan(BOUND_MS + 5000);
      for (const attacker of attackers) process.kill(-(attacker.pid as number), "SIGKILL");
      await expect
        .poll(
          async () =>
            (await cli(["mount", "-o", mount.request.options as string, mount.region, mount.path])).code,
          { timeout: 20_000 },
        )
        .toBe(0);
    });

    test("leaves a volume that is whole", async () => {
      await mkdir(mount.at("after"));
      await mount.check();
    });
  },
);
