/** The GRANT ioctl as the client library sends it, for tests that stand in for the library. */
import { viewOf } from "../../src/layout/struct.ts";
import * as wire from "../../src/lease/wire.ts";

export function grantRequest(kind: number, offset: number, length: number): Uint8Array {
  const argument = new Uint8Array(wire.WIRE_GRANT_BYTES);
  wire.WireMap.encode(viewOf(argument), 0, {
    version: wire.WIRE_VERSION,
    kind,
    offset: BigInt(offset),
    length: BigInt(length),
  });
  return argument;
}
