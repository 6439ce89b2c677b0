import { describe, expect, test } from "vitest";
import { CorruptionError, InvariantError } from "../../src/base/errors.ts";
import {
  big64,
  bytes,
  getU64,
  i32,
  i64,
  setU64,
  struct,
  text,
  toC,
  toMarkdown,
  u8,
  u16,
  u32,
  u64,
  viewOf,
} from "../../src/layout/struct.ts";

const Sample = struct(
  "sample",
  "One of each.",
  {
    small: u8("a byte"),
    reserved0: u8("zero"),
    medium: u16("two"),
    plain: u32("four"),
    signed: i32("signed"),
    reserved1: u32("zero"),
    number: u64("up to 2^53 - 1"),
    huge: big64("all 64 bits"),
    time: i64("signed, 64 bits"),
    raw: bytes(5, "bytes"),
    label: text(8, "text"),
    reservedTail: bytes(3, "zero"),
  },
  56,
);

const value = {
  small: 200,
  reserved0: 0,
  medium: 65535,
  plain: 0xffff_fffe,
  signed: -5,
  reserved1: 0,
  number: Number.MAX_SAFE_INTEGER,
  huge: 2n ** 64n - 1n,
  time: -(2n ** 63n),
  raw: Uint8Array.of(1, 2, 3, 4, 5),
  label: "né",
  reservedTail: new Uint8Array(3),
};

describe("a struct", () => {
  test("decodes what it has encoded, at any offset", () => {
    for (const at of [0, 3, 8]) {
      const data = new Uint8Array(Sample.size + 16).fill(0xee);
      Sample.encode(viewOf(data), at, value);
      expect(Sample.decode(viewOf(data), at)).toEqual(value);
      expect(data.subarray(at + Sample.size).every((byte) => byte === 0xee)).toBe(true);
    }
  });

  test("is little-endian, with the offsets that it says", () => {
    const data = new Uint8Array(Sample.size);
    Sample.encode(viewOf(data), 0, { medium: 0x0102, number: 2 ** 32 + 5, label: "12345678" });
    expect([...data.subarray(Sample.at.medium, Sample.at.medium + 2)]).toEqual([2, 1]);
    expect([...data.subarray(Sample.at.number, Sample.at.number + 8)]).toEqual([5, 0, 0, 0, 1, 0, 0, 0]);
    expect(Sample.decode(viewOf(data), 0).label).toBe("12345678");
    expect(Sample.at).toMatchObject({
      small: 0,
      medium: 2,
      plain: 4,
      signed: 8,
      number: 16,
      huge: 24,
      label: 45,
    });
  });

  test("writes zero for what is left out, over whatever was there", () => {
    const data = new Uint8Array(Sample.size).fill(0xff);
    Sample.encode(viewOf(data), 0, {});
    expect(data.every((byte) => byte === 0)).toBe(true);
  });

  test("reports every reserved byte that is not zero as damage", () => {
    for (const field of Sample.fields.filter((one) => one.name.startsWith("reserved"))) {
      for (let byte = 0; byte < field.size; byte += 1) {
        const data = new Uint8Array(Sample.size);
        Sample.encode(viewOf(data), 0, value);
        data[field.offset + byte] = 1;
        expect(() => Sample.decode(viewOf(data), 0)).toThrow(CorruptionError);
      }
    }
  });

  test("reports a number above 2^53 - 1 as damage", () => {
    const data = new Uint8Array(Sample.size);
    const view = viewOf(data);
    view.setBigUint64(Sample.at.number, 2n ** 53n, true);
    expect(() => Sample.decode(view, 0)).toThrow(/2\^53/);
    view.setBigUint64(Sample.at.number, 2n ** 53n - 1n, true);
    expect(Sample.decode(view, 0).number).toBe(2 ** 53 - 1);
  });

  test("reports text that is no UTF-8 as damage: it could not be written again as it was", () => {
    const data = new Uint8Array(Sample.size);
    data.fill(0xb0, Sample.at.label, Sample.at.label + 8);
    expect(() => Sample.decode(viewOf(data), 0)).toThrow(/label.*UTF-8/);
  });

  test("refuses bytes and text that are too long: a bug of ours, not truncated", () => {
    const data = new Uint8Array(Sample.size);
    expect(() => Sample.encode(viewOf(data), 0, { label: "123456789" })).toThrow(InvariantError);
    expect(() => Sample.encode(viewOf(data), 0, { raw: new Uint8Array(6) })).toThrow(InvariantError);
  });

  test("cannot be declared with holes, a wrong size, or an odd end", () => {
    expect(() => struct("a", "", { x: u8(""), y: u32("") }, 8)).toThrow(/not aligned/);
    expect(() => struct("a", "", { x: u32("") }, 8)).toThrow(/declared as 8/);
    expect(() => struct("a", "", { x: u64(""), y: u8("") }, 9)).toThrow(/not a multiple/);
  });

  test("becomes C with every offset asserted, and a table", () => {
    const c = toC(Sample);
    expect(c).toContain("uint8_t raw[5]; /* bytes */");
    expect(c).toContain('_Static_assert(sizeof(struct sample) == 56, "sample: size");');
    for (const field of Sample.fields) expect(c).toMatch(new RegExp(`== ${field.offset}, "sample\\.`));
    expect(toMarkdown(Sample)).toContain("| 45 | 8 | `label` | text |");
  });
});

test("64-bit numbers survive the way through memory, up to 2^53 - 1, and are NaN above", () => {
  const view = new DataView(new ArrayBuffer(8));
  for (const number of [0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 52 + 12345, Number.MAX_SAFE_INTEGER]) {
    setU64(view, 0, number);
    expect(getU64(view, 0)).toBe(number);
    expect(view.getBigUint64(0, true)).toBe(BigInt(number));
  }
  for (const big of [2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
    view.setBigUint64(0, big, true);
    expect(getU64(view, 0)).toBeNaN();
  }
});
