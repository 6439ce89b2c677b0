/** Holders that outlive the daemon: what they can still reach is never given to anybody else (semantics R23). */
import { spawn } from "node:child_process";
import { closeSync, openSync, readFileSync, statfsSync, unlinkSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { ask, withOpen } from "../../src/daemon/client.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { withMount } from "../support/mount.ts";

const MIB = 1024 * 1024;
const HELD_BYTES = 8 * MIB;

/** Maps the whole file directly, then overwrites all of it each time it reads a line. */
const HOLDER = `import mmap, sys
f = open(sys.argv[1], 'r+b')
m = mmap.mmap(f.fileno(), 0, flags=3 | 0x200000, prot=mmap.PROT_READ | mmap.PROT_WRITE)
print('mapped', flush=True)
for line in sys.stdin:
    m[:] = b'\\xee' * len(m)
    print('stored', flush=True)`;

const quarantined = (mountpoint: string): number =>
  (withOpen(mountpoint, (descriptor) => ask(descriptor, "INFO")) as { quarantined: number }).quarantined;

test("after a restart of the daemon, blocks that an old mapping reaches are not allocated before it is gone", async () => {
  await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
    const path = mount.at("held");
    writeFileSync(path, Buffer.alloc(HELD_BYTES, 1));
    const holder = spawn("python3", ["-S", "-c", HOLDER, path], {
      stdio: ["pipe", "pipe", "inherit"],
      env: { ...process.env, LD_PRELOAD: join(packageRoot, "dist", "lib", "libmapdirect_preload.so") },
    });
    const answers = createInterface({ input: holder.stdout })[Symbol.asyncIterator]();
    try {
      expect((await answers.next()).value).toBe("mapped");
      await mount.kill9AndRemount();
      unlinkSync(path);
      for (let tries = 0; tries < 200 && quarantined(mount.path) < HELD_BYTES; tries += 1) await sleep(10);
      expect(quarantined(mount.path)).toBe(HELD_BYTES);

      // Everything that can be had is taken, and then the holder stores wherever it can.
      const full = openSync(mount.at("full"), "w");
      const chunk = Buffer.alloc(MIB, 7);
      let bytes = 0;
      try {
        for (;;) bytes += writeSync(full, chunk);
      } catch (error) {
        expect(error).toMatchObject({ code: "ENOSPC" });
      } finally {
        closeSync(full);
      }
      expect(bytes).toBeGreaterThan(32 * MIB);
      holder.stdin.write("\n");
      expect((await answers.next()).value).toBe("stored");
      expect(readFileSync(mount.at("full")).every((byte) => byte === 7)).toBe(true);
      await mount.check();
    } finally {
      holder.kill("SIGKILL");
      await new Promise((resolve) => holder.once("close", resolve));
    }
    for (let tries = 0; tries < 500 && quarantined(mount.path) > 0; tries += 1) await sleep(10);
    expect(quarantined(mount.path)).toBe(0);
    expect(statfsSync(mount.path).bfree * 4096).toBeGreaterThanOrEqual(HELD_BYTES);
    await mount.check();
  });
});
