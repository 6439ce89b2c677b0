import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CorruptionError, FsError } from "../../src/base/errors.ts";
import { viewOf } from "../../src/layout/struct.ts";
import { crc32c } from "../../src/media/checksum.ts";
import { GroupHeader, GroupKind, RecordType } from "../../src/media/format.ts";
import {
  GroupBuilder,
  groupAt,
  type InodeFields,
  type RecordSink,
  readRecords,
} from "../../src/media/group.ts";

const runs = Number(process.env.MAPDIRECT_RUNS ?? 300);

const id = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });
const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const sec = fc.integer({ min: -(2 ** 52), max: 2 ** 52 });
const nsec = fc.integer({ min: 0, max: 999_999_999 });
const size = fc.bigInt(0n, 2n ** 64n - 1n);
const byteString = (max: number): fc.Arbitrary<string> =>
  fc.uint8Array({ minLength: 1, maxLength: max }).map((bytes) => Buffer.from(bytes).toString("latin1"));
const name = byteString(255);
const inodeFields: fc.Arbitrary<InodeFields> = fc.record({
  ino: id,
  size,
  parent: id,
  mode: u32,
  nlink: u32,
  uid: u32,
  gid: u32,
  rdev: u32,
  generation: u32,
  atimeSec: sec,
  mtimeSec: sec,
  ctimeSec: sec,
  btimeSec: sec,
  atimeNsec: nsec,
  mtimeNsec: nsec,
  ctimeNsec: nsec,
  btimeNsec: nsec,
});

/** A record as the call that makes it. */
type Call = { [K in keyof RecordSink]: [K, ...Parameters<RecordSink[K]>] }[keyof RecordSink];

const state = fc.constantFrom(1 as const, 2 as const);
const call: fc.Arbitrary<Call> = fc.oneof(
  fc.tuple(fc.constant("inode" as const), inodeFields),
  fc.tuple(fc.constant("inodeGone" as const), id),
  fc.tuple(fc.constant("touch" as const), id, size, u32, sec, nsec, sec, nsec),
  fc.tuple(fc.constant("dentry" as const), id, name, id, fc.nat({ max: 255 }), id),
  fc.tuple(fc.constant("dentryGone" as const), id, name),
  fc.tuple(fc.constant("extent" as const), id, id, id, u32, state),
  fc.tuple(fc.constant("extentGone" as const), id, id, id),
  fc.tuple(fc.constant("symlink" as const), id, byteString(4095)),
  fc.tuple(fc.constant("xattr" as const), id, name, fc.uint8Array({ maxLength: 2000 })),
  fc.tuple(fc.constant("xattrGone" as const), id, name),
  fc.tuple(fc.constant("barrier" as const), id),
  fc.tuple(fc.constant("link" as const), id, id, id),
  fc.tuple(fc.constant("end" as const), id, id, id, id),
);

/** Writes down what it is told. */
function scribe(): { sink: RecordSink; heard: unknown[][] } {
  const heard: unknown[][] = [];
  // A Buffer or a plain array of bytes: what counts is what is in it.
  const plain = (one: unknown): unknown => (one instanceof Uint8Array ? Uint8Array.from(one) : one);
  const sink = new Proxy({} as RecordSink, {
    get:
      (_, method) =>
      (...parameters: unknown[]) =>
        heard.push([method, ...parameters.map(plain)]),
  });
  return { sink, heard };
}

function build(calls: readonly Call[], capacity = 1 << 20): GroupBuilder {
  const group = new GroupBuilder(capacity);
  for (const [method, ...parameters] of calls) {
    (group[method] as (...all: unknown[]) => void)(...parameters);
  }
  group.finish(GroupKind.RECORDS, 7, 3, 99);
  return group;
}

describe("a group", () => {
  test("tells what it was told, in the same order, whatever the records", () => {
    fc.assert(
      fc.property(fc.array(call, { maxLength: 20 }), (calls) => {
        const group = build(calls);
        expect(group.length % 8).toBe(0);
        const info = groupAt(group.data, group.view, 0, group.length, 99);
        expect(info).toEqual({ length: group.length, kind: GroupKind.RECORDS, lsn: 7, incarnation: 3 });
        const { sink, heard } = scribe();
        readRecords(group.data, group.view, 0, group.length, 0, sink);
        expect(heard).toEqual(calls);
      }),
      { numRuns: runs },
    );
  });

  test("can be built again and again in the same buffer, with nothing left over from before", () => {
    const group = build([["xattr", 1, "n", new Uint8Array(3000).fill(0xff)]]);
    group.reset();
    group.dentry(1, "abc", 2, 8, 3);
    group.finish(GroupKind.RECORDS, 1, 1, 1);
    const fresh = build([["dentry", 1, "abc", 2, 8, 3]]);
    fresh.finish(GroupKind.RECORDS, 1, 1, 1);
    expect(group.data.subarray(0, group.length).equals(fresh.data.subarray(0, fresh.length))).toBe(true);
  });

  test("of another volume, cut short, or with any one bit changed is none", () => {
    const group = build([
      ["dentry", 1, "name", 2, 8, 3],
      ["inodeGone", 5],
    ]);
    const data = Buffer.from(group.data.subarray(0, group.length));
    expect(groupAt(data, viewOf(data), 0, data.length, 99)).not.toBeNull();
    expect(groupAt(data, viewOf(data), 0, data.length, 98)).toBeNull();
    for (let limit = 0; limit < data.length; limit += 1)
      expect(groupAt(data, viewOf(data), 0, limit, 99)).toBeNull();
    for (let bit = 0; bit < data.length * 8; bit += 1) {
      data[bit >> 3] = (data[bit >> 3] as number) ^ (1 << (bit & 7));
      expect(groupAt(data, viewOf(data), 0, data.length, 99)).toBeNull();
      data[bit >> 3] = (data[bit >> 3] as number) ^ (1 << (bit & 7));
    }
  });

  test("with a right checksum and anything in it is told or damage, never another error and never a read outside", () => {
    const damage = fc.array(fc.tuple(fc.nat({ max: 4000 }), fc.nat({ max: 255 })), {
      minLength: 1,
      maxLength: 6,
    });
    fc.assert(
      fc.property(fc.array(call, { minLength: 1, maxLength: 6 }), damage, (calls, changes) => {
        const group = build(calls);
        // Nothing behind the group: a stray read is a RangeError.
        const data = Buffer.alloc(group.length);
        group.data.copy(data, 0, 0, group.length);
        for (const [at, byte] of changes) data[14 + (at % (data.length - 14))] = byte;
        const from = GroupHeader.at.length;
        data.writeUInt32LE(group.length, GroupHeader.at.length);
        data.writeUInt32LE(crc32c(data, from, data.length - from, 99), GroupHeader.at.crc);
        const info = groupAt(data, viewOf(data), 0, data.length, 99);
        if (info === null) return;
        try {
          readRecords(data, viewOf(data), 0, data.length, 12345, scribe().sink);
        } catch (error) {
          expect(error).toBeInstanceOf(CorruptionError);
        }
      }),
      { numRuns: runs * 5 },
    );
  });

  test("that would be too large is refused record by record, and stays what it was", () => {
    const group = new GroupBuilder(GroupHeader.size + 3 * 16);
    for (let record = 0; record < 3; record += 1) group.inodeGone(record);
    expect(() => group.inodeGone(4)).toThrow(FsError);
    expect([group.count, group.length]).toEqual([3, GroupHeader.size + 48]);
    expect(Object.keys(RecordType)).toHaveLength(13);
  });

  test("keeps seconds before 1970 and beyond 2038, and sizes up to 2^63 - 1", () => {
    const times = [-1, -(2 ** 31) - 5, 2 ** 31, 2 ** 32, 2 ** 33 + 7];
    for (const seconds of times) {
      const group = build([["touch", 1, 2n ** 63n - 1n, 0o100644, seconds, 5, -seconds, 6]]);
      const { sink, heard } = scribe();
      readRecords(group.data, group.view, 0, group.length, 0, sink);
      expect(heard[0]).toEqual(["touch", 1, 2n ** 63n - 1n, 0o100644, seconds, 5, -seconds, 6]);
    }
  });
});
