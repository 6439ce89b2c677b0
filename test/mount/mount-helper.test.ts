/**
 * mount(8) and fstab by way of the helper. mount(8) looks for helpers in /sbin alone, so each test runs in a mount
 * namespace of its own whose /sbin holds nothing but ours: the machine's is left alone.
 */
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseHelperArguments } from "../../src/cli/mount-helper.ts";
import { lockHolder } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { cli, missing, notRoot, type Result, run } from "../support/run.ts";

const helper = join(packageRoot, "dist", "sbin", "mount.mapdirect");

describe("what the helper is called with", () => {
  test("source, directory, options and type, as mount(8) gives them", () => {
    expect(
      parseHelperArguments([
        "/dev/dax0.0",
        "/mnt",
        "-sn",
        "-o",
        "ro, noatime,user=joe",
        "-t",
        "fuse.mapdirect",
      ]),
    ).toEqual({
      source: "/dev/dax0.0",
      directory: "/mnt",
      options: ["ro", "noatime"],
      remount: false,
      fake: false,
    });
  });

  test("a remount comes with what the kernel shows of the mount", () => {
    const words = "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount,ro";
    expect(parseHelperArguments(["/r", "/mnt", "-o", words])).toMatchObject({
      options: ["rw", "nosuid", "nodev", "relatime", "default_permissions", "allow_other", "ro"],
      remount: true,
    });
  });

  test.each([
    ["one path", ["/r"]],
    ["three paths", ["/r", "/mnt", "/x"]],
    ["-o without a value", ["/r", "/mnt", "-o"]],
    ["another type", ["/r", "/mnt", "-t", "ext4"]],
    ["an option that is none", ["/r", "/mnt", "--frobnicate"]],
    ["a network namespace", ["/r", "/mnt", "-N", "/proc/1/ns/mnt"]],
  ])("%s is wrong usage", (_, args) => {
    expect(() => parseHelperArguments(args)).toThrow(/mount\(8\)/);
  });
});

const lacking = notRoot ?? missing("unshare", "mount", "umount", "findmnt");

describe.skipIf(lacking !== undefined)(
  `by way of mount(8)${lacking === undefined ? "" : `: ${lacking}`}`,
  () => {
    const folder = mkdtempSync(folderPrefix("/dev/shm"));
    const region = join(folder, "region");
    const mountpoint = join(folder, "mnt");
    const fstab = join(folder, "fstab");

    beforeAll(async () => {
      await mkdir(mountpoint);
      const made = await cli(["mkfs", "--size", "64M", region]);
      expect(made, made.stderr).toMatchObject({ code: 0 });
    });
    afterAll(() => rmSync(folder, { recursive: true, force: true }));

    /** Run a shell script where mount(8) finds the helper; what it leaves mounted is unmounted. */
    async function shell(script: string): Promise<Result> {
      const around = `
      mount -t tmpfs tmpfs /sbin
      ln -s ${helper} /sbin/mount.fuse.mapdirect
      ln -s ${helper} /sbin/mount.mapdirect
      R=${region} M=${mountpoint} FSTAB=${fstab}
      trap 'umount -l "$M" 2>/dev/null || true' EXIT
      set -e
      ${script}`;
      const done = await run("unshare", ["--mount", "--propagation", "private", "sh", "-c", around]);
      for (let waited = 0; waited < 500 && lockHolder(region) !== undefined; waited += 1) {
        await new Promise((next) => setTimeout(next, 10));
      }
      expect(lockHolder(region), "the daemon has ended").toBeUndefined();
      return done;
    }

    test.each(["fuse.mapdirect", "mapdirect"])(
      "mount -t %s mounts with its options, umount ends it",
      async (type) => {
        const done = await shell(`
      mount -t ${type} -o noatime,direct=breakable,noexec,nosuid,dev "$R" "$M"
      findmnt -n -o SOURCE,FSTYPE,OPTIONS "$M"
      echo hello > "$M/file"; cat "$M/file"
      umount "$M"
      findmnt "$M" || echo unmounted`);
        expect(done, done.stderr).toMatchObject({ code: 0, stderr: "" });
        expect(done.stdout).toMatch(
          /region\s+fuse\.mapdirect\s+rw,nosuid,noexec,noatime.*\nhello\nunmounted\n$/,
        );
      },
    );

    test("a line of fstab suffices, with what only mount(8) and systemd understand", async () => {
      const words = "defaults,nofail,x-systemd.device-timeout=10,direct=breakable";
      writeFileSync(fstab, `${region} ${mountpoint} fuse.mapdirect ${words} 0 0\n`);
      const done = await shell(`
      mount --fstab "$FSTAB" "$M"
      findmnt -n -o FSTYPE "$M"
      umount "$M"
      mount --fstab "$FSTAB" -a
      findmnt -n -o FSTYPE "$M"
      umount "$M"`);
      expect(done, done.stderr).toMatchObject({ code: 0, stdout: "fuse.mapdirect\nfuse.mapdirect\n" });
    });

    test("an unknown option and a region that is none are errors with mount(8)'s exit codes", async () => {
      const done = await shell(`
      mount -t fuse.mapdirect -o frobnicate "$R" "$M" || echo "option $?"
      mount -t fuse.mapdirect "$M.none" "$M" || echo "region $?"
      findmnt "$M" || echo nothing`);
      expect(done.stdout).toBe("option 1\nregion 32\nnothing\n");
      expect(done.stderr).toMatch(/mount\.mapdirect: mount option 'frobnicate': it is unknown;/);
      expect(done.stderr).toMatch(/mount\.mapdirect: .*none: .*; make one with/);
    });

    test("a remount changes what the kernel enforces, and keeps the rest", async () => {
      const done = await shell(`
      mount -t fuse.mapdirect -o direct=breakable,noatime,nosuid,nodev "$R" "$M"
      echo before > "$M/file"
      mount -o remount,ro "$M"
      findmnt -n -o OPTIONS "$M"
      (echo no > "$M/file") 2>/dev/null || echo refused
      mount -o remount,rw,exec,dev "$M"
      findmnt -n -o OPTIONS "$M"
      echo after > "$M/file"; cat "$M/file"
      umount "$M"`);
      expect(done, done.stderr).toMatchObject({ code: 0 });
      const [readOnly, refused, again, text] = done.stdout.split("\n");
      expect(readOnly).toMatch(/^ro,nosuid,nodev,noatime,/);
      expect(refused).toBe("refused");
      expect(again).toMatch(/^rw,nosuid,noatime,/);
      expect(text).toBe("after");
    });

    test("a remount that the daemon would have to know of is refused, and changes nothing", async () => {
      const done = await shell(`
      mount -t fuse.mapdirect "$R" "$M"
      mount -o remount,ro,break_time=5 "$M" || echo "refused $?"
      mount -o remount,strictatime "$M" || echo "refused $?"
      mount -o remount,dirsync "$M" || echo "refused $?"
      (exec 3<> "$M/file"; mount -o remount,ro "$M" || echo "busy $?")
      echo still > "$M/file"; cat "$M/file"
      umount "$M"
      mount -t fuse.mapdirect -o ro "$R" "$M"
      mount -o remount,rw "$M" || echo "refused $?"
      findmnt -n -o OPTIONS "$M"
      umount "$M"`);
      expect(done, done.stderr).toMatchObject({ code: 0 });
      expect(done.stdout).toMatch(/^refused 32\nrefused 32\nrefused 32\nbusy 32\nstill\nrefused 32\nro,/);
      expect(done.stderr).toContain("a remount cannot change break_time=; unmount it, and mount it");
      expect(done.stderr).toContain("a remount cannot change the updates of access times;");
      expect(done.stderr).toContain("a remount cannot change dirsync;");
      expect(done.stderr).toContain("files are open for writing or mapped directly;");
      expect(done.stderr).toContain("its daemon has opened the region for reading alone;");
    });

    test("the systemd unit is one that systemd understands", async ({ skip }) => {
      const without = missing("systemd-analyze");
      if (without !== undefined) skip(without);
      const unit = join(folder, "mapdirect@test.service");
      const source = join(packageRoot, "dist", "system", "mapdirect@.service");
      copyFileSync(source, unit);
      const { stderr } = await run("systemd-analyze", ["verify", "--man=no", unit]);
      expect(stderr.split("\n").filter((line) => line.includes("mapdirect@test"))).toEqual([]);
    });
  },
);
