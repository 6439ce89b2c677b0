/** Whatever arrives, decoding answers with FsError or with values from inside the request. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { ForgetOne, InHeader, Opcode } from "../../src/fuse/kernel.ts";
import { OPCODE_LIMIT, type OpRow, opcodeName, opRow, opRows } from "../../src/fuse/opcodes.ts";
import { printReply, printRequest } from "../../src/fuse/print.ts";
import { Request } from "../../src/fuse/request.ts";
import { encoded, loaded, named, requestBytes } from "./requests.ts";

/** A well-formed request of an opcode. */
function sample(row: OpRow): Buffer {
  const parts: Uint8Array[] = [];
  if (row.in !== null) {
    const value: Record<string, unknown> = {};
    if (row.sizeField !== null) value[row.sizeField] = 24;
    if (row.opcode === Opcode.BATCH_FORGET) value.count = 2;
    parts.push(encoded(row.in, value));
  }
  switch (row.trailing) {
    case "name":
    case "any name":
    case "xattr name":
      parts.push(named("name"));
      break;
    case "two names":
    case "name+target":
      parts.push(named("old"), named("new\xff"));
      break;
    case "xattr name+data":
      parts.push(named("user.x"), Buffer.alloc(24, 0x55));
      break;
    case "data":
      parts.push(Buffer.alloc(row.opcode === Opcode.BATCH_FORGET ? 2 * ForgetOne.size : 24));
      break;
    case "none":
      break;
  }
  return requestBytes(row.opcode, {}, ...parts);
}

/** Use everything that a handler of this opcode would use. */
function useAll(request: Request): unknown[] {
  const row = request.row;
  if (row === undefined) return [];
  const results: unknown[] = [];
  const attempt = (read: () => unknown): void => {
    try {
      results.push(read());
    } catch (error) {
      if (!(error instanceof FsError)) throw error;
      expect(["EINVAL", "ENAMETOOLONG"]).toContain(error.code);
      results.push(error.code);
    }
  };
  if (row.in !== null) {
    const declared = row.in;
    attempt(() => request.body(declared));
  }
  if (/name/.test(row.trailing)) attempt(() => request.name());
  if (row.trailing === "two names" || row.trailing === "name+target") attempt(() => request.secondName());
  if (/data/.test(row.trailing)) attempt(() => request.data());
  attempt(() => request.supplementaryGroups());
  switch (row.opcode) {
    case Opcode.READ:
    case Opcode.WRITE:
    case Opcode.READDIR:
    case Opcode.READDIRPLUS:
      attempt(() => [request.ioHandle, request.ioOffsetNumber]);
      attempt(() => [
        request.ioOffset,
        request.ioSize,
        request.ioFlags,
        request.ioLockOwner,
        request.ioOpenFlags,
      ]);
      break;
    case Opcode.GETATTR:
      attempt(() => [request.getattrFlags, request.getattrHandle]);
      break;
    case Opcode.FORGET:
      attempt(() => request.forgetLookups);
      break;
    case Opcode.BATCH_FORGET:
      attempt(() => {
        const all: number[][] = [];
        request.batchForget((nodeid, lookups) => all.push([nodeid, lookups]));
        return all;
      });
      break;
    case Opcode.INTERRUPT:
      attempt(() => request.interrupted);
      break;
  }
  return results;
}

/** The load and use of some bytes, surrounded by `filler`: the same result whatever the filler, or reads went outside. */
function outcome(bytes: Uint8Array, setxattrExtended: boolean, filler: number): unknown {
  const arena = Buffer.alloc(bytes.length + 8192, filler);
  arena.set(bytes, 64);
  const request = new Request(arena.subarray(64));
  request.setxattrExtended = setxattrExtended;
  try {
    request.load(bytes.length);
  } catch (error) {
    if (!(error instanceof FsError)) throw error;
    expect(typeof printRequest(request)).toBe("string");
    return [error.code, request.opcode, request.unique];
  }
  const line = printRequest(request);
  expect(line).not.toContain("\n");
  return JSON.stringify([useAll(request), line], (_key, value: unknown) =>
    typeof value === "bigint" ? `${value}n` : value,
  );
}

function sameWhateverSurrounds(bytes: Uint8Array): unknown {
  let last: unknown;
  for (const extended of [true, false]) {
    last = outcome(bytes, extended, 0x00);
    expect(outcome(bytes, extended, 0xee)).toEqual(last);
  }
  return last;
}

const withLength = (bytes: Buffer, length: number): Buffer => {
  bytes.writeUInt32LE(length, InHeader.at.len);
  return bytes;
};

describe.each(opRows.map((row) => [row.name, row] as const))("%s", (_name, row) => {
  const whole = sample(row);

  test("decodes whole", () => {
    const request = loaded(whole);
    for (const result of useAll(request))
      expect(typeof result === "string" && /^E[A-Z]+$/.test(result)).toBe(false);
    expect(request.row).toBe(row);
  });

  test("truncated at every length it decodes or answers FsError, and reads nothing outside", () => {
    for (let length = 0; length < whole.length; length++) {
      const cut = Buffer.from(whole.subarray(0, length));
      // As the kernel would never send it: the header still counts the whole.
      const result = sameWhateverSurrounds(cut) as unknown[];
      expect(result[0]).toBe(length < InHeader.size ? "EPROTO" : "EINVAL");
      if (length >= InHeader.size) {
        expect(result[1]).toBe(row.opcode);
        expect(result[2]).toBe(2n);
        // With an honest header, too.
        sameWhateverSurrounds(withLength(cut, length));
      }
    }
  });

  test("with any byte set to 0xff, it decodes or answers FsError", () => {
    for (let at = 0; at < whole.length; at++) {
      const damaged = Buffer.from(whole);
      damaged[at] = 0xff;
      sameWhateverSurrounds(damaged);
    }
  });

  test("a clone says the same after the buffer was overwritten", () => {
    const request = loaded(whole);
    const before = useAll(request).map((each) => (Buffer.isBuffer(each) ? Buffer.from(each) : each));
    const copy = request.clone();
    request.bytes.fill(0xdd);
    expect(useAll(copy)).toEqual(before);
    expect([copy.opcode, copy.unique, copy.nodeid, copy.length]).toEqual([row.opcode, 2n, 1, whole.length]);
    expect(useAll(copy.clone())).toEqual(before);
  });
});

describe("names", () => {
  const lookup = (...parts: Uint8Array[]): Request => loaded(requestBytes(Opcode.LOOKUP, {}, ...parts));
  const unlink = (name: string): Request => loaded(requestBytes(Opcode.UNLINK, {}, named(name)));
  const symlink = (target: string): Request =>
    loaded(requestBytes(Opcode.SYMLINK, {}, named("link"), named(target)));

  test("of 255 bytes are taken, of 256 are ENAMETOOLONG, also when no NUL is near", () => {
    expect(lookup(named("x".repeat(255))).name()).toHaveLength(255);
    for (const length of [256, 1024, 5000]) {
      expect(() => lookup(named("x".repeat(length))).name()).toThrow("ENAMETOOLONG");
    }
  });

  test("without NUL, empty, or with a slash are EINVAL", () => {
    expect(() => lookup(Buffer.from("abc")).name()).toThrow("EINVAL");
    expect(() => lookup(Buffer.alloc(3000, 0x61)).name()).toThrow("EINVAL");
    expect(() => lookup(named("")).name()).toThrow("EINVAL");
    expect(() => lookup(named("a/b")).name()).toThrow("EINVAL");
    expect(() => lookup().name()).toThrow("EINVAL");
  });

  test("that are dots are for LOOKUP alone", () => {
    expect(lookup(named(".")).name()).toBe(".");
    expect(lookup(named("..")).name()).toBe("..");
    expect(() => unlink(".").name()).toThrow("EINVAL");
    expect(() => unlink("..").name()).toThrow("EINVAL");
    expect(unlink("...").name()).toBe("...");
  });

  test("that are targets of symbolic links hold up to 4095 bytes of anything", () => {
    expect(symlink("/".repeat(4095)).secondName()).toHaveLength(4095);
    expect(() => symlink("/".repeat(4096)).secondName()).toThrow("ENAMETOOLONG");
    expect(symlink("..").secondName()).toBe("..");
    expect(() => symlink("").secondName()).toThrow("EINVAL");
  });

  test("round-trip byte for byte", () => {
    const byte = fc.integer({ min: 1, max: 255 }).filter((value) => value !== 0x2f);
    fc.assert(
      fc.property(fc.uint8Array({ min: 1, max: 255, minLength: 1, maxLength: 255 }), byte, (raw, spare) => {
        const bytes = raw.map((value) => (value === 0x2f ? spare : value));
        const name = lookup(bytes, Buffer.of(0)).name();
        expect(Buffer.from(name, "latin1")).toEqual(Buffer.from(bytes));
      }),
    );
  });
});

describe("headers", () => {
  test("with a node id above 2^53 - 1 are EINVAL, and the id is there to answer to", () => {
    const bytes = requestBytes(Opcode.GETATTR, {}, Buffer.alloc(16));
    bytes.writeBigUInt64LE(2n ** 53n, InHeader.at.nodeid);
    const request = new Request(bytes);
    expect(() => request.load(bytes.length)).toThrow("EINVAL");
    expect([request.opcode, request.unique]).toEqual([Opcode.GETATTR, 2n]);
    bytes.writeBigUInt64LE(2n ** 53n - 1n, InHeader.at.nodeid);
    request.load(bytes.length);
    expect(request.nodeid).toBe(Number.MAX_SAFE_INTEGER);
  });

  test("a failed load leaves nothing of the request before", () => {
    const bytes = requestBytes(Opcode.GETATTR, {}, Buffer.alloc(16));
    const request = new Request(bytes);
    request.load(bytes.length);
    expect(() => request.load(20)).toThrow("EPROTO");
    expect([request.opcode, request.unique, request.nodeid, request.length, request.row]).toEqual([
      0,
      0n,
      0,
      0,
      undefined,
    ]);
    expect(() => request.load(bytes.length + 1)).toThrow("EPROTO");
  });

  test("of unknown opcodes load, and have no row", () => {
    for (const opcode of [0, 7, 19, 54, 4096, 0xffff_ffff]) {
      const request = loaded(requestBytes(opcode, {}, Buffer.alloc(3)));
      expect(request.opcode).toBe(opcode);
      expect(request.row).toBeUndefined();
      expect(printRequest(request)).toContain(opcodeName(opcode));
    }
  });

  test("with extensions that do not fit are EINVAL", () => {
    const bytes = requestBytes(Opcode.UNLINK, { totalExtlen: 2 }, named("0123456"));
    expect(() => loaded(bytes)).toThrow("EINVAL");
    const tooMany = Buffer.alloc(16);
    tooMany.writeUInt32LE(16, 0);
    tooMany.writeUInt32LE(32, 4);
    tooMany.writeUInt32LE(2, 8);
    const request = loaded(requestBytes(Opcode.UNLINK, { totalExtlen: 2 }, named("a"), tooMany));
    expect(request.name()).toBe("a");
    expect(() => request.supplementaryGroups()).toThrow("EINVAL");
  });

  test("of a request that was sent again say so", () => {
    const bytes = requestBytes(Opcode.STATFS, { unique: (1n << 63n) | 6n });
    expect(loaded(bytes).resent).toBe(true);
    expect(loaded(bytes).unique).toBe((1n << 63n) | 6n);
  });
});

describe("BATCH_FORGET", () => {
  test("calls for no element when one is damaged", () => {
    const good = encoded(ForgetOne, { nodeid: 4, nlookup: 1 });
    const bad = Buffer.alloc(16, 0xff);
    const header = Buffer.alloc(8);
    header.writeUInt32LE(2, 0);
    const request = loaded(requestBytes(Opcode.BATCH_FORGET, {}, header, good, bad));
    const seen: number[] = [];
    expect(() => request.batchForget((nodeid) => seen.push(nodeid))).toThrow("EINVAL");
    expect(seen).toEqual([]);
  });

  test("with a count beyond the request is EINVAL", () => {
    const header = Buffer.alloc(8);
    header.writeUInt32LE(0xffff_ffff, 0);
    const request = loaded(requestBytes(Opcode.BATCH_FORGET, {}, header, Buffer.alloc(32)));
    expect(() => request.batchForget(() => {})).toThrow("EINVAL");
  });
});

test("any bytes decode or answer FsError, whatever surrounds them", () => {
  const anyOpcode = fc.oneof(fc.constantFrom(...opRows.map((row) => row.opcode)), fc.nat(OPCODE_LIMIT + 5));
  fc.assert(
    fc.property(anyOpcode, fc.nat(3), fc.uint8Array({ maxLength: 400 }), (opcode, totalExtlen, body) => {
      sameWhateverSurrounds(requestBytes(opcode, { totalExtlen }, body));
    }),
    { numRuns: 2000 },
  );
});

test("any bytes at all print as a reply without throwing, on one line", () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...opRows),
      fc.uint8Array({ maxLength: 400 }),
      fc.nat(130),
      (row, body, error) => {
        const request = { unique: 4n, opcode: row.opcode, row };
        expect(printReply(request, 0, body, 0, body.length)).not.toContain("\n");
        expect(printReply(request, error + 1, body, 0, body.length)).toMatch(/ E[A-Z0-9]+$| errno \d+$/);
      },
    ),
    { numRuns: 500 },
  );
});

test("every opcode has one row, under its own number and name", () => {
  expect(opRows.map((row) => row.name).sort()).toEqual(Object.keys(Opcode).sort());
  for (const row of opRows) {
    expect(opRow(row.opcode)).toBe(row);
    expect(Opcode[row.name]).toBe(row.opcode);
  }
  expect(opRow(OPCODE_LIMIT)).toBeUndefined();
});
