/**
 * Golden bytes: requests as the kernel sends them and replies as it reads them, written by hand from the layouts in
 * include/uapi/linux/fuse.h, not from our declarations.
 */
import { describe, expect, test } from "vitest";
import {
  type Attr,
  DirentplusWriter,
  DirentWriter,
  type Entry,
  putAttrOut,
  putBmapOut,
  putCopyFileRangeOut,
  putCreateOut,
  putEntry,
  putIoctlOut,
  putLkOut,
  putLseekOut,
  putNegativeEntry,
  putOpenOut,
  putPollOut,
  putStatfs,
  putStatxOut,
  putWriteOut,
  putXattrSize,
} from "../../src/fuse/encode.ts";
import {
  CreateIn,
  FallocateIn,
  IoctlIn,
  LseekIn,
  Opcode,
  PollIn,
  Rename2In,
  SetattrIn,
  SetxattrIn,
} from "../../src/fuse/kernel.ts";
import { notifyDelete, notifyInvalEntry, notifyInvalInode, notifyPollWakeup } from "../../src/fuse/notify.ts";
import { viewOf } from "../../src/layout/struct.ts";
import { hex, loaded } from "./requests.ts";

/** 88 bytes: inode 0x1122334455, size 2^53 + 1, 9 blocks, times before 1970, 1.5 s after it, and now. */
const attr: Attr = {
  ino: 0x11_2233_4455,
  size: 2n ** 53n + 1n,
  blocks: 9,
  atimeSec: -1,
  atimeNsec: 999_999_999,
  mtimeSec: 1,
  mtimeNsec: 500_000_000,
  ctimeSec: 0x1_6543_2100,
  ctimeNsec: 7,
  mode: 0o100644,
  nlink: 2,
  uid: 1000,
  gid: 0xffff_fffe,
  rdev: 0,
  blksize: 4096,
  flags: 0,
};
const attrHex = `
  5544332211000000   | ino
  0100000000002000   | size
  0900000000000000   | blocks
  ffffffffffffffff   | atime
  0100000000000000   | mtime
  0021436501000000   | ctime
  ffc99a3b           | atimensec
  0065cd1d           | mtimensec
  07000000           | ctimensec
  a4810000           | mode 0100644
  02000000           | nlink
  e8030000           | uid
  feffffff           | gid
  00000000           | rdev
  00100000           | blksize
  00000000           | flags
`;
const entry: Entry = {
  nodeid: 5,
  generation: 3,
  entryValidSec: 1,
  entryValidNsec: 2,
  attrValidSec: 3,
  attrValidNsec: 4,
  attr,
};
const entryHex = `
  0500000000000000   | nodeid
  0300000000000000   | generation
  0100000000000000   | entry_valid
  0300000000000000   | attr_valid
  02000000           | entry_valid_nsec
  04000000           | attr_valid_nsec
  ${attrHex}
`;

/** A header: everything but length and opcode is alike. */
const header = (length: string, opcode: string): string => `
  ${length}          | len
  ${opcode}          | opcode
  0a00000000000000   | unique 10
  0700000000000000   | nodeid 7
  e8030000           | uid 1000
  64000000           | gid 100
  39300000           | pid 12345
  0000 0000          | total_extlen, padding
`;

/** What a writer leaves in a buffer of 0xEE, and that it said how much. */
function written(write: (view: DataView, at: number) => number): Buffer {
  const buffer = Buffer.alloc(512, 0xee);
  const length = write(viewOf(buffer), 8);
  expect(buffer.subarray(0, 8).every((byte) => byte === 0xee)).toBe(true);
  expect(buffer.subarray(8 + length).every((byte) => byte === 0xee)).toBe(true);
  return buffer.subarray(8, 8 + length);
}

describe("requests decode from the kernel's bytes", () => {
  test("LOOKUP", () => {
    const request = loaded(hex(`${header("2c000000", "01000000")} 66e96f 00`));
    expect(request).toMatchObject({
      opcode: Opcode.LOOKUP,
      unique: 10n,
      nodeid: 7,
      uid: 1000,
      gid: 100,
      pid: 12345,
    });
    expect(request.name()).toBe("f\xe9o");
    expect(request.resent).toBe(false);
  });

  test("GETATTR with a file handle", () => {
    const request = loaded(hex(`${header("38000000", "03000000")} 01000000 00000000 2a00000000000000`));
    expect(request.getattrFlags).toBe(1);
    expect(request.getattrHandle).toBe(42);
  });

  test("SETATTR: times before 1970 and sizes above 2^53", () => {
    const request = loaded(
      hex(`${header("80000000", "04000000")}
        38000000           | valid: size, atime, mtime
        00000000
        0000000000000000   | fh
        ffffffffffffff7f   | size 2^63 - 1
        efcdab8967452301   | lock_owner
        feffffffffffffff   | atime -2
        0000000001000000   | mtime 2^32
        0000000000000000   | ctime
        01000000 02000000 03000000
        ed810000           | mode
        00000000
        e8030000 e9030000  | uid, gid
        00000000`),
    );
    expect(request.body(SetattrIn)).toMatchObject({
      valid: 0x38,
      fh: 0,
      size: 2n ** 63n - 1n,
      lockOwner: 0x0123_4567_89ab_cdefn,
      atime: -2n,
      mtime: 2n ** 32n,
      ctime: 0n,
      atimensec: 1,
      mtimensec: 2,
      ctimensec: 3,
      mode: 0o100755,
      uid: 1000,
      gid: 1001,
    });
  });

  test("CREATE", () => {
    const request = loaded(
      hex(`${header("3a000000", "23000000")}
        42800000           | flags: O_RDWR | O_CREAT | O_LARGEFILE
        a4810000           | mode
        12000000           | umask 022
        01000000           | open_flags: KILL_SUIDGID
        6200               | b`),
    );
    expect(request.body(CreateIn)).toEqual({ flags: 0x8042, mode: 0o100644, umask: 0o22, openFlags: 1 });
    expect(request.name()).toBe("b");
  });

  test("READ", () => {
    const request = loaded(
      hex(`${header("50000000", "0f000000")}
        0900000000000000   | fh
        0000000000002000   | offset 2^53
        00000200           | size 128 KiB
        02000000           | read_flags: LOCKOWNER
        ffffffffffffffff   | lock_owner
        00400000           | flags
        00000000`),
    );
    expect(request.ioHandle).toBe(9);
    expect(request.ioOffset).toBe(2n ** 53n);
    expect(() => request.ioOffsetNumber).toThrow(/malformed READ/);
    expect(request.ioSize).toBe(131072);
    expect(request.ioFlags).toBe(2);
    expect(request.ioLockOwner).toBe(2n ** 64n - 1n);
    expect(request.ioOpenFlags).toBe(0x4000);
  });

  test("WRITE aliases its data in the request buffer", () => {
    const request = loaded(
      hex(`${header("55000000", "10000000")}
        0900000000000000 0010000000000000 05000000 05000000 0000000000000000 02800000 00000000
        68656c6c6f`),
    );
    expect(request.ioOffset).toBe(4096n);
    expect(request.ioOffsetNumber).toBe(4096);
    expect(request.ioSize).toBe(5);
    expect(request.ioFlags).toBe(5);
    expect(request.data().toString()).toBe("hello");
    expect(request.dataAt).toBe(80);
    expect(request.data().buffer).toBe(request.bytes.buffer);
  });

  test.each([
    ["READDIR", "1c000000", Opcode.READDIR],
    ["READDIRPLUS", "2c000000", Opcode.READDIRPLUS],
  ])("%s", (_name, opcode, value) => {
    const request = loaded(
      hex(`${header("50000000", opcode)}
        0900000000000000 0300000000000000 00100000 00000000 0000000000000000 00000100 00000000`),
    );
    expect(request.opcode).toBe(value);
    expect([request.ioHandle, request.ioOffsetNumber, request.ioSize]).toEqual([9, 3, 4096]);
  });

  test("RENAME2", () => {
    const request = loaded(
      hex(`${header("3d000000", "2d000000")}
        0800000000000000 02000000 00000000
        6f6c00 6e00`),
    );
    expect(request.body(Rename2In)).toEqual({ newdir: 8, flags: 2, padding: 0 });
    expect([request.name(), request.secondName()]).toEqual(["ol", "n"]);
  });

  test("SYMLINK: the link comes first, and its target may hold slashes", () => {
    const request = loaded(hex(`${header("32000000", "06000000")} 6c00 2f612f2e2e2f6200`));
    expect([request.name(), request.secondName()]).toEqual(["l", "/a/../b"]);
  });

  test("FORGET, BATCH_FORGET and INTERRUPT, which are not answered", () => {
    const forget = loaded(hex(`${header("30000000", "02000000")} 0300000000000000`));
    expect(forget.forgetLookups).toBe(3);
    expect(forget.row?.reply).toBe(false);
    const batch = loaded(
      hex(`${header("50000000", "2a000000")}
        02000000 00000000
        0500000000000000 0100000000000000
        0600000001000000 0200000000000000`),
    );
    const seen: [number, number][] = [];
    batch.batchForget((nodeid, lookups) => seen.push([nodeid, lookups]));
    expect(seen).toEqual([
      [5, 1],
      [0x1_0000_0006, 2],
    ]);
    expect(batch.row?.reply).toBe(false);
    const interrupt = loaded(hex(`${header("30000000", "24000000")} 0800000000000080`));
    expect(interrupt.interrupted).toBe(0x8000_0000_0000_0008n);
    expect(interrupt.row?.reply).toBe(false);
  });

  test("FALLOCATE", () => {
    const request = loaded(
      hex(`${header("48000000", "2b000000")}
        0900000000000000 0010000000000000 0020000000000080 03000000 00000000`),
    );
    expect(request.body(FallocateIn)).toEqual({
      fh: 9,
      offset: 4096n,
      length: 2n ** 63n + 8192n,
      mode: 3,
      padding: 0,
    });
  });

  test("IOCTL with bytes in", () => {
    const request = loaded(
      hex(`${header("4c000000", "27000000")}
        0900000000000000
        00000000           | flags
        d44d2040           | cmd
        f0ffffffff7f0000   | arg
        04000000 20000000  | in_size, out_size
        01020304`),
    );
    expect(request.body(IoctlIn)).toEqual({
      fh: 9,
      flags: 0,
      cmd: 0x4020_4dd4,
      arg: 0x7fff_ffff_fff0n,
      inSize: 4,
      outSize: 32,
    });
    expect([...request.data()]).toEqual([1, 2, 3, 4]);
  });

  test("POLL and LSEEK", () => {
    const poll = loaded(
      hex(`${header("40000000", "28000000")} 0900000000000000 0400000000000000 01000000 05000000`),
    );
    expect(poll.body(PollIn)).toEqual({ fh: 9, kh: 4, flags: 1, events: 5 });
    const seek = loaded(
      hex(`${header("40000000", "2e000000")} 0900000000000000 ffffffffffffffff 03000000 00000000`),
    );
    expect(seek.body(LseekIn)).toMatchObject({ offset: -1n, whence: 3 });
  });

  test("SETXATTR in both forms", () => {
    const short = loaded(
      hex(`${header("39000000", "15000000")} 02000000 01000000 757365722e6b00 6162`),
      false,
    );
    expect(short.name()).toBe("user.k");
    expect(short.data().toString()).toBe("ab");
    expect(short.body(SetxattrIn)).toEqual({ size: 2, flags: 1, setxattrFlags: 0, padding: 0 });
    const long = loaded(
      hex(`${header("41000000", "15000000")} 02000000 01000000 01000000 00000000 757365722e6b00 6162`),
    );
    expect(long.name()).toBe("user.k");
    expect(long.data().toString()).toBe("ab");
    expect(long.body(SetxattrIn)).toEqual({ size: 2, flags: 1, setxattrFlags: 1, padding: 0 });
  });

  test("TMPFILE, whose name is a slash", () => {
    const request = loaded(hex(`${header("3a000000", "33000000")} 02804100 a4810000 12000000 00000000 2f00`));
    expect(request.name()).toBe("/");
  });

  test("MKDIR with the group that owns the parent directory as an extension", () => {
    const request = loaded(
      hex(`42000000 09000000 0a00000000000000 0700000000000000 e8030000 64000000 39300000
        0200 0000          | total_extlen: 16 bytes
        ed010000 12000000 6400
        10000000 20000000  | size, type GROUPS
        01000000 c8000000  | one group: 200`),
    );
    expect(request.name()).toBe("d");
    expect(request.supplementaryGroups()).toEqual([200]);
    expect(loaded(hex(`${header("2a000000", "01000000")} 6100`)).supplementaryGroups()).toEqual([]);
  });
});

describe("replies have the bytes that the kernel reads", () => {
  test("LOOKUP, MKDIR and so on: an entry", () => {
    expect(written((view, at) => putEntry(view, at, entry))).toEqual(hex(entryHex));
  });

  test("LOOKUP: a negative entry", () => {
    expect(written((view, at) => putNegativeEntry(view, at, 5, 6))).toEqual(
      hex(
        `0000000000000000 0000000000000000 0500000000000000 0000000000000000 06000000 00000000 ${"00".repeat(88)}`,
      ),
    );
  });

  test("GETATTR and SETATTR", () => {
    expect(written((view, at) => putAttrOut(view, at, attr, 60, 1))).toEqual(
      hex(`3c00000000000000 01000000 00000000 ${attrHex}`),
    );
  });

  test("OPEN and CREATE", () => {
    expect(written((view, at) => putOpenOut(view, at, 2 ** 33 + 1, 0x41))).toEqual(
      hex("0100000002000000 41000000 00000000"),
    );
    expect(written((view, at) => putOpenOut(view, at, 1, 0x80, 3))).toEqual(
      hex("0100000000000000 80000000 03000000"),
    );
    expect(written((view, at) => putCreateOut(view, at, entry, 7, 1))).toEqual(
      hex(`${entryHex} 0700000000000000 01000000 00000000`),
    );
  });

  test("WRITE, COPY_FILE_RANGE_64, LSEEK, POLL, BMAP, GETLK, IOCTL, GETXATTR's length", () => {
    expect(written((view, at) => putWriteOut(view, at, 0xffff_f000))).toEqual(hex("00f0ffff 00000000"));
    expect(written((view, at) => putCopyFileRangeOut(view, at, 2n ** 40n))).toEqual(hex("0000000000010000"));
    expect(written((view, at) => putLseekOut(view, at, 2n ** 62n))).toEqual(hex("0000000000000040"));
    expect(written((view, at) => putPollOut(view, at, 0x104))).toEqual(hex("04010000 00000000"));
    expect(written((view, at) => putBmapOut(view, at, 2 ** 40))).toEqual(hex("0000000000010000"));
    expect(written((view, at) => putLkOut(view, at, 1n, 2n ** 63n - 1n, 1, 99))).toEqual(
      hex("0100000000000000 ffffffffffffff7f 01000000 63000000"),
    );
    expect(written((view, at) => putIoctlOut(view, at, -25))).toEqual(
      hex("e7ffffff 00000000 00000000 00000000"),
    );
    expect(written((view, at) => putXattrSize(view, at, 300))).toEqual(hex("2c010000 00000000"));
  });

  test("STATFS", () => {
    const statfs = {
      blocks: 1,
      bfree: 2,
      bavail: 3,
      files: 4,
      ffree: 5,
      bsize: 4096,
      namelen: 255,
      frsize: 512,
    };
    expect(written((view, at) => putStatfs(view, at, statfs))).toEqual(
      hex(`0100000000000000 0200000000000000 0300000000000000 0400000000000000 0500000000000000
        00100000 ff000000 00020000 00000000 ${"00".repeat(24)}`),
    );
  });

  test("STATX", () => {
    const statx = {
      ...attr,
      rdev: (0x123 << 8) | 0x45 | (0x67 << 20),
      mask: 0xfff,
      attributes: 1n,
      attributesMask: 2n,
      btimeSec: -3,
      btimeNsec: 4,
    };
    expect(written((view, at) => putStatxOut(view, at, statx, 1, 2))).toEqual(
      hex(`0100000000000000 02000000 00000000 ${"00".repeat(16)}
        ff0f0000 00100000 0100000000000000
        02000000 e8030000 feffffff a481 0000
        5544332211000000 0100000000002000 0900000000000000 0200000000000000
        ffffffffffffffff ffc99a3b 00000000   | atime
        fdffffffffffffff 04000000 00000000   | btime
        0021436501000000 07000000 00000000   | ctime
        0100000000000000 0065cd1d 00000000   | mtime
        23010000 45670000                    | rdev
        00000000 00000000 ${"00".repeat(112)}`),
    );
  });

  test("READDIR: entries are padded to 8 bytes and stop at the capacity", () => {
    const buffer = Buffer.alloc(256, 0xee);
    const writer = new DirentWriter(buffer);
    writer.begin(32 + 40, 8);
    expect(writer.add(3, 1, 4, ".")).toBe(true);
    expect(writer.add(2 ** 40, 2, 8, "n\xe4ht langes")).toBe(true);
    expect(writer.length).toBe(72);
    expect(writer.fits(1)).toBe(false);
    expect(writer.add(1, 3, 8, "x")).toBe(false);
    expect(buffer.subarray(8, 8 + writer.length)).toEqual(
      hex(`0300000000000000 0100000000000000 01000000 04000000 2e00000000000000
        0000000000010000 0200000000000000 0b000000 08000000 6ee46874206c616e6765730000000000`),
    );
    expect(buffer.subarray(0, 8).every((byte) => byte === 0xee)).toBe(true);
    expect(buffer.subarray(80).every((byte) => byte === 0xee)).toBe(true);
  });

  test("READDIRPLUS: an entry, then a dirent; . and .. without a node", () => {
    const buffer = Buffer.alloc(512, 0xee);
    const writer = new DirentplusWriter(buffer);
    writer.begin(2 * 160 + 159);
    expect(writer.addBare(1, 1, 4, "..")).toBe(true);
    expect(writer.add(entry, 2, 8, "12345678")).toBe(true);
    expect(writer.add(entry, 3, 8, "1")).toBe(false);
    expect(buffer.subarray(0, writer.length)).toEqual(
      hex(`${"00".repeat(40)} 0100000000000000 ${"00".repeat(80)}
        0100000000000000 0100000000000000 02000000 04000000 2e2e000000000000
        ${entryHex}
        5544332211000000 0200000000000000 08000000 08000000 3132333435363738`),
    );
  });
});

describe("notifications have the bytes that the kernel reads", () => {
  test("of all four kinds", () => {
    expect(notifyInvalInode(5, -1n, 0n)).toEqual({
      code: 2,
      payload: new Uint8Array(hex("0500000000000000 ffffffffffffffff 0000000000000000")),
    });
    expect(notifyInvalEntry(1, "\xfcb")).toEqual({
      code: 3,
      payload: new Uint8Array(hex("0100000000000000 02000000 00000000 fc62 00")),
    });
    expect(notifyInvalEntry(1, "a", true).payload).toEqual(
      new Uint8Array(hex("0100000000000000 01000000 01000000 61 00")),
    );
    expect(notifyDelete(1, 9, "a")).toEqual({
      code: 6,
      payload: new Uint8Array(hex("0100000000000000 0900000000000000 01000000 00000000 61 00")),
    });
    expect(notifyPollWakeup(3)).toEqual({ code: 1, payload: new Uint8Array(hex("0300000000000000")) });
  });
});
