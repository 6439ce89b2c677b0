/** How a mount begins and ends, seen from outside. */
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { mkdir, open, readFile, rm, rmdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { isRunning, lockHolder, mountAt, readMounts } from "../../src/daemon/mounts.ts";
import { addon } from "../../src/region/addon.ts";
import { type TestMount, withMount } from "../support/mount.ts";
import {
  cli,
  missing,
  noOtherUser,
  notRoot,
  noUserMount,
  OTHER_UID,
  programPath,
  run,
} from "../support/run.ts";

async function daemonEnds(pid: number, limitMs = 10_000): Promise<void> {
  for (let waited = 0; waited < limitMs; waited += 10) {
    if (!isRunning(pid)) return;
    await sleep(10);
  }
  throw new Error(`daemon ${pid} still runs after ${limitMs} ms`);
}

const info = async (mount: TestMount, path = mount.region): Promise<Record<string, never>> =>
  JSON.parse((await mount.cli("info", "--json", path)).stdout) as Record<string, never>;

describe("mount", () => {
  test("shows as fuse.mapdirect with the region as source", async ({ skip }) => {
    const lacking = missing("findmnt");
    if (lacking !== undefined) skip(lacking);
    await withMount({}, async (mount) => {
      const found = await run("findmnt", ["-J", "-o", "SOURCE,FSTYPE,OPTIONS", mount.path]);
      const [entry] = (JSON.parse(found.stdout) as { filesystems: Record<string, string>[] }).filesystems;
      expect(entry).toMatchObject({ source: mount.region, fstype: "fuse.mapdirect" });
      expect(entry?.options).toMatch(/rw.*nosuid.*nodev.*default_permissions/);
    });
  });

  test("returns when the mount answers, and the daemon is nobody's child", async () => {
    await withMount({}, async (mount) => {
      const pid = mount.daemonPid();
      const status = readFileSync(`/proc/${pid}/stat`, "utf8");
      const fields = status.slice(status.lastIndexOf(")") + 2).split(" ");
      expect(Number(fields[1])).not.toBe(process.pid);
      expect(Number(fields[3]), "a session of its own").toBe(pid);
      expect((await stat(mount.path)).ino).toBe(1);
    });
  });

  test("the daemon keeps no directory busy and holds no terminal", async () => {
    await withMount({}, async (mount) => {
      const pid = mount.daemonPid();
      expect(readFileSync(`/proc/${pid}/cmdline`, "utf8")).toContain(mount.region);
      const links = await run("readlink", [
        `/proc/${pid}/cwd`,
        ...[0, 1, 2].map((fd) => `/proc/${pid}/fd/${fd}`),
      ]);
      expect(links.stdout.split("\n").slice(0, 4)).toEqual(["/", "/dev/null", "/dev/null", "/dev/null"]);
    });
  });

  test("a second mount of the same region is refused and names it and its mountpoint", async () => {
    await withMount({}, async (mount) => {
      const second = join(mount.folder, "second");
      await mkdir(second);
      for (const extra of [[], ["--foreground"]]) {
        const { code, stderr } = await mount.cli("mount", ...extra, mount.region, second);
        expect(code).toBe(1);
        expect(stderr).toContain(`${mount.region}: the region is mounted already, on ${mount.path}`);
      }
      expect(mountAt(second)).toBeUndefined();
      await writeFile(mount.at("a"), "still works");
    });
  });

  test("a second mount on the same mountpoint is refused", async () => {
    await withMount({}, async (mount) => {
      const other = join(mount.folder, "other");
      expect((await mount.cli("mkfs", "--size", "16M", other)).code).toBe(0);
      const { code, stderr } = await mount.cli("mount", other, mount.path);
      expect(code).toBe(1);
      expect(stderr).toContain("mounted there already");
    });
  });

  test("mkfs of a mounted region is refused, even with --force", async () => {
    await withMount({}, async (mount) => {
      const { code, stderr } = await mount.cli("mkfs", "--force", mount.region);
      expect(code).toBe(1);
      expect(stderr).toContain(mount.path);
    });
  });

  test("the region may be named through a symbolic link, or relative to the working directory", async () => {
    await withMount({}, async (mount) => {
      await mount.unmount();
      const relative = await cli(["mount", "region", "mnt"], { cwd: mount.folder });
      expect(relative, relative.stderr).toMatchObject({ code: 0 });
      expect(mountAt(mount.path)?.source).toBe(mount.region);
    });
  });

  test("a mountpoint with a space and a comma works", async () => {
    await withMount({}, async (mount) => {
      await mount.unmount();
      const odd = join(mount.folder, "a b,c\\d");
      await mkdir(odd);
      const mounted = await mount.cli("mount", mount.region, odd);
      expect(mounted, mounted.stderr).toMatchObject({ code: 0 });
      expect(mountAt(odd)?.source).toBe(mount.region);
      expect(await mount.cli("unmount", odd)).toMatchObject({ code: 0 });
      await rmdir(odd);
    });
  });

  test("read-only: nothing can be changed, everything read", async () => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("a"), "x");
      await mount.unmount();
      const before = await readFile(mount.region);
      await mount.mount("ro");
      expect(await readFile(mount.at("a"), "utf8")).toBe("x");
      await expect(writeFile(mount.at("b"), "")).rejects.toMatchObject({ code: "EROFS" });
      await expect(rm(mount.at("a"))).rejects.toMatchObject({ code: "EROFS" });
      expect(await info(mount, mount.path)).toMatchObject({ mountpoint: mount.path });
      await mount.unmount();
      expect(before.equals(await readFile(mount.region))).toBe(true);
    });
  });

  test("with --log the daemon tells its story", async () => {
    await withMount({}, async (mount) => {
      await mount.unmount();
      const log = join(mount.folder, "log");
      expect(await mount.cli("mount", "--log", log, mount.region, mount.path)).toMatchObject({ code: 0 });
      await mount.unmount();
      const text = await readFile(log, "utf8");
      expect(text).toContain("is mounted on");
      expect(text).toContain("its volume closed");
    });
  });

  test("in the foreground it serves until SIGINT, then exits 0", async () => {
    await withMount({}, async (mount) => {
      await mount.unmount();
      const child = spawn(
        process.execPath,
        [programPath, "mount", "--foreground", mount.region, mount.path],
        {
          stdio: ["ignore", "ignore", "pipe"],
        },
      );
      onTestFinished(() => {
        child.kill("SIGKILL");
      });
      let log = "";
      child.stderr.setEncoding("utf8").on("data", (text: string) => {
        log += text;
      });
      const ended = new Promise<number | null>((done) => child.on("exit", done));
      while (!log.includes("is mounted on")) {
        expect(child.exitCode, log).toBeNull();
        await sleep(10);
      }
      await writeFile(mount.at("a"), "x");
      child.kill("SIGINT");
      expect(await ended).toBe(0);
      expect(mountAt(mount.path)).toBeUndefined();
      await mount.mount();
      expect(await readFile(mount.at("a"), "utf8")).toBe("x");
    });
  });
});

describe("unmount", () => {
  test("returns when the daemon is gone and the lock free", async () => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("a"), Buffer.alloc(1_000_000, 1));
      const pid = mount.daemonPid();
      await mount.unmount();
      expect(isRunning(pid)).toBe(false);
      expect(lockHolder(mount.region)).toBeUndefined();
      expect(mountAt(mount.path)).toBeUndefined();
    });
  });

  test.for([
    ["umount", (path: string) => ["umount", path]],
    ["fusermount3 -u", (path: string) => ["fusermount3", "-u", path]],
  ] as [string, (path: string) => string[]][])(
    "%s ends the daemon too, with a clean volume",
    async ([_, command], { skip }) => {
      await withMount({}, async (mount) => {
        const [file, ...args] = command(mount.path);
        const lacking = missing(file as string);
        if (lacking !== undefined) skip(lacking);
        await writeFile(mount.at("a"), "kept");
        const pid = mount.daemonPid();
        expect(await run(file as string, args)).toMatchObject({ code: 0 });
        await daemonEnds(pid);
        expect((await info(mount)).recovery).toMatchObject({ label: "clean" });
        await mount.mount();
        expect(await readFile(mount.at("a"), "utf8")).toBe("kept");
      });
    },
  );

  test.each(["SIGTERM", "SIGINT"] as const)(
    "%s to the daemon unmounts and closes the volume",
    async (signal) => {
      await withMount({}, async (mount) => {
        await writeFile(mount.at("a"), "kept");
        const pid = mount.daemonPid();
        process.kill(pid, signal);
        await daemonEnds(pid);
        expect(mountAt(mount.path)).toBeUndefined();
        expect((await info(mount)).recovery).toMatchObject({ label: "clean" });
      });
    },
  );

  test("a mount in use is not unmounted, and says so", async () => {
    await withMount({}, async (mount) => {
      const file = await open(mount.at("a"), "w");
      const { code, stderr } = await mount.cli("unmount", mount.path);
      expect(code).toBe(1);
      expect(stderr).toContain("in use");
      await file.write("still works");
      await file.close();
      await mount.unmount();
    });
  });

  test("--lazy detaches a mount in use; its daemon ends with its last user, and nothing is lost", async () => {
    await withMount({}, async (mount) => {
      const pid = mount.daemonPid();
      const file = await open(mount.at("a"), "w");
      expect(await mount.cli("unmount", "--lazy", mount.path)).toMatchObject({ code: 0 });
      expect(mountAt(mount.path)).toBeUndefined();
      await file.write("after detaching");
      expect(isRunning(pid)).toBe(true);
      await file.close();
      await daemonEnds(pid);
      await mount.mount();
      expect(await readFile(mount.at("a"), "utf8")).toBe("after detaching");
    });
  });

  test("SIGTERM ends a mount in use as well: its users get an error, the volume is clean", async () => {
    await withMount({}, async (mount) => {
      const pid = mount.daemonPid();
      const file = await open(mount.at("a"), "w");
      await file.write("before");
      process.kill(pid, "SIGTERM");
      await daemonEnds(pid);
      await expect(file.write("after")).rejects.toMatchObject({ code: "ENOTCONN" });
      await file.close().catch(() => {});
      expect((await info(mount)).recovery).toMatchObject({ label: "clean" });
      await mount.mount();
      expect(await readFile(mount.at("a"), "utf8")).toBe("before");
    });
  });

  test("an abort of the connection by the administrator ends the daemon, and the mountpoint is free again", async ({
    skip,
  }) => {
    if (notRoot !== undefined) skip(notRoot);
    await withMount({}, async (mount) => {
      await writeFile(mount.at("a"), "kept");
      const pid = mount.daemonPid();
      const minor = mountAt(mount.path)?.device.split(":")[1];
      try {
        if (!readMounts().some(({ fsType }) => fsType === "fusectl")) {
          expect((await run("mount", ["-t", "fusectl", "none", "/sys/fs/fuse/connections"])).code).toBe(0);
        }
        await writeFile(`/sys/fs/fuse/connections/${minor}/abort`, "1");
      } catch (error) {
        skip(`no control file system of FUSE: ${String(error)}`);
      }
      await daemonEnds(pid);
      expect(mountAt(mount.path)).toBeUndefined();
      await mount.mount();
      expect(await readFile(mount.at("a"), "utf8")).toBe("kept");
    });
  });
});

describe("after the death of the daemon", () => {
  test("the dead mountpoint is cleared away by the next mount, and what was written is there", async () => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("a"), Buffer.alloc(300_000, 5));
      await mount.kill9();
      await expect(stat(mount.path)).rejects.toMatchObject({ code: "ENOTCONN" });
      await mount.mount();
      expect(readMounts().filter(({ mountpoint }) => mountpoint === mount.path)).toHaveLength(1);
      expect((await readFile(mount.at("a"))).every((byte) => byte === 5)).toBe(true);
      await mount.check();
    });
  });

  test("a dead mount can be unmounted", async () => {
    await withMount({}, async (mount) => {
      await mount.kill9();
      expect(await mount.cli("unmount", mount.path)).toMatchObject({ code: 0 });
      expect(mountAt(mount.path)).toBeUndefined();
    });
  });

  test("info of the region answers while nothing is mounted, and changes nothing", async () => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("a"), "x");
      await mount.kill9();
      await run("umount", ["-l", mount.path]);
      const before = await readFile(mount.region);
      expect(await info(mount)).toMatchObject({ mountpoint: null, block_size: 4096 });
      expect(before.equals(await readFile(mount.region))).toBe(true);
    });
  });
});

describe("an ordinary user", () => {
  test("makes, mounts, uses and unmounts a region of their own", async ({ skip }) => {
    const reason = noUserMount();
    if (reason !== undefined) skip(reason);
    await withMount({ user: OTHER_UID }, async (mount) => {
      expect(mountAt(mount.path)).toMatchObject({ source: mount.region, fsType: "fuse.mapdirect" });
      const asUser = (...args: string[]) => run("sh", ["-c", ...args], { user: OTHER_UID });
      const wrote = await asUser('echo mine > "$1/a" && cat "$1/a"', "sh", mount.path);
      expect(wrote, wrote.stderr).toMatchObject({ code: 0, stdout: "mine\n" });
      // Without allow_other not even root looks in.
      await expect(stat(mount.path)).rejects.toMatchObject({ code: "EACCES" });
      const shown = await mount.cli("info", "--json", mount.path);
      expect(JSON.parse(shown.stdout)).toMatchObject({ mountpoint: mount.path });
      const pid = mount.daemonPid();
      await mount.unmount();
      expect(isRunning(pid)).toBe(false);
      await mount.mount();
      expect((await asUser('cat "$1/a"', "sh", mount.path)).stdout).toBe("mine\n");
    });
  });

  test("recovers their own dead mountpoint", async ({ skip }) => {
    const reason = noUserMount();
    if (reason !== undefined) skip(reason);
    await withMount({ user: OTHER_UID }, async (mount) => {
      await mount.kill9AndRemount();
      expect(mountAt(mount.path)).toBeDefined();
    });
  });

  test("does not mount a region that belongs to root", async ({ skip }) => {
    const reason = noOtherUser();
    if (reason !== undefined) skip(reason);
    await withMount({}, async (mount) => {
      await mount.unmount();
      const { code, stderr } = await cli(["mount", mount.region, mount.path], { user: OTHER_UID });
      expect(code).toBe(1);
      expect(stderr).toMatch(/^mapdirect: .*region/);
    });
  });
});

describe("info and extents", () => {
  test("info answers the same about the volume, asked at the region or at the mountpoint", async () => {
    await withMount({}, async (mount) => {
      const [byRegion, byMount] = [await info(mount), await info(mount, mount.path)];
      const { uuid, block_size } = byMount;
      expect(byRegion).toMatchObject({ uuid, block_size, mountpoint: mount.path });
      expect(uuid).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
      expect(byMount).toMatchObject({
        region: { path: mount.region, kind: "file", granularity: "page", map_sync: false, assumed: false },
      });
      const text = (await mount.cli("info", mount.path)).stdout;
      expect(text).toContain("granularity");
    });
  });

  test("--assume-pmem shows as assumed cache-line granularity", async () => {
    await withMount({ assumePmem: true }, async (mount) => {
      expect(await info(mount, mount.path)).toMatchObject({
        region: { granularity: "cacheline", assumed: true },
      });
    });
  });

  test("extents: what they say is where the bytes are in the region", async () => {
    await withMount({}, async (mount) => {
      const path = mount.at("file");
      const file = await open(path, "w+");
      await file.truncate(1024 * 1024);
      await file.write(Buffer.alloc(8192, 0xab), 0, 8192, 65_536);
      addon().fallocate(file.fd, 0, 131_072n, 16_384n);
      await file.sync();
      await file.close();
      const { stdout } = await mount.cli("extents", "--json", path);
      const report = JSON.parse(stdout) as {
        extents: { state: string; offset: number; length: number; physical: number | null }[];
      };
      expect(report).toMatchObject({
        file: path,
        inode: (await stat(path)).ino,
        size: 1024 * 1024,
        leases: [],
      });
      const shape = report.extents.map(({ state, offset, length }) => [state, offset, length]);
      expect(shape).toEqual([
        ["hole", 0, 65_536],
        ["written", 65_536, 8192],
        ["hole", 73_728, 57_344],
        ["unwritten", 131_072, 16_384],
        ["hole", 147_456, 901_120],
      ]);
      const written = report.extents[1]?.physical;
      const region = await open(mount.region, "r");
      const { buffer } = await region.read(Buffer.alloc(8192), 0, 8192, written);
      await region.close();
      expect(buffer.every((byte) => byte === 0xab)).toBe(true);
      expect(
        report.extents.filter(({ state }) => state === "hole").every(({ physical }) => physical === null),
      ).toBe(true);
      expect((await mount.cli("extents", path)).stdout).toContain("unwritten");
    });
  });

  test("extents of a file in thousands of pieces come whole, over many pages", async () => {
    await withMount({}, async (mount) => {
      const path = mount.at("pieces");
      const file = await open(path, "w");
      for (let index = 0; index < 1500; index += 1)
        await file.write(Buffer.alloc(4096, 1), 0, 4096, index * 8192);
      await file.close();
      const { extents } = JSON.parse((await mount.cli("extents", "--json", path)).stdout) as {
        extents: { state: string; offset: number; length: number }[];
      };
      expect(extents.filter(({ state }) => state === "written")).toHaveLength(1500);
      let end = 0;
      for (const { offset, length } of extents) {
        expect(offset).toBe(end);
        end = offset + length;
      }
    });
  });

  test("prepare makes a hole ready: written, zero, allocated", async () => {
    await withMount({}, async (mount) => {
      const path = mount.at("file");
      const file = await open(path, "w");
      await file.truncate(1024 * 1024);
      await file.close();
      const prepared = await mount.cli("prepare", "--offset", "64K", "--length", "128K", path);
      expect(prepared, prepared.stderr).toMatchObject({ code: 0 });
      const { extents } = JSON.parse((await mount.cli("extents", "--json", path)).stdout) as {
        extents: { state: string; offset: number; length: number }[];
      };
      const written = extents.filter(({ state }) => state === "written");
      expect(written.at(0)?.offset).toBe(65_536);
      expect(written.reduce((sum, { length }) => sum + length, 0)).toBe(131_072);
      expect((await readFile(path)).every((byte) => byte === 0)).toBe(true);
    });
  });

  test("leases of a mount without mappings: an empty list", async () => {
    await withMount({}, async (mount) => {
      expect(await mount.cli("leases", "--json", mount.path)).toMatchObject({ code: 0, stdout: "[]\n" });
      expect(await mount.cli("leases", mount.path)).toMatchObject({ code: 0, stdout: "no leases\n" });
    });
  });
});

test("nothing of a daemon stays: descriptors do not pile up over files that come and go", async () => {
  await withMount({}, async (mount) => {
    const pid = mount.daemonPid();
    const count = (): number => readdirSync(`/proc/${pid}/fd`).length;
    const before = count();
    for (let index = 0; index < 200; index += 1) {
      await writeFile(mount.at(`f${index}`), "x");
      await rm(mount.at(`f${index}`));
    }
    expect(count()).toBeLessThanOrEqual(before + 2);
  });
});
