/** What a volume is known by: uuid and label, to us and to the tools of the system; and what happens to two of one uuid. */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { fsckArguments } from "../../src/cli/fsck-helper.ts";
import { lockHolder } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { loopUnavailable, makeLoopDevice } from "../support/loop-device.ts";
import { type TestMount, withMount } from "../support/mount.ts";
import { cli, missing, notRoot, programPath, run, succeed } from "../support/run.ts";

const UUID = "0b5f5a3e-6f0e-4f6c-9d4a-1f2e3d4c5b6a";

interface Probed {
  uuid: string;
  label: string;
}

async function probe(path: string): Promise<Probed> {
  const { code, stdout, stderr } = await cli(["probe", "--json", path]);
  expect(code, stderr).toBe(0);
  const [found] = JSON.parse(stdout) as [Probed];
  return found;
}

const tune = async (...args: readonly string[]): Promise<void> => {
  const { code, stderr } = await cli(["tune", ...args]);
  expect(code, stderr).toBe(0);
};

describe("probe", () => {
  test("says of a region what lies on it, mounted or not, for people, programs and udev", async () => {
    await withMount({}, async (mount) => {
      const mounted = await probe(mount.region);
      await mount.unmount();
      expect(await probe(mount.region)).toEqual(mounted);
      await tune("--label", 'a "b" ü', mount.region);
      const { uuid } = await probe(mount.region);
      expect(uuid).toBe(mounted.uuid);
      expect((await cli(["probe", mount.region])).stdout).toBe(
        `${mount.region}: LABEL="a \\"b\\" ü" UUID="${uuid}" BLOCK_SIZE="4096" TYPE="mapdirect"\n`,
      );
      expect((await cli(["probe", "--udev", mount.region])).stdout.trim().split("\n")).toEqual([
        "ID_FS_TYPE=mapdirect",
        "ID_FS_USAGE=filesystem",
        "ID_FS_VERSION=1",
        `ID_FS_UUID=${uuid}`,
        `ID_FS_UUID_ENC=${uuid}`,
        "ID_FS_LABEL=a__b___",
        "ID_FS_LABEL_ENC=a\\x20\\x22b\\x22\\x20\\xc3\\xbc",
      ]);
      await mount.mount();
    });
  });

  test("of anything else fails and says so", async () => {
    for (const path of ["/etc/passwd", "/etc", "/no/such/region"]) {
      const { code, stdout, stderr } = await cli(["probe", path]);
      expect({ code, stdout }, path).toEqual({ code: 1, stdout: "" });
      expect(stderr).toMatch(/^mapdirect: [^\n]+: [^\n]+; [^\n]+\n$/);
    }
  });

  test("file(1) knows a volume by the magic of the package", async ({ skip }) => {
    const lacking = missing("file");
    if (lacking !== undefined) skip(lacking);
    await withMount({}, async (mount) => {
      await mount.unmount();
      await tune("--label", "books", mount.region);
      const magic = join(packageRoot, "dist/system/mapdirect.magic");
      expect(await succeed("file", ["-m", magic, mount.region])).toBe(
        `${mount.region}: mapdirect file system, version 1, label "books", 67108864 bytes, blocks of 4096 bytes\n`,
      );
      await mount.mount();
    });
  });
});

describe("tune", () => {
  test("gives another label or uuid and keeps all files, also after a crash", async () => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("file"), Buffer.alloc(1 << 20, 7));
      const { uuid } = await probe(mount.region);
      const busy = await cli(["tune", "--label", "x", mount.region]);
      expect(busy).toMatchObject({ code: 1, stderr: expect.stringContaining("mounted already") });
      await mount.kill9();
      await tune("--label", "after a crash", mount.region);
      expect(await probe(mount.region)).toMatchObject({ uuid, label: "after a crash" });
      await tune("--uuid", UUID.toUpperCase(), mount.region);
      expect(await probe(mount.region)).toMatchObject({ uuid: UUID, label: "after a crash" });
      await tune("--uuid", "random", "--label", "", mount.region);
      const now = await probe(mount.region);
      expect(now.label).toBe("");
      expect([uuid, UUID]).not.toContain(now.uuid);
      const { code, stdout } = await cli(["fsck", mount.region]);
      expect(code, stdout).toBe(0);
      await mount.mount();
      expect((await readFile(mount.at("file"))).equals(Buffer.alloc(1 << 20, 7))).toBe(true);
      await mount.check();
    });
  });
});

describe("two volumes of one uuid", () => {
  /** A copy of what is mounted, beside it; what is mounted of it is unmounted at the end. */
  async function copyOf(mount: TestMount): Promise<{ region: string; path: string }> {
    const copy = { region: join(mount.folder, "copy"), path: join(mount.folder, "copy-mnt") };
    const taken = await cli(["snapshot", mount.path, copy.region]);
    expect(taken, taken.stderr).toMatchObject({ code: 0 });
    await mkdir(copy.path);
    onTestFinished(async () => {
      if (lockHolder(copy.region) !== undefined) await cli(["unmount", copy.path]);
    });
    return copy;
  }

  test("the second is refused, names the first and what to do; with a uuid of its own it is mounted", async () => {
    await withMount({}, async (mount) => {
      const copy = await copyOf(mount);
      const mountCopy = (...flags: string[]) =>
        cli(["mount", "--log", "none", ...flags, copy.region, copy.path]);
      for (const flags of [[], ["-o", "ro"], ["--foreground"]]) {
        const { code, stderr } = await mountCopy(...flags);
        expect(stderr).toContain(`same uuid is mounted already, on ${mount.path} (${mount.region}); `);
        expect(stderr).toContain(`mapdirect tune --uuid random ${copy.region}`);
        expect(code).toBe(1);
      }
      await tune("--uuid", "random", copy.region);
      expect(await mountCopy()).toMatchObject({ code: 0 });
      expect(await cli(["unmount", copy.path])).toMatchObject({ code: 0 });
      // And the same region again, once it is free.
      await mount.remount();
    });
  });

  test("with nouuid both are there, and each hands out its own region", async () => {
    await withMount({ options: "direct_group=64125" }, async (mount) => {
      const copy = await copyOf(mount);
      const socketOf = async (path: string): Promise<string> =>
        (JSON.parse((await cli(["info", "--json", path])).stdout) as { mount: { direct_socket: string } })
          .mount.direct_socket;
      const first = await socketOf(mount.path);
      for (const options of ["nouuid,direct_group=64125", "nouuid"]) {
        const mounted = await cli(["mount", "--log", "none", "-o", options, copy.region, copy.path]);
        expect(mounted, mounted.stderr).toMatchObject({ code: 0 });
        expect(await socketOf(copy.path)).not.toBe(first);
        expect(await cli(["unmount", copy.path])).toMatchObject({ code: 0 });
        // The other's is where it was.
        await succeed("test", ["-S", first]);
      }
    });
  });
});

describe("UUID= and LABEL=", () => {
  const reason = notRoot ?? loopUnavailable() ?? missing("unshare", "mount", "findmnt");

  test("name a volume on a device, for mapdirect and, through the links that the udev rule makes, for mount(8) and fstab", async ({
    skip,
  }) => {
    if (reason !== undefined && reason !== null) skip(reason);
    const device = makeLoopDevice(64 << 20);
    onTestFinished(() => device.remove());
    await withMount({}, async (mount) => {
      await mount.unmount();
      const made = await cli(["mkfs", "--label", "on a loop", device.path]);
      expect(made, made.stderr).toMatchObject({ code: 0 });
      const { uuid } = await probe(device.path);
      expect((await cli(["probe"])).stdout).toContain(`${device.path}: LABEL="on a loop" UUID="${uuid}"`);
      for (const tag of [`UUID=${uuid}`, "LABEL=on a loop"]) {
        const mounted = await cli(["mount", "--log", "none", tag, mount.path]);
        expect(mounted, mounted.stderr).toMatchObject({ code: 0 });
        expect(await succeed("findmnt", ["-n", "-o", "SOURCE", mount.path])).toBe(`${device.path}\n`);
        expect(await cli(["unmount", mount.path])).toMatchObject({ code: 0 });
      }
      const none = await cli(["mount", `UUID=${UUID}`, mount.path]);
      expect(none).toMatchObject({ code: 1, stderr: expect.stringContaining("no device has such a volume") });

      // As udev would, in a /dev of its own.
      writeFileSync(join(mount.folder, "fstab"), `UUID=${uuid} ${mount.path} mapdirect log=none 0 2\n`);
      const script = `
        set -e
        mount -t tmpfs tmpfs /sbin; ln -s ${join(packageRoot, "dist/sbin/mount.mapdirect")} /sbin/mount.mapdirect
        mkdir "$1/dev"; mount -t tmpfs -o dev none "$1/dev"; mkdir "$1/dev/shm"
        cp -a /dev/null /dev/zero /dev/urandom /dev/fuse "$2" "$1/dev"
        mount --rbind /dev/shm "$1/dev/shm"; mount --rbind "$1/dev" /dev
        ${process.execPath} ${programPath} probe --udev "$2" > "$1/properties"
        . "$1/properties"
        mkdir -p /dev/disk/by-uuid; ln -s "$2" "/dev/disk/by-uuid/$ID_FS_UUID_ENC"
        mount --fstab "$1/fstab" "$3"
        findmnt -n -o SOURCE,FSTYPE "$3"
        umount "$3"`;
      const done = await run("unshare", [
        "-m",
        "sh",
        "-c",
        script,
        "sh",
        mount.folder,
        device.path,
        mount.path,
      ]);
      expect(done, done.stderr).toMatchObject({ code: 0 });
      expect(done.stdout).toMatch(new RegExp(`^${device.path} +fuse.mapdirect\n$`));
      await expect.poll(() => lockHolder(device.path)).toBeUndefined();
      await mount.mount();
    });
  });
});

describe("fsck.mapdirect", () => {
  test("takes the words of fsck(8), and repairs only for -y", () => {
    expect(fsckArguments(["-a", "/r"])).toEqual(["fsck", "/r"]);
    expect(fsckArguments(["-p", "-C", "3", "/r"])).toEqual(["fsck", "/r"]);
    expect(fsckArguments(["-C0", "-T", "/r"])).toEqual(["fsck", "/r"]);
    expect(fsckArguments(["-fy", "/r"])).toEqual(["fsck", "--repair", "--yes", "/r"]);
    for (const args of [[], ["/r", "/s"], ["--frobnicate", "/r"]])
      expect(() => fsckArguments(args)).toThrow();
  });

  test("is run by fsck(8) for a line of fstab, with its exit codes", async ({ skip }) => {
    const lacking = notRoot ?? missing("unshare", "fsck");
    if (lacking !== undefined) skip(lacking);
    await withMount({}, async (mount) => {
      await writeFile(mount.at("file"), "kept");
      await mount.unmount();
      const fstab = join(mount.folder, "fstab");
      writeFileSync(fstab, `${mount.region} ${mount.path} fuse.mapdirect noauto 0 2\n`);
      const bin = join(mount.folder, "bin");
      mkdirSync(bin);
      copyFileSync((await succeed("sh", ["-c", "command -v fsck"])).trim(), join(bin, "fsck"));
      const helper = join(packageRoot, "dist/sbin/fsck.mapdirect");
      const script = `
        mount -t tmpfs tmpfs /sbin && ln -s ${helper} /sbin/fsck.fuse.mapdirect && ln -s ${helper} /sbin/fsck.mapdirect
        export FSTAB_FILE="$1"
        "$2/fsck" -T "$3" -- -a; echo "fstab $?"
        "$2/fsck" -T -t mapdirect "$3" -- -n; echo "type $?"
        "$2/fsck" -T -t mapdirect "$3.none" -- -n; echo "none $?"`;
      const fsck = () => run("unshare", ["-m", "sh", "-c", script, "sh", fstab, bin, mount.region]);
      const clean = await fsck();
      expect(clean.stdout, clean.stderr).toMatch(
        /nothing is wrong.*\nfstab 0\n.*nothing is wrong.*\ntype 0\nnone 8\n$/,
      );
      // Damaged, it is not repaired at boot: that is for a person to decide.
      const before = readFileSync(mount.region);
      const damaged = Buffer.from(before);
      damaged.fill(0xff, 200, 300);
      writeFileSync(mount.region, damaged);
      expect((await fsck()).stdout).toMatch(/\nfstab 4\n/);
      expect(readFileSync(mount.region).equals(damaged)).toBe(true);
      writeFileSync(mount.region, before);
      await mount.mount();
    });
  });
});

describe("removing the Debian package", () => {
  const prerm = join(packageRoot, "packaging/debian/prerm");
  const line = "/srv/region /srv/volume fuse.mapdirect rw 0 0\n";

  test.each([
    ["remove", line, 1, /unmount them first.*\n {2}\/srv\/volume \(\/srv\/region\)\n$/],
    ["upgrade", line, 0, /old version until they are mounted anew.*\n {2}\/srv\/volume/],
    ["remove", "/dev/sda1 / ext4 rw 0 0\n", 0, /^$/],
  ] as const)("%s with %j mounted", async (action, mounts, code, said) => {
    await withMount({}, async (mount) => {
      const table = join(mount.folder, "mounts");
      await writeFile(table, mounts);
      const done = await run("sh", [prerm, action], { env: { MAPDIRECT_MOUNTS: table } });
      expect(done).toMatchObject({ code, stdout: "", stderr: expect.stringMatching(said) });
    });
  });
});
