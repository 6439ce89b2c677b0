/** Where a daemon's log goes: syslog unless something else is asked for, a file that can be rotated, nowhere. */
import { readFileSync } from "node:fs";
import { mkdir, readFile, rename, rm, symlink } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { withMount } from "../support/mount.ts";
import { cli, missing, notRoot, programPath, run } from "../support/run.ts";

/** As many of a file's lines as there are; none if it is not there yet. */
function linesOf(path: string): string[] {
  try {
    return readFileSync(path, "utf8").split("\n").filter(Boolean);
  } catch {
    return [];
  }
}

describe("a file", () => {
  test.each([
    ["-o log=", (path: string) => ["-o", `log=${path}`]],
    ["--log", (path: string) => ["--log", path]],
  ])(
    "named by %s has what happened, and after a rotation with SIGHUP the new one has the rest",
    async (_, flags) => {
      await withMount({}, async (mount) => {
        await mount.unmount();
        const path = join(mount.folder, "log");
        const { code, stderr } = await cli(["mount", ...flags(path), mount.region, mount.path]);
        expect(code, stderr).toBe(0);
        expect(await readFile(path, "utf8")).toContain("is mounted on");
        const info = await cli(["info", "--json", mount.path]);
        expect(JSON.parse(info.stdout)).toMatchObject({ mount: { log: path } });
        await rename(path, `${path}.1`);
        process.kill(mount.daemonPid(), "SIGHUP");
        await expect.poll(() => linesOf(path).length).toBeGreaterThan(0);
        await mount.unmount();
        expect(await readFile(path, "utf8")).toContain("its volume closed");
        expect(await readFile(`${path}.1`, "utf8")).not.toContain("its volume closed");
      });
    },
  );

  test("named relative to the working directory is there, also in the foreground", async () => {
    await withMount({}, async (mount) => {
      await mount.unmount();
      const words = [programPath, "mount", "--log", "log", mount.region, mount.path];
      expect(await run(process.execPath, words, { cwd: mount.folder })).toMatchObject({ code: 0 });
      await mount.unmount();
      const once = linesOf(join(mount.folder, "log")).length;
      expect(once).toBeGreaterThan(1);
      const script = `"$@" & pid=$!; until mountpoint -q mnt; do sleep 0.05; done; kill -INT $pid; wait $pid`;
      const foreground = [
        "-c",
        script,
        "sh",
        process.execPath,
        programPath,
        "mount",
        "-f",
        ...words.slice(2),
      ];
      const { code, stderr } = await run("sh", foreground, { cwd: mount.folder });
      expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
      expect(linesOf(join(mount.folder, "log")).length).toBeGreaterThan(once);
      // What keeps it from mounting is said to whoever waits, too.
      const failing = [programPath, "mount", "-f", "--log", "log", mount.region, mount.path, "-o"];
      const refused = await run(process.execPath, [...failing, "metrics=file:/no/such/folder/x"], {
        cwd: mount.folder,
      });
      expect(refused).toMatchObject({ code: 1, stderr: expect.stringMatching(/^mapdirect: .*folder.*\n$/) });
    });
  });

  test("on the mount itself is wrong usage, whatever leads there", async () => {
    await withMount({}, async (mount) => {
      await mount.unmount();
      await mkdir(join(mount.path, "below"));
      await symlink(join(mount.path, "below"), join(mount.folder, "link"));
      for (const place of [join(mount.path, "log"), join(mount.folder, "link", "log")]) {
        for (const flags of [
          ["--log", place],
          ["-o", `log=${place}`],
          ["--foreground", "--log", place],
        ]) {
          const { code, stderr } = await cli(["mount", ...flags, mount.region, mount.path]);
          expect(stderr).toContain("it lies on the mount that it is the log of; ");
          expect(code).toBe(2);
        }
      }
      await rm(join(mount.path, "below"), { recursive: true });
      const nowhere = await cli(["mount", "--log", "/no/such/folder/log", mount.region, mount.path]);
      expect(nowhere).toMatchObject({ code: 1, stderr: expect.stringContaining("/no/such/folder/log") });
    });
  });
});

/** Everything that is sent to /dev/log, a line each. */
const listener = `
import socket, sys
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
out = open(sys.argv[1], "wb", buffering=0)
while True: out.write(log.recv(65536).replace(b"\\n", b"?") + b"\\n")`;

/** With a /dev of its own, in which $2 listens: mounts $4 on $5 with the options that follow, and unmounts it. */
const inOwnDev = `
set -e
mkdir "$1/dev"; mount -t tmpfs -o dev none "$1/dev"
mknod "$1/dev/null" c 1 3; mknod "$1/dev/zero" c 1 5; mknod "$1/dev/urandom" c 1 9; mknod "$1/dev/fuse" c 10 229
mkdir "$1/dev/shm"; mount --rbind /dev/shm "$1/dev/shm"; mount --rbind "$1/dev" /dev
folder=$1 listener=$2 node=$3 program=$4 region=$5 mnt=$6; shift 6
/usr/bin/python3 -c "$listener" "$folder/heard" & pid=$!
until [ -S /dev/log ]; do sleep 0.02; done
"$node" "$program" mount "$@" "$region" "$mnt"
daemon=$(awk -v m="$mnt" '$2 == m { print "mounted" }' /proc/self/mounts)
"$node" "$program" unmount "$mnt"
sleep 0.2; kill $pid; echo "$daemon"`;

describe("syslog", () => {
  const reason = notRoot ?? missing("unshare", "/usr/bin/python3");

  async function heardWith(...flags: readonly string[]): Promise<string[]> {
    let lines: string[] = [];
    await withMount({}, async (mount) => {
      await mount.unmount();
      const words = [
        mount.folder,
        listener,
        process.execPath,
        programPath,
        mount.region,
        mount.path,
        ...flags,
      ];
      const { code, stdout, stderr } = await run("unshare", ["-m", "sh", "-c", inOwnDev, "sh", ...words]);
      expect({ code, stdout }, stderr).toEqual({ code: 0, stdout: "mounted\n" });
      lines = linesOf(join(mount.folder, "heard")).map((line) => line.replaceAll(mount.folder, "…"));
    });
    return lines;
  }

  test("has what a daemon in the background says, unless asked otherwise: with priority, program, process and mount", async ({
    skip,
  }) => {
    if (reason !== undefined) skip(reason);
    const lines = await heardWith();
    expect(lines.length).toBeGreaterThan(1);
    for (const line of lines)
      expect(line).toMatch(/^<30>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d mapdirect\[\d+\]: …\/mnt: ./);
    expect(lines[0]).toContain("…/region is mounted on …/mnt");
    expect(lines.at(-1)).toContain("its volume closed");
  });

  test("has a JSON object in each line with --log-format json", async ({ skip }) => {
    if (reason !== undefined) skip(reason);
    const [line = ""] = await heardWith("-o", "log=syslog", "--log-format", "json");
    expect(JSON.parse(line.slice(line.indexOf("{")))).toMatchObject({ level: "info", mountpoint: "…/mnt" });
  });

  test("has nothing where the log is a file, or none", async ({ skip }) => {
    if (reason !== undefined) skip(reason);
    expect(await heardWith("--log", "none")).toEqual([]);
    expect(await heardWith("-o", "log=/dev/shm/../null")).toEqual([]);
  });
});
