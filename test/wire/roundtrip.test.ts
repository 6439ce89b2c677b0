/** Randomised agreement between the hand-written writers, the struct declarations and the decoders. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  type Attr,
  DirentplusWriter,
  DirentWriter,
  type Entry,
  putAttr,
  putAttrOut,
  putEntry,
  putStatfs,
  putStatxOut,
  setI64,
} from "../../src/fuse/encode.ts";
import {
  AttrOut,
  Dirent,
  Direntplus,
  EntryOut,
  FuseAttr,
  kernelStructs,
  NotifyDeleteOut,
  NotifyInvalEntryOut,
  NotifyInvalInodeOut,
  Opcode,
  ReadIn,
  SetattrIn,
  StatfsOut,
  StatxOut,
} from "../../src/fuse/kernel.ts";
import { notifyDelete, notifyInvalEntry, notifyInvalInode } from "../../src/fuse/notify.ts";
import { printName, printReply, printRequest } from "../../src/fuse/print.ts";
import { viewOf } from "../../src/layout/struct.ts";
import { encoded, loaded, named, requestBytes } from "./requests.ts";

const u32 = fc.nat(0xffff_ffff);
const safe = fc.maxSafeNat();
const seconds = fc.maxSafeInteger();
const anyAttr: fc.Arbitrary<Attr> = fc.record({
  ino: safe,
  size: fc.bigInt({ min: 0n, max: 2n ** 63n - 1n }),
  blocks: safe,
  atimeSec: seconds,
  atimeNsec: u32,
  mtimeSec: seconds,
  mtimeNsec: u32,
  ctimeSec: seconds,
  ctimeNsec: u32,
  mode: u32,
  nlink: u32,
  uid: u32,
  gid: u32,
  rdev: u32,
  blksize: u32,
  flags: u32,
});
const anyEntry: fc.Arbitrary<Entry> = fc.record({
  nodeid: safe,
  generation: safe,
  entryValidSec: safe,
  entryValidNsec: u32,
  attrValidSec: safe,
  attrValidNsec: u32,
  attr: anyAttr,
});
const anyName = fc
  .uint8Array({ min: 1, max: 255, minLength: 1, maxLength: 255 })
  .map((bytes) => Buffer.from(bytes.map((byte) => (byte === 0x2f ? 0x5c : byte))).toString("latin1"));

const attrFields = (attr: Attr): Record<string, unknown> => ({
  ino: attr.ino,
  size: attr.size,
  blocks: attr.blocks,
  atime: BigInt(attr.atimeSec),
  mtime: BigInt(attr.mtimeSec),
  ctime: BigInt(attr.ctimeSec),
  atimensec: attr.atimeNsec,
  mtimensec: attr.mtimeNsec,
  ctimensec: attr.ctimeNsec,
  mode: attr.mode,
  nlink: attr.nlink,
  uid: attr.uid,
  gid: attr.gid,
  rdev: attr.rdev,
  blksize: attr.blksize,
  flags: attr.flags,
});
const entryFields = (entry: Entry): Record<string, unknown> => ({
  nodeid: entry.nodeid,
  generation: entry.generation,
  entryValid: entry.entryValidSec,
  attrValid: entry.attrValidSec,
  entryValidNsec: entry.entryValidNsec,
  attrValidNsec: entry.attrValidNsec,
  ...attrFields(entry.attr),
});

describe("what the writers write is what the declarations read", () => {
  const buffer = Buffer.alloc(1024, 0xee);
  const view = viewOf(buffer);

  test("attributes, entries, file system facts", () => {
    fc.assert(
      fc.property(anyEntry, safe, u32, (entry, validSec, validNsec) => {
        expect(putAttr(view, 8, entry.attr)).toBe(FuseAttr.size);
        expect(FuseAttr.decode(view, 8)).toEqual(attrFields(entry.attr));
        expect(putEntry(view, 16, entry)).toBe(EntryOut.size);
        expect(EntryOut.decode(view, 16)).toEqual(entryFields(entry));
        expect(putAttrOut(view, 24, entry.attr, validSec, validNsec)).toBe(AttrOut.size);
        expect(AttrOut.decode(view, 24)).toEqual({
          attrValid: validSec,
          attrValidNsec: validNsec,
          dummy: 0,
          ...attrFields(entry.attr),
        });
      }),
    );
    fc.assert(
      fc.property(
        fc.record({
          blocks: safe,
          bfree: safe,
          bavail: safe,
          files: safe,
          ffree: safe,
          bsize: u32,
          namelen: u32,
          frsize: u32,
        }),
        (statfs) => {
          putStatfs(view, 8, statfs);
          expect(StatfsOut.decode(view, 8)).toEqual({ ...statfs, padding: 0, spare: new Uint8Array(24) });
        },
      ),
    );
  });

  test("statx", () => {
    fc.assert(
      fc.property(
        anyAttr,
        seconds,
        u32,
        fc.nat(0xfff),
        fc.nat(0xfffff),
        (attr, btimeSec, btimeNsec, major, minor) => {
          const rdev = ((minor & 0xff) | (major << 8) | ((minor & 0xfff00) << 12)) >>> 0;
          putStatxOut(
            view,
            0,
            { ...attr, rdev, btimeSec, btimeNsec, mask: 0x17ff, attributes: 3n, attributesMask: 7n },
            1,
            2,
          );
          expect(StatxOut.decode(view, 0)).toMatchObject({
            attrValid: 1,
            attrValidNsec: 2,
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            mode: attr.mode & 0xffff,
            atimeSec: BigInt(attr.atimeSec),
            mtimeSec: BigInt(attr.mtimeSec),
            ctimeSec: BigInt(attr.ctimeSec),
            btimeSec: BigInt(btimeSec),
            rdevMajor: major,
            rdevMinor: minor,
          });
        },
      ),
    );
  });

  test("signed 64-bit numbers", () => {
    fc.assert(
      fc.property(seconds, (value) => {
        setI64(view, 0, value);
        expect(view.getBigInt64(0, true)).toBe(BigInt(value));
      }),
    );
  });
});

describe("every struct", () => {
  test("decodes to what was encoded, for any bytes of its fields", () => {
    for (const declared of kernelStructs) {
      fc.assert(
        fc.property(fc.uint8Array({ minLength: declared.size, maxLength: declared.size }), (raw) => {
          const bytes = Buffer.from(raw);
          // Numbers stay below 2^53: the top 11 bits of each 64-bit number field are cleared.
          for (const part of declared.fields) {
            if (part.field.scalar === "u64" && part.field.as === "number") {
              bytes[part.offset + 7] = 0;
              bytes[part.offset + 6]! &= 0x1f;
            }
          }
          const value = declared.decode(viewOf(bytes), 0) as Record<string, unknown>;
          expect(encoded(declared, value)).toEqual(bytes);
        }),
        { numRuns: 30 },
      );
    }
  });
});

describe("requests", () => {
  test("READ fields read directly are those of the struct", () => {
    fc.assert(
      fc.property(
        fc.record({
          fh: safe,
          offset: fc.bigInt({ min: 0n, max: 2n ** 53n - 1n }),
          size: u32,
          readFlags: u32,
          lockOwner: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
          flags: u32,
        }),
        (value) => {
          const request = loaded(requestBytes(Opcode.READ, {}, encoded(ReadIn, value)));
          expect(request.body(ReadIn)).toEqual({ ...value, padding: 0 });
          expect([
            request.ioHandle,
            request.ioOffset,
            BigInt(request.ioOffsetNumber),
            request.ioSize,
            request.ioFlags,
            request.ioLockOwner,
            request.ioOpenFlags,
          ]).toEqual([
            value.fh,
            value.offset,
            value.offset,
            value.size,
            value.readFlags,
            value.lockOwner,
            value.flags,
          ]);
        },
      ),
    );
  });

  test("SETATTR keeps negative seconds", () => {
    fc.assert(
      fc.property(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), (atime) => {
        const request = loaded(requestBytes(Opcode.SETATTR, {}, encoded(SetattrIn, { atime })));
        expect(request.body(SetattrIn).atime).toBe(atime);
      }),
    );
  });

  test("two names keep apart", () => {
    fc.assert(
      fc.property(
        anyName.filter((name) => name !== "." && name !== ".."),
        anyName.filter((name) => name !== "." && name !== ".."),
        (source, target) => {
          const request = loaded(
            requestBytes(Opcode.RENAME2, {}, Buffer.alloc(16), named(source), named(target)),
          );
          expect([request.name(), request.secondName()]).toEqual([source, target]);
        },
      ),
    );
  });
});

describe("directory lists", () => {
  interface Read {
    ino: number;
    off: number;
    type: number;
    name: string;
  }
  /** As fs/fuse/readdir.c walks the reply. */
  function parse(bytes: Buffer, skip: number): Read[] {
    const found: Read[] = [];
    let at = 0;
    while (at < bytes.length) {
      const dirent = Dirent.decode(viewOf(bytes), at + skip);
      const nameAt = at + skip + Dirent.size;
      const padded = (skip + Dirent.size + dirent.namelen + 7) & ~7;
      expect(at + padded).toBeLessThanOrEqual(bytes.length);
      expect(bytes.subarray(nameAt + dirent.namelen, at + padded).every((byte) => byte === 0)).toBe(true);
      found.push({
        ino: dirent.ino,
        off: dirent.off,
        type: dirent.type,
        name: bytes.toString("latin1", nameAt, nameAt + dirent.namelen),
      });
      at += padded;
    }
    return found;
  }
  const anyRead: fc.Arbitrary<Read> = fc.record({ ino: safe, off: safe, type: fc.nat(15), name: anyName });

  test("of READDIR hold whole entries, in order, within the capacity, and nothing is written beyond", () => {
    fc.assert(
      fc.property(fc.array(anyRead, { maxLength: 30 }), fc.nat(2000), fc.nat(64), (all, capacity, start) => {
        const buffer = Buffer.alloc(4096, 0xee);
        const writer = new DirentWriter(buffer);
        writer.begin(capacity, start);
        const taken = all.filter((each) => {
          const fits = writer.fits(each.name.length);
          expect(writer.add(each.ino, each.off, each.type, each.name)).toBe(fits);
          return fits;
        });
        expect(writer.length).toBeLessThanOrEqual(capacity);
        expect(parse(buffer.subarray(start, start + writer.length), 0)).toEqual(taken);
        expect(buffer.subarray(0, start).every((byte) => byte === 0xee)).toBe(true);
        expect(buffer.subarray(start + writer.length).every((byte) => byte === 0xee)).toBe(true);
      }),
    );
  });

  test("of READDIRPLUS likewise", () => {
    const skip = Direntplus.size - Dirent.size;
    fc.assert(
      fc.property(fc.array(fc.tuple(anyEntry, anyRead), { maxLength: 10 }), fc.nat(3000), (all, capacity) => {
        const buffer = Buffer.alloc(4096, 0xee);
        const writer = new DirentplusWriter(buffer);
        writer.begin(capacity);
        const taken = all.filter(([entry, each]) => writer.add(entry, each.off, each.type, each.name));
        expect(writer.length).toBeLessThanOrEqual(capacity);
        const bytes = buffer.subarray(0, writer.length);
        expect(parse(bytes, skip)).toEqual(taken.map(([entry, each]) => ({ ...each, ino: entry.attr.ino })));
        if (taken.length > 0) expect(EntryOut.decode(viewOf(bytes), 0)).toEqual(entryFields(taken[0]![0]));
        expect(buffer.subarray(writer.length).every((byte) => byte === 0xee)).toBe(true);
      }),
    );
  });

  test("begin again from nothing, and never reach past their buffer", () => {
    const writer = new DirentWriter(Buffer.alloc(64));
    writer.begin(1 << 20);
    expect(writer.add(1, 1, 4, "a")).toBe(true);
    expect(writer.add(1, 2, 4, "b")).toBe(true);
    expect(writer.add(1, 3, 4, "c")).toBe(false);
    writer.begin(32, 32);
    expect(writer.length).toBe(0);
    expect(writer.add(1, 1, 4, "a")).toBe(true);
    expect(writer.add(1, 2, 4, "b")).toBe(false);
  });
});

describe("notifications", () => {
  test("carry any name byte for byte, with its NUL", () => {
    fc.assert(
      fc.property(safe, safe, anyName, fc.boolean(), (parent, child, name, expireOnly) => {
        const entry = Buffer.from(notifyInvalEntry(parent, name, expireOnly).payload);
        expect(NotifyInvalEntryOut.decode(viewOf(entry), 0)).toEqual({
          parent,
          namelen: name.length,
          flags: expireOnly ? 1 : 0,
        });
        expect(entry.subarray(NotifyInvalEntryOut.size)).toEqual(named(name));
        const gone = Buffer.from(notifyDelete(parent, child, name).payload);
        expect(NotifyDeleteOut.decode(viewOf(gone), 0)).toEqual({
          parent,
          child,
          namelen: name.length,
          padding: 0,
        });
        expect(gone.subarray(NotifyDeleteOut.size)).toEqual(named(name));
      }),
    );
    const range = notifyInvalInode(1, 4096n, -1n).payload;
    expect(NotifyInvalInodeOut.decode(viewOf(range), 0)).toEqual({ ino: 1, off: 4096n, len: -1n });
  });
});

describe("traces", () => {
  test("show a request and its reply on one line each", () => {
    const request = loaded(
      requestBytes(
        Opcode.RENAME2,
        { unique: 12n, nodeid: 3, uid: 1, gid: 2, pid: 77 },
        Buffer.from("09000000000000000200000000000000", "hex"),
        named('a"b'),
        named("\xff\n"),
      ),
    );
    expect(printRequest(request)).toBe(
      '> 12 RENAME2 node 3 uid 1 gid 2 pid 77 {newdir=9 flags=0x2} "a\\"b" "\\xff\\x0a"',
    );
    expect(printReply(request, 2, new Uint8Array(), 0, 0)).toBe("< 12 RENAME2 ENOENT");
    expect(printReply(request, 0, new Uint8Array(), 0, 0)).toBe("< 12 RENAME2 ok");
    const write = loaded(
      requestBytes(
        Opcode.WRITE,
        { unique: 4n },
        encoded(ReadIn, { fh: 1, offset: 8n, size: 3 }),
        Buffer.from("abc"),
      ),
    );
    expect(printRequest(write)).toBe(
      "> 4 WRITE node 1 uid 0 gid 0 pid 0 {fh=1 offset=8 size=3 writeFlags=0x0 lockOwner=0x0 flags=0x0} <3 bytes 616263>",
    );
    expect(printReply(write, 0, Buffer.from("0300000000000000", "hex"), 0, 8)).toBe("< 4 WRITE {size=3}");
  });

  test("quote names unambiguously", () => {
    expect(printName("plain name")).toBe('"plain name"');
    expect(printName('\\x41 "\x00\x7f')).toBe('"\\\\x41 \\"\\x00\\x7f"');
  });

  test("list directory entries", () => {
    const buffer = Buffer.alloc(256);
    const writer = new DirentWriter(buffer);
    writer.begin(256);
    writer.add(1, 1, 4, ".");
    writer.add(2, 2, 8, "file");
    const request = loaded(requestBytes(Opcode.READDIR, {}, encoded(ReadIn, {})));
    expect(printReply(request, 0, buffer, 0, writer.length)).toBe('< 2 READDIR ["."@1 "file"@2]');
  });
});
