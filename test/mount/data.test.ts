/** Bytes, sizes, times and attributes through ordinary system calls on a real mount. */
import { constants } from "node:fs";
import {
  chown,
  type FileHandle,
  open,
  readFile,
  rename,
  stat,
  statfs,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { addon } from "../../src/region/addon.ts";
import { useMount, withMount } from "../support/mount.ts";
import { missing, run, succeed } from "../support/run.ts";

const mount = useMount();
const MIB = 1024 * 1024;
const SIZE_MAX = 2n ** 63n - 1n;

const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const COLLAPSE_RANGE = 8;
const ZERO_RANGE = 16;
const INSERT_RANGE = 32;

const failing = (code: string) => expect.objectContaining({ code });

async function withFile(
  flags: string,
  action: (file: FileHandle, path: string) => Promise<void>,
): Promise<void> {
  const path = join(await mount.fresh(), "file");
  const file = await open(path, flags);
  try {
    await action(file, path);
  } finally {
    await file.close();
  }
}

/** Bytes that differ from block to block and from byte to byte. */
function pattern(length: number, seed = 1): Buffer {
  const data = Buffer.alloc(length);
  for (let index = 0; index < length; index += 1) data[index] = index * 31 + (index >> 12) * 7 + seed;
  return data;
}

describe("data", () => {
  test("writes at any offset and length are read back, also after a remount", async () => {
    const path = join(await mount.fresh(), "file");
    const expected = Buffer.alloc(3 * MIB);
    const file = await open(path, "w+");
    for (const [offset, length] of [
      [0, 1],
      [4095, 2],
      [10_000, 12_345],
      [MIB - 1, 131_073],
      [2 * MIB, MIB],
      [5, 4096],
    ] as const) {
      const data = pattern(length, offset);
      data.copy(expected, offset);
      await file.write(data, 0, length, offset);
    }
    expect((await file.readFile()).equals(expected)).toBe(true);
    await file.close();
    await mount.remount();
    expect((await readFile(path)).equals(expected)).toBe(true);
  });

  test("reading past the end gives nothing, reading across it what there is", async () => {
    await withFile("w+", async (file) => {
      await file.write(Buffer.from("12345"), 0, 5, 0);
      expect((await file.read(Buffer.alloc(10), 0, 10, 3)).bytesRead).toBe(2);
      expect((await file.read(Buffer.alloc(10), 0, 10, 5)).bytesRead).toBe(0);
      expect((await file.read(Buffer.alloc(10), 0, 10, 1_000_000)).bytesRead).toBe(0);
    });
  });

  test("what lies between the old end and a later write reads as zeros, whatever was there before", async () => {
    await withFile("w+", async (file) => {
      await file.write(Buffer.alloc(10_000, 0xaa), 0, 10_000, 0);
      await file.truncate(5000);
      await file.write(Buffer.from("end"), 0, 3, 20_000);
      const data = Buffer.alloc(20_003);
      expect((await file.read(data, 0, data.length, 0)).bytesRead).toBe(20_003);
      expect(data.subarray(0, 5000).every((byte) => byte === 0xaa)).toBe(true);
      expect(data.subarray(5000, 20_000).every((byte) => byte === 0)).toBe(true);
    });
  });

  test("what is written through mmap is read by read(2), and the other way round", async ({ skip }) => {
    const lacking = missing("python3");
    if (lacking !== undefined) skip(lacking);
    const path = join(await mount.fresh(), "file");
    await writeFile(path, Buffer.alloc(8192));
    const script = [
      "import mmap, os, sys",
      "f = os.open(sys.argv[1], os.O_RDWR)",
      "m = mmap.mmap(f, 8192)",
      "m[100:105] = b'store'; m.flush()",
      "assert os.pread(f, 5, 100) == b'store'",
      "os.pwrite(f, b'write', 5000)",
      "assert m[5000:5005] == b'write', m[5000:5005]",
    ].join("\n");
    await succeed("python3", ["-c", script, path]);
    const data = await readFile(path);
    expect(data.toString("latin1", 100, 105)).toBe("store");
    expect(data.toString("latin1", 5000, 5005)).toBe("write");
  });

  test("copy_file_range copies bytes", async ({ skip }) => {
    const lacking = missing("python3");
    if (lacking !== undefined) skip(lacking);
    const folder = await mount.fresh();
    const data = pattern(300_000);
    await writeFile(join(folder, "a"), data);
    const script = [
      "import os, sys",
      "a = os.open(sys.argv[1], os.O_RDONLY); b = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)",
      "left = 300000",
      "while left: left -= os.copy_file_range(a, b, left)",
    ].join("\n");
    await succeed("python3", ["-c", script, join(folder, "a"), join(folder, "b")]);
    expect((await readFile(join(folder, "b"))).equals(data)).toBe(true);
  });
});

describe("size", () => {
  test("a file can be 2^63 - 1 bytes long, and nothing longer", async () => {
    const path = join(await mount.fresh(), "huge");
    await succeed("truncate", ["-s", `${SIZE_MAX}`, path]);
    expect((await stat(path, { bigint: true })).size).toBe(SIZE_MAX);
    expect((await stat(path)).blocks).toBe(0);
    const file = await open(path, "r+");
    const far = 2 ** 53 - 4096;
    await file.write(Buffer.from("far"), 0, 3, far);
    expect((await file.read(Buffer.alloc(3), 0, 3, far)).buffer.toString()).toBe("far");
    expect(addon().lseek(file.fd, 0n, SEEK_DATA)).toBe(BigInt(far));
    await file.close();
    await mount.remount();
    expect((await stat(path, { bigint: true })).size).toBe(SIZE_MAX);
    await truncate(path, 0);
  });

  test("at offsets beyond 2^53, up to the last byte of a file of 2^63 - 1 bytes, data is written and read", async ({
    skip,
  }) => {
    const lacking = missing("python3");
    if (lacking !== undefined) skip(lacking);
    const path = join(await mount.fresh(), "last");
    const script = [
      "import os, sys",
      "f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)",
      "assert os.pwrite(f, b'z', 2**63 - 2) == 1",
      "assert os.pread(f, 1, 2**63 - 2) == b'z'",
      "for offset in (2**53 + 1, 2**55 + 4095, 2**60 - 3, 2**62 + 12345):",
      "  data = os.urandom(20000)",
      "  assert os.pwrite(f, data, offset) == 20000, offset",
      "  assert os.pread(f, 20000, offset) == data, offset",
      "os.ftruncate(f, 0)",
    ].join("\n");
    await succeed("python3", ["-c", script, path]);
  });

  test("truncate extends with zeros and cuts for good", async () => {
    await withFile("w+", async (file, path) => {
      await file.writeFile(pattern(10_000));
      await file.truncate(3000);
      await file.truncate(9000);
      const data = await readFile(path);
      expect(data.length).toBe(9000);
      expect(data.subarray(0, 3000).equals(pattern(10_000).subarray(0, 3000))).toBe(true);
      expect(data.subarray(3000).every((byte) => byte === 0)).toBe(true);
    });
  });

  test("holes take no space, and statfs follows what is allocated", async () => {
    const before = await statfs(mount.path);
    await withFile("w+", async (file) => {
      await file.truncate(64 * MIB);
      expect((await statfs(mount.path)).bfree).toBe(before.bfree);
      await file.write(Buffer.alloc(MIB, 1), 0, MIB, 32 * MIB);
      await file.sync();
      const after = await statfs(mount.path);
      expect((before.bfree - after.bfree) * after.bsize).toBeGreaterThanOrEqual(MIB);
      expect((await file.stat()).blocks * 512).toBeGreaterThanOrEqual(MIB);
      expect((await file.stat()).blocks * 512).toBeLessThan(2 * MIB);
      await file.truncate(0);
    });
    expect(before).toMatchObject({ bsize: 4096, type: 0x65735546 });
    expect(before.blocks * before.bsize).toBeGreaterThan(56 * MIB);
    expect(before.ffree).toBeGreaterThan(1000);
  });

  test("a full volume says ENOSPC, and deleting works then and gives the space back", async () => {
    await withMount({ sizeBytes: 8 * MIB }, async (small) => {
      const before = await statfs(small.path);
      const paths: string[] = [];
      const fill = async (): Promise<never> => {
        for (let index = 0; ; index += 1) {
          paths.push(small.at(`fill-${index}`));
          await writeFile(paths.at(-1)!, Buffer.alloc(MIB / 2, index));
        }
      };
      await expect(fill()).rejects.toMatchObject({ code: "ENOSPC" });
      expect((await statfs(small.path)).bavail * 4096).toBeLessThan(MIB);
      const kept = await readFile(paths[0]!);
      expect(kept.every((byte) => byte === 0)).toBe(true);
      for (const path of paths) await run("rm", ["-f", path]);
      await run("sync", ["-f", small.path]);
      const after = await statfs(small.path);
      expect(before.bfree - after.bfree).toBeLessThan(256);
      await writeFile(small.at("again"), Buffer.alloc(2 * MIB, 7));
      await small.remount();
      expect((await readFile(small.at("again"))).every((byte) => byte === 7)).toBe(true);
      await small.check();
    });
  });
});

describe("fallocate", () => {
  test("what KEEP_SIZE has allocated behind the end stays when the file grows, and goes when it is truncated to its size", async () => {
    await withFile("w+", async (file) => {
      await file.write("data");
      addon().fallocate(file.fd, KEEP_SIZE, 0n, BigInt(MIB));
      const allocated = (await file.stat()).blocks;
      expect(allocated).toBe(MIB / 512);
      await file.truncate(5000);
      expect((await file.stat()).blocks).toBe(allocated);
      await file.truncate(5000);
      expect((await file.stat()).blocks).toBe(8192 / 512);
      expect((await file.read(Buffer.alloc(8), 0, 8, 0)).buffer.toString("latin1")).toBe("data\0\0\0\0");
    });
  });

  test("allocates without changing what is read, with and without KEEP_SIZE", async () => {
    await withFile("w+", async (file, path) => {
      addon().fallocate(file.fd, KEEP_SIZE, 0n, 1_000_000n);
      expect(await file.stat()).toMatchObject({ size: 0 });
      expect((await file.stat()).blocks * 512).toBeGreaterThanOrEqual(1_000_000);
      addon().fallocate(file.fd, 0, 0n, 100_000n);
      expect((await file.stat()).size).toBe(100_000);
      expect((await readFile(path)).every((byte) => byte === 0)).toBe(true);
      await file.write(Buffer.from("x"), 0, 1, 50_000);
      const data = await readFile(path);
      expect(data[50_000]).toBe(0x78);
      expect(data.filter((byte) => byte !== 0)).toHaveLength(1);
    });
  });

  test("PUNCH_HOLE and ZERO_RANGE make zeros of exactly the range", async () => {
    for (const mode of [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE]) {
      await withFile("w+", async (file, path) => {
        const expected = pattern(200_000);
        await file.writeFile(expected);
        for (const [offset, length] of [
          [5000, 100],
          [8192, 4096],
          [20_000, 50_001],
          [100_000, 1],
        ] as const) {
          addon().fallocate(file.fd, mode, BigInt(offset), BigInt(length));
          expected.fill(0, offset, offset + length);
        }
        expect((await readFile(path)).equals(expected)).toBe(true);
      });
    }
  });

  test("COLLAPSE_RANGE and INSERT_RANGE move the rest of the file, or are refused as a whole", async () => {
    await withFile("w+", async (file, path) => {
      const data = pattern(40_960);
      await file.writeFile(data);
      try {
        addon().fallocate(file.fd, COLLAPSE_RANGE, 4096n, 8192n);
      } catch (error) {
        expect(error).toEqual(failing("EOPNOTSUPP"));
        expect((await readFile(path)).equals(data)).toBe(true);
        return;
      }
      const shorter = Buffer.concat([data.subarray(0, 4096), data.subarray(12_288)]);
      expect((await readFile(path)).equals(shorter)).toBe(true);
      addon().fallocate(file.fd, INSERT_RANGE, 4096n, 8192n);
      const longer = Buffer.concat([shorter.subarray(0, 4096), Buffer.alloc(8192), shorter.subarray(4096)]);
      expect((await readFile(path)).equals(longer)).toBe(true);
      expect(() => addon().fallocate(file.fd, COLLAPSE_RANGE, 100n, 4096n)).toThrow(failing("EINVAL"));
    });
  });

  test("more than there is: ENOSPC, and nothing changed", async () => {
    await withFile("w+", async (file) => {
      const before = await statfs(mount.path);
      expect(() => addon().fallocate(file.fd, 0, 0n, BigInt(1024 * MIB))).toThrow(failing("ENOSPC"));
      expect((await file.stat()).size).toBe(0);
      expect((await statfs(mount.path)).bfree).toBe(before.bfree);
    });
  });

  test("senseless requests are refused", async () => {
    await withFile("w+", async (file) => {
      expect(() => addon().fallocate(file.fd, 0, 0n, 0n)).toThrow(failing("EINVAL"));
      expect(() => addon().fallocate(file.fd, 0, SIZE_MAX, 10n)).toThrow(failing("EFBIG"));
      expect(() => addon().fallocate(file.fd, 0x4000, 0n, 10n)).toThrow(failing("EOPNOTSUPP"));
    });
  });
});

describe("SEEK_DATA and SEEK_HOLE", () => {
  test("walk over data and holes, the end being a hole", async () => {
    await withFile("w+", async (file) => {
      await file.truncate(MIB);
      await file.write(Buffer.alloc(4096, 1), 0, 4096, 16_384);
      await file.write(Buffer.alloc(4096, 1), 0, 4096, 524_288);
      const at = (offset: bigint, whence: number): bigint => addon().lseek(file.fd, offset, whence);
      expect(at(0n, SEEK_DATA)).toBe(16_384n);
      expect(at(0n, SEEK_HOLE)).toBe(0n);
      expect(at(16_384n, SEEK_HOLE)).toBe(20_480n);
      expect(at(17_000n, SEEK_DATA)).toBe(17_000n);
      expect(at(20_480n, SEEK_DATA)).toBe(524_288n);
      expect(at(524_288n, SEEK_HOLE)).toBe(528_384n);
      expect(() => at(528_384n, SEEK_DATA)).toThrow(failing("ENXIO"));
      expect(() => at(BigInt(MIB), SEEK_HOLE)).toThrow(failing("ENXIO"));
      expect(at(BigInt(MIB) - 1n, SEEK_HOLE)).toBe(BigInt(MIB) - 1n);
    });
  });
});

describe("times", () => {
  test("are kept to the nanosecond, before 1970 and after 2038", async () => {
    const path = join(await mount.fresh(), "file");
    await writeFile(path, "");
    for (const [text, nanoseconds] of [
      ["2024-02-29 12:34:56.123456789 UTC", 1709210096123456789n],
      ["1960-01-01 00:00:00.000000001 UTC", -315619199999999999n],
      ["2200-01-01 00:00:00.999999999 UTC", 7258118400999999999n],
    ] as const) {
      await succeed("touch", ["-d", text, path]);
      expect((await stat(path, { bigint: true })).mtimeNs).toBe(nanoseconds);
      await mount.remount();
      expect((await stat(path, { bigint: true })).mtimeNs).toBe(nanoseconds);
    }
  });

  test("beyond what can be kept exactly become the nearest that can", async () => {
    const path = join(await mount.fresh(), "file");
    await writeFile(path, "");
    const most = 2n ** 53n - 1n;
    for (const [seconds, kept] of [
      [most, most],
      [most + 2n, most],
      [2n ** 62n, most],
      [-most, -most],
      [-(2n ** 62n), -most],
    ]) {
      await succeed("python3", [
        "-c",
        "import os, sys; os.utime(sys.argv[1], (0, int(sys.argv[2])))",
        path,
        `${seconds}`,
      ]);
      const found = async (): Promise<string> => (await succeed("stat", ["-c", "%Y", path])).trim();
      expect(await found()).toBe(`${kept}`);
      await mount.remount();
      expect(await found()).toBe(`${kept}`);
    }
  });

  test("a write moves mtime and ctime, chmod ctime alone, a read neither", async () => {
    const path = join(await mount.fresh(), "file");
    await writeFile(path, "x");
    await utimes(path, 1000, 1000);
    const old = await stat(path, { bigint: true });
    await readFile(path);
    const read = await stat(path, { bigint: true });
    expect([read.mtimeNs, read.ctimeNs]).toEqual([old.mtimeNs, old.ctimeNs]);
    await succeed("chmod", ["600", path]);
    const changed = await stat(path, { bigint: true });
    expect(changed.mtimeNs).toBe(old.mtimeNs);
    expect(changed.ctimeNs).toBeGreaterThan(old.ctimeNs);
    await writeFile(path, "y", { flag: "a" });
    const written = await stat(path, { bigint: true });
    expect(written.mtimeNs).toBeGreaterThan(old.mtimeNs);
    expect(written.ctimeNs).toBeGreaterThan(changed.ctimeNs);
  });

  test("a name that comes or goes moves the directory's times", async () => {
    const folder = await mount.fresh();
    await utimes(folder, 1000, 1000);
    await writeFile(join(folder, "a"), "");
    expect((await stat(folder)).mtimeMs).toBeGreaterThan(1_000_000_000_000);
  });

  test("relatime: the first read after a change moves atime; noatime: none does", async () => {
    const path = join(await mount.fresh(), "file");
    await writeFile(path, "x");
    await utimes(path, 1000, 2000);
    await readFile(path);
    expect((await stat(path)).atimeMs).toBeGreaterThan(1_000_000_000_000);
    await mount.unmount();
    await mount.mount("noatime");
    await utimes(path, 1000, 2000);
    await readFile(path);
    expect((await stat(path)).atimeMs).toBe(1_000_000);
    await mount.remount();
  });
});

describe("file capabilities (security.capability)", () => {
  // VFS_CAP_REVISION_2, with CAP_NET_RAW permitted: struct vfs_cap_data in linux/capability.h.
  const capabilities = Buffer.alloc(20);
  capabilities.writeUInt32LE(0x02000001, 0);
  capabilities.writeUInt32LE(1 << 13, 4);
  const NAME = "security.capability";
  const root = process.getuid?.() === 0;

  async function withCapabilities(): Promise<string> {
    const path = join(await mount.fresh(), "file");
    await writeFile(path, pattern(20_000));
    addon().setxattr(path, NAME, capabilities, 0);
    return path;
  }

  async function opened(path: string, change: (file: FileHandle) => unknown): Promise<void> {
    const file = await open(path, "r+");
    try {
      await change(file);
    } finally {
      await file.close();
    }
  }

  // Even root's changes take them, as on ext4: whoever made the file what it is now is not who trusted it.
  test.skipIf(!root).each<[string, (path: string) => Promise<void>]>([
    ["a write in place", (path) => opened(path, (file) => file.write("x", 5))],
    ["a write behind the end", (path) => opened(path, (file) => file.write("x", 30_000))],
    ["O_TRUNC", (path) => writeFile(path, "")],
    ["truncate", (path) => truncate(path, 100)],
    ["truncate to its own size", (path) => truncate(path, 20_000)],
    ["chown", (path) => chown(path, 1, 1)],
  ])("are gone after %s", async (_what, change) => {
    const path = await withCapabilities();
    await change(path);
    expect(() => addon().getxattr(path, NAME)).toThrow(failing("ENODATA"));
  });

  test.skipIf(!root)("are gone after fallocate, punch hole and zero range", async () => {
    for (const mode of [0, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE]) {
      const path = await withCapabilities();
      await opened(path, (file) => addon().fallocate(file.fd, mode, 4096n, 40_960n));
      expect(() => addon().getxattr(path, NAME), `mode ${mode}`).toThrow(failing("ENODATA"));
    }
  });

  test.skipIf(!root)("are gone after copy_file_range into the file", async ({ skip }) => {
    const lacking = missing("python3");
    if (lacking !== undefined) skip(lacking);
    const path = await withCapabilities();
    const source = `${path}.source`;
    await writeFile(source, pattern(8192, 2));
    const script =
      "import os, sys; a = os.open(sys.argv[1], os.O_RDONLY); b = os.open(sys.argv[2], os.O_WRONLY); " +
      "assert os.copy_file_range(a, b, 8192) == 8192";
    await succeed("python3", ["-c", script, source, path]);
    expect(() => addon().getxattr(path, NAME)).toThrow(failing("ENODATA"));
  });

  test.skipIf(!root)("stay where the file is only read, renamed or given other times", async () => {
    const path = await withCapabilities();
    await readFile(path);
    await rename(path, `${path}.renamed`);
    await utimes(`${path}.renamed`, 1, 2);
    expect(addon().getxattr(`${path}.renamed`, NAME).equals(capabilities)).toBe(true);
  });
});

describe("extended attributes", () => {
  test("are set, read, listed and removed, and survive a remount", async () => {
    const path = join(await mount.fresh(), "file");
    await writeFile(path, "");
    const value = Buffer.from([0, 1, 2, 255]);
    addon().setxattr(path, "user.binary", value, 0);
    addon().setxattr(path, "user.empty", Buffer.alloc(0), 0);
    addon().setxattr(path, "trusted.root", Buffer.from("r"), 0);
    expect(addon().listxattr(path).toSorted()).toEqual(["trusted.root", "user.binary", "user.empty"]);
    await mount.remount();
    expect(addon().getxattr(path, "user.binary").equals(value)).toBe(true);
    expect(addon().getxattr(path, "user.empty")).toHaveLength(0);
    addon().removexattr(path, "user.binary");
    expect(() => addon().getxattr(path, "user.binary")).toThrow(failing("ENODATA"));
    expect(() => addon().removexattr(path, "user.binary")).toThrow(failing("ENODATA"));
  });

  test("XATTR_CREATE and XATTR_REPLACE mean what they say", async () => {
    const path = join(await mount.fresh(), "file");
    await writeFile(path, "");
    expect(() => addon().setxattr(path, "user.a", Buffer.from("1"), 2)).toThrow(failing("ENODATA"));
    addon().setxattr(path, "user.a", Buffer.from("1"), 1);
    expect(() => addon().setxattr(path, "user.a", Buffer.from("2"), 1)).toThrow(failing("EEXIST"));
    addon().setxattr(path, "user.a", Buffer.from("3"), 2);
    expect(addon().getxattr(path, "user.a").toString()).toBe("3");
  });

  test("a value has up to 64 KiB, a name up to 255 bytes", async () => {
    const path = join(await mount.fresh(), "file");
    await writeFile(path, "");
    const value = pattern(65_536);
    addon().setxattr(path, "user.large", value, 0);
    expect(addon().getxattr(path, "user.large").equals(value)).toBe(true);
    expect(() => addon().setxattr(path, "user.larger", Buffer.alloc(65_537), 0)).toThrow(failing("E2BIG"));
    const name = `user.${"n".repeat(250)}`;
    addon().setxattr(path, name, Buffer.from("x"), 0);
    expect(addon().listxattr(path)).toContain(name);
  });
});

describe("after unmount and mount", () => {
  test("everything is as it was: modes, owners, links, sizes, contents", async () => {
    const folder = await mount.fresh();
    const script = `
      cd "$1" && mkdir -p d/e && echo one > d/a && ln d/a d/b && ln -s a d/s && chmod 751 d && chmod 4600 d/a &&
      truncate -s 1G d/sparse && mkfifo d/fifo && seq 100000 > d/e/numbers`;
    await succeed("sh", ["-c", script, "sh", folder]);
    const picture = () =>
      succeed("sh", [
        "-c",
        `cd "$1" && find . -printf '%p %m %n %s %u %g %l %T@ %C@\\n' | sort && md5sum d/a d/e/numbers`,
        "sh",
        folder,
      ]);
    const before = await picture();
    await mount.remount();
    expect(await picture()).toBe(before);
  });

  test("inode numbers stay", async () => {
    const folder = await mount.fresh();
    await writeFile(join(folder, "a"), "");
    const { ino } = await stat(join(folder, "a"));
    await mount.remount();
    expect((await stat(join(folder, "a"))).ino).toBe(ino);
  });
});

describe("fsync", () => {
  test("works on files and directories, and fdatasync as well", async () => {
    const folder = await mount.fresh();
    const file = await open(join(folder, "a"), "w");
    await file.write("x");
    await file.datasync();
    await file.sync();
    await file.close();
    const directory = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY);
    await directory.sync();
    await directory.close();
  });
});
