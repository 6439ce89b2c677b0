import { Buffer } from "node:buffer";
import { link, mkdir, symlink, writeFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { withMount } from "../support/mount.ts";
import { succeed } from "../support/run.ts";

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
    expect((await mount.cli("dump", mount.region)).stderr).toContain("mounted already");
    await mount.unmount();
    const { code, stdout } = await mount.cli("dump", mount.region);
    expect(code).toBe(0);
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
