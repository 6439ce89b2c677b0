import { expect, test } from "vitest";
import type { Request } from "../../src/fuse/request.ts";
import { viewOf } from "../../src/layout/struct.ts";
import * as wire from "../../src/lease/wire.ts";
import { resizeMounted } from "../../src/namespace/resize-mounted.ts";
import { Store } from "../../src/namespace/store.ts";
import { snapshot } from "../../src/session/handlers/snapshot.ts";
import type { Handle } from "../../src/session/handles.ts";
import type { Session } from "../../src/session/session.ts";
import { Snapshots } from "../../src/session/snapshots.ts";
import { MIB, makeVolume } from "../support/volume.ts";

test("a snapshot has the size that the volume has when it begins, though it grew just before", async () => {
  const store = await Store.open(await makeVolume(8 * MIB, "page"), { readOnly: false });
  const volume = { store, leases: { size: 0 } };
  const session = { volume, snapshots: new Snapshots(), options: { uid: 0 } } as unknown as Session;
  const payload = new Uint8Array(wire.WIRE_SNAPSHOT_BYTES);
  const begin = { version: wire.WIRE_VERSION, step: wire.SnapshotStep.BEGIN, flags: 0 };
  wire.WireSnapshot.encode(viewOf(payload), 0, begin);
  // The beginning waits for a sync, and others are served meanwhile.
  const sync = store.sync.bind(store);
  store.sync = async () => {
    await sync();
    store.sync = sync;
    await resizeMounted(store, 9 * MIB, {
      run: async (operation) => operation(),
      pause: async () => {},
    });
  };
  const reply = await snapshot(session, { uid: 0 } as Request, {} as Handle, payload);
  expect(wire.WireSnapshot.decode(viewOf(reply), 0).regionBytes).toBe(9 * MIB);
  session.snapshots.end();
  await store.close();
});
