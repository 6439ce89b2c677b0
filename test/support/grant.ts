/** The GRANT ioctl as the client library sends it, for tests that stand in for the library. */
import { closeSync, openSync } from "node:fs";
import { onTestFinished } from "vitest";
import { viewOf } from "../../src/layout/struct.ts";
import * as wire from "../../src/lease/wire.ts";
import { addon } from "../../src/region/addon.ts";

export function grantRequest(kind: number, offset: number, length: number, flags = 0): Uint8Array {
  const argument = new Uint8Array(wire.WIRE_GRANT_BYTES);
  wire.WireMap.encode(viewOf(argument), 0, {
    version: wire.WIRE_VERSION,
    kind,
    flags,
    offset: BigInt(offset),
    length: BigInt(length),
  });
  return argument;
}

/** Holds a lease on [0, length) until it is let go, at the latest at the end of the test. */
export function hold(path: string, kind: number, length: number, flags = 0): () => void {
  const descriptor = openSync(path, "r+");
  let open = true;
  const letGo = (): void => {
    if (open) closeSync(descriptor);
    open = false;
  };
  // Or the mount would be in use when a test has failed.
  onTestFinished(letGo);
  addon().ioctl(descriptor, wire.Ioctl.GRANT, grantRequest(kind, 0, length, flags));
  return letGo;
}
