/** Hostile callers: whatever an ioctl carries, the answer is an errno and the daemon goes on. */
import { closeSync, openSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { viewOf } from "../../src/layout/struct.ts";
import * as wire from "../../src/lease/wire.ts";
import { addon } from "../../src/region/addon.ts";
import { grantRequest } from "../support/grant.ts";
import { useMount } from "../support/mount.ts";
import { run } from "../support/run.ts";

const mount = useMount();

/** The errno of an ioctl, "" if it worked. */
function attempt(descriptor: number, request: number, argument: Uint8Array): string {
  try {
    addon().ioctl(descriptor, request, argument);
    return "";
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

function snapshotIsOver(descriptor: number): boolean {
  const argument = new Uint8Array(wire.WIRE_SNAPSHOT_BYTES);
  wire.WireSnapshot.encode(viewOf(argument), 0, { version: wire.WIRE_VERSION, step: wire.SnapshotStep.NEXT });
  if (attempt(descriptor, wire.Ioctl.SNAPSHOT, argument) !== "") return true;
  return (wire.WireSnapshot.decode(viewOf(argument), 0).flags & wire.SnapshotFlag.DONE) !== 0;
}

function sizeOf(request: number): number {
  return (request >>> 16) & 0x3fff;
}

describe("the ioctl surface", () => {
  test("answers random bytes in every request with an errno or a reply, and stays consistent", async () => {
    const path = join(await mount.fresh(), "file");
    writeFileSync(path, Buffer.alloc(65536, 1));
    const descriptor = openSync(path, "r+");
    try {
      fc.assert(
        fc.property(
          fc.constantFrom(...Object.values(wire.Ioctl)),
          fc.array(fc.tuple(fc.nat(95), fc.nat(255)), { maxLength: 24 }),
          fc.boolean(),
          (request, changes, versioned) => {
            const argument = new Uint8Array(sizeOf(request));
            if (versioned) argument[0] = wire.WIRE_VERSION;
            for (const [at, value] of changes) argument[at % argument.length] = value;
            // A random PREPARE may truly allocate: keep it small enough to be over at once.
            if (request === wire.Ioctl.PREPARE) argument.fill(0, 12);
            const answer = attempt(descriptor, request, argument);
            expect([
              "",
              "EINVAL",
              "EACCES",
              "EBADF",
              "EBUSY",
              "EOPNOTSUPP",
              "ENOENT",
              "ESTALE",
              "ENOSPC",
              "ETXTBSY",
              "ECANCELED",
            ]).toContain(answer);
            // A snapshot that was begun would have the next grant wait: take it to its end.
            while (request === wire.Ioctl.SNAPSHOT && !snapshotIsOver(descriptor));
            // Whatever was granted ends again, so that the next one starts alike.
            if (request === wire.Ioctl.GRANT && answer === "") {
              const leaseId = wire.WireMap.decode(viewOf(argument), 0).leaseId;
              const end = new Uint8Array(wire.WireLease.size);
              wire.WireLease.encode(viewOf(end), 0, { version: wire.WIRE_VERSION, leaseId });
              expect(attempt(descriptor, wire.Ioctl.END, end)).toBe("");
            }
          },
        ),
        { numRuns: 400 },
      );
    } finally {
      closeSync(descriptor);
    }
    await mount.check();
  });

  test("answers an unknown request with ENOTTY and a wrong version with EINVAL", async () => {
    const path = join(await mount.fresh(), "file");
    writeFileSync(path, "x");
    const descriptor = openSync(path, "r+");
    try {
      expect(attempt(descriptor, 0xc008_4dff, new Uint8Array(8))).toBe("ENOTTY");
      expect(attempt(descriptor, wire.Ioctl.EXTENTS, new Uint8Array(wire.WIRE_MAP_BYTES))).toBe("EINVAL");
    } finally {
      closeSync(descriptor);
    }
  });

  test("grants nothing on a directory, nothing on a read-only descriptor, and one lease for each open file", async () => {
    const folder = await mount.fresh();
    const path = join(folder, "file");
    writeFileSync(path, Buffer.alloc(8192));
    const ask = (): Uint8Array => grantRequest(wire.LeaseKind.SEAL, 0, 4096);
    const directory = openSync(folder, "r");
    const reader = openSync(path, "r");
    const writer = openSync(path, "r+");
    try {
      expect(attempt(directory, wire.Ioctl.GRANT, ask())).toBe("EOPNOTSUPP");
      expect(attempt(reader, wire.Ioctl.GRANT, ask())).toBe("EACCES");
      expect(attempt(writer, wire.Ioctl.GRANT, ask())).toBe("");
      expect(attempt(writer, wire.Ioctl.GRANT, ask())).toBe("EBUSY");
    } finally {
      for (const descriptor of [directory, reader, writer]) closeSync(descriptor);
    }
  });

  test("tells an ordinary user nothing about the leases of others", async () => {
    const path = join(await mount.fresh(), "file");
    writeFileSync(path, Buffer.alloc(8192));
    const script = `
      const { ask, withOpen } = await import(process.argv[1]);
      console.log(JSON.stringify(withOpen(process.argv[2], (descriptor) => ask(descriptor, "LEASES"))));`;
    const client = new URL("../../dist/daemon/client.js", import.meta.url).href;
    const argument = grantRequest(wire.LeaseKind.SEAL, 0, 4096);
    const writer = openSync(path, "r+");
    try {
      expect(attempt(writer, wire.Ioctl.GRANT, argument)).toBe("");
      const args = ["--input-type=module", "-e", script, client, mount.path];
      const own = await run(process.execPath, args);
      expect(JSON.parse(own.stdout)).toHaveLength(1);
      if (process.getuid?.() !== 0) return;
      const other = await run(process.execPath, args, { user: 65534 });
      expect(JSON.parse(other.stdout), other.stderr).toEqual([]);
    } finally {
      closeSync(writer);
    }
  });
});
