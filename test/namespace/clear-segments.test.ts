/** Making room for metadata where the free space is in single blocks. test/namespace/full.test.ts needs that room. */
import { describe, expect, test } from "vitest";
import { retrying } from "../../src/base/wait.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { SegmentClearer } from "../../src/namespace/clear-segments.ts";
import { read } from "../../src/namespace/data.ts";
import { S_IFREG } from "../../src/namespace/inode.ts";
import { create, lookup, unlink } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { Recorder } from "../powercut/recorder.ts";
import { apply, settle, statesOf } from "../powercut/states.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { crowd, MIB, makeVolume, onAnotherBoot, owner, randomOf } from "../support/volume.ts";
import { Model } from "./model.ts";
import { expectSame } from "./spread.ts";

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));
const SEGMENT_BLOCKS = 32;

/** Every second block is free, and no more in reserve than `segments`. */
async function inCrumbs(granularity: Granularity, segments = 6): Promise<[MemoryRegion, Store]> {
  const region = await makeVolume(8 * MIB, granularity);
  const store = await Store.open(region, { readOnly: false });
  // A store that takes nothing but room for itself says what is where.
  crowd(store, segments, ["odd", "even"]);
  const odd = lookup(store, store.root, "odd");
  for (const { block, count, physical } of odd.extents ?? [])
    for (let at = 0; at < count; at += 1)
      region.write((physical + at) * 4096, Buffer.alloc(4096, (block + at) % 251), 0, 4096);
  await retrying(() => unlink(store, store.root, "even"));
  await store.sync();
  return [region, store];
}

function expectContent(store: Store): void {
  const odd = lookup(store, store.root, "odd");
  const bytes = Buffer.alloc(4096);
  for (let block = 0; block < (odd.extents?.blocks ?? 0); block += 1) {
    read(store, odd, BigInt(block) * 4096n, bytes, 0, 4096);
    expect(bytes.equals(Buffer.alloc(4096, block % 251)), `block ${block}`).toBe(true);
  }
}

describe.each(["cacheline", "page"] as const)(`clearing segments (seed ${seed}, %s)`, (granularity) => {
  test("gives them to the reserve, and files keep every byte", async () => {
    const [region, store] = await inCrumbs(granularity);
    const before = store.pool.available;
    expect(store.pool.ensure(before + 1)).toBe(false);
    expect(await new SegmentClearer(store).clear(5)).toBe(5);
    expect(store.pool.available).toBe(before + 5);
    checkVolume(store);
    expectContent(store);
    const again = await Store.open(MemoryRegion.fromImage(region.image(), { granularity }), {
      readOnly: false,
    });
    checkVolume(again);
    expectContent(again);
    await store.close();
  });

  test("leaves what a lease pins, and takes other segments", async () => {
    const [, store] = await inCrumbs(granularity);
    const odd = lookup(store, store.root, "odd");
    const where = (): string => JSON.stringify([...(odd.extents ?? [])]);
    const { guard } = store;
    store.guard = { ...guard, beforeMapChange() {}, beforeSizeChange() {}, isLeased: () => true };
    const before = where();
    expect(await new SegmentClearer(store).clear(5)).toBe(0);
    expect(where()).toBe(before);
    store.guard = { ...store.guard, isLeased: (_inode, block) => block < 300 };
    const pinned = [...(odd.extents ?? [])].filter(({ block }) => block < 300);
    expect(await new SegmentClearer(store).clear(5)).toBe(5);
    expect([...(odd.extents ?? [])].filter(({ block }) => block < 300)).toEqual(pinned);
    checkVolume(store);
    expectContent(store);
  });

  test("that others allocate from meanwhile loses no block", async () => {
    const [, store] = await inCrumbs(granularity);
    const clearing = new SegmentClearer(store).clear(8);
    let serial = 0;
    const busy = setInterval(() => {
      const name = `file-${serial}`;
      serial += 1;
      void retrying(() => create(store, store.root, name, S_IFREG | 0o644, 0, owner, null)).catch(() => {});
      if (serial % 2 === 0) void retrying(() => unlink(store, store.root, name)).catch(() => {});
    }, 0);
    await clearing;
    clearInterval(busy);
    await store.sync();
    checkVolume(store);
    expectContent(store);
    const { end } = store.allocator;
    const free = store.allocator.freeBlocks;
    // Whatever it could not have is free again.
    let claimed = 0;
    for (const { count } of store.allocator.claimFree(0, end)) claimed += count;
    expect(claimed).toBe(free);
  });

  test("cut short at any moment leaves every block of a file in one place, with its bytes", async () => {
    const random = randomOf(seed);
    const [region, store] = await inCrumbs(granularity);
    const expected = Model.of(store);
    const media = region.image().slice();
    const recorder = new Recorder(region);
    expect(await new SegmentClearer(store).clear(3)).toBe(3);
    // What has moved away is used by others from now on.
    for (let used = 0; used < 3; used += 1) region.zero(store.pool.take(), SEGMENT_BLOCKS * 4096);
    for (const epoch of recorder.take()) {
      for (const choice of statesOf(epoch, 12, random)) {
        const state = media.slice();
        apply(state, epoch, choice);
        if (granularity === "page") onAnotherBoot(state);
        const again = await Store.open(MemoryRegion.fromImage(state, { granularity }), { readOnly: true });
        checkVolume(again);
        expectSame(Model.of(again), expected);
      }
      settle(media, [epoch]);
    }
  });
});
