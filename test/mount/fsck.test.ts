/** fsck and check as commands, on real regions. test/fsck/ has what they find. */
import { closeSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from "node:fs";
import { cp, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { withMount } from "../support/mount.ts";
import { withoutCopies } from "../support/volume.ts";

/** Overwrite bytes of the region, as a failing medium does. */
function damage(region: string, at: number, bytes: number): void {
  const file = openSync(region, "r+");
  writeSync(file, Buffer.alloc(bytes, 0x5a), 0, bytes, at);
  closeSync(file);
}

const segmentMagic = Buffer.from("MDSG");

/** Byte offset of the checkpoint's first group: behind the header of the first segment whose role says so. */
function checkpointGroup(region: string): number {
  const data = readFileSync(region);
  for (let at = data.indexOf(segmentMagic); at >= 0; at = data.indexOf(segmentMagic, at + 1)) {
    const isNewest = data.readUInt32LE(at + 8) === 2 && at % 131072 === 0;
    if (isNewest && Number(data.readBigUInt64LE(at + 24)) === newestIncarnation(data)) return at + 64;
  }
  throw new Error("no checkpoint");
}

/** Of the checkpoint that the first superblock names. */
const newestIncarnation = (data: Buffer): number => Number(data.readBigUInt64LE(184));

/** The group that was lost held the root and the first files of its directory. */
const isMany = (count: number): boolean => count > 150;

/** How many files have the content that they were given, and whether the big one is among them. */
async function contents(path: string, big: Buffer): Promise<{ small: number; big: boolean }> {
  const whole: string[] = [];
  for (const entry of await readdir(path, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) whole.push(await readFile(join(entry.parentPath, entry.name), "latin1"));
  }
  return {
    small: whole.filter((text) => /^content \d+$/.test(text)).length,
    big: whole.includes(big.toString("latin1")),
  };
}

describe("fsck", () => {
  test("finds nothing in a volume that was unmounted, and in one whose daemon was killed", async () => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("file"), "content");
      await mount.kill9();
      const killed = await mount.cli("fsck", mount.region);
      expect(killed).toMatchObject({ code: 0, stderr: "" });
      expect(killed.stdout).toContain("nothing is wrong: 2 inodes");
      await mount.mount();
      await mount.unmount();
      const { code, stdout } = await mount.cli("fsck", "--json", mount.region);
      expect(code).toBe(0);
      expect(JSON.parse(stdout)).toMatchObject({
        ...{ region: mount.region, label: "", refusal: null, problems: [], problemCount: 0 },
        ...{ repaired: false, inodes: 2 },
      });
      expect((JSON.parse(stdout) as { uuid: string }).uuid).toMatch(/^[0-9a-f]{8}-[0-9a-f-]{27}$/);
    });
  });

  test("says no to a volume that is mounted, which check looks at", async () => {
    await withMount({}, async (mount) => {
      const busy = await mount.cli("fsck", "--repair", mount.region);
      expect(busy.code).toBe(8);
      expect(busy.stderr).toContain("mounted already");
      expect(busy.stderr).toContain("mapdirect check");
      const { code, stdout } = await mount.cli("check", "--json", mount.path);
      expect(code).toBe(0);
      expect(JSON.parse(stdout)).toEqual({ consistent: true, inodes: 1, problem: null });
      expect((await mount.cli("check", mount.path)).stdout).toContain("nothing is wrong");
    });
  });

  test("what is no volume: 8", async () => {
    await withMount({}, async (mount) => {
      const other = join(mount.folder, "other");
      writeFileSync(other, Buffer.alloc(8 << 20));
      const { code, stderr } = await mount.cli("fsck", other);
      expect(code).toBe(8);
      expect(stderr).toContain("holds no mapdirect file system");
      expect((await mount.cli("fsck", join(mount.folder, "missing"))).code).toBe(8);
    });
  });

  test("one damaged superblock: found, repaired, gone", async () => {
    await withMount({}, async (mount) => {
      await mount.unmount();
      damage(mount.region, 100, 8);
      const found = await mount.cli("fsck", mount.region);
      expect(found.code).toBe(4);
      expect(found.stdout).toMatch(/superblock: expected two whole copies, found superblock at byte 0/);
      const dry = await mount.cli("fsck", "--repair", "--dry-run", mount.region);
      expect(dry.code).toBe(4);
      expect(dry.stdout).toMatch(/it is written anew\n(.*\n)*.*nothing was written/);
      const done = await mount.cli("fsck", "--repair", mount.region);
      expect(done.code).toBe(1);
      expect(done.stdout).toContain("1 problem, repaired");
      expect((await mount.cli("fsck", mount.region)).code).toBe(0);
      await mount.mount();
    });
  });

  test("damage of metadata that has a second copy: nothing is lost, by mount or repair", async () => {
    await withMount({ sizeBytes: 32 << 20 }, async (mount) => {
      for (let index = 0; index < 300; index += 1)
        await writeFile(mount.at(`file-${index}`), `content ${index}`);
      await mount.unmount();
      damage(mount.region, checkpointGroup(mount.region) + 40, 2);
      const damaged = join(mount.folder, "damaged");
      await cp(mount.region, damaged);
      const found = await mount.cli("fsck", mount.region);
      expect(found.code).toBe(4);
      expect(found.stdout).toMatch(/^metadata segment at byte \d+: expected to be whole, found damage$/m);
      expect(found.stdout).not.toMatch(/refused|lost/);
      const holdsAll = async (): Promise<void> => {
        for (let index = 0; index < 300; index += 1)
          expect(await readFile(mount.at(`file-${index}`), "utf8")).toBe(`content ${index}`);
        expect(await readdir(mount.path)).toHaveLength(300);
        await mount.check();
      };
      await mount.mount();
      expect((await mount.cli("info", mount.path)).stdout).toMatch(/damaged, and read from its copy/);
      await holdsAll();
      await mount.unmount();
      expect((await mount.cli("fsck", mount.region)).code).toBe(0);

      await cp(damaged, mount.region);
      const repaired = await mount.cli("fsck", "--repair", mount.region);
      expect(repaired.code, repaired.stdout).toBe(1);
      expect((await mount.cli("fsck", mount.region)).code).toBe(0);
      await mount.mount();
      await holdsAll();
    });
  });

  test("damage that a mount refuses: what is left is in lost+found afterwards, and everything else at its place", async () => {
    await withMount({ sizeBytes: 32 << 20 }, async (mount) => {
      await mkdir(mount.at("directory"));
      const big = Buffer.alloc(1 << 20, "some content ");
      // Enough of them that the checkpoint is more than one group.
      for (let index = 0; index < 300; index += 1)
        await writeFile(mount.at("directory", `file-${index}`), `content ${index}`);
      await writeFile(mount.at("last"), big);
      await mount.unmount();
      // Its second copy is gone as well.
      writeFileSync(mount.region, withoutCopies(readFileSync(mount.region)));
      damage(mount.region, checkpointGroup(mount.region) + 5000, 16);
      const refused = await mount.cli("mount", mount.region, mount.path);
      expect(refused.code).toBe(1);
      expect(refused.stderr).toContain("mapdirect fsck");
      expect(refused.stderr).toContain("ro,rescue");
      const copy = join(mount.folder, "copy");
      await cp(mount.region, copy);
      const found = await mount.cli("fsck", mount.region);
      expect(found.code).toBe(4);
      expect(found.stdout).toContain("A mount is refused: ");
      expect(readFileSync(mount.region).equals(readFileSync(copy))).toBe(true);
      // What is there can be read before anything is repaired.
      const dump = await mount.cli("dump", mount.region);
      expect(dump.code).toBe(1);
      expect(dump.stderr).toMatch(/the volume is damaged: 302 of 303 inodes, \d+ bytes lost/);
      const lines = dump.stdout
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line) as { type: string });
      expect(lines.filter(({ type }) => type === "extent").length).toBeGreaterThan(150);
      const wrong = await mount.cli("mount", "-o", "rescue", mount.region, mount.path);
      expect(wrong).toMatchObject({ code: 2 });
      expect(wrong.stderr).toContain("give -o ro,rescue");
      const log = join(mount.folder, "log");
      const rescue = await mount.cli("mount", "-o", "ro,rescue", "--log", log, mount.region, mount.path);
      expect(rescue.code, rescue.stderr).toBe(0);
      expect(readFileSync(log, "utf8")).toMatch(/ warn the volume is damaged: 302 of 303 inodes/);
      expect(await contents(mount.path, big)).toEqual({ small: expect.toSatisfy(isMany), big: true });
      await expect(writeFile(mount.at("new"), "")).rejects.toThrow("EROFS");
      await mount.unmount();
      expect(readFileSync(mount.region).equals(readFileSync(copy))).toBe(true);
      // It says how much it would lose, and does not without being told to.
      const lost = /^(\d+) of 303 inodes, \d+ bytes would be lost, as far as the damaged parts can be read$/m;
      for (const args of [["--dry-run"], []]) {
        const refusal = await mount.cli("fsck", "--repair", ...args, mount.region);
        expect(refusal.code).toBe(4);
        const [, inodes] = lost.exec(refusal.stdout) ?? [];
        // The names of all lay in the part that is damaged.
        expect(Number(inodes), refusal.stdout).toBe(302);
        expect(refusal.stdout).toContain("nothing was written");
      }
      expect(readFileSync(mount.region).equals(readFileSync(copy))).toBe(true);
      const undo = join(mount.folder, "undo");
      const done = await mount.cli("fsck", "--repair", "--yes", "--keep", undo, "--json", mount.region);
      expect(done.code).toBe(1);
      expect(JSON.parse(done.stdout)).toMatchObject({ repaired: true, repairable: true, kept: undo });
      expect(await mount.cli("fsck", mount.region)).toMatchObject({ code: 0 });
      // Put back at its places, what was kept takes the repair back.
      const { mode, size, blocks } = statSync(undo);
      expect(mode & 0o777).toBe(0o600);
      expect(size).toBeGreaterThan(32 << 20);
      expect(blocks * 512).toBeLessThan(4 << 20);
      const undone = join(mount.folder, "undone");
      await cp(mount.region, undone);
      expect(await mount.cli("fsck", "--undo", undo, undone)).toMatchObject({ code: 0, stderr: "" });
      expect(readFileSync(undone).equals(readFileSync(copy))).toBe(true);
      expect((await mount.cli("fsck", "--undo", copy, undone)).stderr).toMatch(/not what a repair/);
      expect((await mount.cli("fsck", undone)).stdout.replaceAll(undone, mount.region)).toBe(found.stdout);
      // Another time, with a name of its own choosing.
      const again = await mount.cli("fsck", "--repair", "--yes", undone);
      expect(again.stdout).toContain(`What the repair has overwritten is kept in ${undone}.before-repair\n`);
      await mount.mount();
      await mount.check();
      expect(await contents(mount.path, big)).toEqual({ small: expect.toSatisfy(isMany), big: true });
    });
  });
});
