import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { findMappers, runsIn } from "../../src/lease/ghosts.ts";

const folder = mkdtempSync(join("/dev/shm", "mapdirect-ghosts-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe("who maps the region", () => {
  test("is read from lines of /proc/PID/maps: shared mappings of this file, behind the superblocks", () => {
    const maps = [
      "7f0000000000-7f0000002000 rw-s 00100000 00:2a 77                         /dev/shm/region",
      "7f0000003000-7f0000004000 rw-s 00200000 00:2a 78                         /dev/shm/other",
      "7f0000005000-7f0000006000 rw-p 00300000 00:2a 77                         /dev/shm/region",
      "7f0000007000-7f0000009000 rw-s 00000000 00:2a 77                         /dev/shm/region",
      "7f000000a000-7f000000b000 ---s 00400000 00:2a 77                         /dev/shm/region (deleted)",
      "7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]",
    ].join("\n");
    expect(runsIn(maps, "00:2a", "77", 4096)).toEqual([
      { start: 256, count: 2 },
      { start: 1024, count: 1 },
    ]);
  });

  test("finds a process that maps a file, at the offset that it maps, and not when it has ended", async () => {
    const path = join(folder, "region");
    writeFileSync(path, Buffer.alloc(1024 * 1024));
    const program = `import mmap, sys
f = open(sys.argv[1], 'r+b')
m = mmap.mmap(f.fileno(), 8192, offset=524288)
print('mapped', flush=True)
sys.stdin.read()`;
    const child = spawn("python3", ["-S", "-c", program, path], { stdio: ["pipe", "pipe", "inherit"] });
    try {
      await new Promise((resolve) => child.stdout.once("data", resolve));
      const found = findMappers(path, 4096).mappers.find((mapper) => mapper.pid === child.pid);
      expect(found?.runs).toEqual([{ start: 128, count: 2 }]);
    } finally {
      child.stdin.end();
      await new Promise((resolve) => child.once("close", resolve));
    }
    expect(findMappers(path, 4096).mappers).toEqual([]);
  });
});
