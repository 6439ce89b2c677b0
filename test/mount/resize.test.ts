/** resize as a command, on real regions that are not mounted. test/namespace/resize.test.ts has the rest. */
import { statSync } from "node:fs";
import { chmod, readFile, rm, statfs, truncate, writeFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { MediaError } from "../../src/base/errors.ts";
import { resizeRegion } from "../../src/cli/commands/resize.ts";
import { SUPERBLOCK_OFFSETS, Superblock } from "../../src/media/format.ts";
import { encodeSuperblock, readSuperblock } from "../../src/media/superblock.ts";
import type { Region } from "../../src/region/region.ts";
import { withMount } from "../support/mount.ts";

const MIB = 1 << 20;

test("a volume grows with its file, and shrinks to what its files need", async () => {
  await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
    const content = Buffer.alloc(3 * MIB, "content ");
    for (let index = 0; index < 10; index += 1) await writeFile(mount.at(`file-${index}`), content);
    await mount.unmount();
    expect(statSync(mount.region).size).toBe(64 * MIB);
    const grown = await mount.cli("resize", "--size", "128M", mount.region);
    expect(grown).toMatchObject({ code: 0, stdout: `${mount.region}: 64 MiB to 128 MiB\n` });
    await mount.mount();
    expect((await statfs(mount.path)).blocks).toBe(32768);
    for (let index = 10; index < 30; index += 1) await writeFile(mount.at(`file-${index}`), content);
    await mount.unmount();
    const tooSmall = await mount.cli("resize", "--size", "48M", mount.region);
    expect(tooSmall.code).toBe(1);
    expect(tooSmall.stderr).toMatch(/do not fit before it; delete something/);
    const shrunk = await mount.cli("resize", "--size", "100M", mount.region);
    expect(shrunk.code, shrunk.stderr).toBe(0);
    expect(shrunk.stdout).toMatch(/128 MiB to 100 MiB.*\n.*truncate -s 104857600/);
    await mount.cli("fsck", mount.region);
    await mount.mount();
    await mount.check();
    for (let index = 0; index < 30; index += 1)
      expect((await readFile(mount.at(`file-${index}`))).equals(content), `file-${index}`).toBe(true);
    await mount.unmount();
    expect(await mount.cli("resize", mount.region)).toMatchObject({ code: 0 });
    await mount.mount();
    expect((await statfs(mount.path)).blocks).toBe(32768);
  });
});

test("a volume as small as it can be made is emptied, unmounted and mounted, however much its files are changed", async () => {
  await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
    await writeFile(mount.at("large"), Buffer.alloc(40 * MIB, "large "));
    await mount.unmount();
    // Before the reserve was kept, 41,856 KiB were accepted.
    const tooSmall = await mount.cli("resize", "--size", "41856K", mount.region);
    expect(tooSmall.code).toBe(1);
    expect(tooSmall.stderr).toMatch(/delete something, or choose a larger --size/);
    let [refused, accepted] = [41856 / 128, 65536 / 128];
    while (accepted - refused > 1) {
      const tried = Math.floor((refused + accepted) / 2);
      const { code } = await mount.cli("resize", "--size", `${tried * 128}K`, mount.region);
      if (code === 0) accepted = tried;
      else refused = tried;
    }
    expect(accepted * 128).toBeLessThan(44 * 1024);
    expect((await mount.cli("fsck", mount.region)).stdout).not.toMatch(/warning/);
    await mount.mount();
    for (let round = 0; round < 4000; round += 1) await chmod(mount.at("large"), 0o600 + (round % 8));
    await truncate(mount.at("large"), 39 * MIB);
    await mount.remount();
    for (let round = 0; round < 4000; round += 1) await chmod(mount.at("large"), 0o600 + (round % 8));
    await mount.check();
    await rm(mount.at("large"));
    await writeFile(mount.at("after"), Buffer.alloc(8 * MIB, "after "));
    await mount.remount();
    await mount.check();
  });
});

test("a grow that fails takes back what the file grew by, unless a superblock names the larger size already", async () => {
  await withMount({ sizeBytes: 16 * MIB }, async (mount) => {
    await mount.unmount();
    const fails = async (before: (region: Region) => Promise<void>): Promise<void> => {
      const change = async (region: Region): Promise<never> => {
        await before(region);
        throw new MediaError("the device does not answer");
      };
      await expect(resizeRegion(mount.region, 32 * MIB, change)).rejects.toThrow("does not answer");
    };
    await fails(async () => {});
    expect(statSync(mount.region).size).toBe(16 * MIB);
    await fails(async (region) => {
      const { value } = readSuperblock(region);
      const larger = { ...value, sequence: value.sequence + 1, regionBytes: 32 * MIB };
      region.write(SUPERBLOCK_OFFSETS[1], encodeSuperblock(larger), 0, Superblock.size);
    });
    expect(statSync(mount.region).size).toBe(32 * MIB);
    await mount.mount();
    expect((await statfs(mount.path)).blocks).toBe(8192);
    await mount.check();
  });
});
