/**
 * The mount beside tmpfs: programs that print what they see do so on both, and what they print has to be the same. Mounted as
 * root, with the options that tmpfs has.
 */
import { chmodSync, mkdirSync } from "node:fs";
import { readdir, rename, truncate, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { type TestMount, useMount, withMount } from "../support/mount.ts";
import { missing, notRoot, run, succeed } from "../support/run.ts";

const here = join(packageRoot, "test", "posix");

/** Why the reference does not do: user attributes on tmpfs are Linux 6.6, and without them lists of names differ. */
async function lacksAttributes(folder: string): Promise<boolean> {
  return (await run("setfattr", ["-n", "user.x", "-v", "1", folder])).code !== 0;
}

describe.skipIf(notRoot !== undefined)(
  `answers as tmpfs does${notRoot === undefined ? "" : `: ${notRoot}`}`,
  () => {
    const mount = useMount({ sizeBytes: 256 << 20, options: "dev,suid" });
    const reference = join(mount.folder, "reference");
    beforeAll(async () => {
      mkdirSync(reference);
      await succeed("mount", ["-t", "tmpfs", "reference", reference]);
      for (const folder of [reference, mount.path]) chmodSync(folder, 0o755);
    });
    afterAll(async () => {
      await run("umount", ["-l", reference]);
    });

    /** What the program prints when it is run in a new folder of each. */
    async function onBoth(command: string, ...words: string[]): Promise<[string[], string[]]> {
      const outputs: string[][] = [];
      for (const place of [mount.path, reference]) {
        const folder = join(place, `run-${outputs.length}-${Math.random().toString(36).slice(2)}`);
        mkdirSync(folder);
        const { code, stdout, stderr } = await run(command, [...words, folder]);
        expect(code, stderr).toBe(0);
        outputs.push(`${stdout}${stderr}`.split("\n"));
      }
      return outputs as [string[], string[]];
    }

    const noCompiler = missing("cc");
    test.skipIf(noCompiler !== undefined)("calls of every kind (probe.c)", async () => {
      const program = join(mount.folder, "probe");
      const flags = ["-O1", "-std=gnu11", "-D_GNU_SOURCE", "-Wno-unused-result"];
      await succeed("cc", [...flags, "-o", program, join(here, "probe.c")]);
      const [seen, expected] = await onBoth(program);
      const differ = /^attributes:|xattr/;
      const compared = (lines: string[], without: boolean): string[] =>
        without ? lines.filter((line) => !differ.test(line)) : lines;
      const without = await lacksAttributes(reference);
      expect(expected.length).toBeGreaterThan(280);
      expect(compared(seen, without)).toEqual(compared(expected, without));
    });

    const noAcl = missing("setfacl", "getfacl", "getfattr", "setpriv", "python3");
    test.skipIf(noAcl !== undefined)("access control lists (acl.sh)", async () => {
      const [seen, expected] = await onBoth("sh", join(here, "acl.sh"));
      expect(expected.length).toBeGreaterThan(100);
      expect(seen).toEqual(expected);
    });
  },
);

describe.skipIf(notRoot !== undefined)("what tmpfs has otherwise", () => {
  const lacking = missing("python3", "mkfs.ext4", "mount", "chattr");
  test.skipIf(lacking !== undefined)(
    "an inode with flags refuses what ext4 refuses, with the same errors (inode_flags.py)",
    async () => {
      await withMount({ options: "dev,suid" }, async (mount) => {
        const image = join(mount.folder, "ext4");
        const reference = join(mount.folder, "reference");
        mkdirSync(reference);
        await writeFile(image, "");
        await truncate(image, 64 << 20);
        await succeed("mkfs.ext4", ["-q", image]);
        await succeed("mount", ["-o", "loop", image, reference]);
        try {
          const outputs: string[] = [];
          for (const place of [mount.path, reference]) {
            const folder = join(place, "here");
            mkdirSync(folder);
            outputs.push(await succeed("python3", [join(here, "inode_flags.py"), folder]));
          }
          const [seen = [], expected = []] = outputs.map((output) => output.split("\n"));
          expect(expected.length).toBeGreaterThan(150);
          expect(expected.filter((line) => line.includes("EPERM")).length).toBeGreaterThan(60);
          expect(seen).toEqual(expected);
        } finally {
          await run("umount", ["-l", reference]);
        }
      });
    },
  );

  const noPython = missing("python3");
  test.skipIf(noPython !== undefined)(
    "file handles find their file, also past the kernel's cache and after a remount, and no other",
    async () => {
      await withMount({}, async (mount) => {
        const handles = (...words: string[]) => succeed("python3", [join(here, "handles.py"), ...words]);
        const find = async (handle: string): Promise<string> =>
          (await handles(mount.path, "open", handle)).trim();
        mkdirSync(mount.at("folder"));
        await writeFile(mount.at("folder", "file"), "content");
        const handle = (await handles(mount.at("folder", "file"), "make")).trim();
        expect(await find(handle)).toBe("content");
        await rename(mount.at("folder", "file"), mount.at("moved"));
        await remountAndForget(mount);
        expect(await find(handle)).toBe("content");
        expect((await handles(mount.at("moved"), "make")).trim()).toBe(handle);
        await unlink(mount.at("moved"));
        await writeFile(mount.at("another"), "other content");
        expect(await find(handle)).toBe("ESTALE");
        await remountAndForget(mount);
        expect(await find(handle)).toBe("ESTALE");
      });
    },
  );

  test.skipIf(noPython !== undefined)("RENAME_WHITEOUT is refused, and nothing has changed", async () => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("file"), "content");
      const script = `
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
done = libc.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 4)
print(done, os.strerror(ctypes.get_errno()))`;
      const words = ["-c", script, mount.at("file"), mount.at("other")];
      expect(await succeed("python3", words)).toBe("-1 Invalid argument\n");
      expect(await readdir(mount.path)).toEqual(["file"]);
    });
  });
});

async function remountAndForget(mount: TestMount): Promise<void> {
  await mount.remount();
  await writeFile("/proc/sys/vm/drop_caches", "2");
}
