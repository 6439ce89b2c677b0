/** direct_group=: who may map a file although the region itself does not let them in. */
import { spawn } from "node:child_process";
import { chmod, mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { createConnection, type Socket } from "node:net";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { useMount, withMount } from "../support/mount.ts";
import { cli, missing, noOtherUser, noUserMount, OTHER_UID, type Result, run } from "../support/run.ts";

/** Any number will do: the kernel knows no names. */
const GROUP = 64_123;
const preload = join(packageRoot, "dist", "lib", "libmapdirect_preload.so");

/** Not one of root's own, in a home directory that others may not enter. */
const python = "/usr/bin/python3";

const script = `
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    memory = mmap.mmap(fd, 8192, flags=3 | 0x200000)
except OSError as error:
    print(error.errno)
    sys.exit(0)
memory[4096:4104] = b"by group"
if os.fork() == 0:
    memory[0:8] = b"by child"
    os._exit(0)
os.wait()
print("mapped")
`;

function mapAs(path: string, uid: number, groups: readonly number[]): Promise<Result> {
  const identity = [`--reuid=${uid}`, `--regid=${uid}`];
  const supplementary = groups.length === 0 ? "--clear-groups" : `--groups=${groups.join(",")}`;
  return run("setpriv", [...identity, supplementary, "--", python, "-S", "-c", script, path], {
    env: { LD_PRELOAD: preload, MAPDIRECT_LEASE: "breakable" },
  });
}

async function socketOf(mountpoint: string, user?: number): Promise<string> {
  const { stdout } = await cli(["info", "--json", mountpoint], user === undefined ? {} : { user });
  return (JSON.parse(stdout) as { mount: { direct_socket: string } }).mount.direct_socket;
}

const reason = noOtherUser() ?? missing(python);

describe.skipIf(reason !== undefined)(`direct_group=${reason === undefined ? "" : ` (${reason})`}`, () => {
  const mount = useMount({ options: `direct_group=${GROUP},break_time=1` });

  async function sharedFile(content = Buffer.alloc(8192, "x")): Promise<string> {
    const path = join(await mount.fresh(), "file");
    await writeFile(path, content);
    await chmod(join(path, ".."), 0o777);
    await chmod(path, 0o666);
    await chmod(mount.region, 0o600);
    return path;
  }

  test("lets members map, and nobody else", async () => {
    const path = await sharedFile();
    const outsider = await mapAs(path, OTHER_UID, []);
    expect(outsider).toMatchObject({ code: 0, stdout: "13\n", stderr: "" });
    const otherGroup = await mapAs(path, OTHER_UID, [GROUP + 1]);
    expect(otherGroup).toMatchObject({ code: 0, stdout: "13\n", stderr: "" });
    const member = await mapAs(path, OTHER_UID, [7, GROUP]);
    expect(member).toMatchObject({ code: 0, stdout: "mapped\n", stderr: "" });
    const content = await readFile(path, "latin1");
    expect(content.slice(0, 8)).toBe("by child");
    expect(content.slice(4096, 4104)).toBe("by group");
    const { stdout } = await cli(["extents", "--json", path]);
    const [{ physical }] = (JSON.parse(stdout) as { extents: [{ physical: number }] }).extents;
    const region = await readFile(mount.region);
    expect(region.toString("latin1", physical + 4096, physical + 4104)).toBe("by group");
  });

  test("gives no access to files that a member may not write", async () => {
    const path = await sharedFile();
    await chmod(path, 0o644);
    expect(await mapAs(path, OTHER_UID, [GROUP])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("Permission denied"),
    });
  });

  test("is not held up by connections that do nothing", async () => {
    const path = await sharedFile();
    const idle: Socket[] = [];
    const door = await socketOf(mount.path);
    for (let count = 0; count < 200; count += 1) {
      const socket = createConnection(door);
      socket.on("error", () => {});
      socket.pause();
      idle.push(socket);
    }
    expect(await mapAs(path, OTHER_UID, [GROUP])).toMatchObject({ stdout: "mapped\n" });
    for (const socket of idle) socket.destroy();
  });

  test("hands out the region without the daemon's lock", async () => {
    const path = await sharedFile();
    // A member that goes on holding the description after the daemon is gone must not keep the region locked.
    const keeper = `
import array, socket, sys, time
door = socket.socket(socket.AF_UNIX)
door.connect(sys.argv[1])
_, control, _, _ = door.recvmsg(1, 64)
fd = array.array("i", control[0][2])[0]
import fcntl, os
os.lseek(fd, 100, 0)
print(os.fstat(fd).st_ino, flush=True)
sys.stdin.read()
`;
    const child = spawn("python3", ["-S", "-c", keeper, await socketOf(mount.path)], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    try {
      const line = await new Promise<string>((resolve) =>
        child.stdout.once("data", (data) => resolve(String(data))),
      );
      expect(Number(line)).toBe((await stat(mount.region)).ino);
      await mount.remount();
      expect((await readFile(path)).length).toBe(8192);
    } finally {
      child.stdin.end();
      await new Promise((resolve) => child.once("exit", resolve));
    }
  });

  test("leaves no socket behind", async () => {
    let socket = "";
    await withMount({ options: `direct_group=${GROUP}` }, async (other) => {
      socket = await socketOf(other.path);
      const found = await stat(socket);
      expect([found.mode & 0o777, found.uid, found.gid]).toEqual([0o660, 0, GROUP]);
      await other.unmount();
    });
    await expect(stat(socket)).rejects.toMatchObject({ code: "ENOENT" });
  });

  test("refuses a group that there is not", async () => {
    const folder = join(mount.folder, "nowhere");
    const region = join(mount.folder, "another");
    await mkdir(folder);
    await cli(["mkfs", "--size", "8M", region]);
    for (const [word, message] of [
      ["no-such-group-here", "there is no such group"],
      ["-x", "wants the name or the number"],
      ["", "wants the name or the number"],
    ] as const) {
      const { code, stderr } = await cli(["mount", "-o", `direct_group=${word}`, region, folder]);
      expect(code).not.toBe(0);
      expect(stderr).toContain(message);
    }
  });
});

const noUser = noUserMount();

test.skipIf(noUser !== undefined)(
  `an ordinary user opens the door to a group of theirs, and to no other${noUser === undefined ? "" : ` (${noUser})`}`,
  async () => {
    await withMount({ user: OTHER_UID, options: `direct_group=${OTHER_UID}` }, async (mount) => {
      const socket = await socketOf(mount.path, OTHER_UID);
      expect(socket.startsWith(`/tmp/mapdirect-${OTHER_UID}/`)).toBe(true);
      await mount.unmount();
    });
    await expect(stat(`/tmp/mapdirect-${OTHER_UID}`)).rejects.toMatchObject({ code: "ENOENT" });
    await expect(withMount({ user: OTHER_UID, options: "direct_group=0" }, async () => {})).rejects.toThrow(
      /direct_group=0/,
    );
  },
);
