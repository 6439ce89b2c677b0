/** examples/go: the C library called from Go. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { useMount } from "../support/mount.ts";
import { missing, run, succeed } from "../support/run.ts";

const noGo = missing("go", "cc");
const library = join(packageRoot, "dist/lib");

describe.skipIf(noGo !== undefined)(`Go, by way of cgo${noGo === undefined ? "" : `: ${noGo}`}`, () => {
  const folder = mkdtempSync(folderPrefix(tmpdir()));
  const program = join(folder, "counter");
  const mount = useMount();

  beforeAll(async () => {
    const cwd = join(packageRoot, "examples/go");
    const env = {
      HOME: folder,
      GOCACHE: join(folder, "cache"),
      CGO_ENABLED: "1",
      CGO_CFLAGS: `-I${join(packageRoot, "dist/include")}`,
      CGO_LDFLAGS: `-L${library} -Wl,-rpath,${library}`,
    };
    expect(await succeed("gofmt", ["-l", cwd], { env })).toBe("");
    await succeed("go", ["build", "-o", program, "."], { cwd, env, timeoutMs: 180_000 });
  }, 200_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  test("a number is kept in the blocks of a file, over a crash of the daemon, too", async () => {
    const file = join(await mount.fresh(), "counter");
    for (const count of [1, 2]) expect(await succeed(program, [file])).toBe(`${count}\n`);
    await mount.kill9AndRemount();
    expect(await succeed(program, [file])).toBe("3\n");
    expect((await readFile(file)).readBigUInt64LE(0)).toBe(3n);
  });

  test("a broken lease is heard of, and afterwards the memory is zeros and no fault", async () => {
    const file = join(await mount.fresh(), "counter");
    const child = spawn(program, [file, "wait"], { stdio: ["ignore", "pipe", "inherit"] });
    onTestFinished(() => void child.kill("SIGKILL"));
    const ended = once(child, "close");
    const lines: string[] = [];
    for await (const line of createInterface({ input: child.stdout })) {
      lines.push(line);
      if (lines.length === 1) {
        // In another process, while this one waits for it.
        await succeed("fallocate", ["--punch-hole", "--offset", "0", "--length", "4096", file]);
      }
    }
    await ended;
    expect([child.exitCode, lines]).toEqual([0, ["1", "taken away"]]);
  });

  test("what cannot be mapped is an error with its number", async () => {
    const elsewhere = await run(program, [join(folder, "file")]);
    expect(elsewhere.code).toBe(1);
    expect(elsewhere.stderr).toMatch(/^counter: mapdirect_map: operation not supported\n$/);
  });
});
