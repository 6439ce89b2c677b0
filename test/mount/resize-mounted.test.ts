/** resize of a mounted volume, with programs that go on using it. test/namespace/resize-mounted.test.ts has the rest. */
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { type FileHandle, mkdir, open, readFile, statfs, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { mapDirect } from "../../src/api/index.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { loopUnavailable, makeLoopDevice } from "../support/loop-device.ts";
import { type TestMount, withMount } from "../support/mount.ts";
import { cli, noOtherUser, noUserMount, OTHER_UID, programPath, type Result } from "../support/run.ts";

const MIB = 1 << 20;
const BLOCK = 4096;
/** Most of these write and read hundreds of MiB, milliseconds. */
const PATIENT_MS = 180_000;

async function ok(result: Promise<Result>): Promise<string> {
  const { code, stdout, stderr } = await result;
  expect(code, stderr).toBe(0);
  return stdout;
}

/** Bytes from which one can tell which file they are of, and where in it. */
function content(bytes: number, seed: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += 8) data.writeDoubleLE(seed * 1e9 + at, at);
  return data;
}

/** The region offset of the last block of a file, bytes. */
async function lastPlace(mount: TestMount, path: string): Promise<number> {
  const { extents } = JSON.parse(await ok(mount.cli("extents", "--json", path))) as {
    extents: { physical: number | null; length: number }[];
  };
  return Math.max(...extents.map(({ physical, length }) => (physical ?? 0) + length));
}

async function sizeOf(mount: TestMount): Promise<number> {
  return (JSON.parse(await ok(mount.cli("info", "--json", mount.path))) as { size: number }).size;
}

/** Nearly fill the volume with files of 3 MiB, and remove all but the last ones. Returns their names. */
async function fillTail(mount: TestMount, files: number, left: number): Promise<string[]> {
  for (let index = 0; index < files; index += 1)
    await writeFile(mount.at(`file-${index}`), content(3 * MIB, index));
  for (let index = 0; index < files - left; index += 1) await unlink(mount.at(`file-${index}`));
  return Array.from({ length: left }, (_, index) => `file-${files - left + index}`);
}

async function expectContents(mount: TestMount, names: readonly string[]): Promise<void> {
  for (const name of names) {
    const expected = content(3 * MIB, Number(name.slice("file-".length)));
    expect((await readFile(mount.at(name))).equals(expected), name).toBe(true);
  }
}

test(
  "a volume grows under a mapping that is stored to, and what is behind the old end is mapped as well",
  async () => {
    await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
      const first = mount.at("first");
      await writeFile(first, Buffer.alloc(MIB));
      const held = await mapDirect(first, { lease: "seal" });
      held.buffer.fill(1);
      expect(await ok(mount.cli("resize", "--size", "200M", mount.path))).toBe(
        `${mount.path}: 64 MiB to 200 MiB\n`,
      );
      held.buffer.fill(2, MIB / 2);
      expect((await statfs(mount.path)).blocks).toBe((200 * MIB) / BLOCK);
      expect(statSync(mount.region).size).toBe(200 * MIB);

      const second = mount.at("second");
      const expected = content(70 * MIB, 7);
      await writeFile(second, expected);
      expect(await lastPlace(mount, second)).toBeGreaterThan(64 * MIB);
      const mapped = await mapDirect(second, { lease: "breakable" });
      expect(mapped.buffer.equals(expected)).toBe(true);
      mapped.buffer.fill(3, 50 * MIB);
      expected.fill(3, 50 * MIB);
      await mapped.release();
      await held.release();
      const check = async (): Promise<void> => {
        expect((await readFile(second)).equals(expected)).toBe(true);
        const small = await readFile(first);
        expect(small.equals(Buffer.concat([Buffer.alloc(MIB / 2, 1), Buffer.alloc(MIB / 2, 2)]))).toBe(true);
      };
      await check();
      await mount.check();
      // The region's name means the mount as well; without a size all of the file is meant.
      expect(await ok(mount.cli("resize", mount.region))).toContain("200 MiB, as it was");
      await mount.kill9AndRemount();
      await check();
      await mount.unmount();
      await ok(mount.cli("fsck", mount.region));
    });
  },
  PATIENT_MS,
);

test(
  "a full volume grows, and its writers go on",
  async () => {
    await withMount({ sizeBytes: 32 * MIB }, async (mount) => {
      const file = await open(mount.at("file"), "w");
      const fill = async (): Promise<void> => {
        for (;;) await file.write(Buffer.alloc(128 * 1024, 5));
      };
      await expect(fill()).rejects.toThrow("ENOSPC");
      const shrink = await mount.cli("resize", "--size", "20M", mount.path);
      expect(shrink.code).toBe(1);
      expect(shrink.stderr).toMatch(/do(es)? not fit before|no room/);
      await ok(mount.cli("resize", "--size", "96M", mount.path));
      const before = (await file.stat()).size;
      await expect(fill()).rejects.toThrow("ENOSPC");
      expect((await file.stat()).size - before).toBeGreaterThan(55 * MIB);
      await file.close();
      await mount.check();
    });
  },
  PATIENT_MS,
);

test(
  "a volume shrinks while others write and verify",
  async () => {
    await withMount({ sizeBytes: 192 * MIB }, async (mount) => {
      const names = await fillTail(mount, 55, 12);
      await mkdir(mount.at("load"));
      let stop = false;
      let rounds = 0;
      const load = async (worker: number): Promise<void> => {
        const path = mount.at("load", `${worker}`);
        const expected = Buffer.alloc(2 * MIB);
        let file: FileHandle = await open(path, "w+");
        for (let round = 0; !stop; round += 1) {
          const at = Math.floor(Math.random() * (expected.length - 70_000));
          const data = randomBytes(1 + Math.floor(Math.random() * 65_000));
          data.copy(expected, at);
          await file.write(data, 0, data.length, at);
          if (round % 5 === 0) await file.sync();
          const from = Math.floor(Math.random() * MIB);
          const seen = Buffer.alloc(MIB);
          const { size } = await file.stat();
          const { bytesRead } = await file.read(seen, 0, MIB, from);
          expect(bytesRead).toBe(Math.max(0, Math.min(MIB, size - from)));
          expect(seen.subarray(0, bytesRead).equals(expected.subarray(from, from + bytesRead))).toBe(true);
          if (round % 40 === 39) {
            await file.close();
            await unlink(path);
            expected.fill(0);
            file = await open(path, "w+");
          }
          rounds += 1;
        }
        await file.close();
        const seen = await readFile(path);
        expect(seen.equals(expected.subarray(0, seen.length))).toBe(true);
      };
      const verify = async (): Promise<void> => {
        while (!stop) await expectContents(mount, names.slice(0, 2));
      };
      const workers = [load(0), load(1), load(2), verify()];
      const done = await ok(mount.cli("resize", "--size", "112M", mount.path));
      expect(done).toMatch(/192 MiB to 112 MiB, \d.* moved\n/);
      expect(done).toContain(`truncate -s ${112 * MIB} ${mount.region}`);
      // The file may be cut at once, and made larger again.
      await writeCut(mount.region, 112 * MIB);
      await sleep(200);
      await ok(mount.cli("resize", "--size", "128M", mount.path));
      await sleep(200);
      stop = true;
      await Promise.all(workers);
      expect(rounds).toBeGreaterThan(10);
      await mount.check();
      await expectContents(mount, names);
      expect((await statfs(mount.path)).blocks).toBe((128 * MIB) / BLOCK);
      await mount.unmount();
      await ok(mount.cli("fsck", mount.region));
      await mount.mount();
      await expectContents(mount, names);
    });
  },
  PATIENT_MS,
);

async function writeCut(path: string, bytes: number): Promise<void> {
  const file = await open(path, "r+");
  await file.truncate(bytes);
  await file.close();
}

test(
  "what a direct mapping pins does not move: the lease is named, and nothing has changed",
  async () => {
    await withMount({ sizeBytes: 96 * MIB }, async (mount) => {
      const names = await fillTail(mount, 27, 6);
      let [path, before] = ["", 0];
      for (const name of names) {
        const place = await lastPlace(mount, mount.at(name));
        if (place > before) [path, before] = [mount.at(name), place];
      }
      expect(before).toBeGreaterThan(64 * MIB);
      const start = (await readFile(path)).subarray(0, 8);
      for (const lease of ["seal", "breakable"] as const) {
        const held = await mapDirect(path, { lease });
        const refused = await mount.cli("resize", "--size", "64M", mount.path);
        expect(refused.code).toBe(1);
        expect(refused.stderr).toMatch(
          new RegExp(
            `lease ${held.leaseId} of process ${process.pid} .*pins blocks there; see 'mapdirect leases`,
          ),
        );
        // It is not broken for this.
        held.buffer.fill(9, 0, 8);
        expect(await sizeOf(mount)).toBe(96 * MIB);
        expect(await lastPlace(mount, path)).toBe(before);
        held.buffer.set(start);
        await held.release();
      }
      await ok(mount.cli("resize", "--size", "64M", mount.path));
      expect(await lastPlace(mount, path)).toBeLessThanOrEqual(64 * MIB);
      const held = await mapDirect(path, { lease: "seal" });
      expect(held.buffer.equals(await readFile(path))).toBe(true);
      await held.release();
      await expectContents(mount, names);
      await mount.check();
    });
  },
  PATIENT_MS,
);

/** Thousands of blocks in the tail, each of which is an extent of its own: they take a while to move. */
async function crumbs(mount: TestMount): Promise<Buffer> {
  const count = 6000;
  await writeFile(mount.at("front"), Buffer.alloc(40 * MIB));
  const expected = Buffer.alloc(2 * count * BLOCK);
  const file = await open(mount.at("crumbs"), "w+");
  // Every second block is a hole.
  for (let at = 0; at < expected.length; at += 2 * BLOCK) {
    content(BLOCK, 1 + (at % 251)).copy(expected, at);
    await file.write(expected, at, BLOCK, at);
  }
  await file.truncate(expected.length);
  await file.close();
  await unlink(mount.at("front"));
  return expected;
}

/** Start to shrink; resolves when it is under way. */
async function shrinking(mount: TestMount, size: string): Promise<ReturnType<typeof spawn>> {
  const { bfree } = await statfs(mount.path);
  const child = spawn(process.execPath, [programPath, "resize", "--size", size, mount.path], {
    stdio: "ignore",
  });
  for (let waited = 0; waited < 20_000; waited += 1) {
    if ((await statfs(mount.path)).bfree < bfree - 1000 || child.exitCode !== null) break;
    await sleep(1);
  }
  return child;
}

test(
  "Ctrl-C ends a shrink, and gives back what it has taken",
  async () => {
    await withMount({ sizeBytes: 96 * MIB }, async (mount) => {
      const expected = await crumbs(mount);
      await ok(mount.cli("check", mount.path));
      const { bfree } = await statfs(mount.path);
      const child = await shrinking(mount, "40M");
      const ended = new Promise((done) => child.once("exit", (_, signal) => done(signal)));
      child.kill("SIGINT");
      expect(await ended).toBe("SIGINT");
      expect(await sizeOf(mount)).toBe(96 * MIB);
      await mount.check();
      // The reserve for metadata may differ by what the log has become.
      expect(Math.abs((await statfs(mount.path)).bfree - bfree)).toBeLessThan((8 * MIB) / BLOCK);
      expect((await readFile(mount.at("crumbs"))).equals(expected)).toBe(true);
      await ok(mount.cli("resize", "--size", "40M", mount.path));
      expect(await sizeOf(mount)).toBe(40 * MIB);
      expect((await readFile(mount.at("crumbs"))).equals(expected)).toBe(true);
      await mount.check();
    });
  },
  PATIENT_MS,
);

test(
  "a daemon that is killed while it shrinks leaves a whole volume of the old size",
  async () => {
    await withMount({ sizeBytes: 96 * MIB }, async (mount) => {
      const expected = await crumbs(mount);
      const child = await shrinking(mount, "40M");
      const ended = new Promise((done) => child.once("exit", done));
      await mount.kill9();
      await ended;
      await mount.mount();
      expect(await sizeOf(mount)).toBe(96 * MIB);
      await mount.check();
      expect((await readFile(mount.at("crumbs"))).equals(expected)).toBe(true);
      await mount.unmount();
      await ok(mount.cli("fsck", mount.region));
    });
  },
  PATIENT_MS,
);

test(
  "resize says what it will not do",
  async () => {
    await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
      const tooSmall = await mount.cli("resize", "--size", "1M", mount.path);
      expect(tooSmall).toMatchObject({ code: 1, stderr: expect.stringContaining("this one needs") });
      const other = noOtherUser();
      if (other === undefined) {
        const refused = await cli(["resize", "--size", "128M", mount.path], { user: OTHER_UID });
        expect(refused.code).toBe(1);
        expect(refused.stderr).toContain("permission denied");
      }
      expect(statSync(mount.region).size).toBe(64 * MIB);
      await mount.unmount();
      await mount.mount("ro");
      const readOnly = await mount.cli("resize", "--size", "128M", mount.path);
      expect(readOnly).toMatchObject({ code: 1, stderr: expect.stringContaining("mounted read-only") });
      expect(statSync(mount.region).size).toBe(64 * MIB);
    });
  },
  PATIENT_MS,
);

test.skipIf(noUserMount() !== undefined)(
  `whoever mounted has the daemon do it${noUserMount() === undefined ? "" : `: ${noUserMount()}`}`,
  async () => {
    await withMount({ sizeBytes: 64 * MIB, user: OTHER_UID }, async (mount) => {
      expect(await ok(mount.cli("resize", "--size", "80M", mount.path))).toContain("64 MiB to 80 MiB");
      expect(statSync(mount.region)).toMatchObject({ size: 80 * MIB, uid: OTHER_UID });
      await ok(mount.cli("resize", "--size", "64M", mount.region));
      await mount.check();
    });
  },
  PATIENT_MS,
);

const unavailable = loopUnavailable();

test.skipIf(unavailable !== null)(
  `a block device that has grown is used to its end${unavailable === null ? "" : `: ${unavailable}`}`,
  async () => {
    const device = makeLoopDevice(64 * MIB);
    const folder = mkdtempSync(folderPrefix("/dev/shm"));
    const mountpoint = join(folder, "mnt");
    try {
      mkdirSync(mountpoint);
      await ok(cli(["mkfs", device.path]));
      await ok(cli(["mount", device.path, mountpoint]));
      const tooLarge = await cli(["resize", "--size", "128M", mountpoint]);
      expect(tooLarge).toMatchObject({ code: 1, stderr: expect.stringContaining("is not that large") });
      device.grow(128 * MIB);
      expect(await ok(cli(["resize", mountpoint]))).toBe(`${mountpoint}: 64 MiB to 128 MiB\n`);
      const data = content(90 * MIB, 4);
      await writeFile(join(mountpoint, "file"), data);
      await ok(cli(["check", mountpoint]));
      await ok(cli(["unmount", mountpoint]));
      await ok(cli(["fsck", device.path]));
      await ok(cli(["mount", device.path, mountpoint]));
      expect((await readFile(join(mountpoint, "file"))).equals(data)).toBe(true);
      await ok(cli(["unmount", mountpoint]));
    } finally {
      await cli(["unmount", mountpoint]);
      device.remove();
      rmSync(folder, { recursive: true, force: true });
    }
  },
  PATIENT_MS,
);
