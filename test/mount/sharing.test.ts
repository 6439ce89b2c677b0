/** Reflink: copies that share blocks, made with cp, copy_file_range and `mapdirect clone`, on a real mount. */
import { copyFile, mkdir, open, readFile, stat, statfs, truncate, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import * as wire from "../../src/lease/wire.ts";
import { useMount } from "../support/mount.ts";
import { cli, noOtherUser, OTHER_UID, programPath, succeed } from "../support/run.ts";

const mount = useMount();
const MIB = 1024 * 1024;
const BLOCK = 4096;

interface Extent {
  readonly state: string;
  readonly offset: number;
  readonly length: number;
  readonly physical: number | null;
}

function pattern(length: number, seed: number): Buffer {
  const data = Buffer.alloc(length);
  for (let index = 0; index < length; index += 1) data[index] = index * 31 + (index >> 12) * 7 + seed;
  return data;
}

async function extentsOf(path: string): Promise<Extent[]> {
  const { code, stdout, stderr } = await cli(["extents", "--json", path]);
  if (code !== 0) throw new Error(stderr);
  return (JSON.parse(stdout) as { extents: Extent[] }).extents;
}

/** State and place of each block, so that extents of different cuts compare. */
async function blocksOf(path: string): Promise<string[]> {
  const blocks: string[] = [];
  for (const extent of await extentsOf(path)) {
    for (let at = 0; at < extent.length; at += BLOCK) {
      const physical = extent.physical === null ? "" : `${extent.physical + at}`;
      blocks.push(`${extent.state} ${physical}`);
    }
  }
  return blocks;
}

const clone = (source: string, target: string) => cli(["clone", source, target]);

async function freeBytes(): Promise<number> {
  const { bsize, bfree } = await statfs(mount.path);
  return bsize * bfree;
}

async function overwrite(path: string, offset: number, data: Buffer): Promise<void> {
  const file = await open(path, "r+");
  await file.write(data, 0, data.length, offset);
  await file.close();
}

describe("reflink", () => {
  test("cp, copyFile and clone share all blocks, and take no space", async () => {
    const folder = await mount.fresh();
    const source = join(folder, "source");
    const data = pattern(3 * MIB + 777, 1);
    await writeFile(source, data);
    const free = await freeBytes();
    await succeed("cp", [source, join(folder, "cp")]);
    await copyFile(source, join(folder, "copyFile"));
    expect((await clone(source, join(folder, "clone"))).code).toBe(0);
    await mkdir(join(folder, "into"));
    expect((await clone(source, join(folder, "into"))).code).toBe(0);
    expect(free - (await freeBytes())).toBeLessThan(MIB);
    const blocks = await blocksOf(source);
    expect(blocks.every((block) => block.startsWith("shared "))).toBe(true);
    for (const name of ["cp", "copyFile", "clone", "into/source"]) {
      const path = join(folder, name);
      expect((await readFile(path)).equals(data)).toBe(true);
      expect(await blocksOf(path)).toEqual(blocks);
      expect((await stat(path)).blocks).toBe((await stat(source)).blocks);
    }
    await mount.remount();
    expect(await blocksOf(source)).toEqual(blocks);
    expect((await readFile(join(folder, "clone"))).equals(data)).toBe(true);
  });

  test("who writes gets blocks of its own, for what it writes alone", async () => {
    const folder = await mount.fresh();
    const [a, b] = [join(folder, "a"), join(folder, "b")];
    const expected = [pattern(20 * BLOCK + 100, 2), pattern(20 * BLOCK + 100, 2)] as const;
    await writeFile(a, expected[0]);
    expect((await clone(a, b)).code).toBe(0);
    const before = await blocksOf(a);
    const writes: [string, number, number][] = [
      [a, 5 * BLOCK + 10, 100],
      [b, 5 * BLOCK + 50, 100],
      [b, 9 * BLOCK - 1, 2],
      [a, 12 * BLOCK, 3 * BLOCK],
      [b, 20 * BLOCK + 90, 400],
    ];
    for (const [index, [path, offset, length]] of writes.entries()) {
      const data = pattern(length, 50 + index);
      await overwrite(path, offset, data);
      const mine = path === a ? 0 : 1;
      const now = Buffer.alloc(Math.max(expected[mine].length, offset + length));
      expected[mine].copy(now);
      data.copy(now, offset);
      (expected as [Buffer, Buffer])[mine] = now;
      expect((await readFile(a)).equals(expected[0])).toBe(true);
      expect((await readFile(b)).equals(expected[1])).toBe(true);
    }
    const [ofA, ofB] = [await blocksOf(a), await blocksOf(b)];
    const same = before.map((block, index) => [ofA[index] === block, ofB[index] === block]);
    // 5: both wrote, and the last one kept the block; 8, 9 and 20: b; 12 to 14: a.
    const touched = new Set([5, 8, 9, 12, 13, 14, 20]);
    for (const [index, [aSame, bSame]] of same.entries()) {
      if (touched.has(index)) expect(ofA[index]).not.toBe(ofB[index]);
      else expect([aSame, bSame]).toEqual([true, true]);
    }
    await mount.remount();
    expect((await readFile(a)).equals(expected[0])).toBe(true);
    expect((await readFile(b)).equals(expected[1])).toBe(true);
  });

  test("a descriptor from before a clone knows how long the file has become", async () => {
    const folder = await mount.fresh();
    const source = join(folder, "source");
    const ends = [1, BLOCK, BLOCK + 1, 3 * BLOCK + 777];
    for (const end of ends) {
      const data = pattern(end, 5);
      await writeFile(source, data);
      const target = join(folder, `target ${end}`);
      await writeFile(target, "");
      const [appends, writes] = [await open(target, "a"), await open(target, "r+")];
      expect((await writes.stat()).size).toBe(0);
      expect((await clone(source, target)).code).toBe(0);
      await appends.appendFile("and more");
      expect((await writes.stat()).size).toBe(end + 8);
      expect((await writes.readFile()).equals(Buffer.concat([data, Buffer.from("and more")]))).toBe(true);
      await appends.close();
      await writes.close();
    }
  });

  test("a clone of very many extents is of one moment, and appends to its target go behind it", async () => {
    const folder = await mount.fresh();
    const script = `
import fcntl, os, sys, threading
folder, offer, clone, size = sys.argv[1], *map(int, sys.argv[2:])
BLOCKS, ROUNDS = 6000, 20
END = (BLOCKS - 1) * 8192 + 8
source = os.open(folder + "/source", os.O_RDWR | os.O_CREAT)
# Every block an extent of its own: as many slices as can be.
for at in range(BLOCKS): os.pwrite(source, b"%08d" % 0, at * 8192)
assert os.fstat(source).st_size == END
stop, failures = threading.Event(), []
def repeat(job):
    def run():
        try:
            number = 1
            while not stop.is_set(): job(number); number += 1
        except BaseException as error: failures.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    return thread
def store(number):
    # The last never has what the first has not.
    os.pwrite(source, b"%08d" % number, 0)
    os.pwrite(source, b"%08d" % number, END - 8)
writer = repeat(store)
try:
    for turn in range(ROUNDS):
        path = folder + "/target %d" % turn
        target = os.open(path, os.O_RDWR | os.O_CREAT)
        appends = os.open(path, os.O_WRONLY | os.O_APPEND)
        done = threading.Event()
        def append():
            while not done.is_set(): os.write(appends, b"line.")
        appender = threading.Thread(target=append)
        appender.start()
        try:
            wish = bytearray(size)
            fcntl.ioctl(source, offer, wish)
            fcntl.ioctl(target, clone, wish)
            os.write(appends, b"line.")
        finally:
            done.set()
            appender.join()
        found = os.pread(target, os.fstat(target).st_size, 0)
        first, last = int(found[:8]), int(found[END - 8 : END])
        assert last <= first <= last + 1, ("of one moment", first, last)
        assert b"line" not in found[:END], ("an append into the clone", found.index(b"line"))
        behind = found[END:]
        assert len(behind) >= 5 and behind == b"line." * (len(behind) // 5), behind[:100]
        os.close(appends); os.close(target); os.unlink(path)
finally:
    stop.set()
    writer.join()
assert not failures, failures`;
    const numbers = [wire.Ioctl.OFFER, wire.Ioctl.CLONE, wire.WireClone.size];
    await succeed("python3", ["-S", "-c", script, folder, ...numbers.map(String)], { timeoutMs: 100_000 });
  }, 120_000);

  test("what lies behind the end of a copy never shows, however it grows again", async () => {
    const folder = await mount.fresh();
    const source = join(folder, "source");
    const data = pattern(3 * BLOCK, 3);
    await writeFile(source, data);
    const grow: [string, (path: string) => Promise<unknown>, number][] = [
      ["truncate", (path) => truncate(path, 2 * BLOCK), 2 * BLOCK],
      ["write", (path) => overwrite(path, BLOCK + 500, Buffer.from("x")), BLOCK + 500],
      ["far", (path) => overwrite(path, 5 * BLOCK, Buffer.from("x")), 5 * BLOCK],
      ["fallocate", (path) => succeed("fallocate", ["-l", `${2 * BLOCK}`, path]), 2 * BLOCK],
    ];
    for (const [name, action, end] of grow) {
      const path = join(folder, name);
      expect((await clone(source, path)).code).toBe(0);
      await truncate(path, BLOCK + 100);
      await action(path);
      const expected = Buffer.alloc(end);
      data.copy(expected, 0, 0, BLOCK + 100);
      const found = await readFile(path);
      expect(found.subarray(0, end).equals(expected)).toBe(true);
    }
    expect((await readFile(source)).equals(data)).toBe(true);
  });

  test("holes stay holes, unaligned ranges are copied, a file can be copied within itself", async () => {
    const folder = await mount.fresh();
    const path = join(folder, "file");
    const data = pattern(2 * BLOCK, 4);
    await writeFile(path, data);
    await overwrite(path, 40 * BLOCK, data);
    const copy = join(folder, "copy");
    await succeed("cp", ["--sparse=auto", path, copy]);
    const states = (await blocksOf(copy)).map((block) => block.split(" ")[0]);
    expect(states.filter((state) => state === "hole").length).toBe(38);
    expect((await readFile(copy)).equals(await readFile(path))).toBe(true);
    const script = `
import os
f = os.open(${JSON.stringify(path)}, os.O_RDWR)
def copy(source, target, length):
    done = 0
    while done < length:
        n = os.copy_file_range(f, f, length - done, source + done, target + done)
        if n == 0: break
        done += n
    return done
assert copy(0, 10 * 4096, 2 * 4096) == 8192
assert os.pread(f, 8192, 10 * 4096) == os.pread(f, 8192, 0)
assert copy(100, 20 * 4096 + 100, 6000) == 6000
assert os.pread(f, 6000, 20 * 4096 + 100) == os.pread(f, 6000, 100)
assert copy(3, 30 * 4096, 5000) == 5000
assert os.pread(f, 5000, 30 * 4096) == os.pread(f, 5000, 3)
assert copy(1 << 40, 0, 100) == 0
try:
    os.copy_file_range(f, f, 8192, 0, 4096)
    raise SystemExit("overlapping")
except OSError as error:
    assert error.errno == 22, error
`;
    await succeed("python3", ["-S", "-c", script]);
    const blocks = await blocksOf(path);
    expect(blocks[10]).toBe(blocks[0]);
    expect(blocks[20]?.startsWith("written ")).toBe(true);
  });

  test("blocks are free again with the last of their files, and then exclusive to the one before", async () => {
    const folder = await mount.fresh();
    const names = ["a", "b", "c"].map((name) => join(folder, name));
    const free = await freeBytes();
    await writeFile(names[0]!, pattern(2 * MIB, 5));
    await clone(names[0]!, names[1]!);
    await clone(names[1]!, names[2]!);
    await unlink(names[0]!);
    await unlink(names[2]!);
    // They are gone when the kernel has forgotten them.
    const states = async () => new Set((await blocksOf(names[1]!)).map((block) => block.split(" ")[0]));
    await expect.poll(states).toEqual(new Set(["written"]));
    // The removal of the others has to survive a power cut, before these are stored to in place.
    await succeed("sync", [names[1]!]);
    const blocks = await blocksOf(names[1]!);
    await overwrite(names[1]!, 0, Buffer.from("in place"));
    expect(await blocksOf(names[1]!)).toEqual(blocks);
    await unlink(names[1]!);
    await expect.poll(freeBytes).toBeGreaterThan(free - 256 * 1024);
  });

  test("a clone sees what an ordinary mapping has stored and nobody has synced", async () => {
    const folder = await mount.fresh();
    const [source, target] = [join(folder, "source"), join(folder, "target")];
    await writeFile(source, pattern(4 * BLOCK, 6));
    await writeFile(target, pattern(4 * BLOCK, 7));
    const command = [process.execPath, programPath, "clone", source, target];
    const script = `
import mmap, os, subprocess
s = mmap.mmap(os.open(${JSON.stringify(source)}, os.O_RDWR), 16384)
t = mmap.mmap(os.open(${JSON.stringify(target)}, os.O_RDWR), 16384)
assert t[0] != 0
s[4096:4100] = b"dirt"
subprocess.run(${JSON.stringify(command)}, check=True)
assert open(${JSON.stringify(target)}, "rb").read()[4096:4100] == b"dirt"
t2 = mmap.mmap(os.open(${JSON.stringify(target)}, os.O_RDWR), 16384)
assert t2[:] == s[:]
t2[0:4] = b"mine"
t2.flush()
assert s[0:4] != b"mine" and open(${JSON.stringify(source)}, "rb").read(4) != b"mine"
`;
    await succeed("python3", ["-S", "-c", script]);
  });

  test("clone says what is wrong, and changes nothing", async () => {
    const folder = await mount.fresh();
    const source = join(folder, "source");
    await writeFile(source, "content", { mode: 0o600 });
    expect(await clone(source, source)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("same file"),
    });
    expect(await readFile(source, "utf8")).toBe("content");
    const outside = await clone(source, join("/tmp", `mapdirect-clone-${process.pid}`));
    expect(outside).toMatchObject({ code: 1, stderr: expect.stringContaining("another file system") });
    await expect(stat(join("/tmp", `mapdirect-clone-${process.pid}`))).rejects.toMatchObject({
      code: "ENOENT",
    });
    expect(await clone(join(folder, "none"), join(folder, "x"))).toMatchObject({ code: 1 });
    await expect(stat(join(folder, "x"))).rejects.toMatchObject({ code: "ENOENT" });
    expect(await clone(folder, join(folder, "y"))).toMatchObject({ code: 1 });
  });

  test.skipIf(noOtherUser() !== undefined)(
    "needs the right to read the source and to write the target",
    async () => {
      const folder = await mount.fresh();
      const source = join(folder, "source");
      await writeFile(source, "content", { mode: 0o600 });
      const other = await cli(["clone", source, join(folder, "z")], { user: OTHER_UID });
      expect(other).toMatchObject({ code: 1, stderr: expect.stringContaining("EACCES") });
    },
  );
});
