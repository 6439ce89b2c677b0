/** Second copies of metadata: one damaged block, wherever it is, loses nothing. */
import { describe, expect, test } from "vitest";
import { fsck } from "../../src/fsck/fsck.ts";
import { RESERVED_BYTES, SEGMENT_MAGIC } from "../../src/media/format.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { S_IFREG } from "../../src/namespace/inode.ts";
import { create } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { makeSpecimen } from "../support/specimen.ts";
import { MIB, makeVolume, onAnotherBoot, owner, randomOf } from "../support/volume.ts";
import { difference, foreignBytes, Model } from "./model.ts";

const BLOCK_BYTES = 4096;
const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));

/** Every block of metadata: superblocks and tables, and all segments of any role, also those of earlier checkpoints. */
function metadataBlocks(image: Uint8Array, segmentBytes: number): number[] {
  const blocks: number[] = [];
  for (let at = 0; at < RESERVED_BYTES; at += BLOCK_BYTES) blocks.push(at);
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  for (let segment = RESERVED_BYTES; segment + segmentBytes <= image.length; segment += segmentBytes) {
    if (view.getUint32(segment, true) !== SEGMENT_MAGIC) continue;
    for (let at = segment; at < segment + segmentBytes; at += BLOCK_BYTES) blocks.push(at);
  }
  return blocks.filter((at) => image.subarray(at, at + BLOCK_BYTES).some((byte) => byte !== 0));
}

const fills: readonly ((block: Uint8Array) => void)[] = [
  (block) => block.fill(0),
  (block) => block.fill(0xa5),
  (block) => {
    for (let at = 0; at < block.length; at += 64) block[at + 13] = (block[at + 13] as number) ^ 0x10;
  },
];

async function seenIn(image: Uint8Array, granularity: Granularity): Promise<Model> {
  const store = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: true });
  return Model.of(store);
}

function expectSame(seen: Model, whole: Model): void {
  expect(difference(seen, whole)).toBeNull();
  expect(foreignBytes(seen, [whole])).toBeNull();
}

describe("any one damaged block of metadata loses nothing", () => {
  for (const [how, granularity, clean, otherBoot] of [
    ["unmounted cleanly", "cacheline", true, false],
    ["after the daemon's death", "cacheline", false, false],
    ["after the daemon's death, on pages", "page", false, false],
    ["unmounted cleanly, on pages", "page", true, false],
    ["after a power cut, on pages", "page", false, true],
  ] as const) {
    test(how, async () => {
      const { image: made } = await makeSpecimen(granularity, clean, true);
      const image = otherBoot ? onAnotherBoot(made) : made;
      const region = MemoryRegion.fromImage(image, { granularity });
      const { segmentBytes } = (await Store.open(region, { readOnly: true })).recovery.geometry;
      const whole = (await seenIn(image, granularity)).withoutOrphans();
      const blocks = metadataBlocks(image, segmentBytes);
      // Superblocks and tables, checkpoint and log, and a copy of each.
      expect(blocks.length).toBeGreaterThanOrEqual(8);
      let mended = 0;
      for (const at of blocks) {
        for (const fill of fills) {
          const damaged = image.slice();
          fill(damaged.subarray(at, at + BLOCK_BYTES));
          expectSame((await seenIn(damaged, granularity)).withoutOrphans(), whole);

          const repaired = MemoryRegion.fromImage(damaged, { granularity });
          const report = await fsck(repaired, { repair: true, mayLose: () => false });
          expect(report).toMatchObject({ loss: null, repairable: true });
          expectSame((await seenIn(repaired.image(), granularity)).withoutOrphans(), whole);
          expect(await fsck(repaired, { repair: false })).toMatchObject({ problemCount: 0 });

          // A mount that can write goes on, and has made it whole when it ends.
          const used = MemoryRegion.fromImage(damaged, { granularity });
          const store = await Store.open(used, { readOnly: false });
          if (store.recovery.mended.size > 0) mended += 1;
          checkVolume(store);
          await store.close();
          expectSame(await seenIn(used.image(), granularity), whole);
          expect(await fsck(used, { repair: false })).toMatchObject({ problemCount: 0 });
        }
      }
      expect(mended).toBeGreaterThan(2);
    }, 120_000);
  }

  test("an end of the log that a power cut has torn is no damage, though its copy is whole", async () => {
    const region = await makeVolume(4 * MIB, "page");
    const store = await Store.open(region, { readOnly: false });
    create(store, store.root, "synced", S_IFREG | 0o644, 0, owner, null);
    await store.sync();
    const before = store.journal?.chain.tail as number;
    create(store, store.root, "not-synced", S_IFREG | 0o644, 0, owner, null);
    const image = onAnotherBoot(region.image());
    const torn = image.slice();
    torn.fill(0, store.superblock.logSegment + before + 8, store.superblock.logSegment + before + 512);
    for (const one of [image, torn]) {
      const left = MemoryRegion.fromImage(one, { granularity: "page" });
      expect(await fsck(left, { repair: false })).toMatchObject({ problems: [], refusal: null, inodes: 2 });
      const { recovery } = await Store.open(left, { readOnly: true });
      expect(recovery).toMatchObject({ label: "replay-to-barrier", warnings: [] });
    }
    // After the daemon's death alone nothing is torn: that is damage, and the copy has what was there.
    const damaged = region.image();
    damaged.set(
      torn.subarray(store.superblock.logSegment, store.superblock.logSegment + 4096),
      store.superblock.logSegment,
    );
    expectSame(await seenIn(damaged, "page"), await seenIn(region.image(), "page"));
  });

  test(`where checkpoint and log are several segments long (seed ${seed})`, async () => {
    const random = randomOf(seed);
    for (const granularity of ["cacheline", "page"] as const) {
      const region = await makeVolume(32 * MIB, granularity);
      const store = await Store.open(region, { readOnly: false });
      const make = (prefix: string, count: number): void => {
        for (let index = 0; index < count; index += 1)
          create(store, store.root, `${prefix}-${index}`, S_IFREG | 0o644, 0, owner, null);
      };
      make("before", 2000);
      await store.checkpoint();
      make("after", 1000);
      expect(store.recovery.geometry.segmentBytes).toBe(128 * 1024);
      for (const clean of [false, true]) {
        if (clean) await store.close();
        const image = region.image();
        const whole = await seenIn(image, granularity);
        const { recovery } = await Store.open(MemoryRegion.fromImage(image, { granularity }), {
          readOnly: true,
        });
        const { checkpoint, log } = recovery;
        expect(checkpoint.segments.length).toBeGreaterThan(2);
        if (!clean) expect(log.segments.length).toBeGreaterThan(2);
        for (let round = 0; round < 6; round += 1) {
          const segments = round % 2 === 0 ? checkpoint.segments : log.segments;
          const segment = segments[Math.floor(random() * segments.length)] as number;
          const at = segment + Math.floor(random() * 32) * BLOCK_BYTES;
          const damaged = image.slice();
          damaged.fill(0xa5, at, at + BLOCK_BYTES);
          expectSame(await seenIn(damaged, granularity), whole);
          const repaired = MemoryRegion.fromImage(damaged, { granularity });
          expect(await fsck(repaired, { repair: true, mayLose: () => false })).toMatchObject({ loss: null });
          expectSame(await seenIn(repaired.image(), granularity), whole);
        }
      }
    }
  }, 120_000);
});
