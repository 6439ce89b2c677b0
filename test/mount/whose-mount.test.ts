/** Whom a client believes when a mount says which file is its region (docs/LEASES.md, Limits). */
import { spawn } from "node:child_process";
import { chown, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { mapDirect, open as openDirect } from "../../src/api/index.ts";
import { mountAt } from "../../src/daemon/mounts.ts";
import { withMount } from "../support/mount.ts";
import { OTHER_UID, run } from "../support/run.ts";

const program = fileURLToPath(new URL("mounted-by.mjs", import.meta.url));

/** The region of the mount, mounted once more by a daemon whose mount is `user`'s. */
async function mountedBy(user: number, region: string, mountpoint: string): Promise<void> {
  const child = spawn(process.execPath, [program, region, mountpoint, `${user}`], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  onTestFinished(async () => {
    if (mountAt(mountpoint) !== undefined) await run("umount", ["-l", mountpoint]);
    child.kill("SIGKILL");
  });
  await new Promise<void>((resolve, reject) => {
    child.stdout?.once("data", () => resolve());
    child.once("close", (code) => reject(new Error(`exit code ${code}`)));
  });
}

test("a mount of root's, the caller's or the region's owner is believed, anybody else's is not", async ({
  skip,
}) => {
  if (process.getuid?.() !== 0) skip("root alone makes mounts of others");
  await withMount({}, async (mount) => {
    await writeFile(mount.at("file"), Buffer.alloc(8192, "x"));
    await mount.unmount();
    const tryToMap = async (): Promise<string> => {
      const file = await openDirect(mount.at("file"));
      try {
        const mapping = await mapDirect(file);
        mapping.buffer.write("stored", 4096);
        await mapping.release();
        return "mapped";
      } catch (error) {
        return (error as NodeJS.ErrnoException).code ?? String(error);
      } finally {
        await file.close();
      }
    };
    const outcomes: string[] = [];
    for (const { mounter, owner } of [
      { mounter: 0, owner: 0 },
      { mounter: OTHER_UID, owner: 0 },
      { mounter: OTHER_UID, owner: OTHER_UID },
      { mounter: OTHER_UID, owner: OTHER_UID - 1 },
      { mounter: 0, owner: OTHER_UID },
    ]) {
      await chown(mount.region, owner, owner);
      await mountedBy(mounter, mount.region, mount.path);
      outcomes.push(await tryToMap());
      await run("umount", [mount.path]);
    }
    expect(outcomes).toEqual(["mapped", "EACCES", "mapped", "EACCES", "mapped"]);
    await chown(mount.region, 0, 0);
    await mount.mount();
    await mount.check();
  });
});
