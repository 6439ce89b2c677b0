/**
 * What files no longer have goes back to what the region lies on: by fstrim(8), by itself with -o discard, by mkfs. Sizes on
 * the disk below are what stat(2) says of the region's file.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, closeSync, mkdirSync, mkdtempSync, openSync, rmSync, statSync } from "node:fs";
import { open, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { mapDirect, open as openDirect } from "../../src/api/index.ts";
import { FstrimRange, LinuxIoctl } from "../../src/fuse/linux-ioctls.ts";
import * as wire from "../../src/lease/wire.ts";
import { addon } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { loopUnavailable, makeLoopDevice } from "../support/loop-device.ts";
import { type TestMount, useMount, withMount } from "../support/mount.ts";
import { cli, run } from "../support/run.ts";
import { until } from "../support/until.ts";

const MIB = 1024 * 1024;
const LIMIT_MS = 30_000;
const isRoot = process.geteuid?.() === 0;
/** fstrim(8) of util-linux. */
const hasFstrim = ((): boolean => {
  try {
    execFileSync("fstrim", ["--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
})();

const onDisk = (path: string): number => statSync(path).blocks * 512;

/** FITRIM itself: bytes that were discarded, or the name of an error. */
function trim(path: string, start: number, length: number, minLength: number): number | string {
  const argument = new Uint8Array(FstrimRange.size);
  const view = new DataView(argument.buffer);
  FstrimRange.encode(view, 0, {
    start: BigInt(start),
    length: BigInt(length),
    minLength: BigInt(minLength),
  });
  const descriptor = openSync(path, "r");
  try {
    addon().ioctl(descriptor, LinuxIoctl.FITRIM, argument);
    return Number(FstrimRange.decode(view, 0).length);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  } finally {
    closeSync(descriptor);
  }
}

const ALL = 2 ** 52;
const bytesOf = (length: number): Buffer => Buffer.from(Array.from({ length }, (_, at) => (at * 7) >> 8));

describe("fstrim", () => {
  const mount = useMount({ sizeBytes: 128 * MIB });

  test("gives back what a file had, once it is gone, and leaves what others have", async ({ skip }) => {
    if (!hasFstrim || !isRoot) skip("needs fstrim and root");
    const kept = bytesOf(4 * MIB);
    await writeFile(mount.at("kept"), kept);
    const before = onDisk(mount.region);
    await writeFile(mount.at("gone"), Buffer.alloc(64 * MIB, 1));
    const full = onDisk(mount.region);
    // Some of its room may have been there: what metadata had in reserve and has given back.
    expect(full - before).toBeGreaterThan(60 * MIB);
    await rm(mount.at("gone"));
    expect(onDisk(mount.region)).toBeGreaterThanOrEqual(full);
    const trimmed = await run("fstrim", ["-v", mount.path]);
    expect(trimmed, trimmed.stderr).toMatchObject({ code: 0, stdout: expect.stringContaining("trimmed") });
    // The log may have grown by a segment meanwhile.
    expect(onDisk(mount.region)).toBeLessThanOrEqual(before + MIB);
    expect((await readFile(mount.at("kept"))).equals(kept)).toBe(true);
    await mount.remount();
    expect((await readFile(mount.at("kept"))).equals(kept)).toBe(true);
    await rm(mount.at("kept"));
  });

  test("discards in its range, and no extent that is shorter than what it asks for", async ({ skip }) => {
    if (!isRoot) skip("needs root");
    const whole = trim(mount.path, 0, ALL, 0) as number;
    expect(whole).toBeGreaterThan(100 * MIB);
    const half = trim(mount.path, 64 * MIB, ALL, 0) as number;
    expect(half).toBeGreaterThan(60 * MIB);
    expect(half).toBeLessThanOrEqual(64 * MIB);
    expect(trim(mount.path, 70 * MIB, 10 * MIB, 0)).toBe(10 * MIB);
    expect(trim(mount.path, 70 * MIB + 1, 3 * 4096, 0)).toBe(2 * 4096);
    expect(trim(mount.path, 70 * MIB, 10 * MIB, 11 * MIB)).toBe(0);
    // A file as well as a directory.
    await writeFile(mount.at("any"), "");
    expect(trim(mount.at("any"), 70 * MIB, 10 * MIB, 0)).toBe(10 * MIB);
    await rm(mount.at("any"));
  });

  test("answers as ext4 does: EINVAL outside and for less than a block, EPERM to others", async ({
    skip,
  }) => {
    if (!isRoot) skip("needs root");
    expect(trim(mount.path, 128 * MIB, ALL, 0)).toBe("EINVAL");
    expect(trim(mount.path, 0, 4095, 0)).toBe("EINVAL");
    expect(trim(mount.path, 0, ALL, 129 * MIB)).toBe("EINVAL");
    chmodSync(mount.path, 0o755);
    if (!hasFstrim) return;
    expect(await run("fstrim", [mount.path], { user: 1000 })).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("Operation not permitted"),
    });
    // All capabilities, but in a user namespace of their own.
    const words = ["--user", "--map-root-user", "fstrim", mount.path];
    expect(await run("unshare", words, { user: 1000 })).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("Operation not permitted"),
    });
    // Root, but without CAP_SYS_ADMIN.
    const bounded = await run("setpriv", ["--bounding-set=-sys_admin", "fstrim", mount.path]);
    expect(bounded).toMatchObject({ code: 1, stderr: expect.stringContaining("Operation not permitted") });
  });

  test("is refused while a snapshot is being taken", async ({ skip }) => {
    if (!isRoot) skip("needs root");
    const argument = new Uint8Array(wire.WIRE_SNAPSHOT_BYTES);
    const begin = { version: wire.WIRE_VERSION, step: wire.SnapshotStep.BEGIN };
    wire.WireSnapshot.encode(new DataView(argument.buffer), 0, begin);
    const descriptor = openSync(mount.path, "r");
    try {
      addon().ioctl(descriptor, wire.Ioctl.SNAPSHOT, argument);
      expect(trim(mount.path, 0, ALL, 0)).toBe("EBUSY");
    } finally {
      closeSync(descriptor);
    }
    await until(() => trim(mount.path, 0, ALL, 0) !== "EBUSY", LIMIT_MS);
    expect(trim(mount.path, 0, ALL, 0)).toBeGreaterThan(0);
  });

  test("leaves blocks to a process that maps them, though their file is gone", async ({ skip }) => {
    if (!isRoot) skip("needs root");
    const bytes = bytesOf(2 * MIB);
    await writeFile(mount.at("mapped"), bytes);
    const file = await openDirect(mount.at("mapped"));
    const mapping = await mapDirect(file);
    await file.close();
    await rm(mount.at("mapped"));
    expect(trim(mount.path, 0, ALL, 0)).toBeGreaterThan(0);
    mapping.buffer.write("stored", 0);
    bytes.write("stored", 0);
    expect(mapping.buffer.equals(bytes)).toBe(true);
    await mapping.release();
  });
});

test("fstrim of a read-only mount is refused", async ({ skip }) => {
  if (!isRoot) skip("needs root");
  await withMount({ sizeBytes: 16 * MIB }, async (mount) => {
    await mount.unmount();
    await mount.mount("ro");
    expect(trim(mount.path, 0, ALL, 0)).toBe("EROFS");
  });
});

test("a user who has mounted may trim their own region", async ({ skip }) => {
  if (!isRoot || !hasFstrim) skip("needs root, to be somebody else");
  await withMount({ sizeBytes: 16 * MIB, user: 1000 }, async (mount) => {
    const trimmed = await run("fstrim", ["-v", mount.path], { user: 1000 });
    expect(trimmed, trimmed.stderr).toMatchObject({ code: 0 });
  });
});

test("with -o discard what becomes free goes back by itself, in a while", async () => {
  await withMount({ sizeBytes: 128 * MIB, options: "discard,discard_delay=1" }, async (mount) => {
    const before = onDisk(mount.region);
    await writeFile(mount.at("gone"), Buffer.alloc(64 * MIB, 1));
    expect(onDisk(mount.region) - before).toBeGreaterThan(60 * MIB);
    await rm(mount.at("gone"));
    await until(() => onDisk(mount.region) <= before + MIB, LIMIT_MS);
    await writeFile(mount.at("new"), bytesOf(4 * MIB));
    expect((await readFile(mount.at("new"))).equals(bytesOf(4 * MIB))).toBe(true);
  });
});

test("without -o discard, or before its delay, nothing goes back by itself", async () => {
  await withMount({ sizeBytes: 64 * MIB, options: "discard" }, async (mount) => {
    await mount.unmount();
    await mount.mount("discard_delay=1");
    await writeFile(mount.at("gone"), Buffer.alloc(32 * MIB, 1));
    const full = onDisk(mount.region);
    await rm(mount.at("gone"));
    await sleep(4000);
    expect(onDisk(mount.region)).toBeGreaterThanOrEqual(full);
    await mount.unmount();
    await mount.mount("discard");
    await writeFile(mount.at("more"), Buffer.alloc(8 * MIB, 1));
    await rm(mount.at("more"));
    await sleep(4000);
    expect(onDisk(mount.region)).toBeGreaterThanOrEqual(full);
  });
});

test("files keep their bytes while others are deleted, trimmed and discarded, and the daemon is killed", async ({
  skip,
}) => {
  if (!isRoot || !hasFstrim) skip("needs root and fstrim");
  await withMount({ sizeBytes: 96 * MIB, options: "discard,discard_delay=1" }, async (mount) => {
    const kept = new Map<string, Buffer>();
    const content = (round: number, number: number): Buffer =>
      Buffer.alloc(MIB + number * 4096, `${round} ${number};`);
    for (let round = 0; round < 6; round += 1) {
      for (let number = 0; number < 24; number += 1) {
        const path = mount.at(`${round}-${number}`);
        const bytes = content(round, number);
        const file = await open(path, "w");
        await file.writeFile(bytes);
        await file.sync();
        await file.close();
        if (number % 6 === 0) kept.set(path, bytes);
      }
      // Both at once: what is deleted is about to be discarded when the daemon dies.
      const deleting = (async () => {
        for (let number = 0; number < 24; number += 1) {
          if (number % 6 !== 0) await rm(mount.at(`${round}-${number}`));
          await writeFile(mount.at("small"), Buffer.alloc(8192, number));
        }
      })();
      const trimming = run("fstrim", [mount.path]);
      const settled = Promise.allSettled([deleting, trimming]);
      await (round % 2 === 0 ? deleting : trimming);
      await mount.kill9();
      await settled;
      await mount.mount();
      for (const [path, bytes] of kept) expect((await readFile(path)).equals(bytes), path).toBe(true);
      for (let number = 0; number < 24; number += 1) {
        // Deleted or not: whole.
        const path = mount.at(`${round}-${number}`);
        const left = await readFile(path).catch(() => null);
        if (left !== null) expect(left.equals(content(round, number)), path).toBe(true);
        if (!kept.has(path)) await rm(path, { force: true });
      }
    }
    await mount.check();
    await mount.unmount();
    const checked = await mount.cli("fsck", mount.region);
    expect(checked, checked.stdout).toMatchObject({ code: 0 });
    await mount.mount();
  });
}, 180_000);

test("mkfs gives back what the region held, and keeps it when told to", async () => {
  const folder = mkdtempSync(folderPrefix("/dev/shm"));
  const region = join(folder, "region");
  const mkfs = async (...args: string[]): Promise<void> => {
    const { code, stderr } = await cli(["mkfs", "--force", ...args, region]);
    expect(code, stderr).toBe(0);
  };
  try {
    await writeFile(region, Buffer.alloc(32 * MIB, 1));
    await mkfs("--no-discard");
    expect(onDisk(region)).toBe(32 * MIB);
    await mkfs("-K");
    expect(onDisk(region)).toBe(32 * MIB);
    await mkfs();
    expect(onDisk(region)).toBeLessThan(4 * MIB);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

/** A region on a small disk, of which a trim has given back all that it may; then others fill that disk. */
async function fillBelow(mount: TestMount, options: string): Promise<void> {
  const small = await mount.besideSmallDisk();
  const region = join(small, "region");
  const call = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await cli(args);
    expect(code, stderr).toBe(0);
    return stdout;
  };
  try {
    await call("mkfs", "--size", "64M", region);
    await call("mount", "--log", "none", "-o", options, region, mount.path);
    await writeFile(mount.at("first"), Buffer.alloc(8 * MIB, 1));
    // The reserve grows with what there is, behind what the file has.
    mkdirSync(mount.at("many"));
    const made = `cd "$1"; for n in $(seq 6000); do : > "a-file-of-many-$n"; done`;
    await run("sh", ["-c", made, "sh", mount.at("many")]);
    await rm(mount.at("first"));
    if (options !== "defaults") await until(() => onDisk(region) < 12 * MIB, LIMIT_MS);
    else expect(trim(mount.path, 0, ALL, 0)).toBeGreaterThan(8 * MIB);
    await call("unmount", mount.path);
    await run("dd", ["if=/dev/zero", `of=${join(small, "filler")}`, "bs=4096"]);
    await call("mount", "--log", "none", region, mount.path);
    const info = JSON.parse(await call("info", "--json", mount.path)) as {
      read_only: string | null;
      metadata_reserve: number;
      metadata_reserve_needed: number;
    };
    expect(info.read_only).toBeNull();
    expect(info.metadata_reserve).toBeGreaterThanOrEqual(info.metadata_reserve_needed);
    await writeFile(mount.at("after"), "");
    await call("check", mount.path);
    await call("unmount", mount.path);
  } finally {
    await cli(["unmount", mount.path]);
    await run("umount", ["-l", small]);
  }
}

test.for(["defaults", "discard,discard_delay=1"])(
  "what was trimmed (-o %s) can be mounted and used though the disk below has become full",
  async (options, { skip }) => {
    if (!isRoot) skip("needs root");
    const { TestMount: Made } = await import("../support/mount.ts");
    const mount = new Made({});
    try {
      await fillBelow(mount, options);
    } finally {
      await mount.dispose();
    }
  },
);

test("where what lies below takes no discards, fstrim and the log say so, and mkfs does without", async ({
  skip,
}) => {
  if (!isRoot) skip("needs root");
  const folder = mkdtempSync(folderPrefix("/dev/shm"));
  const [below, mountpoint, log] = ["below", "mnt", "log"].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  const region = join(below, "region");
  const call = async (...args: string[]): Promise<void> => {
    const { code, stderr } = await cli(args);
    expect(code, stderr).toBe(0);
  };
  for (const path of [below, mountpoint]) mkdirSync(path);
  // It has no fallocate(2).
  expect((await run("mount", ["-t", "ramfs", "below", below])).code).toBe(0);
  try {
    await writeFile(region, Buffer.alloc(16 * MIB));
    await call("mkfs", "--force", region);
    await call("mount", "--log", log, "-o", "discard,discard_delay=1", region, mountpoint);
    expect(trim(mountpoint, 0, ALL, 0)).toBe("EOPNOTSUPP");
    await writeFile(join(mountpoint, "gone"), Buffer.alloc(4 * MIB, 1));
    await rm(join(mountpoint, "gone"));
    await until(async () => (await readFile(log, "latin1")).includes("takes no discards"), LIMIT_MS);
    await writeFile(join(mountpoint, "still"), "there");
    await call("check", mountpoint);
    await call("unmount", mountpoint);
  } finally {
    await cli(["unmount", mountpoint]);
    await run("umount", ["-l", below]);
    rmSync(folder, { recursive: true, force: true });
  }
});

const noLoop = loopUnavailable();
test.skipIf(noLoop !== null)(
  `a block device is told of what is free${noLoop === null ? "" : `: ${noLoop}`}`,
  async () => {
    const device = makeLoopDevice(64 * MIB);
    const folder = mkdtempSync(folderPrefix("/dev/shm"));
    const mountpoint = join(folder, "mnt");
    const call = async (...args: string[]): Promise<void> => {
      const { code, stderr } = await cli(args);
      expect(code, stderr).toBe(0);
    };
    const backing = execFileSync("losetup", ["--noheadings", "--output", "BACK-FILE", device.path], {
      encoding: "utf8",
    }).trim();
    try {
      mkdirSync(mountpoint);
      await call("mkfs", device.path);
      await call("mount", "--log", "none", device.path, mountpoint);
      await writeFile(join(mountpoint, "kept"), bytesOf(3 * MIB));
      await writeFile(join(mountpoint, "gone"), Buffer.alloc(32 * MIB, 1));
      // Written through the page cache of the device: not there before a sync.
      await run("sync", [join(mountpoint, "kept"), join(mountpoint, "gone")]);
      const full = onDisk(backing);
      expect(full).toBeGreaterThan(32 * MIB);
      await rm(join(mountpoint, "gone"));
      expect(trim(mountpoint, 0, ALL, 0)).toBeGreaterThan(32 * MIB);
      expect(onDisk(backing)).toBeLessThan(full - 30 * MIB);
      await call("unmount", mountpoint);
      await call("mount", "--log", "none", device.path, mountpoint);
      expect((await readFile(join(mountpoint, "kept"))).equals(bytesOf(3 * MIB))).toBe(true);
      expect((await stat(join(mountpoint, "kept"))).size).toBe(3 * MIB);
      await call("unmount", mountpoint);
      await call("fsck", device.path);
    } finally {
      await cli(["unmount", mountpoint]);
      device.remove();
      rmSync(folder, { recursive: true, force: true });
    }
  },
);
