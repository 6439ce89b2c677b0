/**
 * FUSE over io_uring: what is its own. The suite of mounts runs over it as well (project "io_uring"), and a guest on the
 * newest kernel (test/vm).
 */
import { spawn } from "node:child_process";
import { type FileHandle, mkdir, open, readFile, stat, writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { mapDirect, open as openDirect } from "../../src/api/index.ts";
import { isDeadMount, isRunning } from "../../src/daemon/mounts.ts";
import * as wire from "../../src/lease/wire.ts";
import { addon } from "../../src/region/addon.ts";
import { cpusIn } from "../../src/region/fuse-ring.ts";
import { crowd } from "../support/crowd.mjs";
import { grantRequest } from "../support/grant.ts";
import { withMount } from "../support/mount.ts";
import { cli, missing, noOtherUser, OTHER_UID, run, succeed } from "../support/run.ts";
import { uringUnavailable } from "../support/transport.ts";
import { until } from "../support/until.ts";

const unavailable = uringUnavailable();
const options = "transport=io_uring,break_time=3";
/** Has a breakable lease on the file, and does not care that it is broken. */
async function hold(path: string, bytes: number): Promise<FileHandle> {
  const handle = await open(path, "r+");
  addon().ioctl(handle.fd, wire.Ioctl.GRANT, grantRequest(wire.LeaseKind.BREAKABLE, 0, bytes));
  return handle;
}

/** Empties a file, and waits for that as long as it has to. */
const cut = (path: string) => spawn("sh", ["-c", ': > "$0"', path], { stdio: "ignore" });

const channelOf = async (stats: Promise<{ stdout: string }>) =>
  (JSON.parse((await stats).stdout) as { channel: { requests: number } }).channel;

test("a list of CPUs is counted as the kernel counts its queues", () => {
  expect(["0", "0-3", "0-3,8", "0-1,4-5,7"].map(cpusIn)).toEqual([1, 4, 5, 5]);
  expect(["", "x", "3-1", "-"].map(cpusIn)).toEqual([1, 0, 0, 1]);
});

test("where the kernel does not offer it, asking for it fails before anything is mounted, and says what to do", async ({
  skip,
}) => {
  if (unavailable === null) skip("this kernel offers it");
  const { code, stderr } = await cli(["mount", "-o", "transport=io_uring", "/dev/null", "/mnt"]);
  expect(code).toBe(1);
  expect(stderr).toMatch(/^mapdirect: /);
});

describe.skipIf(unavailable !== null)(`transport=io_uring${unavailable ? ` (${unavailable})` : ""}`, () => {
  test("a volume is the same over either transport, and info says which it is", async () => {
    await withMount({ options }, async (mount) => {
      const info = JSON.parse((await mount.cli("info", "--json", mount.path)).stdout) as {
        fuse: { transport: string; features: string[] };
      };
      expect(info.fuse).toMatchObject({ transport: "io_uring" });
      expect(info.fuse.features).toContain("OVER_IO_URING");
      await mkdir(mount.at("folder"));
      const bytes = Buffer.from(Array.from({ length: 3_000_001 }, (_, index) => (index * 31) >> 3));
      await writeFile(mount.at("folder/file"), bytes);
      expect((await readFile(mount.at("folder/file"))).equals(bytes)).toBe(true);
      await mount.check();
      await mount.unmount();
      await mount.mount("rw");
      const plain = JSON.parse((await mount.cli("info", "--json", mount.path)).stdout) as {
        fuse: { transport: string };
      };
      expect(plain.fuse.transport).toBe("kernel");
      expect((await readFile(mount.at("folder/file"))).equals(bytes)).toBe(true);
    });
  });

  test("what is stored through a direct mapping is read through the mount, and the other way round", async () => {
    await withMount({ options }, async (mount) => {
      await writeFile(mount.at("file"), Buffer.alloc(1 << 20, 1));
      const file = await openDirect(mount.at("file"));
      const mapping = await mapDirect(file);
      mapping.buffer.fill(2, 5000, 9000);
      const seen = await readFile(mount.at("file"));
      expect([seen[4999], seen[5000], seen[8999], seen[9000]]).toEqual([1, 2, 2, 1]);
      const writer = await open(mount.at("file"), "r+");
      await writer.write(Buffer.alloc(100, 3), 0, 100, 600_000);
      expect([mapping.buffer[599_999], mapping.buffer[600_000], mapping.buffer[600_100]]).toEqual([1, 3, 1]);
      await writer.close();
      await mapping.release();
      await file.close();
    });
  });

  test("callers that wait hold up nobody, however many they are", async () => {
    await withMount({ options: "transport=io_uring,break_time=60" }, async (mount) => {
      await writeFile(mount.at("leased"), Buffer.alloc(1 << 20, 1));
      const holder = await hold(mount.at("leased"), 1 << 20);
      // Several times as many as the ring had entries for to begin with.
      const waiting = 40 * availableParallelism();
      const children = Array.from({ length: waiting }, () => cut(mount.at("leased")));
      onTestFinished(() => {
        for (const child of children) child.kill("SIGKILL");
      });
      await sleep(300);
      for (let index = 0; index < 50; index += 1) {
        await writeFile(mount.at(`other-${index}`), `${index}`);
        expect(await readFile(mount.at(`other-${index}`), "utf8")).toBe(`${index}`);
      }
      expect(children.filter(({ exitCode }) => exitCode === null)).toHaveLength(waiting);
      await holder.close();
      await Promise.all(
        children.map((child) => child.exitCode ?? new Promise((ended) => child.once("close", ended))),
      );
      expect((await stat(mount.at("leased"))).size).toBe(0);
      await mount.check();
    });
  });

  test("a request for which no entry was left is served, though all of them are held by callers that wait", async () => {
    await withMount({ options: "transport=io_uring,break_time=60" }, async (mount) => {
      await writeFile(mount.at("leased"), Buffer.alloc(1 << 20, 1));
      await writeFile(mount.at("other"), "other");
      const holder = await hold(mount.at("leased"), 1 << 20);
      const { waiting, reader } = await crowd({
        daemon: mount.daemonPid(),
        leased: mount.at("leased"),
        callers: 30,
        other: mount.at("other"),
        pauseMs: 500,
      });
      onTestFinished(() => {
        for (const child of [...waiting, reader]) child.kill("SIGKILL");
      });
      await until(() => reader.exitCode !== null, 20_000);
      expect(reader.exitCode).toBe(0);
      expect(waiting.filter(({ exitCode }) => exitCode === null)).toHaveLength(30);
      await holder.close();
      await until(() => waiting.every(({ exitCode }) => exitCode !== null), 20_000);
      expect((await stat(mount.at("leased"))).size).toBe(0);
      await mount.check();
    });
  });

  test("many requests at once: every byte is in its place", async () => {
    await withMount({ options, sizeBytes: 128 << 20 }, async (mount) => {
      const before = await channelOf(mount.cli("stats", "--json", mount.path));
      const writers = Array.from({ length: 8 }, async (_, writer) => {
        const handle = await open(mount.at(`file-${writer}`), "w+");
        for (let round = 0; round < 60; round += 1) {
          const length = 1 + ((round * 7919 + writer * 104_729) % 200_000);
          const at = (round * 15_485_863) % 2_000_000;
          await handle.write(Buffer.alloc(length, 1 + ((writer * 60 + round) % 250)), 0, length, at);
          const back = Buffer.alloc(length);
          await handle.read(back, 0, length, at);
          expect(back.every((byte) => byte === 1 + ((writer * 60 + round) % 250))).toBe(true);
        }
        await handle.close();
      });
      await Promise.all(writers);
      const after = await channelOf(mount.cli("stats", "--json", mount.path));
      expect(after.requests - before.requests).toBeGreaterThan(8 * 60 * 2);
      await mount.check();
    });
  });

  test("after kill -9 of the daemon callers get an error, and the next mount recovers what was acknowledged", async () => {
    await withMount({ options }, async (mount) => {
      const handle = await open(mount.at("file"), "w");
      await handle.write("kept");
      await handle.sync();
      await mount.kill9();
      await expect(stat(mount.at("file"))).rejects.toMatchObject({
        code: expect.stringMatching(/^(ENOTCONN|ECONNABORTED)$/),
      });
      await handle.close().catch(() => {});
      await mount.mount();
      expect(await readFile(mount.at("file"), "utf8")).toBe("kept");
    });
  });

  test("calls under way when the daemon dies get one of three errors, each of which means a dead mount", async ({
    skip,
  }) => {
    const seen = new Set<string>();
    await withMount({ options }, async (mount) => {
      const script = `
        const { readFile, writeFile } = require("node:fs/promises");
        const use = async (path) => {
          for (;;) {
            await writeFile(path, path);
            await readFile(path);
          }
        };
        for (let index = 0; index < 24; index++) use(process.argv[1] + index).catch(({ code }) => console.log(code));`;
      for (let round = 0; round < 6 && !seen.has("ECANCELED"); round += 1) {
        const callers = run(process.execPath, ["-e", script, mount.at("file")], {
          env: { UV_THREADPOOL_SIZE: "24" },
          timeoutMs: 20_000,
        });
        await until(
          async () => (await channelOf(mount.cli("stats", "--json", mount.path))).requests > 2000,
          20_000,
        );
        // Requests are on their way into the ring then, and get no further. Not each time the kernel cancels them.
        process.kill(mount.daemonPid(), "SIGSTOP");
        await sleep(100);
        await mount.kill9();
        for (const code of (await callers).stdout.trim().split("\n")) seen.add(code);
        await mount.mount();
      }
    });
    expect([...seen].filter((code) => !isDeadMount({ code }))).toEqual([]);
    if (!seen.has("ECANCELED")) skip(`this kernel said ${[...seen]}, and never ECANCELED`);
  });

  test.each(["submission", "command"])(
    "a kernel that refuses a %s now and then, for want of memory, has every request answered",
    async (refuse) => {
      await withMount({}, async (mount) => {
        const preload = join(mount.folder, "refusing.so");
        const source = fileURLToPath(new URL("../support/refusing-ring.c", import.meta.url));
        await succeed("cc", ["-shared", "-fPIC", "-O1", "-o", preload, source]);
        await mount.unmount();
        vi.stubEnv("LD_PRELOAD", preload).stubEnv("REFUSE", refuse);
        await mount.mount(options).finally(() => vi.unstubAllEnvs());
        // More callers at a time than the submission queue holds answers.
        const script = `
          const { stat, writeFile, readFile } = require("node:fs/promises");
          const use = async (path) => {
            for (let round = 0; round < 20; round++) {
              await writeFile(path, path + round);
              if ((await readFile(path, "utf8")) !== path + round) throw new Error(path);
              await stat(path + "-none").catch(() => {});
            }
          };
          Promise.all(Array.from({ length: 120 }, (_, index) => use(process.argv[1] + index)));`;
        const caller = spawn(process.execPath, ["-e", script, mount.at("file")], {
          env: { ...process.env, UV_THREADPOOL_SIZE: "120" },
          stdio: "inherit",
        });
        onTestFinished(() => void caller.kill("SIGKILL"));
        await until(() => caller.exitCode !== null, 30_000);
        expect(caller.exitCode).toBe(0);
        await mount.check();
      });
    },
  );

  test("a mount in use that is told to end lets go of those who wait, and ends", async () => {
    await withMount({ options }, async (mount) => {
      await writeFile(mount.at("leased"), Buffer.alloc(65_536, 1));
      const holder = await hold(mount.at("leased"), 65_536);
      const child = cut(mount.at("leased"));
      onTestFinished(() => void child.kill("SIGKILL"));
      const ended = new Promise((resolve) => child.once("close", resolve));
      await sleep(200);
      const pid = mount.daemonPid();
      process.kill(pid, "SIGTERM");
      await ended;
      await holder.close().catch(() => {});
      while (isRunning(pid)) await sleep(20);
      expect((await cli(["fsck", mount.region])).code).toBe(0);
    });
  });

  test("an ordinary user mounts with it, too", async ({ skip }) => {
    const reason = noOtherUser() ?? missing("fusermount3");
    if (reason !== undefined) skip(reason);
    await withMount({ options, user: OTHER_UID }, async (mount) => {
      const { stdout } = await mount.cli("info", "--json", mount.path);
      expect(JSON.parse(stdout)).toMatchObject({ fuse: { transport: "io_uring" } });
    });
  });
});
