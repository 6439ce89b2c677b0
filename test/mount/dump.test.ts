import { Buffer } from "node:buffer";
import { link, mkdir, symlink, unlink, writeFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { withMount } from "../support/mount.ts";
import { cli, noOtherUser, OTHER_UID, programPath, succeed } from "../support/run.ts";

type Line = Record<string, unknown> & { type: string; ino: number };

test("dump prints everything that there is, a line each", async () => {
  await withMount({}, async (mount) => {
    await mkdir(mount.at("directory"));
    await writeFile(mount.at("directory", "file"), Buffer.alloc(10_000, 1));
    await succeed("truncate", ["-s", "9007199254740995", mount.at("directory", "file")]);
    await link(mount.at("directory", "file"), mount.at("naïve"));
    await writeFile(Buffer.concat([Buffer.from(`${mount.path}/`), Buffer.from([0xff, 0x41])]), "");
    await symlink("directory/file", mount.at("link"));
    await succeed("setfattr", ["-n", "user.one", "-v", "value", mount.at("naïve")]);
    const mounted = await mount.cli("dump", mount.path);
    expect(mounted.code, mounted.stderr).toBe(0);
    // Its region means the same.
    expect(await mount.cli("dump", mount.region)).toEqual(mounted);
    await mount.unmount();
    const { code, stdout } = await mount.cli("dump", mount.region);
    expect(code).toBe(0);
    // Unmounting writes the superblock, and nothing else that is told.
    const inodes = (text: string): string => text.slice(text.indexOf("\n"));
    expect(inodes(mounted.stdout)).toBe(inodes(stdout));
    // 2^53 + 3 has all its digits.
    expect(stdout).toContain('"size":9007199254740995,');
    const lines = stdout
      .trimEnd()
      .split("\n")
      .map((text) => JSON.parse(text) as Line);
    const of = (type: string): Line[] => lines.filter((one) => one.type === type);
    expect(lines[0]).toMatchObject({
      type: "superblock",
      blockBytes: 4096,
      inodes: 5,
      regionBytes: 64 << 20,
    });
    expect(of("inode").map(({ mode, nlink }) => [mode, nlink])).toEqual([
      ["40755", 3],
      ["40755", 2],
      ["100644", 2],
      ["100644", 1],
      ["120777", 1],
    ]);
    expect(of("entry").map(({ parent, name, nameHex, ino }) => [parent, name ?? nameHex, ino])).toEqual([
      [1, "directory", 2],
      [1, "naïve", 3],
      [1, "ff41", 4],
      [1, "link", 5],
      [2, "file", 3],
    ]);
    expect(of("target")).toEqual([{ type: "target", ino: 5, target: "directory/file" }]);
    expect(of("attribute")).toEqual([{ type: "attribute", ino: 3, name: "user.one", value: "value" }]);
    expect(of("extent")).toMatchObject([{ ino: 3, state: "written", offset: 0, length: 12_288 }]);
    expect(of("inode")[2]?.mtime).toMatch(/^\d{10}\.\d{9}$/);
  });
});

test("a mounted volume is dumped while others change it, for administrators", async () => {
  await withMount({}, async (mount) => {
    for (let index = 0; index < 1000; index += 1)
      await writeFile(mount.at(`file-with-a-name-of-some-length-${index}`), "");
    let stop = false;
    const load = (async () => {
      for (let index = 0; !stop; index += 1) {
        await writeFile(mount.at(`new-${index}`), "content");
        await unlink(mount.at(`file-with-a-name-of-some-length-${index % 1000}`)).catch(() => {});
      }
    })();
    // One that nobody reads to its end is in nobody's way.
    await succeed("bash", [
      "-c",
      '"$0" "$1" dump "$2" | head -c 100',
      ...[process.execPath, programPath, mount.path],
    ]);
    const { code, stdout, stderr } = await mount.cli("dump", mount.path);
    stop = true;
    await load;
    expect(code, stderr).toBe(0);
    const lines = stdout
      .trimEnd()
      .split("\n")
      .map((text) => JSON.parse(text) as Line);
    // Of one moment: as many inodes as the first line says, and each name leads to one of them.
    const inodes = new Set(lines.filter(({ type }) => type === "inode").map(({ ino }) => ino));
    expect(inodes.size).toBe(lines[0]?.inodes);
    const entries = lines.filter(({ type }) => type === "entry");
    expect(entries.every(({ ino }) => inodes.has(ino))).toBe(true);
    // What is open at that moment may have no name any more.
    expect(inodes.size - entries.length).toBeLessThanOrEqual(3);
    await mount.check();
    if (noOtherUser() === undefined) {
      const refused = await cli(["dump", mount.path], { user: OTHER_UID });
      expect(refused).toMatchObject({
        code: 1,
        stdout: "",
        stderr: expect.stringContaining("permission denied"),
      });
    }
  });
}, 120_000);
