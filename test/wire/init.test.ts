import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { featureNames, type InitWishes, negotiate, requestBufferBytes } from "../../src/fuse/init.ts";
import { InitBit, type InitFlagName, InitIn, InitOut, Opcode } from "../../src/fuse/kernel.ts";
import { type StructValue, viewOf } from "../../src/layout/struct.ts";
import { hex, loaded, requestBytes } from "./requests.ts";

/** INIT as Linux 6.18 sends it (protocol 7.45). */
const linux618 = hex(`
  68000000 1a000000 0200000000000000 0000000000000000 00000000 00000000 00000000 0000 0000
  07000000           | major
  2d000000           | minor 45
  00000200           | max_readahead 128 KiB
  fbffff73           | flags
  fd050000           | flags2
  ${"00".repeat(44)}`);

const wishes: InitWishes = {
  flags: ["ASYNC_READ", "ATOMIC_O_TRUNC", "DO_READDIRPLUS", "SETXATTR_EXT", "DIRECT_IO_ALLOW_MMAP"],
  maxWriteBytes: 1 << 20,
  maxReadaheadBytes: 1 << 20,
  maxBackground: 64,
  congestionThreshold: 48,
};

type Kernel = StructValue<typeof InitIn>;
const kernel = (value: Partial<Kernel>): Kernel => ({
  major: 7,
  minor: 45,
  maxReadahead: 131072,
  flags: 0,
  flags2: 0,
  unused: new Uint8Array(44),
  ...value,
});
const bit = (...names: InitFlagName[]): number =>
  names.reduce((sum, name) => (sum | (1 << (InitBit[name] % 32))) >>> 0, 0);

describe("INIT", () => {
  test("of Linux 6.18 is answered with these bytes", () => {
    const request = loaded(linux618);
    expect(request.opcode).toBe(Opcode.INIT);
    const result = negotiate(request.body(InitIn), wishes);
    expect(Buffer.from(result.reply)).toEqual(
      hex(`
        07000000           | major
        2d000000           | minor 45
        00000200           | max_readahead: the kernel's
        29204060           | ASYNC_READ 0, ATOMIC_O_TRUNC 3, BIG_WRITES 5, DO_READDIRPLUS 13, MAX_PAGES 22, SETXATTR_EXT 29, INIT_EXT 30
        4000 3000          | max_background, congestion_threshold
        00001000           | max_write
        01000000           | time_gran
        0001 0000          | max_pages 256, map_alignment
        10000000           | flags2: DIRECT_IO_ALLOW_MMAP
        00000000           | max_stack_depth
        0000               | request_timeout
        ${"00".repeat(22)}`),
    );
    expect(result).toMatchObject({ again: false, minor: 45, kernelMinor: 45, refused: [], maxPages: 256 });
    expect(featureNames(result.features)).toEqual([
      "ASYNC_READ",
      "ATOMIC_O_TRUNC",
      "BIG_WRITES",
      "DO_READDIRPLUS",
      "MAX_PAGES",
      "SETXATTR_EXT",
      "INIT_EXT",
      "DIRECT_IO_ALLOW_MMAP",
    ]);
    expect(result.offered).toContain("PASSTHROUGH");
    expect(result.offered).not.toContain("OVER_IO_URING");
  });

  test("of a kernel before 7.36 is 16 bytes and has no second flag word", () => {
    const request = loaded(requestBytes(Opcode.INIT, {}, hex("07000000 1f000000 00000200 ffffff0f")));
    const result = negotiate(request.body(InitIn), wishes);
    expect(result.minor).toBe(31);
    expect(result.features.DIRECT_IO_ALLOW_MMAP).toBe(false);
    expect(result.features.SETXATTR_EXT).toBe(false);
    expect(result.features.INIT_EXT).toBe(false);
    expect(result.refused).toEqual(["SETXATTR_EXT", "DIRECT_IO_ALLOW_MMAP", "INIT_EXT"]);
    expect(InitOut.decode(viewOf(result.reply), 0)).toMatchObject({ minor: 31, flags2: 0 });
  });

  test("without INIT_EXT does not believe what lies in flags2", () => {
    const result = negotiate(kernel({ flags: bit("ASYNC_READ"), flags2: 0xffff_ffff }), wishes);
    expect(featureNames(result.features)).toEqual(["ASYNC_READ"]);
    expect(result.offered).toEqual(["ASYNC_READ"]);
  });

  test("without MAX_PAGES keeps writes at 32 pages", () => {
    const result = negotiate(kernel({}), wishes);
    expect(result.maxPages).toBe(32);
    expect(result.maxWriteBytes).toBe(131072);
    expect(InitOut.decode(viewOf(result.reply), 0)).toMatchObject({ maxPages: 0, maxWrite: 131072 });
    const bigPages = negotiate(kernel({ flags: bit("MAX_PAGES") }), { ...wishes, pageBytes: 65536 });
    expect([bigPages.maxPages, bigPages.maxWriteBytes]).toEqual([16, 1 << 20]);
  });

  test("of a kernel that is too old is EPROTO, and the message says what is needed", () => {
    for (const version of [
      { major: 7, minor: 30 },
      { major: 6, minor: 99 },
    ]) {
      let thrown: unknown;
      try {
        negotiate(kernel(version), wishes);
      } catch (error) {
        thrown = error;
      }
      expect(thrown).toBeInstanceOf(FsError);
      expect((thrown as FsError).code).toBe("EPROTO");
      expect((thrown as FsError).message).toContain(`${version.major}.${version.minor}`);
      expect((thrown as FsError).message).toContain("7.31");
    }
    // A kernel before 7.6 sends eight bytes.
    const ancient = loaded(requestBytes(Opcode.INIT, {}, hex("07000000 05000000")));
    expect(() => negotiate(ancient.body(InitIn), wishes)).toThrow("EPROTO");
  });

  test("of a newer major version gets ours, and waits for another INIT", () => {
    const result = negotiate(kernel({ major: 8, minor: 0 }), wishes);
    expect(result.again).toBe(true);
    expect(InitOut.decode(viewOf(result.reply), 0)).toMatchObject({ major: 7, minor: 46, flags: 0 });
    expect(featureNames(result.features)).toEqual([]);
  });

  test("of a newer minor version uses ours, and names bits that it does not know", () => {
    const result = negotiate(
      kernel({ minor: 60, flags: bit("INIT_EXT"), flags2: 0x8000_0000 | (1 << 13) }),
      wishes,
    );
    expect([result.minor, result.kernelMinor]).toEqual([46, 60]);
    expect(result.offered).toEqual(["INIT_EXT", "bit 45", "bit 63"]);
  });

  test("asks for passthrough and timeouts only with their numbers", () => {
    const offers = kernel({ flags: bit("INIT_EXT"), flags2: bit("PASSTHROUGH", "REQUEST_TIMEOUT") });
    const asked: InitWishes = { ...wishes, flags: ["PASSTHROUGH", "REQUEST_TIMEOUT"] };
    expect(featureNames(negotiate(offers, asked).features)).toEqual(["INIT_EXT"]);
    const both = negotiate(offers, { ...asked, maxStackDepth: 1, requestTimeoutSec: 30 });
    expect(featureNames(both.features)).toEqual(["INIT_EXT", "PASSTHROUGH", "REQUEST_TIMEOUT"]);
    expect(InitOut.decode(viewOf(both.reply), 0)).toMatchObject({ maxStackDepth: 1, requestTimeout: 30 });
  });

  test("turns every single flag on when both sides want it, and at the right bit", () => {
    for (const name of Object.keys(InitBit) as InitFlagName[]) {
      if (name === "INIT_RESERVED") continue;
      const high = InitBit[name] >= 32;
      const offers = kernel({
        flags: high ? bit("INIT_EXT") : bit(name),
        flags2: high ? bit(name) : 0,
      });
      const result = negotiate(offers, { ...wishes, flags: [name], maxStackDepth: 1, requestTimeoutSec: 1 });
      expect(result.features[name]).toBe(true);
      const reply = InitOut.decode(viewOf(result.reply), 0);
      expect([reply.flags, reply.flags2]).toEqual([offers.flags, offers.flags2]);
    }
  });
});

test("the request buffer holds a whole write, and is never below what the kernel accepts", () => {
  expect(requestBufferBytes(4096)).toBeGreaterThanOrEqual(8192);
  for (const bytes of [4096, 131072, 1 << 20, 16 << 20]) {
    expect(requestBufferBytes(bytes)).toBeGreaterThanOrEqual(bytes + 80 + 4096);
    expect(requestBufferBytes(bytes) % 4096).toBe(0);
  }
});
