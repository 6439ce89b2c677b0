/** examples/gpu-checkpoint: built as its text says, without a GPU, and with one that cuda.c plays. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { useMount } from "../support/mount.ts";
import { missing, run, succeed } from "../support/run.ts";
import { until } from "../support/until.ts";

const MIB = 1024 * 1024;
const source = join(packageRoot, "examples/gpu-checkpoint/gpu-checkpoint.c");
const library = join(packageRoot, "dist/lib");
const noCompiler = missing("cc");

describe.skipIf(noCompiler !== undefined)(
  `gpu-checkpoint${noCompiler === undefined ? "" : `: ${noCompiler}`}`,
  () => {
    const folder = mkdtempSync(folderPrefix(tmpdir()));
    const program = join(folder, "gpu-checkpoint");
    const fake = join(folder, "with-gpu");
    const none = join(folder, "without");
    const mount = useMount({ sizeBytes: 64 * MIB });

    beforeAll(async () => {
      const warnings = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"];
      const flags = [`-I${packageRoot}/dist/include`, `-L${library}`, "-lmapdirect", "-ldl", "-pthread"];
      await succeed("cc", ["-O2", ...warnings, "-o", program, source, ...flags, `-Wl,-rpath,${library}`]);
      for (const each of [fake, none]) mkdirSync(each);
      const cuda = join(packageRoot, "test/examples/cuda.c");
      await succeed("cc", ["-O1", ...warnings, "-shared", "-fPIC", "-o", join(fake, "libcuda.so.1"), cuda]);
      // What a machine with a GPU would find otherwise.
      await succeed("cc", ["-shared", "-o", join(none, "libcuda.so.1"), "-x", "c", "/dev/null"]);
    });
    afterAll(() => rmSync(folder, { recursive: true, force: true }));

    const environment = (gpu: string): Record<string, string> => ({ LD_LIBRARY_PATH: fake, FAKE_CUDA: gpu });
    const start = async (gpu: string, ...args: string[]) => {
      const file = join(await mount.fresh(), "tensor");
      return { file, ...(await run(program, [file, ...args], { env: environment(gpu) })) };
    };

    test("without a GPU it says so, and ends with 77", async () => {
      const file = join(await mount.fresh(), "tensor");
      const lacking = await run(program, [file], { env: { LD_LIBRARY_PATH: none } });
      expect(lacking).toMatchObject({ code: 77, stdout: "" });
      expect(lacking.stderr).toMatch(/^gpu-checkpoint: no GPU: .*libcuda\.so\.1.*\n$/);
      for (const [gpu, why] of [
        ["broken", "no CUDA-capable device is detected"],
        ["none", "the driver knows of none"],
      ] as const) {
        const { code, stderr } = await start(gpu);
        expect([code, stderr]).toEqual([77, `gpu-checkpoint: no GPU: ${why}\n`]);
      }
    });

    test("a tensor goes into the file and back, by each way, and its bytes are checked", async () => {
      const { code, stdout, stderr, file } = await start("yes", "8", "3");
      expect(code, stderr).toBe(0);
      expect(stderr).toBe("cuda: unregistered\n");
      const lines = stdout.trim().split("\n");
      expect(lines[0]).toBe("Fake 0, 8 MiB, 3 rounds");
      for (const way of ["mapped file", "write\\(2\\), read\\(2\\)", "page-locked memory"]) {
        expect(stdout).toMatch(new RegExp(`^${way} +save +[\\d.]+ GB/s, load +[\\d.]+ GB/s$`, "m"));
      }
      expect(lines.at(-1)).toBe("verified");
      expect(statSync(file).size).toBe(8 * MIB);
    });

    test("memory that the driver cannot pin is copied all the same, and that is said", async () => {
      const { code, stdout } = await start("unpinnable", "1", "1");
      expect(code).toBe(0);
      expect(stdout).toContain("not registered: operation not supported\n");
      expect(stdout).toMatch(/verified\n$/);
    });

    test("a GPU that copies one byte wrong is found out", async () => {
      const { code, stdout, stderr } = await start("wrong", "1", "1");
      expect(code).toBe(1);
      expect(stderr).toContain("other bytes than those that were saved");
      expect(stdout).not.toContain("verified");
    });

    test("a truncate while the GPU copies waits for the copy, and until the driver has forgotten the memory", async () => {
      const file = join(await mount.fresh(), "tensor");
      const child = spawn(program, [file, "4", "50"], {
        env: { ...process.env, ...environment("slow") },
        stdio: ["ignore", "ignore", "pipe"],
      });
      onTestFinished(() => void child.kill("SIGKILL"));
      const ended = once(child, "close");
      const lines: string[] = [];
      createInterface({ input: child.stderr }).on("line", (line) => lines.push(line));
      await until(() => lines.includes("cuda: copy begins"), 30_000);
      await succeed("truncate", ["--size", "0", file]);
      await ended;
      const end = lines.indexOf("cuda: unregistered");
      const copies = lines.slice(0, end);
      expect(copies.length).toBeGreaterThan(0);
      // Each that has begun has ended by then, and none begins after.
      for (const [index, line] of copies.entries()) {
        expect(line).toBe(index % 2 === 0 ? "cuda: copy begins" : "cuda: copy ends");
      }
      expect(copies.length % 2).toBe(0);
      expect(lines.slice(end)).toEqual([
        "cuda: unregistered",
        "gpu-checkpoint: the file: its lease was broken",
      ]);
      expect(child.exitCode).toBe(1);
      expect(statSync(file).size).toBe(0);
    });

    test("a wrong request is told of", async () => {
      for (const args of [[], ["file", "0"], ["file", "1", "0"], ["file", "1", "1", "1"]]) {
        expect(await run(program, args)).toMatchObject({ code: 2 });
      }
    });
  },
);
