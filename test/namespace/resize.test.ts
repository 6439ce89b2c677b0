import { describe, expect, test } from "vitest";
import { checkVolume } from "../../src/namespace/check.ts";
import { cloneRange } from "../../src/namespace/clone.ts";
import { fallocate, write } from "../../src/namespace/data.ts";
import { type Inode, S_IFREG } from "../../src/namespace/inode.ts";
import { create, unlink } from "../../src/namespace/names.ts";
import { resize } from "../../src/namespace/resize.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { Recorder } from "../powercut/recorder.ts";
import { apply, settle, statesOf } from "../powercut/states.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, makeVolume, onAnotherBoot, owner, randomOf } from "../support/volume.ts";
import { pattern } from "./bench.ts";
import { difference, foreignBytes, Model } from "./model.ts";

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));

/** Files all over a volume of 12 MiB, of which little is left at the front. */
async function spread(granularity: Granularity): Promise<Uint8Array> {
  const region = await makeVolume(12 * MIB, granularity);
  const store = await Store.open(region, { readOnly: false });
  const make = (name: string): Inode => create(store, store.root, name, S_IFREG | 0o644, 0, owner, null);
  for (let index = 0; index < 9; index += 1) {
    const file = make(`file-${index}`);
    write(store, file, 0n, pattern(1 << 20, index), 0, 1 << 20, false);
    if (index === 8) {
      fallocate(store, file, 0, 1n << 20n, 300_000n, false);
      const range = { sourceOffset: 0n, targetOffset: 8192n, length: 1n << 20n, killPrivileges: false };
      cloneRange(store, { source: file, target: make("twin"), ...range });
    }
  }
  await store.sync();
  for (let index = 0; index < 4; index += 1) unlink(store, store.root, `file-${index}`);
  await store.close();
  return region.image();
}

async function modelOf(image: Uint8Array, granularity: Granularity): Promise<Model> {
  const store = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: true });
  checkVolume(store);
  return Model.of(store);
}

function expectSame(seen: Model, expected: Model): void {
  expect(difference(seen, expected)).toBeNull();
  expect(foreignBytes(seen, [expected])).toBeNull();
}

describe(`resize (seed ${seed})`, () => {
  for (const granularity of ["cacheline", "page"] as const) {
    test(`grows and shrinks, and every byte stays (${granularity})`, async () => {
      const image = await spread(granularity);
      const expected = await modelOf(image, granularity);
      const larger = new Uint8Array(20 * MIB);
      larger.set(image);
      const region = MemoryRegion.fromImage(larger, { granularity });
      for (const [wanted, after] of [
        [20 * MIB, 20 * MIB],
        [9 * MIB + 5000, 9 * MIB + 4096],
        [7 * MIB, 7 * MIB],
        [7 * MIB, 7 * MIB],
        [13 * MIB, 13 * MIB],
      ] as const) {
        const { afterBytes } = await resize(region, wanted);
        expect(afterBytes).toBe(after);
        expectSame(await modelOf(region.image().subarray(0, afterBytes), granularity), expected);
        const store = await Store.open(region, { readOnly: false });
        expect(store.recovery.label).toBe("clean");
        expect(store.allocator.blockCount).toBe(afterBytes / 4096);
        checkVolume(store);
        await store.close();
      }
      const twin = await Store.open(region, { readOnly: true });
      expect(twin.state.references.length).toBeGreaterThan(0);
    });

    test(`refuses what cannot be, and has changed nothing (${granularity})`, async () => {
      const image = await spread(granularity);
      for (const [wanted, message] of [
        [4.5 * MIB, "ENOSPC"],
        [1 * MIB, "EINVAL"],
        [20 * MIB, "EINVAL"],
      ] as const) {
        const region = MemoryRegion.fromImage(image, { granularity });
        await expect(resize(region, wanted)).rejects.toThrow(message);
        expectSame(await modelOf(region.image(), granularity), await modelOf(image, granularity));
      }
    });

    test(`cut short, it has the old size or the new, and every byte (${granularity})`, async () => {
      const random = randomOf(seed);
      const image = await spread(granularity);
      const expected = await modelOf(image, granularity);
      const region = MemoryRegion.fromImage(image, { granularity });
      const recorder = new Recorder(region);
      const { movedBytes } = await resize(region, 7 * MIB);
      expect(movedBytes).toBeGreaterThan(MIB);
      const media = image.slice();
      const sizes = new Set<number>();
      for (const epoch of recorder.take()) {
        for (const choice of statesOf(epoch, 12, random)) {
          const state = media.slice();
          apply(state, epoch, choice);
          if (granularity === "page") onAnotherBoot(state);
          const store = await Store.open(MemoryRegion.fromImage(state, { granularity }), { readOnly: true });
          checkVolume(store);
          expectSame(Model.of(store), expected);
          sizes.add(store.superblock.regionBytes);
        }
        settle(media, [epoch]);
      }
      expect([...sizes].sort((a, b) => a - b)).toEqual([7 * MIB, 12 * MIB]);
    });
  }
});
