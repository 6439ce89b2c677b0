/** What is left of a volume whose superblocks are gone, and what mkfs does not overwrite. */
import { mkdtempSync } from "node:fs";
import { mkdtemp, open, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { folderPrefix } from "../support/leftovers.ts";
import { cli } from "../support/run.ts";

const MESSAGE = /^mapdirect: .+: .+; .+\n$/;
const MIB = 1 << 20;

const folder = mkdtempSync(folderPrefix("/dev/shm"));
afterAll(() => rm(folder, { recursive: true, force: true }));

async function put(path: string, bytes: Uint8Array | string, offset: number): Promise<void> {
  const file = await open(path, "r+");
  const data = Buffer.from(bytes as string, "latin1");
  await file.write(data, 0, data.length, offset);
  await file.close();
}

async function blank(name: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, "");
  await truncate(path, 16 * MIB);
  return path;
}

describe("mkfs refuses without --force", () => {
  test.each([
    ["xfs", "XFSB", 0],
    ["btrfs", "_BHRfS_M", 0x10040],
    ["ext2/3/4", "\x53\xef", 1080],
    ["swap", "SWAPSPACE2", 4086],
    ["LVM", "LVM2 001", 536],
    ["LVM", "LVM2 001", 1048],
    ["GPT", "EFI PART", 512],
    ["DOS partition table", "\x55\xaa", 510],
    ["LUKS", "LUKS\xba\xbe", 0],
  ])("%s", async (name, magic, offset) => {
    const region = await blank("foreign");
    await put(region, magic, offset);
    const before = await readFile(region);
    const { code, stderr } = await cli(["mkfs", region]);
    expect(stderr).toMatch(MESSAGE);
    expect(stderr).toContain(name);
    expect(stderr).toContain("--force");
    expect(code).toBe(1);
    expect(before.equals(await readFile(region))).toBe(true);
    // Whatever else says that there is no volume does not propose to make one.
    for (const command of [
      ["info", region],
      ["fsck", region],
      ["dump", region],
    ]) {
      const other = await cli(command);
      expect(other.code).not.toBe(0);
      expect(other.stderr).not.toContain("mkfs");
    }
  });

  test("a mapdirect volume whose superblocks are gone; it is found by its segments", async () => {
    const region = join(folder, "gone");
    expect(await cli(["mkfs", "--size", "16M", "--label", "precious", region])).toMatchObject({ code: 0 });
    const kept = join(folder, "kept");
    expect(await cli(["superblock", "save", region, kept])).toMatchObject({ code: 0 });
    expect((await stat(kept)).mode & 0o777).toBe(0o600);
    expect((await cli(["superblock", "save", region, kept])).stderr).toMatch(/exists/);
    // It has one.
    const present = await cli(["superblock", "restore", region, kept]);
    expect(present).toMatchObject({ code: 1, stderr: expect.stringMatching(MESSAGE) });
    const whole = await readFile(region);

    await put(region, Buffer.alloc(128 * 1024), 0);
    const mountpoint = await mkdtemp(join(folder, "mnt-"));
    for (const command of [
      ["info", region],
      ["dump", region],
      ["mount", region, mountpoint],
      ["mkfs", region],
    ]) {
      const { code, stderr, stdout } = await cli(command);
      if (command[0] === "dump") {
        // What is there is there.
        expect(stdout.split("\n").filter((line) => line.includes('"type":"inode"'))).toHaveLength(1);
        continue;
      }
      expect(code, command.join(" ")).toBe(1);
      expect(stderr).toMatch(MESSAGE);
      expect(stderr).not.toMatch(/mapdirect mkfs/);
      if (command[0] === "mkfs") expect(stderr).toMatch(/without a superblock.*--force/);
    }
    const found = await cli(["fsck", "--repair", "--dry-run", region]);
    expect(found).toMatchObject({ code: 4, stdout: expect.stringContaining("at the end") });

    expect(await cli(["superblock", "restore", region, kept])).toMatchObject({ code: 0 });
    expect(await cli(["fsck", region])).toMatchObject({ code: 0 });
    const again = await readFile(region);
    for (const at of [0, 65_536])
      expect(again.subarray(at, at + 512).equals(whole.subarray(at, at + 512))).toBe(true);
    expect((await cli(["superblock", "restore", region, join(folder, "gone")])).stderr).toMatch(
      /holds no superblock/,
    );

    await put(region, Buffer.alloc(128 * 1024), 0);
    const asked = await cli(["fsck", "--repair", region]);
    expect(asked).toMatchObject({
      code: 4,
      stdout: expect.stringContaining("0 of 1 inodes, 0 bytes would be lost"),
    });
    expect(await cli(["fsck", "--repair", "--yes", region])).toMatchObject({ code: 1 });
    expect(await cli(["fsck", region])).toMatchObject({ code: 0 });
    expect((await cli(["probe", region])).stdout).toContain('LABEL="precious"');
  });
});
