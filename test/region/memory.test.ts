import { describe, expect, test } from "vitest";
import { MemoryRegion } from "../support/memory-region.ts";

const bytes = Uint8Array.of(1, 2, 3, 4);

describe("the in-memory region's faults", () => {
  test("a bad range fails whoever touches it, before any byte moves, until healed", () => {
    const region = MemoryRegion.blank(4096);
    region.failWrites(100, 4);
    region.failReads(200, 4);
    for (const store of [
      () => region.write(97, bytes, 0, 4),
      () => region.write(103, bytes, 0, 1),
      () => region.zero(0, 4096),
      () => region.copy(0, 90, 20),
    ]) {
      expect(store).toThrow(expect.objectContaining({ code: "EIO" }));
    }
    expect(region.image().every((byte) => byte === 0)).toBe(true);
    region.write(96, bytes, 0, 4);
    region.write(104, bytes, 0, 4);
    region.write(200, bytes, 0, 4);
    expect(() => region.read(203, new Uint8Array(1), 0, 1)).toThrow(/EIO/);
    expect(() => region.copy(200, 300, 1)).toThrow(/EIO/);
    region.read(204, new Uint8Array(1), 0, 1);
    region.heal();
    region.zero(0, 4096);
  });

  test("a failed sync stays failed over healing, and a reopened image starts afresh", async () => {
    const region = MemoryRegion.blank(4096, { granularity: "page" });
    region.write(0, bytes, 0, 4);
    region.failSync();
    await expect(region.sync()).rejects.toMatchObject({ code: "EIO" });
    region.heal();
    await expect(region.sync()).rejects.toBe(region.syncError);
    const again = MemoryRegion.fromImage(region.image());
    await again.sync();
    expect(again.syncError).toBeNull();
  });

  test("an image is a copy on the way out and on the way in", () => {
    const region = MemoryRegion.blank(4096);
    const image = region.image();
    image[0] = 9;
    expect(region.image()[0]).toBe(0);
    const other = MemoryRegion.fromImage(image);
    image[0] = 8;
    expect(other.image()[0]).toBe(9);
  });
});
