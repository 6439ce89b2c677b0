/** A change of a file in very many parts, as fallocate(2) over as many holes is one, and a lease in its way. */
import { expect, test } from "vitest";
import { Wait } from "../../src/base/wait.ts";
import { LeaseTable } from "../../src/lease/table.ts";
import { LeaseKind } from "../../src/lease/wire.ts";
import * as names from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import { MIB, makeVolume, owner } from "../support/volume.ts";

const BLOCK = 4096;
const PARTS = 150_000;

test("a lease is broken once for a change in 150,000 parts, from the first of them to the last", async () => {
  const store = await Store.open(await makeVolume(4 * MIB, "cacheline"), { readOnly: false });
  const inode = names.create(store, store.inode(1), "file", 0o100644, 0, owner, null);
  const leases = new LeaseTable({
    direct: "breakable",
    breakTimeSeconds: 1,
    maxLeases: 1,
    maxLeasedBytes: MIB,
    administratorUid: 0,
  });
  const lease = leases.grant({
    inode,
    kind: LeaseKind.BREAKABLE,
    flags: 0,
    offset: 0n,
    length: BigInt(3 * PARTS * BLOCK),
    block: 0,
    count: 3 * PARTS,
    blockBytes: BLOCK,
    holder: { pid: 1, uid: 0, command: "test" },
  });
  try {
    const changes = Array.from({ length: PARTS }, (_, index) => ({ block: 3 + 2 * index, count: 1 }));
    expect(() => leases.beforeMapChange(inode, changes)).toThrow(Wait);
    expect(lease.break).toMatchObject({
      offset: BigInt(3 * BLOCK),
      length: BigInt((2 * PARTS - 1) * BLOCK),
    });
  } finally {
    leases.close();
    await store.close();
  }
});
