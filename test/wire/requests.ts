/** Builds requests the way the kernel lays them out, for the tests of this folder. */
import { type AnyStruct, InHeader } from "../../src/fuse/kernel.ts";
import { Request } from "../../src/fuse/request.ts";
import { viewOf } from "../../src/layout/struct.ts";

export interface HeaderFields {
  unique?: bigint;
  nodeid?: number;
  uid?: number;
  gid?: number;
  pid?: number;
  totalExtlen?: number;
}

/** Bytes from hex digits; white space and everything after a `|` in a line is for the reader. */
export function hex(text: string): Buffer {
  const digits = text
    .split("\n")
    .map((line) => line.split("|")[0] ?? "")
    .join("")
    .replace(/\s/g, "");
  const bytes = Buffer.from(digits, "hex");
  if (bytes.length * 2 !== digits.length) throw new Error(`broken hex: ${digits}`);
  return bytes;
}

export function encoded(declared: AnyStruct, value: Record<string, unknown>): Buffer {
  const bytes = Buffer.alloc(declared.size);
  declared.encode(viewOf(bytes), 0, value);
  return bytes;
}

/** A latin1 name and its NUL. */
export const named = (name: string): Buffer => Buffer.from(`${name}\0`, "latin1");

export function requestBytes(opcode: number, header: HeaderFields, ...parts: Uint8Array[]): Buffer {
  const length = InHeader.size + parts.reduce((sum, part) => sum + part.length, 0);
  return Buffer.concat([
    encoded(InHeader, { unique: 2n, nodeid: 1, ...header, len: length, opcode }),
    ...parts,
  ]);
}

/** Load bytes that lie in the middle of a larger buffer of 0xEE, so that reading outside shows. */
export function loaded(bytes: Uint8Array, setxattrExtended = true): Request {
  const arena = Buffer.alloc(bytes.length + 8192, 0xee);
  arena.set(bytes, 64);
  const request = new Request(arena.subarray(64));
  request.setxattrExtended = setxattrExtended;
  request.load(bytes.length);
  return request;
}
