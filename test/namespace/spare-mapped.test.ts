/** The segment that a log has set aside to go on at is named on the media, and nothing vouches for it. */
import { expect, test } from "vitest";
import { fsck } from "../../src/fsck/fsck.ts";
import { SegmentHeader } from "../../src/media/format.ts";
import { makeFileSystem } from "../../src/media/mkfs.ts";
import { Store } from "../../src/namespace/store.ts";
import { Document } from "../fuzz/document.ts";
import { judge } from "../fuzz/image.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { makeSpecimen } from "../support/specimen.ts";
import { Model } from "./model.ts";

test("a cleanly closed volume opens while a process maps the log's spare segment", async () => {
  const region = MemoryRegion.blank(16 * 1024 * 1024);
  await makeFileSystem(region, { label: "", uid: 0, gid: 0 });
  const first = await Store.open(region, { readOnly: false });
  await first.close();
  const again = await Store.open(region, { readOnly: false });
  expect(again.recovery.label).toBe("clean");
  expect(again.recovery.log.spare).not.toBe(0);
  await again.close();
  const spare = again.recovery.log.spare / again.blockBytes;
  const mapped = await Store.open(region, {
    readOnly: false,
    reachable: async ({ unused }) => {
      expect(unused).toBe(true);
      return [{ owner: -1, runs: [{ start: spare, count: 16 }] }];
    },
  });
  await mapped.close();
});

test.each([
  [
    "a file's data",
    (store: Store) => {
      for (const inode of store.state.inodes.values())
        for (const { physical } of inode.extents ?? []) return physical * store.blockBytes;
      throw new Error("no file has data");
    },
  ],
  ["the checkpoint", ({ recovery }: Store) => recovery.checkpoint.segments[0] as number],
  ["the superblocks", () => 0],
  ["no segment", ({ recovery }: Store) => recovery.geometry.regionBytes],
] as const)("where it names %s, a mount writes all metadata anew, and fsck finds it", async (_, place) => {
  for (const granularity of ["cacheline", "page"] as const) {
    const { image } = await makeSpecimen(granularity, true);
    const before = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: true });
    expect(before.recovery.label).toBe("clean");
    const { geometry, log } = before.recovery;
    const document = new Document(image, log.segments, geometry.segmentBytes, geometry.seed);
    const bytes = place(before);
    const at = bytes - (bytes % geometry.segmentBytes);
    document.segments.at(-1)!.header.writeBigUInt64LE(BigInt(at), SegmentHeader.at.next);
    const damaged = document.image();
    // A mount, fsck and a repair agree.
    await judge(damaged.slice(), granularity);
    const region = MemoryRegion.fromImage(damaged, { granularity });
    if (at === 0) continue;
    expect((await fsck(region, { repair: false })).problems.map(({ code }) => code)).toEqual(["spare"]);
    const store = await Store.open(region, { readOnly: false });
    expect(Model.of(store).withoutOrphans()).toEqual(Model.of(before).withoutOrphans());
    await store.close();
    expect(await fsck(region, { repair: false })).toMatchObject({ problemCount: 0 });
  }
});
