import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatSize, parseCount, parseOffset, parseSize } from "../../src/daemon/sizes.ts";

describe("sizes", () => {
  test.each([
    ["0", 0],
    ["4096", 4096],
    ["4K", 4096],
    ["256M", 256 * 1024 ** 2],
    ["1G", 1024 ** 3],
    ["8T", 8 * 1024 ** 4],
    ["9007199254740991", Number.MAX_SAFE_INTEGER],
  ])("%s is %d bytes", (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  test.each([
    "",
    " 1",
    "1 ",
    "1g",
    "1GB",
    "1GiB",
    "1.5G",
    "-1",
    "+1",
    "0x10",
    "01",
    "1e3",
    "K",
    "9007199254740992",
    "9000T",
  ])("%o is no size", (text) => {
    expect(parseSize(text)).toBeUndefined();
  });

  test("an offset reaches to 2^63 - 1 and no further", () => {
    expect(parseOffset("9223372036854775807")).toBe(2n ** 63n - 1n);
    expect(parseOffset("9223372036854775808")).toBeUndefined();
    expect(parseOffset("8388608T")).toBeUndefined();
    expect(parseOffset("1T")).toBe(1024n ** 4n);
  });

  test("every whole number of a unit is read as itself", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 4000 }),
        fc.constantFrom("", "K", "M", "G", "T"),
        (value, unit) => {
          const bytes = value * 1024 ** ["", "K", "M", "G", "T"].indexOf(unit);
          expect(parseSize(`${value}${unit}`)).toBe(bytes);
          expect(parseOffset(`${value}${unit}`)).toBe(BigInt(bytes));
        },
      ),
    );
  });

  test("sizes are shown in the largest unit that keeps them readable", () => {
    expect([0, 4096, 10_240, 1024 ** 2, 1024 ** 3, 1.5 * 1024 ** 3].map(formatSize)).toEqual([
      "0 B",
      "4096 B",
      "10 KiB",
      "1 MiB",
      "1 GiB",
      "1.50 GiB",
    ]);
  });

  test("a count is decimal and bounded", () => {
    expect(parseCount("45", 100)).toBe(45);
    expect(parseCount("101", 100)).toBeUndefined();
    expect(parseCount("4.5", 100)).toBeUndefined();
    expect(parseCount("", 100)).toBeUndefined();
  });
});
