/**
 * Faults around a mounted volume: its region is renamed or deleted, a sync fails, memory is short, very many files are open,
 * and there is no space left, wherever an operation needs some.
 */
import { spawn } from "node:child_process";
import { existsSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import {
  chmod,
  copyFile,
  link,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  rmdir,
  stat,
  symlink,
  truncate,
  unlink,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { ask, withOpen } from "../../src/daemon/client.ts";
import { isRunning } from "../../src/daemon/mounts.ts";
import { Ioctl, LeaseKind } from "../../src/lease/wire.ts";
import { addon, packageRoot } from "../../src/region/addon.ts";
import { grantRequest } from "../support/grant.ts";
import { loopUnavailable } from "../support/loop-device.ts";
import { TestMount, withMount } from "../support/mount.ts";
import { cli, missing, notRoot, programPath, run, succeed } from "../support/run.ts";

const MIB = 1 << 20;

/** "ok", or the error's name. */
async function outcome(action: Promise<unknown>): Promise<string> {
  return action.then(
    () => "ok",
    (error: NodeJS.ErrnoException) => error.code ?? String(error),
  );
}

describe("a region whose name leads elsewhere", () => {
  test("is served on under its old name, and what lies there now is not touched", async () => {
    await withMount({}, async (mount) => {
      const content = Buffer.alloc(2 * MIB, "content ");
      await writeFile(mount.at("before"), content);
      const moved = `${mount.region}.moved`;
      const daemon = mount.daemonPid();
      await rename(mount.region, moved);
      const other = Buffer.alloc(8 * MIB, "somebody else's");
      await writeFile(mount.region, other);
      await writeFile(mount.at("after"), content);
      await succeed("sync", ["-f", mount.at("after")]);
      expect((await readFile(mount.at("before"))).equals(content)).toBe(true);
      await mount.check();
      // By its mountpoint: the region's name is somebody else's now.
      await succeed("umount", [mount.path]);
      for (let left = 1000; left > 0 && isRunning(daemon); left -= 1) await sleep(20);
      expect(await cli(["fsck", moved])).toMatchObject({ code: 0 });
      expect((await readFile(mount.region)).equals(other)).toBe(true);
      await rename(moved, mount.region);
      await mount.mount();
      for (const name of ["before", "after"])
        expect((await readFile(mount.at(name))).equals(content), name).toBe(true);
      await mount.check();
    });
  });

  test("that is deleted is served until it is unmounted", async () => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("before"), "before");
      const daemon = mount.daemonPid();
      await rm(mount.region);
      await writeFile(mount.at("after"), "after");
      expect(await readFile(mount.at("before"), "utf8")).toBe("before");
      expect(await readFile(mount.at("after"), "utf8")).toBe("after");
      expect(isRunning(daemon)).toBe(true);
      await succeed("umount", [mount.path]);
      for (let left = 500; left > 0 && isRunning(daemon); left -= 1) await sleep(20);
      expect(isRunning(daemon)).toBe(false);
    });
  });
});

const noLoop = loopUnavailable() ?? notRoot ?? missing("mount", "umount", "losetup");

describe.skipIf(noLoop !== undefined && noLoop !== null)(
  `a device whose write-back fails${noLoop ? `: ${noLoop}` : ""}`,
  () => {
    test("fails the sync that met it and every one after, takes no more changes, and has what was synced before", async () => {
      const mount = new TestMount({});
      onTestFinished(() => mount.dispose());
      const small = await mount.besideSmallDisk();
      const backing = join(small, "backing");
      writeFileSync(backing, "");
      truncateSync(backing, 64 * MIB);
      const device = (await succeed("losetup", ["--find", "--show", backing])).trim();
      onTestFinished(async () => {
        await run("umount", ["-l", mount.path]);
        await run("losetup", ["--detach", device]);
        await run("umount", ["-l", small]);
      });
      const log = join(mount.folder, "log");
      expect(await cli(["mkfs", device])).toMatchObject({ code: 0 });
      expect(await cli(["mount", "--log", log, device, mount.path])).toMatchObject({ code: 0 });
      await writeFile(mount.at("kept"), "kept");
      await succeed("sync", [mount.at("kept")]);
      // The pages are taken; what they would be written to has no room.
      const file = await open(mount.at("big"), "w+");
      let answer = "ok";
      for (let index = 0; answer === "ok" && index < 40; index += 1) {
        await outcome(file.write(Buffer.alloc(MIB, index + 1), 0, MIB, index * MIB));
        if (index % 8 === 7) answer = await outcome(file.sync());
      }
      if (answer === "ok") answer = await outcome(file.sync());
      expect(answer).toBe("EIO");
      expect(await outcome(file.sync())).toMatch(/^(EIO|EROFS)$/);
      expect(await outcome(writeFile(mount.at("more"), "more"))).toBe("EROFS");
      expect(await readFile(mount.at("kept"), "utf8")).toBe("kept");
      // Nor does it go away with time, or with room.
      await succeed("mount", ["-o", "remount,size=128M", small]);
      expect(await outcome(file.sync())).toMatch(/^(EIO|EROFS)$/);
      await file.close();
      const info = await cli(["info", "--json", mount.path]);
      expect(JSON.parse(info.stdout)).toMatchObject({ read_only: expect.stringContaining("EIO") });
      await cli(["unmount", mount.path]);
      const checked = await cli(["fsck", device]);
      expect(checked.code, checked.stdout + checked.stderr).toBe(0);
      expect(await cli(["mount", device, mount.path])).toMatchObject({ code: 0 });
      expect(await readFile(mount.at("kept"), "utf8")).toBe("kept");
      expect(await cli(["check", mount.path])).toMatchObject({ code: 0 });
      expect(await cli(["unmount", mount.path])).toMatchObject({ code: 0 });
    });
  },
);

describe("a daemon that is short of memory", () => {
  test("dies of too small a heap as of any crash: what it has answered is there after the next mount", async () => {
    await withMount({ sizeBytes: 256 * MIB }, async (mount) => {
      await mount.unmount();
      const small = await run(process.execPath, [programPath, "mount", mount.region, mount.path], {
        env: { NODE_OPTIONS: "--max-old-space-size=24" },
      });
      expect(small.code, small.stderr).toBe(0);
      const daemon = mount.daemonPid();
      // Metadata is held in memory: names and attributes fill it up.
      const value = Buffer.alloc(60_000, "v");
      const made: string[] = [];
      let answer = "ok";
      for (let index = 0; answer === "ok" && index < 3000; index += 1) {
        const name = `file-${index}`;
        answer = await outcome(writeFile(mount.at(name), name));
        if (answer !== "ok") break;
        made.push(name);
        try {
          addon().setxattr(mount.at(name), "user.large", value, 0);
        } catch (error) {
          answer = (error as NodeJS.ErrnoException).code ?? String(error);
        }
      }
      // It may have had enough.
      if (answer !== "ENOSPC" && answer !== "ok") {
        expect(answer).toMatch(/^(ENOTCONN|ECONNABORTED|EIO)$/);
        for (let left = 500; left > 0 && isRunning(daemon); left -= 1) await sleep(20);
        expect(isRunning(daemon)).toBe(false);
        await mount.mount();
      }
      await mount.check();
      for (const name of made) expect(await readFile(mount.at(name), "utf8")).toBe(name);
      await mount.unmount();
      expect(await mount.cli("fsck", mount.region)).toMatchObject({ code: 0 });
    });
  }, 180_000);

  test.skipIf(missing("prlimit") !== undefined)(
    "that may not have the addresses for its region says so, and mounts nothing",
    async () => {
      await withMount({}, async (mount) => {
        await mount.unmount();
        // 64 GiB, and room for Node but not for these.
        truncateSync(mount.region, 64 * 1024 * MIB);
        const words = ["--as=8589934592", process.execPath, programPath, "mount", mount.region, mount.path];
        const failed = await run("prlimit", words);
        expect(failed.code).not.toBe(0);
        expect(failed.stderr).toMatch(/region.* does not fit into this process's address space/);
        truncateSync(mount.region, 64 * MIB);
        await mount.mount();
        await mount.check();
      });
    },
  );
});

interface HolderProcess {
  readonly open: Promise<void>;
  readonly ended: Promise<void>;
  readonly said: () => string;
  readonly end: () => void;
}

/** many-open.mjs, for the length of a test. */
function startHolder(words: readonly string[]): HolderProcess {
  const child = spawn("prlimit", [`--nofile=${MANY + 100}`, process.execPath, ...words], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  let said = "";
  const ended = new Promise<void>((resolve) => child.on("close", () => resolve()));
  const opened = new Promise<void>((resolve) => {
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      said += text;
      if (said.includes("open ")) resolve();
    });
  });
  return { open: Promise.race([opened, ended]), ended, said: () => said, end: () => child.stdin.end() };
}

/** Where node-gyp puts it. */
const native = join(packageRoot, "build", "Release", "mapdirect.node");
const MANY = 5000;
const PROCESSES = 4;

describe.skipIf(missing("prlimit") !== undefined || notRoot !== undefined)(
  `very many open files${notRoot === undefined ? "" : `: ${notRoot}`}`,
  () => {
    test.each([
      ["open files need no descriptors of the daemon's", ""],
      [
        "each of them has a lease, and the leases end with their process",
        Buffer.from(grantRequest(LeaseKind.BREAKABLE, 0, 4096)).toString("hex"),
      ],
    ])(
      `${PROCESSES * MANY} at a time: %s`,
      async (_, grant) => {
        await withMount({}, async (mount) => {
          await mount.unmount();
          const few = await run("prlimit", [
            "--nofile=64:64",
            process.execPath,
            programPath,
            "mount",
            mount.region,
            mount.path,
          ]);
          expect(few.code, few.stderr).toBe(0);
          for (let index = 0; index < 100; index += 1)
            await writeFile(mount.at(`file-${index}`), Buffer.alloc(4096, 65 + (index % 26)));
          await succeed("sync", ["-f", mount.path]);
          const script = join(packageRoot, "test", "mount", "many-open.mjs");
          const words = [script, mount.path, `${MANY}`, grant, `${Ioctl.GRANT}`, native];
          const children = Array.from({ length: PROCESSES }, () => startHolder(words));
          await Promise.all(children.map(({ open: opened }) => opened));
          for (const { said } of children) expect(said()).toBe(`open ${MANY}\n`);
          const statistics = (): Record<string, number> =>
            withOpen(mount.path, (descriptor) => ask(descriptor, "STATS") as Record<string, number>);
          const stats = statistics();
          expect(stats.open_files).toBeGreaterThanOrEqual(PROCESSES * MANY);
          expect(stats.leases).toBe(grant === "" ? 0 : PROCESSES * MANY);
          // Others are served meanwhile.
          await writeFile(mount.at("other"), "other");
          for (const { end } of children) end();
          await Promise.all(children.map(({ ended }) => ended));
          for (const { said } of children) expect(said()).toBe(`open ${MANY}\nwrong 0\n`);
          for (let left = 500; left > 0; left -= 1) {
            const after = statistics();
            await sleep(10);
            // The one that asks is open itself.
            if (after.open_files === 1 || left === 1) {
              expect(after).toMatchObject({ open_files: 1, leases: 0 });
              break;
            }
          }
          await mount.check();
        });
      },
      240_000,
    );
  },
);

interface Snapshot {
  readonly [name: string]: string;
}

/** Everything that can be seen of a directory: types, sizes, link counts, modes, and what the files hold. */
async function lookAt(folder: string): Promise<Snapshot> {
  const seen: Record<string, string> = {};
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    const { size, nlink, mode } = await stat(path).catch(() => ({ size: 0, nlink: 0, mode: 0 }));
    const content = entry.isFile() ? Buffer.from(await readFile(path)).toString("latin1") : "";
    seen[entry.name] = `${mode.toString(8)} ${nlink} ${size} ${content}`;
  }
  return seen;
}

describe("no space on a mounted volume", () => {
  test("at any degree of fullness each operation is whole or ENOSPC, and what frees space always works", async () => {
    await withMount({ sizeBytes: 8 * MIB }, async (mount) => {
      let folder = "";
      const at = (name: string): string => join(folder, name);
      const bytes = Buffer.alloc(9000, "x");
      const xattr = Buffer.alloc(3000, "y");
      const operations: Record<string, () => Promise<unknown>> = {
        create: async () => (await open(at("new"), "wx")).close(),
        mkdir: () => mkdir(at("dir")),
        symlink: () => symlink("t".repeat(2000), at("symlink")),
        link: () => link(at("file"), at("hard")),
        "write of new blocks": async () => {
          const file = await open(at("file"), "r+");
          try {
            const { bytesWritten } = await file.write(bytes, 0, bytes.length, 8192);
            // A short write is an answer, too; then the rest is refused.
            if (bytesWritten < bytes.length) throw Object.assign(new Error("short"), { code: "short" });
          } finally {
            await file.close();
          }
        },
        overwrite: async () => {
          const file = await open(at("file"), "r+");
          try {
            await file.write(bytes, 0, 100, 10);
          } finally {
            await file.close();
          }
        },
        grow: () => truncate(at("file"), 1 << 30),
        fallocate: async () => {
          const file = await open(at("file"), "r+");
          try {
            addon().fallocate(file.fd, 0, 0n, 40_960n);
          } finally {
            await file.close();
          }
        },
        setxattr: async () => addon().setxattr(at("file"), "user.a", xattr, 0),
        rename: () => rename(at("file"), at("a name that is longer than the one before")),
        "rename over": () => rename(at("second"), at("file")),
        copy: () => copyFile(at("file"), at("copy")),
        chmod: () => chmod(at("file"), 0o600),
      };
      // What each operation works on is there before the volume is full.
      const ROUNDS = 16;
      const folders: string[] = [];
      for (let index = 0; index < ROUNDS * Object.keys(operations).length; index += 1) {
        const path = mount.at(`work-${index}`);
        await mkdir(path);
        await writeFile(join(path, "file"), Buffer.alloc(4096, "f"));
        await writeFile(join(path, "second"), "");
        folders.push(path);
      }
      // Single blocks, then names, until metadata is full as well.
      await mkdir(mount.at("ballast"));
      const ballast: string[] = [];
      for (const size of [4096, 0]) {
        for (;;) {
          const path = mount.at("ballast", `${ballast.length}`);
          if ((await outcome(writeFile(path, Buffer.alloc(size, 1)))) !== "ok") break;
          ballast.push(path);
        }
      }
      const answers = new Map<string, Set<string>>();
      for (let round = 0; round < ROUNDS; round += 1) {
        for (const [name, operation] of Object.entries(operations)) {
          folder = folders.pop() as string;
          const before = await lookAt(folder);
          const answer = await outcome(operation());
          answers.set(name, (answers.get(name) ?? new Set()).add(answer));
          expect(["ok", "ENOSPC", "short"], name).toContain(answer);
          // A copy is many operations, of which the first may have worked.
          if (answer === "ENOSPC" && name !== "copy") expect(await lookAt(folder), name).toEqual(before);
          // What frees space works however full it is.
          for (const entry of await readdir(folder)) {
            const path = at(entry);
            const removed =
              (await stat(path).catch(() => null))?.isDirectory() === true ? rmdir(path) : unlink(path);
            expect(await outcome(removed), `${name}: removing ${entry}`).toBe("ok");
          }
        }
        const gone = ballast.pop();
        if (gone !== undefined) await unlink(gone);
      }
      const growing = ["create", "mkdir", "symlink", "link", "setxattr", "rename", "copy", "fallocate"];
      for (const name of growing) expect(answers.get(name), name).toEqual(new Set(["ENOSPC", "ok"]));
      expect([...(answers.get("write of new blocks") ?? [])]).toEqual(
        expect.arrayContaining(["ENOSPC", "ok"]),
      );
      for (const name of ["overwrite", "chmod"]) expect(answers.get(name), name).toEqual(new Set(["ok"]));
      await mount.check();
      await mount.kill9AndRemount();
      await mount.check();
      for (const path of ballast) expect(existsSync(path), path).toBe(true);
      expect(readFileSync(ballast[0] as string).every((byte) => byte === 1)).toBe(true);
    });
  }, 180_000);
});
