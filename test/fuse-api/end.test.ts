/** The ends of mounts that nobody had planned: of the worker thread, of the process, of callers with locks. */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, onTestFinished, test } from "vitest";
import { readMounts } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { missing, notRoot, run } from "../support/run.ts";

/** A mount point for one test; what is mounted there in the end is taken away. */
function place(): string {
  const folder = mkdtempSync(folderPrefix("/dev/shm"));
  const mountpoint = join(folder, "mnt");
  mkdirSync(mountpoint);
  onTestFinished(async () => {
    const left = readMounts().filter((each) => each.mountpoint.startsWith(folder));
    for (const each of left.reverse()) await run("umount", ["-l", each.mountpoint]);
    rmSync(folder, { recursive: true });
  });
  return mountpoint;
}

/** A program, in a process of its own: one that hangs shall not take the test with it. */
const program = (script: string, ...args: string[]) =>
  run(process.execPath, ["--input-type=module", "-e", script, ...args], {
    cwd: packageRoot,
    timeoutMs: 15_000,
  });

/** Its directory has no names, and making one is what never ends. */
const BUSY = `
  import { mount } from "mapdirect/fuse";
  const attributes = (ino) => ({ ino, mode: 0o040755 });
  const never = new Promise(() => {});
  const mnt = process.argv[1];
  const mounted = await mount(
    { lookup: () => null, mkdir: () => never, statfs: () => never, getattr: ({ nodeid }) => attributes(nodeid) },
    mnt,
    { attributesTtlMs: 0, entryTtlMs: 0 },
  );
  const waiting = async (count) => {
    while (mounted.pending < count) await new Promise((resolve) => setTimeout(resolve, 5));
  };
`;

test.each(["mapdirect", "mapdirect_client"])(
  "a worker that is terminated while the addon %s is initialised does not end the process",
  async (name) => {
    const script = `
      import { Worker } from "node:worker_threads";
      const code = \`
        import { parentPort, workerData } from "node:worker_threads";
        let count = 0;
        const exports = new Proxy({}, {
          defineProperty(target, key, descriptor) {
            if (++count === workerData.stop) {
              parentPort.postMessage("there");
              Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
            }
            return Reflect.defineProperty(target, key, descriptor);
          },
        });
        process.dlopen({ exports }, "build/Release/" + workerData.name + ".node");
        parentPort.postMessage("whole");\`;
      for (let stop = 1, said; said !== "whole"; stop++) {
        const worker = new Worker(code, { eval: true, workerData: { stop, name: process.argv[1] } });
        said = await new Promise((resolve) => worker.once("message", resolve));
        await worker.terminate();
        if (said === "whole") console.log(stop > 5);
      }`;
    expect(await program(script, name)).toMatchObject({ code: 0, stdout: "true\n", stderr: "" });
  },
  30_000,
);

describe.skipIf(notRoot !== undefined)("the end of a mount", () => {
  const terminated = join(dirname(fileURLToPath(import.meta.url)), "terminated.mjs");
  const dead = "0 Transport endpoint is not connected\n";
  test.each([
    ["mounting", "directory\n0 directory\n"],
    ["mounted", dead],
    ["mounted by the helper", dead],
    ["serving itself", dead],
  ])(
    "nobody waits for a mount whose worker was terminated: %s",
    async (moment, said) => {
      if (moment === "mounted by the helper" && missing("fusermount3") !== undefined) return;
      const done = run(process.execPath, [terminated, moment, place()], { timeoutMs: 15_000 });
      expect(await done).toMatchObject({ code: 0, stdout: said, stderr: "" });
    },
    30_000,
  );

  test("a process ends while one of its own threads waits for its mount", async () => {
    const script = `${BUSY}
      import { statfs } from "node:fs";
      statfs(mnt, () => {});
      await waiting(1);
      process.exit(5);`;
    expect(await program(script, place())).toMatchObject({ code: 5, stderr: "" });
  }, 30_000);

  test("callers are let go by a forced unmount though a notification waits for the lock that one of them holds", async () => {
    const script = `${BUSY}
      import { execFile } from "node:child_process";
      const made = (name) =>
        new Promise((resolve) => execFile("mkdir", [mnt + name], (error) => resolve(error === null ? 0 : error.code)));
      const first = made("/first");
      await waiting(1);
      const told = mounted.invalidateEntry(1, "first");
      // Waits for the lock as well, and asks when it has it.
      const second = made("/second");
      await new Promise((resolve) => setTimeout(resolve, 200));
      await mounted.unmount({ force: true });
      console.log(await first, await second, typeof (await told));
      await mounted.invalidateEntry(1, "first").catch(({ code }) => console.log(code));`;
    expect(await program(script, place())).toMatchObject({ code: 0, stdout: "1 1 boolean\nENOTCONN\n" });
  }, 30_000);
});
