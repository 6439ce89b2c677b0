/** The module of python/, by programs in Python against a real mount: each test is a function of checks.py. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { describe, expect, onTestFinished, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { useMount } from "../support/mount.ts";
import { noNumpy, noPython, numpyPython, python, pythonPath } from "../support/python.ts";
import { missing, noUserMount, OTHER_UID, type Result, run, succeed } from "../support/run.ts";

const checks = join(packageRoot, "test/python/checks.py");
const preload = join(packageRoot, "dist/lib/libmapdirect_preload.so");

/** That of somebody's home may not be entered by others. */
const systemPython = "/usr/bin/python3";
const noUser = noUserMount() ?? missing(systemPython);

const PROPERTIES = {
  stores:
    "bytes stored are the file's, in read(2) and at the place in the region that is told; a seal holds until the block ends",
  prepares: "a range is prepared, and block maps of any length are read",
  refuses: "what cannot be mapped is refused, with the errno of the C library",
  releases: "after a release views raise, and what was made from them is zeros",
  ends_when_collected: "a mapping lasts as long as anything leads to its memory, and no longer",
  tells:
    "a callback hears of a break on a thread of the program, and may still store; then all views are zeros",
  goes_without_callback: "without a callback the memory becomes zeros all the same",
  callback_fails: "an exception in a callback stops nothing",
  callback_hangs: "a callback that does not return delays the break, but not to its deadline",
  interpreter_is_held: "a lease is revoked though no thread of Python can run",
  releases_in_callback: "a callback may release the mapping",
  forks: "a child has a copy that counts, is told of breaks by itself, and can map",
  threads: "threads whose mappings are taken away all the time never see a byte that is not the file's",
  exits: "the interpreter ends in peace while a lease is being broken",
} as const;

function expectOk({ code, stdout, stderr }: Result): void {
  expect({ code, stdout }, stderr).toEqual({ code: 0, stdout: "ok\n" });
}

describe.skipIf(noPython !== undefined)(`Python${noPython === undefined ? "" : `: ${noPython}`}`, () => {
  for (const assumePmem of [false, true]) {
    describe(assumePmem ? "on a region of cache-line granularity" : "on a page-cached region", () => {
      const mount = useMount({ assumePmem, options: "break_time=4" });
      const runCheck = async (name: string, env: Record<string, string> = {}, by = python): Promise<void> => {
        const folder = await mount.fresh();
        const args = ["-X", "dev", "-W", "error::RuntimeWarning", checks, name, folder, mount.region];
        const result = await run(by as string, args, { env: { PYTHONPATH: pythonPath, ...env } });
        await rm(folder, { recursive: true });
        expectOk(result);
      };

      for (const [name, sentence] of Object.entries(PROPERTIES)) test(sentence, () => runCheck(name));

      test.skipIf(noNumpy !== undefined)(
        `an array of numpy is the file, and zeros after the lease${noNumpy === undefined ? "" : `: ${noNumpy}`}`,
        () => runCheck("numpy_arrays", {}, numpyPython),
      );

      if (assumePmem) return;
      for (const name of ["stores", "tells", "forks"] as const) {
        test(`under the preload library: ${PROPERTIES[name]}`, () => runCheck(name, { LD_PRELOAD: preload }));
      }
    });
  }

  describe.skipIf(noNumpy !== undefined)(
    `the example that keeps an array${noNumpy === undefined ? "" : `: ${noNumpy}`}`,
    () => {
      const mount = useMount({ sizeBytes: 64 * 1024 * 1024 });
      const args = (file: string): string[] => [join(packageRoot, "examples/kept-array.py"), file];
      const env = { PYTHONPATH: pythonPath };

      /** Runs it until some steps are durable, and kills it: how many it has told of. */
      const runAndKill = async (file: string): Promise<number> => {
        const child = spawn(numpyPython as string, args(file), {
          env: { ...process.env, ...env },
          stdio: ["ignore", "pipe", "inherit"],
        });
        onTestFinished(() => void child.kill("SIGKILL"));
        const ended = once(child, "close");
        let durable = 0;
        let lines = 0;
        for await (const line of createInterface({ input: child.stdout })) {
          durable = Number(/^durable: (\d+)$/.exec(line)?.[1] ?? durable);
          lines += 1;
          if (lines === 20) child.kill("SIGKILL");
        }
        await ended;
        expect(child.signalCode).toBe("SIGKILL");
        return durable;
      };

      /** Where it goes on, and that the counters are those of as many steps. */
      const goesOnAt = async (file: string): Promise<number> => {
        const said = await succeed(numpyPython as string, [...args(file), "0"], { env });
        const steps = Number(/^begins at (\d+)\nends at \1\n$/.exec(said)?.[1]);
        const content = await readFile(file);
        const copies = [0, 1].map((index) => {
          const at = index * (16 + 8 * 1024);
          const counters = Array.from({ length: 1024 }, (_, each) =>
            content.readBigUInt64LE(at + 16 + 8 * each),
          );
          return { steps: Number(content.readBigUInt64LE(at)), counters };
        });
        const current = copies.find((copy) => copy.steps === steps);
        const expected = Array.from({ length: 1024 }, (_, each) =>
          BigInt(Math.floor((steps + 1023 - each) / 1024)),
        );
        expect(current?.counters).toEqual(expected);
        return steps;
      };

      test("every step that was durable is there after kill -9 of the program, and of the daemon", async () => {
        const file = join(await mount.fresh(), "array");
        let before = 0;
        for (let cycle = 0; cycle < 4; cycle += 1) {
          const durable = await runAndKill(file);
          expect(durable).toBeGreaterThan(before);
          if (cycle === 2) await mount.kill9AndRemount();
          before = await goesOnAt(file);
          expect(before).toBeGreaterThanOrEqual(durable);
        }
      });
    },
  );

  describe.skipIf(noUser !== undefined)(
    `on a mount of an ordinary user${noUser === undefined ? "" : `: ${noUser}`}`,
    () => {
      const mount = useMount({ options: "break_time=4", user: OTHER_UID });
      test("an ordinary user maps, is told, and loses the mapping", async () => {
        const args = [checks, "tells", mount.path, mount.region];
        expectOk(await run(systemPython, args, { user: OTHER_UID, env: { PYTHONPATH: pythonPath } }));
      });
    },
  );

  test("without the C library the import says so", async () => {
    const folder = mkdtempSync(folderPrefix("/dev/shm"));
    onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
    const env = { PYTHONPATH: pythonPath, MAPDIRECT_LIBRARY: join(folder, "none.so") };
    const none = await run(python as string, ["-c", "import mapdirect"], { env });
    expect(none.code).toBe(1);
    expect(none.stderr).toMatch(/ImportError: the C library of mapdirect cannot be loaded: .*none\.so/);
    writeFileSync(join(folder, "old.c"), "int mapdirect_map(void) { return 0; }\n");
    const old = join(folder, "old.so");
    await run("cc", ["-shared", "-o", old, join(folder, "old.c")]);
    expect(existsSync(old)).toBe(true);
    const tooOld = await run(python as string, ["-c", "import mapdirect"], {
      env: { ...env, MAPDIRECT_LIBRARY: old },
    });
    expect(tooOld.stderr).toMatch(
      /ImportError: the C library of mapdirect is too old: it lacks mapdirect_unmap/,
    );
  });
});
