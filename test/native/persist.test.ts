/** Builds persist_test.cc with address and undefined-behaviour sanitizers, outside of Node, and runs its cases. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { addon, packageRoot } from "../../src/region/addon.ts";

const SOURCES = [
  "test/native/persist_test.cc",
  "native/persist/crc32c.cc",
  "native/persist/copy.cc",
  "native/persist/flush.cc",
  "native/region/guard.cc",
  "native/fuse/busypoll.cc",
];
const compiler = process.env.CXX ?? "g++";
const missing = spawnSync(compiler, ["--version"]).status === 0 ? null : `no ${compiler}`;

describe.skipIf(missing !== null)(
  `native code without Node${missing === null ? "" : ` (skipped: ${missing})`}`,
  () => {
    let directory: string;
    let program: string;

    beforeAll(() => {
      directory = mkdtempSync(join(tmpdir(), "mapdirect-native-"));
      program = join(directory, "persist_test");
      const flags = [
        "-std=c++20",
        "-O1",
        "-g",
        "-D_GNU_SOURCE",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fno-exceptions",
      ];
      const sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
      execFileSync(compiler, [...flags, ...sanitizers, "-Inative", ...SOURCES, "-o", program], {
        cwd: packageRoot,
        stdio: ["ignore", "ignore", "inherit"],
      });
    }, 120_000);
    afterAll(() => {
      if (directory !== undefined) rmSync(directory, { recursive: true, force: true });
    });

    const run = (name: string) => {
      const ended = spawnSync(program, [name], { encoding: "utf8", timeout: 60_000 });
      expect(`${ended.stderr}status ${ended.status}`).toBe("status 0");
    };

    test("CRC-32C gives the values of RFC 3720, in hardware and by table", () => run("golden-vectors"));
    test("CRC-32C in hardware agrees with the table at every alignment, length and cut", () =>
      run("hardware-agrees"));
    test("persistent copies and zeros equal plain ones at every alignment, and touch nothing beside", () =>
      run("copies"));
    test("flushing changes no byte", () => run("flushes"));
    test("a bus error in a guarded range becomes EIO, again and again", () => run("guard-catches"));
    test("a foreign bus error goes where it went before", () => run("guard-chains"));
    test("busy-polling opens its window when it pays and closes it when it does not", () => run("busy-poll"));
  },
);

describe("the addon's checksum and flush", () => {
  test("CRC-32C continues from a seed and honours its slice", () => {
    const bytes = new TextEncoder().encode("xx123456789yy");
    const { crc32c } = addon();
    expect(crc32c(bytes, 2, 9, 0)).toBe(0xe3069283);
    expect(crc32c(bytes, 6, 5, crc32c(bytes, 2, 4, 0))).toBe(0xe3069283);
    expect(crc32c(bytes, 0, 0, 0)).toBe(0);
  });

  test("a slice outside its array is EINVAL", () => {
    const bytes = new Uint8Array(8);
    for (const [start, length] of [
      [0, 9],
      [9, 0],
      [-1, 1],
      [0.5, 1],
    ] as const) {
      expect(() => addon().crc32c(bytes, start, length, 0)).toThrow(
        expect.objectContaining({ code: "EINVAL" }),
      );
    }
    expect(() => addon().crc32c("text" as unknown as Uint8Array, 0, 1, 0)).toThrow(/Uint8Array/);
  });

  test("the methods chosen have names", () => {
    expect(["clwb", "clflushopt", "clflush", "dc cvap", "dc cvac"]).toContain(addon().flushMethod);
    expect(["sse4.2", "armv8-crc", "table"]).toContain(addon().checksumMethod);
  });
});
