/** A whole block device as the region, through the command line: made, mounted, mapped directly, found on the device. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { loopUnavailable, makeLoopDevice } from "../support/loop-device.ts";
import { cli, run } from "../support/run.ts";

const unavailable = loopUnavailable();
const STORED = "stored through a mapping of a block device";
const PROGRAM = `import mmap, os, sys
f = open(sys.argv[1], 'r+b')
m = mmap.mmap(f.fileno(), 0, flags=3 | 0x200000, prot=mmap.PROT_READ | mmap.PROT_WRITE)
m[4096:4096 + ${STORED.length}] = b'${STORED}'
m.flush()
try:
    os.truncate(sys.argv[1], 0)
except OSError as error:
    print(error.strerror)`;

test.skipIf(unavailable !== null)(
  `a block device serves as a region${unavailable === null ? "" : `: ${unavailable}`}`,
  async () => {
    const device = makeLoopDevice(64 * 1024 * 1024);
    const folder = mkdtempSync(folderPrefix("/dev/shm"));
    const mountpoint = join(folder, "mnt");
    const expectOk = async (...args: string[]): Promise<string> => {
      const { code, stdout, stderr } = await cli(args);
      expect(code, stderr).toBe(0);
      return stdout;
    };
    try {
      mkdirSync(mountpoint);
      await expectOk("mkfs", device.path);
      await expectOk("mount", device.path, mountpoint);
      try {
        expect(JSON.parse(await expectOk("info", "--json", mountpoint))).toMatchObject({
          region: { kind: "block", granularity: "page" },
        });
        const refused = await cli(["mkfs", "--force", device.path]);
        expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining("mounted already") });

        const path = join(mountpoint, "file");
        writeFileSync(path, Buffer.alloc(65536, 1));
        const preload = join(packageRoot, "dist", "lib", "libmapdirect_preload.so");
        const mapped = await run("python3", ["-S", "-c", PROGRAM, path], { env: { LD_PRELOAD: preload } });
        expect(mapped).toMatchObject({ code: 0, stdout: "Text file busy\n" });
        const { extents } = JSON.parse(await expectOk("extents", "--json", path)) as {
          extents: { physical: number }[];
        };
        const at = (extents[0]?.physical ?? 0) + 4096;
        // Read around the page cache of the device, which is where the mapping stored.
        const read = await run("dd", [
          `if=${device.path}`,
          "iflag=direct",
          "bs=4096",
          "count=1",
          `skip=${at / 4096}`,
          "status=none",
        ]);
        expect(read.stdout.startsWith(STORED)).toBe(true);
      } finally {
        await expectOk("unmount", mountpoint);
      }
      await expectOk("mount", device.path, mountpoint);
      expect(readFileSync(join(mountpoint, "file"), "latin1").slice(4096, 4096 + STORED.length)).toBe(STORED);
      await expectOk("unmount", mountpoint);
    } finally {
      await cli(["unmount", mountpoint]);
      device.remove();
      rmSync(folder, { recursive: true, force: true });
    }
  },
);
