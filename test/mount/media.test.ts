/** The medium under a mounted region fails: EIO where it did, a line in the log, and everything else goes on. */
import { readFileSync, truncateSync } from "node:fs";
import { chmod, open, readFile, rename, rm, stat, statfs, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { isRunning } from "../../src/daemon/mounts.ts";
import { TestMount, withMount } from "../support/mount.ts";
import { cli, missing, notRoot, run, succeed } from "../support/run.ts";

const MIB = 1 << 20;

/** Direct I/O all the way: what a page cache still has proves nothing. */
async function fails(action: Promise<unknown>): Promise<string> {
  return action.then(
    () => "ok",
    (error: NodeJS.ErrnoException) => error.code ?? String(error),
  );
}

interface Extents {
  extents: { physical: number; length: number }[];
}

describe("a region that is cut short under its daemon", () => {
  test("answers EIO for what is gone, keeps serving the rest, and says so in its log", async () => {
    await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
      const log = join(mount.folder, "log");
      await mount.unmount();
      const started = await mount.cli("mount", "--log", log, mount.region, mount.path);
      expect(started.code, started.stderr).toBe(0);
      const content = Buffer.alloc(4 * MIB, "content ");
      const names = Array.from({ length: 8 }, (_, index) => `file-${index}`);
      for (const name of names) await writeFile(mount.at(name), content);
      await succeed("sync", [mount.at("file-0")]);
      const lastOf = async (name: string): Promise<number> => {
        const { stdout } = await mount.cli("extents", "--json", mount.at(name));
        const { extents } = JSON.parse(stdout) as Extents;
        return Math.max(...extents.map(({ physical, length }) => physical + length));
      };
      const ends = await Promise.all(names.map(lastOf));
      const cut = Math.floor((Math.min(...ends) + Math.max(...ends)) / 2 / 4096) * 4096;
      const daemon = mount.daemonPid();
      truncateSync(mount.region, cut);
      const answers = await Promise.all(
        names.map(async (name) =>
          fails(readFile(mount.at(name)).then((read) => expect(read.equals(content)).toBe(true))),
        ),
      );
      for (const [index, answer] of answers.entries()) {
        if ((ends[index] as number) <= cut) expect(answer, names[index]).toBe("ok");
        else expect(answer, names[index]).toBe("EIO");
      }
      expect(answers).toContain("ok");
      expect(answers).toContain("EIO");
      const lost = names[answers.indexOf("EIO")] as string;
      const file = await open(mount.at(lost), "r+");
      expect(await fails(file.write(content, 0, 100, content.length - 100))).toBe("EIO");
      await file.close();
      // Names and attributes are in memory, and the log may well be in front of the cut.
      expect((await stat(mount.at(lost))).size).toBe(content.length);
      expect(isRunning(daemon)).toBe(true);
      expect(mount.daemonPid()).toBe(daemon);
      const lines = readFileSync(log, "utf8");
      expect(lines).toMatch(/ warn (READ|WRITE) of inode \d+: EIO: .*byte \d+ of the region/);
      // Thousands of failures are a few lines.
      for (let round = 0; round < 200; round += 1) await fails(readFile(mount.at(lost)));
      expect(readFileSync(log, "utf8").split("\n").length).toBeLessThan(20);
      // What the cut took away can be given back, with zeros in it: the rest was never touched.
      truncateSync(mount.region, 64 * MIB);
      await mount.unmount();
      const checked = await mount.cli("fsck", mount.region);
      expect([0, 4]).toContain(checked.code);
    });
  });

  test("is not closed cleanly, and unmount says so and fails", async () => {
    await withMount({}, async (mount) => {
      const log = join(mount.folder, "log");
      await mount.unmount();
      expect(await mount.cli("mount", "--log", log, mount.region, mount.path)).toMatchObject({ code: 0 });
      await writeFile(mount.at("file"), "content");
      truncateSync(mount.region, 131_072);
      const { code, stderr } = await mount.cli("unmount", mount.path);
      expect(code, stderr).toBe(1);
      expect(stderr).toMatch(/its volume could not be closed cleanly/);
      expect(readFileSync(log, "utf8")).toMatch(/ error .*the volume could not be closed cleanly/);
    });
  });

  test("a direct mapping is refused on a region whose path leads to another file", async () => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("file"), Buffer.alloc(8192, 1));
      await rename(mount.region, `${mount.region}.moved`);
      await writeFile(mount.region, Buffer.alloc(64 * MIB));
      const { mapDirect } = await import("../../src/api/index.ts");
      expect(await fails(mapDirect(mount.at("file")))).toMatch(/^(EOPNOTSUPP|EIO|ENXIO)$/);
      expect((await readFile(mount.at("file")))[5]).toBe(1);
      await rename(`${mount.region}.moved`, mount.region);
      const mapping = await mapDirect(mount.at("file"));
      expect(mapping.buffer[5]).toBe(1);
      await mapping.release();
    });
  });
});

/** A mount of 64 MiB on a disk of 24. */
async function onSmallDisk(): Promise<{ mount: TestMount; small: string; region: string; log: string }> {
  const mount = new TestMount({});
  onTestFinished(() => mount.dispose());
  const small = await mount.besideSmallDisk();
  onTestFinished(async () => {
    await run("umount", ["-l", mount.path]);
    await run("umount", ["-l", small]);
  });
  const region = join(small, "region");
  const log = join(mount.folder, "log");
  expect(await cli(["mkfs", "--size", "64M", region])).toMatchObject({ code: 0 });
  expect(await cli(["mount", "--log", log, region, mount.path])).toMatchObject({ code: 0 });
  return { mount, small, region, log };
}

async function waitFor(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await sleep(100);
}

const noTmpfs = notRoot ?? missing("mount", "umount");

describe.skipIf(noTmpfs !== undefined)(
  `a sparse region on a file system that is full${noTmpfs === undefined ? "" : `: ${noTmpfs}`}`,
  () => {
    test("answers ENOSPC, keeps its metadata, and goes on when files or what fills the disk are deleted", async () => {
      const { mount, small, region, log } = await onSmallDisk();
      await writeFile(mount.at("kept"), "kept");
      await succeed("sync", [mount.at("kept")]);
      const content = (index: number): Buffer => Buffer.alloc(MIB, index + 1);
      const fill = async (name: string): Promise<number> => {
        for (let index = 0; index < 64; index += 1) {
          const answer = await fails(writeFile(mount.at(`${name}-${index}`), content(index)));
          if (answer === "ok") continue;
          // The volume has room; what it lies on has not.
          expect(answer).toBe("ENOSPC");
          return index;
        }
        throw new Error("the disk never was full");
      };
      const whole = await fill("big");
      expect(whole).toBeLessThan(24);
      const { bavail, bsize } = await statfs(mount.path);
      expect(bavail * bsize).toBeLessThan(2 * MIB);
      await waitFor(() => / warn the disk below is full: .*region/.test(readFileSync(log, "utf8")));
      expect(JSON.parse((await cli(["info", "--json", mount.path])).stdout)).toMatchObject({
        read_only: null,
        region: { full_below: true },
      });
      const { stdout: advice } = await cli(["doctor", region]);
      expect(advice).toMatch(/the disk below is full/);
      // Metadata has its room: all of this needs log and checkpoints.
      for (let round = 0; round < 3000; round += 1) await chmod(mount.at("kept"), 0o600 + (round % 8));
      for (let index = 0; index < 200; index += 1) await writeFile(mount.at(`empty-${index}`), "");
      expect(await cli(["check", mount.path])).toMatchObject({ code: 0 });
      // What files had is had by others.
      for (const index of [1, 3, 5]) await rm(mount.at(`big-${index}`));
      await succeed("sync", [mount.at("kept")]);
      expect(await fails(writeFile(mount.at("again"), content(9)))).toBe("ok");
      await rm(mount.at("again"));
      // A mount of a full disk is like any other.
      expect(await cli(["unmount", mount.path])).toMatchObject({ code: 0 });
      expect((await cli(["fsck", region])).code).toBe(0);
      expect(await cli(["mount", "--log", log, region, mount.path])).toMatchObject({ code: 0 });
      expect(await readFile(mount.at("kept"), "utf8")).toBe("kept");
      for (let index = 0; index < whole; index += 1) {
        if ([1, 3, 5].includes(index)) continue;
        expect((await readFile(mount.at(`big-${index}`))).equals(content(index)), `big-${index}`).toBe(true);
      }
      await fill("more");
      await succeed("mount", ["-o", "remount,size=128M", small]);
      await waitFor(async () => (await fails(writeFile(mount.at("roomy"), Buffer.alloc(8 * MIB)))) === "ok");
      await waitFor(() => /the disk below has room again/.test(readFileSync(log, "utf8")));
      expect(await cli(["check", mount.path])).toMatchObject({ code: 0 });
      expect(await cli(["unmount", mount.path])).toMatchObject({ code: 0 });
    });

    test("that was full before it was mounted is mounted, emptied and unmounted all the same", async () => {
      const { mount, small, region, log } = await onSmallDisk();
      await writeFile(mount.at("file"), Buffer.alloc(4 * MIB, 7));
      expect(await cli(["unmount", mount.path])).toMatchObject({ code: 0 });
      await fails(writeFile(join(small, "other"), Buffer.alloc(64 * MIB)));
      expect(await cli(["mount", "--log", log, region, mount.path])).toMatchObject({ code: 0 });
      expect((await readFile(mount.at("file"))).equals(Buffer.alloc(4 * MIB, 7))).toBe(true);
      await chmod(mount.at("file"), 0o640);
      await rm(mount.at("file"));
      await succeed("sync", [mount.path]);
      await writeFile(mount.at("other"), Buffer.alloc(2 * MIB, 8));
      expect(await cli(["unmount", mount.path])).toMatchObject({ code: 0 });
      expect((await cli(["fsck", region])).code).toBe(0);
    });
  },
);
