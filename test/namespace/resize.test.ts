import { describe, expect, test } from "vitest";
import { checkVolume } from "../../src/namespace/check.ts";
import { resize } from "../../src/namespace/resize.ts";
import { Store } from "../../src/namespace/store.ts";
import { Recorder } from "../powercut/recorder.ts";
import { apply, settle, statesOf } from "../powercut/states.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, onAnotherBoot, randomOf } from "../support/volume.ts";
import { Model } from "./model.ts";
import { expectSame, modelOf, spread } from "./spread.ts";

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));

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
