/** The blocks of a volume in cells: counted at once, and block by block. */
import { expect, test } from "vitest";
import { atOnce, inSlices } from "../../src/base/slices.ts";
import { SHARED, UNWRITTEN, WRITTEN } from "../../src/media/group.ts";
import {
  BLOCK_STATES,
  type BlockState,
  cellsOf,
  drawBlockMap,
  extentsWithin,
  type MarkedRun,
  pathsOf,
} from "../../src/namespace/blockmap.ts";
import { cloneRange } from "../../src/namespace/clone.ts";
import { write } from "../../src/namespace/data.ts";
import { fallocate } from "../../src/namespace/fallocate.ts";
import { type Inode, S_IFDIR, S_IFREG } from "../../src/namespace/inode.ts";
import { create } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import { MIB, makeVolume, owner, randomOf } from "../support/volume.ts";

const BLOCK = 4096;

async function volume(seed: number): Promise<{ store: Store; files: Inode[]; directory: Inode }> {
  const random = randomOf(seed);
  const store = await Store.open(await makeVolume(16 * MIB, "cacheline"), { readOnly: false });
  const directory = create(store, store.root, "d", S_IFDIR | 0o755, 0, owner, null);
  const files = Array.from({ length: 8 }, (_, index) =>
    create(store, directory, `f${index}`, S_IFREG | 0o644, 0, owner, null),
  );
  for (let step = 0; step < 120; step += 1) {
    const file = files[Math.floor(random() * files.length)] as Inode;
    const at = BigInt(Math.floor(random() * 64) * BLOCK);
    const length = (1 + Math.floor(random() * 4)) * BLOCK;
    if (random() < 0.7) write(store, file, at, new Uint8Array(length), 0, length, false);
    else fallocate(store, file, 0, at, BigInt(length), false);
  }
  const twin = create(store, directory, "twin", S_IFREG | 0o644, 0, owner, null);
  const [source] = files as [Inode];
  cloneRange(store, {
    ...{
      source,
      sourceOffset: 0n,
      target: twin,
      targetOffset: 0n,
      length: source.size,
      killPrivileges: false,
    },
  });
  return { store, files: [...files, twin], directory };
}

const blockCountOf = (store: Store): number => store.superblock.regionBytes / store.blockBytes;

test.each([1, 2, 3])("each cell has the counts that its blocks have one by one (seed %i)", async (seed) => {
  const { store, files } = await volume(seed);
  const blocks: BlockState[] = Array.from({ length: blockCountOf(store) }, () => "free");
  const marked: MarkedRun[] = [...store.metadataRuns()].map(({ start, count }) => ({
    start,
    count,
    state: "metadata",
  }));
  const kinds: Record<number, BlockState> = {
    [WRITTEN]: "data",
    [UNWRITTEN]: "unwritten",
    [SHARED]: "shared",
  };
  for (const file of files) {
    for (const { physical, count, state } of file.extents ?? [])
      blocks.fill(kinds[state] as BlockState, physical, physical + count);
  }
  // Leases on written blocks, in whole cells of data, so that which state they take from is certain.
  const leased = [...(files[1]?.extents ?? [])].filter(({ state }) => state === WRITTEN);
  for (const [index, { physical, count }] of leased.entries()) {
    const state = (["sealed", "leased", "breaking"] as const)[index % 3] as BlockState;
    marked.push({ start: physical, count, state });
    blocks.fill(state, physical, physical + count);
  }
  for (const { start, count, state } of marked)
    if (state === "metadata") blocks.fill(state, start, start + count);
  for (const wanted of [blocks.length, 1000, 7, 1]) {
    const source = { state: store.state, blockCount: blocks.length, blockBytes: BLOCK, marked };
    const map = atOnce(drawBlockMap(source, wanted));
    expect(cellsOf(map)).toBeLessThanOrEqual(wanted);
    let used = 0;
    for (let cell = 0; cell < cellsOf(map); cell += 1) {
      const inside = blocks.slice(cell * map.blocksPerCell, (cell + 1) * map.blocksPerCell);
      const counts = BLOCK_STATES.map((_, state) => map.counts[cell * BLOCK_STATES.length + state] as number);
      expect(counts.reduce((sum, one) => sum + one, 0)).toBe(inside.length);
      const is = (state: BlockState): number => inside.filter((one) => one === state).length;
      const found = (state: BlockState): number => counts[BLOCK_STATES.indexOf(state)] as number;
      for (const state of ["free", "metadata", "sealed", "leased", "breaking", "quarantined"] as const)
        expect(found(state), `${state} in cell ${cell} of ${wanted}`).toBe(is(state));
      if (map.blocksPerCell === 1)
        for (const state of ["data", "unwritten", "shared"] as const) expect(found(state)).toBe(is(state));
      used += found("data") + found("unwritten") + found("shared");
    }
    expect(used).toBe(blocks.filter((state) => ["data", "unwritten", "shared"].includes(state)).length);
    expect(map.files).toBe(files.length);
    expect(map.byExtents.reduce((sum, row) => sum + row.files, 0)).toBe(files.length);
    const lengths = files.map((file) => file.extents?.length ?? 0).sort((a, b) => b - a);
    expect(map.mostExtents.map((file) => file.extents?.length ?? 0)).toEqual(
      lengths.filter((length) => length > 1),
    );
  }
});

test("what lies in a run of blocks is found with its name, the longest first", async () => {
  const { store, files } = await volume(4);
  const run = { start: 0, count: blockCountOf(store) };
  const all = atOnce(extentsWithin(store.state, run, 1000));
  expect(all.total).toBe(files.reduce((sum, file) => sum + (file.extents?.length ?? 0), 0));
  const few = atOnce(extentsWithin(store.state, run, 3));
  expect(few.total).toBe(all.total);
  expect(few.extents).toEqual(all.extents.slice(0, 3));
  const [first] = all.extents;
  const there = atOnce(extentsWithin(store.state, { start: first?.physical ?? 0, count: 1 }, 10));
  expect(there.extents.map(({ inode }) => inode)).toContain(first?.inode);
  const paths = atOnce(pathsOf(store.state, 1, new Set([...files, store.root])));
  expect(paths.get(files[3] as Inode)).toBe("/d/f3");
  expect(paths.get(store.root)).toBe("/");
});

test("a volume that changes between two slices is drawn to the end", async () => {
  const { store, files } = await volume(5);
  const source = { state: store.state, blockCount: blockCountOf(store), blockBytes: BLOCK, marked: [] };
  // Slow enough to be interrupted at each yield.
  const drawing = drawBlockMap(source, 100);
  const slow = (function* () {
    for (;;) {
      const step = drawing.next();
      if (step.done === true) return step.value;
      const from = performance.now();
      while (performance.now() - from < 3);
      yield;
    }
  })();
  let done = false;
  const result = inSlices(slow).finally(() => {
    done = true;
  });
  let turns = 0;
  while (!done) {
    const file = files[turns % files.length] as Inode;
    write(store, file, BigInt((turns % 50) * BLOCK), new Uint8Array(BLOCK), 0, BLOCK, false);
    turns += 1;
    await new Promise((resolve) => setImmediate(resolve));
  }
  const map = await result;
  for (let cell = 0; cell < cellsOf(map); cell += 1) {
    const counts = map.counts.subarray(cell * BLOCK_STATES.length, (cell + 1) * BLOCK_STATES.length);
    const blocks = Math.min(map.blocksPerCell, map.blockCount - cell * map.blocksPerCell);
    expect(counts.reduce((sum, one) => sum + one, 0)).toBe(blocks);
  }
});
