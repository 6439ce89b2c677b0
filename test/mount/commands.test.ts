/** What commands say of a mount, and above all what they say when they cannot do what was asked. */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { chmod, mkdir, open, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { LeaseFlag, LeaseKind } from "../../src/lease/wire.ts";
import { hold } from "../support/grant.ts";
import { useMount, withMount } from "../support/mount.ts";
import { cli, missing, noOtherUser, noUserMount, OTHER_UID, run, succeed } from "../support/run.ts";

const MESSAGE = /^mapdirect: [^\n]+: [^\n]+; [^\n]+\n$/;

/** A program that does nothing, until the end of the test. */
function idle(command: string, args: readonly string[], cwd: string): ChildProcess {
  const child = spawn(command, args, { cwd, stdio: "ignore" });
  onTestFinished(async () => {
    const ended = new Promise((done) => child.once("exit", done));
    child.kill("SIGKILL");
    await ended;
  });
  return child;
}

describe("what is for files", () => {
  const mount = useMount();

  test.each([
    ["clone", (path: string) => [path, `${path}.copy`]],
    ["extents", (path: string) => [path]],
    ["prepare", (path: string) => [path]],
    ["defrag", (path: string) => [path]],
  ])("%s of a directory or a fifo says that it is one", async (command, args) => {
    const folder = await mount.fresh();
    const directory = await cli([command, ...args(folder)]);
    expect(directory.stderr).toMatch(MESSAGE);
    expect(directory).toMatchObject({
      code: 1,
      stdout: "",
      stderr: expect.stringContaining("it is a directory;"),
    });
    await succeed("mkfifo", [join(folder, "fifo")]);
    const fifo = await cli([command, ...args(join(folder, "fifo"))]);
    expect(fifo.stderr).toMatch(MESSAGE);
    expect(fifo).toMatchObject({ code: 1, stderr: expect.stringContaining("it is no regular file;") });
    const elsewhere = await cli([command, ...args("/proc")]);
    expect(elsewhere).toMatchObject({ code: 1, stderr: expect.stringContaining("not on a mapdirect mount") });
  });

  test("defrag -r goes through all files below a directory, and tells of those that are pinned", async () => {
    const folder = await mount.fresh();
    await mkdir(join(folder, "below"));
    // In turns, so that their blocks lie in turns as well.
    const paths = ["a", "below/b"].map((name) => join(folder, name));
    const files = await Promise.all(paths.map((path) => open(path, "w")));
    for (let block = 0; block < 16; block += 1) {
      for (const file of files) {
        await file.write(Buffer.alloc(4096, block), 0, 4096, block * 4096);
        await file.sync();
      }
    }
    for (const file of files) await file.close();
    const count = async (path: string): Promise<number> =>
      (JSON.parse((await cli(["extents", "--json", path])).stdout) as { extents: unknown[] }).extents.length;
    for (const path of paths) expect(await count(path)).toBeGreaterThan(1);
    const sealed = join(folder, "a");
    const letGo = hold(sealed, LeaseKind.SEAL, 4096);
    const pinned = await cli(["defrag", "--recursive", folder]);
    letGo();
    expect(pinned.code).toBe(1);
    expect(pinned.stderr).toContain(`mapdirect: ${sealed}: `);
    expect(pinned.stderr).toContain("1 of them could not be defragmented");
    expect(await count(join(folder, "below/b"))).toBe(1);
    const done = await cli(["defrag", "-r", folder]);
    expect(done, done.stderr).toMatchObject({ code: 0 });
    expect(done.stdout).toMatch(/: 2 files: \d+ extents, now 2\n$/);
    expect(await count(sealed)).toBe(1);
  });
});

describe("leases break", () => {
  const mount = useMount({ options: "break_time=0" });

  test("by a stranger is refused, whether there is a lease or not", async ({ skip }) => {
    const reason = noOtherUser();
    if (reason !== undefined) skip(reason);
    const path = mount.at("file");
    await writeFile(path, Buffer.alloc(4096));
    await chmod(path, 0o666);
    for (const leased of [false, true]) {
      if (leased) hold(path, LeaseKind.SEAL, 4096);
      for (const args of [
        ["--file", path],
        ["--mount", mount.path, "1"],
      ]) {
        const { code, stdout, stderr } = await cli(["leases", "break", ...args], { user: OTHER_UID });
        expect(stderr).toMatch(MESSAGE);
        expect(stderr).toContain("root");
        expect(stdout).toBe("");
        expect(code).toBe(1);
      }
    }
    expect(JSON.parse((await cli(["leases", "--json", mount.path])).stdout)).toMatchObject([
      { state: "held" },
    ]);
  });

  test("of a file without leases says that there is none", async () => {
    const path = mount.at("unmapped");
    await writeFile(path, "x");
    const { code, stdout } = await cli(["leases", "break", "--file", path]);
    expect({ code, stdout }).toEqual({ code: 0, stdout: `${path}: no lease to break\n` });
  });

  test("of a number, while two volumes are mounted, names both and breaks nothing", async () => {
    await withMount({}, async (other) => {
      const { code, stderr } = await cli(["leases", "break", "1"]);
      expect(stderr).toMatch(MESSAGE);
      expect(stderr).toContain("--mount");
      expect(stderr).toMatch(/^mapdirect: lease 1: several mapdirect file systems are mounted on .*\//);
      expect(code).toBe(2);
      // Those of other tests are among them, and only some of many are named.
      const named = [mount.path, other.path].filter((path) => stderr.includes(path));
      expect(named.length === 2 || stderr.includes("…")).toBe(true);
    });
  });
});

describe("after the death of the daemon", () => {
  test("the region answers info, doctor, map, dump and resize, though a dead mount of it is still there", async () => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("file"), "kept");
      await mount.kill9();
      expect(readFileSync("/proc/self/mounts", "utf8")).toContain(mount.path);
      const info = await mount.cli("info", "--json", mount.region);
      expect(info, info.stderr).toMatchObject({ code: 0 });
      expect(JSON.parse(info.stdout)).toMatchObject({ mountpoint: null, block_size: 4096 });
      for (const command of ["doctor", "map", "dump"]) {
        const { code, stderr } = await mount.cli(command, mount.region);
        expect(code, stderr).toBe(0);
      }
      const resized = await mount.cli("resize", "--size", "128M", mount.region);
      expect(resized, resized.stderr).toMatchObject({ code: 0 });
      await mount.mount();
      expect(readFileSync(mount.at("file"), "utf8")).toBe("kept");
    });
  });
});

test("unmount of a mount in use names who has files open there, and who works there", async () => {
  await withMount({}, async (mount) => {
    await writeFile(mount.at("kept open"), "");
    const descriptor = openSync(mount.at("kept open"), "r");
    const inside = idle("sleep", ["100"], mount.path);
    try {
      const { code, stderr } = await mount.cli("unmount", mount.path);
      expect(stderr).toMatch(MESSAGE);
      expect(stderr).toContain(`(${process.pid}) has ${mount.at("kept open")} open`);
      expect(stderr).toContain(`sleep (${inside.pid}) works in ${mount.path}`);
      expect(code).toBe(1);
    } finally {
      closeSync(descriptor);
    }
  });
});

test("info and stats show sizes in units, with --bytes and --json as numbers of bytes", async () => {
  await withMount({}, async ({ path }) => {
    expect((await cli(["info", path])).stdout).toMatch(/^size +64 MiB$/m);
    expect((await cli(["info", "--bytes", path])).stdout).toMatch(/^size +67108864$/m);
    expect(JSON.parse((await cli(["info", "--json", path])).stdout)).toMatchObject({ size: 67_108_864 });
    expect((await cli(["stats", path])).stdout).toMatch(/^ {2}size +64 MiB$/m);
    expect((await cli(["stats", "--bytes", path])).stdout).toMatch(/^ {2}size +67108864$/m);
  });
});

test("the daemon's memory is its own: pages of the region do not count", async () => {
  await withMount({ sizeBytes: 512 * 1024 * 1024 }, async (mount) => {
    const memory = async (): Promise<{ memory_bytes: number; resident_bytes: number }> =>
      JSON.parse((await mount.cli("stats", "--json", mount.path)).stdout);
    const chunk = Buffer.alloc(1024 * 1024, 7);
    const file = await open(mount.at("file"), "w");
    for (let done = 0; done < 256; done += 1) await file.write(chunk);
    await file.close();
    const { memory_bytes, resident_bytes } = await memory();
    // What was written went through the mapping of the region, all of which is resident now.
    expect(resident_bytes).toBeGreaterThan(256 * 1024 * 1024);
    expect(memory_bytes).toBeLessThan(resident_bytes - 200 * 1024 * 1024);
    expect(memory_bytes).toBeGreaterThan(0);
  });
});

describe("an ordinary user's mount", () => {
  test.for(["suid", "dev", "nosuid,suid"])("-o %s is refused, and not ignored", async (options, { skip }) => {
    const reason = noOtherUser();
    if (reason !== undefined) skip(reason);
    const { code, stderr } = await cli(["mount", "-o", options, "/x", "/y"], { user: OTHER_UID });
    expect(stderr).toMatch(MESSAGE);
    expect(stderr).toContain("only root");
    expect(code).toBe(2);
  });

  test("without fusermount3 names what to install, also where a folder of PATH may not be searched", async ({
    skip,
  }) => {
    const reason = noOtherUser();
    if (reason !== undefined) skip(reason);
    await withMount({}, async (mount) => {
      await mount.unmount();
      await chmod(mount.folder, 0o777);
      await mkdir(join(mount.folder, "closed"), { mode: 0o700 });
      await chmod(mount.region, 0o666);
      const env = { PATH: join(mount.folder, "closed") };
      const asUser = [
        "--reuid",
        `${OTHER_UID}`,
        "--clear-groups",
        "env",
        `PATH=${env.PATH}`,
        process.execPath,
      ];
      const args = [...asUser, "dist/bin/mapdirect.js", "mount", mount.region, mount.path];
      const { code, stderr } = await run("setpriv", args);
      expect(stderr).toMatch(/fusermount3, which is not installed; .*apt-get install fuse3\n$/);
      expect(code).toBe(1);
    });
  });

  test("where /dev/fuse is root's alone, says that, and not that a module is missing", async ({ skip }) => {
    const reason = noOtherUser() ?? missing("fusermount3", "unshare", "mknod");
    if (reason !== undefined) skip(reason);
    await withMount({}, async (mount) => {
      await mount.unmount();
      await chmod(mount.folder, 0o777);
      await chmod(mount.region, 0o666);
      // In a mount namespace of its own: /dev/fuse of this machine stays as it is.
      const script = `
        mkdir "$1/dev" && mount -t tmpfs -o dev none "$1/dev" && mknod -m 600 "$1/dev/fuse" c 10 229 &&
        mount --bind "$1/dev/fuse" /dev/fuse &&
        exec setpriv --reuid ${OTHER_UID} --clear-groups "$2" "$3" mount "$4" "$5"`;
      const { code, stderr } = await run("unshare", [
        ...["-m", "sh", "-c", script, "sh", mount.folder, process.execPath],
        ...["dist/bin/mapdirect.js", mount.region, mount.path],
      ]);
      expect(stderr).toContain("chmod 666 /dev/fuse");
      expect(stderr).not.toContain("modprobe");
      expect(code).toBe(1);
    });
  });

  test("leaves no folder in /tmp once its daemon was killed and the next one has ended", async ({ skip }) => {
    const reason = noUserMount();
    if (reason !== undefined) skip(reason);
    await withMount({ user: OTHER_UID, options: `direct_group=${OTHER_UID}` }, async (mount) => {
      const { stdout } = await mount.cli("info", "--json", mount.path);
      const { mount: about } = JSON.parse(stdout) as { mount: { direct_socket: string } };
      expect(about.direct_socket).toMatch(/^\/tmp\/mapdirect-/);
      await mount.kill9();
      await stat(about.direct_socket);
      await mount.mount("noatime");
      await mount.unmount();
      await expect(stat(about.direct_socket)).rejects.toMatchObject({ code: "ENOENT" });
    });
  });
});

test("what a grant has prepared shows in stat(2) at once", async () => {
  await withMount({}, async (mount) => {
    const path = mount.at("file");
    await writeFile(path, "");
    const file = await open(path, "r+");
    await file.truncate(1024 * 1024);
    expect((await file.stat()).blocks).toBe(0);
    const letGo = hold(path, LeaseKind.SEAL, 1024 * 1024, LeaseFlag.PREPARE);
    expect((await file.stat()).blocks).toBe(2048);
    letGo();
    await file.close();
  });
});
