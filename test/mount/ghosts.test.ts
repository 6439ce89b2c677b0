/** Holders that outlive the daemon: what they can still reach is never given to anybody else (semantics R23). */
import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync, statfsSync, unlinkSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { ask, withOpen } from "../../src/daemon/client.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { withMount } from "../support/mount.ts";
import { until } from "../support/until.ts";

const MIB = 1024 * 1024;
const HELD_BYTES = 8 * MIB;

/** Maps the whole file directly, then overwrites all of it each time it reads a line. */
const HOLDER = `import mmap, sys
f = open(sys.argv[1], 'r+b')
m = mmap.mmap(f.fileno(), 0, flags=3 | 0x200000, prot=mmap.PROT_READ | mmap.PROT_WRITE)
print('mapped', flush=True)
for line in sys.stdin:
    m[:] = b'\\xee' * len(m)
    print('stored', flush=True)`;

const quarantined = (mountpoint: string): number =>
  (withOpen(mountpoint, (descriptor) => ask(descriptor, "INFO")) as { quarantined: number }).quarantined;

test("after a restart of the daemon, blocks that an old mapping reaches are not allocated before it is gone", async () => {
  await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
    const path = mount.at("held");
    writeFileSync(path, Buffer.alloc(HELD_BYTES, 1));
    const holder = spawn("python3", ["-S", "-c", HOLDER, path], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, LD_PRELOAD: join(packageRoot, "dist", "lib", "libmapdirect_preload.so") },
    });
    const answers = createInterface({ input: holder.stdout })[Symbol.asyncIterator]();
    try {
      expect((await answers.next()).value).toBe("mapped");
      await mount.kill9AndRemount();
      unlinkSync(path);
      for (let tries = 0; tries < 200 && quarantined(mount.path) < HELD_BYTES; tries += 1) await sleep(10);
      expect(quarantined(mount.path)).toBe(HELD_BYTES);

      // Everything that can be had is taken, and then the holder stores wherever it can.
      const full = openSync(mount.at("full"), "w");
      const chunk = Buffer.alloc(MIB, 7);
      let bytes = 0;
      try {
        for (;;) bytes += writeSync(full, chunk);
      } catch (error) {
        expect(error).toMatchObject({ code: "ENOSPC" });
      } finally {
        closeSync(full);
      }
      expect(bytes).toBeGreaterThan(32 * MIB);
      holder.stdin.write("\n");
      expect((await answers.next()).value).toBe("stored");
      expect(readFileSync(mount.at("full")).every((byte) => byte === 7)).toBe(true);
      await mount.check();
    } finally {
      holder.kill("SIGKILL");
      await new Promise((resolve) => holder.once("close", resolve));
    }
    for (let tries = 0; tries < 500 && quarantined(mount.path) > 0; tries += 1) await sleep(10);
    expect(quarantined(mount.path)).toBe(0);
    expect(statfsSync(mount.path).bfree * 4096).toBeGreaterThanOrEqual(HELD_BYTES);
    await mount.check();
  });
});

test("whoever maps from before a remount is told of: by mount, leases, info and the log, with file and bytes", async () => {
  await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
    const path = mount.at("held");
    writeFileSync(path, Buffer.alloc(HELD_BYTES, 1));
    const listed = async (): Promise<Record<string, unknown>[]> =>
      JSON.parse((await mount.cli("leases", "--json", mount.path)).stdout);
    const orphaned = async (): Promise<unknown> =>
      (JSON.parse((await mount.cli("info", "--json", mount.path)).stdout) as { orphaned_mappings: unknown })
        .orphaned_mappings;
    const holder = spawn("python3", ["-S", "-c", HOLDER, path], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, LD_PRELOAD: join(packageRoot, "dist", "lib", "libmapdirect_preload.so") },
    });
    try {
      expect((await createInterface({ input: holder.stdout })[Symbol.asyncIterator]().next()).value).toBe(
        "mapped",
      );
      expect(await listed()).toMatchObject([{ kind: "seal", pid: holder.pid }]);
      expect(await orphaned()).toEqual({ processes: 0, bytes: 0 });
      await mount.kill9();
      const log = join(mount.folder, "log");
      const mounted = await mount.cli("mount", "--log", log, mount.region, mount.path);
      expect(mounted).toMatchObject({ code: 0, stderr: "" });
      expect(mounted.stdout).toContain(`still mapped from before this mount by python3 (${holder.pid}); `);
      expect(readFileSync(log, "utf8")).toContain(
        `from before this mount, by process python3 (${holder.pid}): `,
      );
      const row = { id: 0, kind: "orphaned", state: "mapped", pid: holder.pid, uid: 0, command: "python3" };
      expect(await listed()).toMatchObject([{ ...row, file: path, length: HELD_BYTES, quarantined: 0 }]);
      expect((await mount.cli("leases", mount.path)).stdout).toMatch(/^ *- +orphaned +mapped .*\/held$/m);
      expect(await orphaned()).toEqual({ processes: 1, bytes: HELD_BYTES });
      expect(JSON.parse((await mount.cli("stats", "--json", mount.path)).stdout)).toMatchObject({
        orphaned_processes: 1,
        leases: 0,
      });
      // It is in nobody's way, and nobody can break it.
      expect(await mount.cli("leases", "break", "--file", path)).toMatchObject({ code: 0 });
      expect((await mount.cli("extents", path)).stdout).toContain("no lease");
      unlinkSync(path);
      await until(() => quarantined(mount.path) === HELD_BYTES, 5000);
      expect(await listed()).toMatchObject([
        { ...row, file: "", length: HELD_BYTES, quarantined: HELD_BYTES },
      ]);
    } finally {
      holder.kill("SIGKILL");
      await new Promise((resolve) => holder.once("close", resolve));
    }
    await until(() => quarantined(mount.path) === 0, 10_000);
    expect(await listed()).toEqual([]);
    expect(await orphaned()).toEqual({ processes: 0, bytes: 0 });
  });
});

/** As HOLDER, but the parent ends once a child has the mapping, which stores at each SIGUSR1: no pipe outlives the parent. */
const FORKER = HOLDER.replace(
  "for line in sys.stdin:",
  `import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
sys.stdin.readline()
if os.fork() > 0: os._exit(0)
print('forked', os.getpid(), flush=True)
while signal.sigwait([signal.SIGUSR1]):`,
);

test("a child that a mapper from before a remount forks keeps in quarantine what it maps", async () => {
  await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
    const path = mount.at("held");
    writeFileSync(path, Buffer.alloc(HELD_BYTES, 1));
    const parent = spawn("python3", ["-S", "-c", FORKER, path], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, LD_PRELOAD: join(packageRoot, "dist", "lib", "libmapdirect_preload.so") },
    });
    const answers = createInterface({ input: parent.stdout })[Symbol.asyncIterator]();
    let child = 0;
    try {
      expect((await answers.next()).value).toBe("mapped");
      await mount.kill9AndRemount();
      unlinkSync(path);
      await until(() => quarantined(mount.path) === HELD_BYTES, 5000);
      const ended = new Promise((resolve) => parent.once("exit", resolve));
      parent.stdin.write("\n");
      child = Number(String((await answers.next()).value).split(" ")[1]);
      expect(child).toBeGreaterThan(0);
      await ended;
      await sleep(4000);
      expect(quarantined(mount.path)).toBe(HELD_BYTES);
      writeFileSync(mount.at("other"), Buffer.alloc(40 * MIB, 7));
      process.kill(child, "SIGUSR1");
      expect((await answers.next()).value).toBe("stored");
      expect(readFileSync(mount.at("other")).every((byte) => byte === 7)).toBe(true);
    } finally {
      parent.kill("SIGKILL");
      if (child > 0) process.kill(child, "SIGKILL");
    }
    await until(() => quarantined(mount.path) === 0, 10_000);
    await mount.check();
  });
});

test("mkfs, resize and a repair of a volume that is not mounted are refused while an old mapping reaches it, with its process", async () => {
  await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
    const path = mount.at("held");
    writeFileSync(path, Buffer.alloc(HELD_BYTES, 1));
    const holder = spawn("python3", ["-S", "-c", HOLDER, path], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, LD_PRELOAD: join(packageRoot, "dist", "lib", "libmapdirect_preload.so") },
    });
    try {
      const answers = createInterface({ input: holder.stdout })[Symbol.asyncIterator]();
      expect((await answers.next()).value).toBe("mapped");
      await mount.kill9AndRemount();
      expect((await mount.cli("unmount", mount.path)).code).toBe(0);
      const before = readFileSync(mount.region);
      for (const args of [
        ["mkfs", "--force", mount.region],
        ["resize", "--size", "48M", mount.region],
        ["resize", "--size", "96M", mount.region],
        ["fsck", "--repair", mount.region],
      ]) {
        const { code, stderr } = await mount.cli(...args);
        expect(code, args.join(" ")).not.toBe(0);
        expect(stderr).toContain(`process ${holder.pid} python3`);
      }
      expect(readFileSync(mount.region).equals(before)).toBe(true);
    } finally {
      holder.kill("SIGKILL");
      await new Promise((resolve) => holder.once("close", resolve));
    }
    expect((await mount.cli("resize", "--size", "48M", mount.region)).code).toBe(0);
  });
});
