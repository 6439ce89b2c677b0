import { execFileSync, spawn } from "node:child_process";
import {
  chmodSync,
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { findMappers, runsIn } from "../../src/lease/ghosts.ts";
import { openRegion } from "../../src/region/open.ts";

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
    expect(runsIn(maps, 4096, { device: "00:2a", inode: "77" })).toEqual([
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
    const region = openRegion(path);
    const child = spawn("python3", ["-S", "-c", program, path], { stdio: ["pipe", "pipe", "inherit"] });
    try {
      await new Promise((resolve) => child.stdout.once("data", resolve));
      const runs = [{ start: 128, count: 2 }];
      expect((await findMappers(region, 4096)).mappers).toEqual([{ pid: child.pid, runs }]);
      renameSync(path, `${path}.old`);
      writeFileSync(path, "another file by that name");
      expect((await findMappers(region, 4096)).mappers).toEqual([{ pid: child.pid, runs }]);
      unlinkSync(`${path}.old`);
      expect((await findMappers(region, 4096)).mappers).toEqual([{ pid: child.pid, runs }]);
    } finally {
      child.stdin.end();
      await new Promise((resolve) => child.once("close", resolve));
    }
    try {
      expect((await findMappers(region, 4096)).mappers).toEqual([]);
    } finally {
      region.close();
    }
  });

  test("a process whose mappings cannot be read in time does not hold up the others, and counts if it may open the region", async () => {
    const path = join(folder, "region-of-5");
    writeFileSync(path, Buffer.alloc(65536));
    chmodSync(path, 0o660);
    const proc = join(folder, "proc");
    const status = (uid: number, groups: string) =>
      `Name:\tx\nUid:\t${uid}\t${uid}\t${uid}\t${uid}\nGid:\t9\t9\t9\t9\nGroups:\t${groups}\n`;
    const owner = process.getuid?.() ?? 0;
    const group = process.getgid?.() ?? 0;
    for (const [pid, text] of [
      [11, status(owner, "")],
      [12, status(4242, "")],
      [13, status(4242, `7 ${group}`)],
    ] as const) {
      mkdirSync(join(proc, `${pid}`), { recursive: true });
      // To open it waits for a writer, who never comes.
      execFileSync("mkfifo", [join(proc, `${pid}`, "maps")]);
      writeFileSync(join(proc, `${pid}`, "status"), text);
    }
    const region = openRegion(path);
    try {
      const { hidden, mappers } = await findMappers(region, 4096, proc, 50);
      expect(mappers).toEqual([]);
      expect(hidden.map(({ pid }) => pid).sort()).toEqual([11, 13]);
    } finally {
      region.close();
      for (const pid of [11, 12, 13]) closeSync(openSync(join(proc, `${pid}`, "maps"), "r+"));
    }
  });
});
