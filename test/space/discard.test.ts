/** Which blocks are told to what lies below, and that nobody is hurt by it: on a region in memory, which forgets them. */
import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { retrying, Wait } from "../../src/base/wait.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { write } from "../../src/namespace/data.ts";
import { S_IFREG } from "../../src/namespace/inode.ts";
import { create, unlink } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import { Allocator, type Run } from "../../src/space/allocator.ts";
import { Discards, type TrimRange } from "../../src/space/discard.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, makeVolume, owner } from "../support/volume.ts";

const BLOCK = 4096;
const CHUNK = (2 * MIB) / BLOCK;

interface Bench {
  readonly allocator: Allocator;
  readonly region: MemoryRegion;
  readonly discards: Discards;
  /** In blocks, in order. */
  readonly told: Run[];
}

function make(blocks: number, spared: () => readonly Run[] = () => []): Bench {
  const region = MemoryRegion.blank(blocks * BLOCK);
  const allocator = new Allocator(blocks, BLOCK);
  const told: Run[] = [];
  const discard = region.discard.bind(region);
  region.discard = async (offset, length) => {
    told.push({ start: offset / BLOCK, count: length / BLOCK });
    await discard(offset, length);
  };
  const discards = new Discards({ region, allocator, blockBytes: BLOCK, spared });
  return { allocator, region, told, discards };
}

const all = ({ allocator }: Bench, least = 1): TrimRange => ({ start: 0, end: allocator.blockCount, least });
const pause = async (): Promise<void> => {};

/** One after the other, joined where they touch. */
function joined(told: readonly Run[]): Run[] {
  const runs: Run[] = [];
  for (const { start, count } of told) {
    const last = runs.at(-1);
    if (last !== undefined && last.start + last.count === start) last.count += count;
    else runs.push({ start, count });
  }
  return runs;
}

describe("a trim", () => {
  test("discards what is free, all of it, and nothing else", async () => {
    const bench = make(8 * CHUNK);
    for (const [start, count] of [
      [0, 10],
      [CHUNK - 1, 3],
      [5 * CHUNK, 2 * CHUNK],
    ] as const)
      bench.allocator.claim(start, count);
    bench.allocator.claim(100, 4);
    bench.allocator.freeAfter(100, 4, 7);
    expect(await bench.discards.trim(all(bench), pause)).toBe(bench.allocator.freeBlocks);
    expect(joined(bench.told)).toEqual([
      { start: 10, count: 90 },
      { start: 104, count: CHUNK - 105 },
      { start: CHUNK + 2, count: 4 * CHUNK - 2 },
      { start: 7 * CHUNK, count: CHUNK },
    ]);
    bench.allocator.check();
    bench.allocator.releaseThrough(7);
    expect(bench.discards.blocks).toBe(bench.allocator.freeBlocks - 4);
  });

  test("keeps to its range, and leaves shorter extents alone, however they are cut into slices", async () => {
    const bench = make(64 * CHUNK);
    // Free: 5, 40, and then 60 chunks less 3 blocks.
    bench.allocator.claim(0, 10);
    bench.allocator.claim(15, 5);
    bench.allocator.claim(60, 4 * CHUNK - 57);
    expect(await bench.discards.trim(all(bench, 41), pause)).toBe(60 * CHUNK - 3);
    expect(joined(bench.told)).toEqual([{ start: 4 * CHUNK + 3, count: 60 * CHUNK - 3 }]);
    bench.told.length = 0;
    expect(await bench.discards.trim({ start: 12, end: 22, least: 1 }, pause)).toBe(5);
    expect(bench.told).toEqual([
      { start: 12, count: 3 },
      { start: 20, count: 2 },
    ]);
  });

  test("takes a bounded slice at a time out of the free space", async () => {
    const bench = make(64 * CHUNK);
    const least: number[] = [];
    const discard = bench.region.discard.bind(bench.region);
    bench.region.discard = async (offset, length) => {
      least.push(bench.allocator.freeBlocks);
      await discard(offset, length);
    };
    let pauses = 0;
    await bench.discards.trim(all(bench), async () => {
      pauses += 1;
    });
    expect(Math.min(...least)).toBe(60 * CHUNK);
    expect(pauses).toBe(15);
  });

  test("is refused while somebody wants the bytes as they were", async () => {
    const bench = make(CHUNK);
    bench.region.beforeStore = () => {};
    await expect(bench.discards.trim(all(bench), pause)).rejects.toMatchObject({ code: "EBUSY" });
    expect(bench.told).toEqual([]);
    expect(bench.allocator.freeBlocks).toBe(CHUNK);
  });

  test("ends, without harm, when somebody begins to want them in the middle of a slice", async () => {
    const bench = make(CHUNK);
    for (let block = 10; block < CHUNK; block += 20) bench.allocator.claim(block, 1);
    const free = bench.allocator.freeBlocks;
    const { discard } = bench.region;
    bench.region.discard = async (offset, length) => {
      await discard(offset, length);
      if (bench.told.length === 3) bench.region.beforeStore = () => {};
    };
    await expect(bench.discards.trim(all(bench), pause)).rejects.toMatchObject({ code: "EBUSY" });
    expect(bench.told.length).toBe(3);
    expect([bench.allocator.freeBlocks, bench.allocator.pendingBlocks]).toEqual([free, 0]);
    bench.allocator.check();
  });

  test("that fails gives its blocks back to the free space", async () => {
    const bench = make(CHUNK);
    bench.region.discard = async () => {
      throw new Error("injected");
    };
    await expect(bench.discards.trim(all(bench), pause)).rejects.toThrow("injected");
    bench.allocator.check();
    expect([bench.allocator.freeBlocks, bench.allocator.pendingBlocks]).toEqual([CHUNK, 0]);
    expect(bench.discards.underWay).toBeNull();
  });

  test("is over when end() resolves, and none begins after that", async () => {
    const bench = make(64 * CHUNK);
    const trim = bench.discards.trim(all(bench), pause);
    const failed = expect(trim).rejects.toMatchObject({ code: "EROFS" });
    await bench.discards.end();
    expect(bench.allocator.pendingBlocks).toBe(0);
    const { length } = bench.told;
    await failed;
    expect(bench.told.length).toBe(length);
  });

  test("and another at the same time take turns, and lose no block", async () => {
    const bench = make(64 * CHUNK);
    const [one, other] = await Promise.all([
      bench.discards.trim(all(bench), pause),
      bench.discards.trim(all(bench), pause),
    ]);
    expect([one, other]).toEqual([64 * CHUNK, 64 * CHUNK]);
    bench.allocator.check();
  });
});

describe("what is spared", () => {
  test("keeps the room that it has, and no more than that", async () => {
    const spared = [
      { start: 5 * CHUNK, count: 32 },
      { start: 64, count: 32 },
      { start: 96, count: 32 },
      { start: 0, count: 32 },
    ];
    const bench = make(8 * CHUNK, () => spared);
    expect(await bench.discards.trim(all(bench), pause)).toBe(8 * CHUNK - 4 * 32);
    expect(joined(bench.told)).toEqual([
      { start: 32, count: 32 },
      { start: 128, count: 5 * CHUNK - 128 },
      { start: 5 * CHUNK + 32, count: 3 * CHUNK - 32 },
    ]);
  });

  test("of a sparse region are the places where the next mount looks for segments first", async () => {
    const region = await makeVolume(16 * MIB, "page");
    const had: [number, number][] = [];
    Object.assign(region, { allocate: (offset: number, length: number) => had.push([offset, length]) });
    const store = await Store.open(region, { readOnly: false });
    const file = create(store, store.root, "large", S_IFREG | 0o600, 0, owner, null);
    write(store, file, 0n, new Uint8Array(4 * MIB), 0, 4 * MIB, false);
    // The reserve grows behind the file.
    for (let count = 0; count < 3000; count += 1)
      await retrying(() =>
        create(store, store.root, `one of many ${count}`, S_IFREG | 0o600, 0, owner, null),
      );
    await retrying(() => unlink(store, store.root, "large"));
    await store.sync();
    const told: [number, number][] = [];
    region.discard = async (offset, length) => void told.push([offset, length]);
    await store.discards.trim({ start: 0, end: store.allocator.blockCount, least: 1 }, pause);
    expect(told.reduce((sum, [, length]) => sum + length, 0)).toBeGreaterThan(2 * MIB);
    checkVolume(store);
    await store.close();
    had.length = 0;
    const again = await Store.open(region, { readOnly: false });
    expect(had.length).toBeGreaterThan(10);
    const hollow = had.filter(([offset, length]) =>
      told.some(([from, bytes]) => from < offset + length && offset < from + bytes),
    );
    expect(hollow).toEqual([]);
    await again.close();
  });
});

describe("what becomes free, followed", () => {
  test("is discarded when it has been free for a while, and only that", async () => {
    const bench = make(16 * CHUNK);
    bench.allocator.claim(0, 16 * CHUNK);
    bench.discards.follow(() => {});
    bench.allocator.free(3 * CHUNK, 100);
    bench.allocator.free(9 * CHUNK, 5);
    await bench.discards.discardFreed();
    expect(bench.told).toEqual([]);
    bench.allocator.free(12 * CHUNK, 50);
    await bench.discards.discardFreed();
    // Of fewer blocks than 16 what lies below is not told.
    expect(bench.told).toEqual([{ start: 3 * CHUNK, count: 100 }]);
    await bench.discards.discardFreed();
    await bench.discards.discardFreed();
    expect(bench.told.slice(1)).toEqual([{ start: 12 * CHUNK, count: 50 }]);
  });

  test("waits while it is freed again and again, and for the end of a snapshot", async () => {
    const bench = make(4 * CHUNK);
    bench.allocator.claim(0, 4 * CHUNK);
    bench.discards.follow(() => {});
    for (let start = 0; start < 200; start += 50) {
      bench.allocator.free(start, 50);
      await bench.discards.discardFreed();
    }
    expect(bench.told).toEqual([]);
    bench.region.beforeStore = () => {};
    for (let call = 0; call < 4; call += 1) await bench.discards.discardFreed();
    expect(bench.told).toEqual([]);
    bench.region.beforeStore = null;
    for (let call = 0; call < 2; call += 1) await bench.discards.discardFreed();
    expect(bench.told).toEqual([{ start: 0, count: 200 }]);
  });

  test("is left alone, and whoever runs the daemon is told once, where nothing below takes it", async () => {
    const bench = make(4 * CHUNK);
    const lines: string[] = [];
    bench.allocator.claim(0, 4 * CHUNK);
    bench.region.discard = async () => {
      throw new FsError("EOPNOTSUPP", "not there");
    };
    bench.discards.follow((text) => lines.push(text));
    for (let chunk = 0; chunk < 4; chunk += 1) {
      bench.allocator.free(chunk * CHUNK, CHUNK);
      await bench.discards.discardFreed();
    }
    expect(lines).toEqual([expect.stringContaining("not there")]);
    const none = make(CHUNK);
    Object.assign(none.region, { discard: undefined });
    none.discards.follow((text) => lines.push(text));
    expect(lines.slice(1)).toEqual([expect.stringContaining("nothing lies below")]);
    expect([bench.allocator.onFree, none.allocator.onFree]).toEqual([null, null]);
  });
});

describe("a volume", () => {
  test("gives nobody a block that is being discarded: who needs it waits until that is over", async () => {
    const region = await makeVolume(8 * MIB, "page");
    const store = await Store.open(region, { readOnly: false });
    const before = store.allocator.freeBlocks;
    let finish: () => void = () => {};
    const held = new Promise<void>((resolve) => {
      finish = resolve;
    });
    region.discard = () => held;
    const range = { start: 0, end: store.allocator.blockCount, least: 1 };
    const trim = store.discards.trim(range, pause);
    // All of so small a volume is one slice; what cannot wait gets what is left.
    expect(store.allocator.freeBlocks + store.allocator.pendingBlocks).toBe(before);
    expect(store.allocator.pendingBlocks).toBeGreaterThan(before / 2);
    checkVolume(store);
    const wanted = store.allocator.freeBlocks + 1;
    let waited: unknown;
    try {
      store.allocate(wanted, 0, 0);
    } catch (error) {
      waited = error;
    }
    expect(waited).toBeInstanceOf(Wait);
    let over = false;
    void (waited as Wait).until.then(() => {
      over = true;
    });
    await store.sync();
    expect(over).toBe(false);
    finish();
    await trim;
    await (waited as Wait).until;
    const runs = store.allocate(wanted, 0, 0);
    expect(runs.reduce((sum, run) => sum + run.count, 0)).toBe(wanted);
    store.giveBack(runs);
    checkVolume(store);
    await store.close();
  });
});
