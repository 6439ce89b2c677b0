/** fsync(2) after stores through a direct mapping, on a region of cache-line granularity. */
import { beforeEach, describe, expect, test } from "vitest";
import { type Lease, LeaseTable } from "../../src/lease/table.ts";
import { LeaseKind } from "../../src/lease/wire.ts";
import { write } from "../../src/namespace/data.ts";
import { fallocate } from "../../src/namespace/fallocate.ts";
import type { Inode } from "../../src/namespace/inode.ts";
import * as names from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import { DirectStores } from "../../src/session/direct-stores.ts";
import type { MemoryRegion } from "../support/memory-region.ts";
import { MIB, makeVolume, owner } from "../support/volume.ts";

const BLOCK = 4096;

let region: MemoryRegion;
let store: Store;
let leases: LeaseTable;
let stores: DirectStores;
let inode: Inode;

beforeEach(async () => {
  region = await makeVolume(32 * MIB, "cacheline", { recording: true });
  store = await Store.open(region, { readOnly: false });
  leases = new LeaseTable({
    direct: "breakable",
    breakTimeSeconds: 1,
    maxLeases: 100,
    maxLeasedBytes: 32 * MIB,
    administratorUid: 0,
  });
  stores = new DirectStores(store, leases);
  const root = store.inode(1);
  inode = names.create(store, root, "file", 0o100644, 0, owner, null);
  write(store, inode, 0n, new Uint8Array(16 * BLOCK).fill(1), 0, 16 * BLOCK, false);
  fallocate(store, inode, 1, BigInt(100 * BLOCK), BigInt(BLOCK), false);
  await store.sync();
});

function lease(block: number, count: number): Lease {
  const granted = leases.grant({
    inode,
    kind: LeaseKind.BREAKABLE,
    flags: 0,
    offset: BigInt(block * BLOCK),
    length: BigInt(count * BLOCK),
    block,
    count,
    blockBytes: BLOCK,
    holder: { pid: 1, uid: 0, command: "test" },
  });
  stores.note(inode, block, count);
  return granted;
}

const physical = (block: number): number => {
  const piece = inode.extents?.next(block);
  if (piece === null || piece === undefined) throw new Error("no such block");
  return (piece.physical + block - piece.block) * BLOCK;
};

/** Whoever has a mapping stores; `value` in each byte of the block. */
const storeDirectly = (block: number, value: number): void =>
  region.storeFromOutside(physical(block), new Uint8Array(BLOCK).fill(value));

/** What is left of a block when nothing that was not flushed has reached the media. */
const afterPowerCut = (block: number): number => region.afterPowerCut(() => false)[physical(block)] as number;

describe("fsync after direct stores", () => {
  test("makes them durable while the lease is held, as often as it is called", async () => {
    lease(0, 16);
    storeDirectly(3, 7);
    expect(afterPowerCut(3)).toBe(1);
    await stores.flush(inode);
    expect(afterPowerCut(3)).toBe(7);
    storeDirectly(15, 8);
    await stores.flush(inode);
    expect(afterPowerCut(15)).toBe(8);
  });

  test("and once more after it has ended, but not for ever", async () => {
    const held = lease(2, 2);
    storeDirectly(2, 9);
    leases.end(held);
    await stores.flush(inode);
    expect(afterPowerCut(2)).toBe(9);
    storeDirectly(2, 10);
    await stores.flush(inode);
    expect(afterPowerCut(2)).toBe(9);
  });

  test("only what was leased", async () => {
    lease(0, 1);
    storeDirectly(5, 11);
    await stores.flush(inode);
    expect(afterPowerCut(5)).toBe(1);
  });

  test("ranges that reach into holes, and more of them than are noted one by one", async () => {
    lease(8, 200);
    for (let block = 0; block < 8; block += 1)
      for (let round = 0; round < 20; round += 1) leases.end(lease(block, 1));
    storeDirectly(0, 12);
    storeDirectly(7, 13);
    storeDirectly(100, 14);
    await stores.flush(inode);
    expect([0, 7, 100].map(afterPowerCut)).toEqual([12, 13, 14]);
  });
});
