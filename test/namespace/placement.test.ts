/** Where a file's blocks are put: few extents, and large files so that a mapping can use huge pages. */
import { describe, expect, test } from "vitest";
import { WRITTEN } from "../../src/media/group.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { cloneRange } from "../../src/namespace/clone.ts";
import { read, truncate, write } from "../../src/namespace/data.ts";
import { FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate } from "../../src/namespace/fallocate.ts";
import { type Inode, S_IFREG } from "../../src/namespace/inode.ts";
import { create } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import { MIB, makeVolume, owner } from "../support/volume.ts";

const HUGE_BLOCKS = (2 * MIB) / 4096;

async function opened(): Promise<Store> {
  return Store.open(await makeVolume(64 * MIB, "page"), { readOnly: false });
}

const makeFile = (store: Store, name: string): Inode =>
  create(store, store.root, name, S_IFREG | 0o644, 0, owner, null);

function append(store: Store, file: Inode, bytes: number, step: number): void {
  const data = Buffer.alloc(step, 1);
  for (let done = 0; done < bytes; done += step) write(store, file, file.size, data, 0, step, false);
}

describe("placement", () => {
  test("a large allocation is one extent that begins at a multiple of 2 MiB", async () => {
    const store = await opened();
    append(store, makeFile(store, "small"), 4096, 4096);
    const file = makeFile(store, "large");
    fallocate(store, file, 0, 0n, BigInt(16 * MIB), false);
    const [extent, ...others] = file.extents ?? [];
    expect(others).toEqual([]);
    expect((extent?.physical ?? 1) % HUGE_BLOCKS).toBe(0);
    checkVolume(store);
  });

  test.each([4096, 65536, 131072, MIB])(
    "a file that grows by writes of %i bytes lies at multiples of 2 MiB from its first 2 MiB on, in two extents at most",
    async (step) => {
      const store = await opened();
      append(store, makeFile(store, "small"), 4096, 4096);
      const file = makeFile(store, "growing");
      append(store, file, 12 * MIB, step);
      const extents = [...(file.extents ?? [])];
      expect(extents.length).toBeLessThanOrEqual(2);
      const rest = file.extents?.at(HUGE_BLOCKS, 1);
      expect((rest?.physical ?? 1) % HUGE_BLOCKS).toBe(0);
      checkVolume(store);
    },
  );

  test("two files that grow in turns still get runs of 2 MiB", async () => {
    const store = await opened();
    const files = [makeFile(store, "one"), makeFile(store, "two")];
    for (let round = 0; round < 64; round += 1) {
      for (const file of files) append(store, file, 131072, 131072);
    }
    for (const file of files) {
      for (let block = HUGE_BLOCKS; block < 4 * HUGE_BLOCKS; block += HUGE_BLOCKS) {
        const piece = file.extents?.at(block, HUGE_BLOCKS);
        expect([piece?.count, (piece?.physical ?? 1) % HUGE_BLOCKS]).toEqual([HUGE_BLOCKS, 0]);
      }
    }
    checkVolume(store);
  });
});

/** Blocks in an order that jumps about: each once. The step has no divisor in common with any number of blocks used here. */
const scattered = (blocks: number): number[] =>
  Array.from({ length: blocks }, (_, index) => (index * 9973) % blocks);

describe("random writes", () => {
  const FILE_BYTES = 32 * MIB;
  const blocks = FILE_BYTES / 4096;
  const content = (block: number): Buffer => Buffer.alloc(4096, 1 + (block % 250));

  function writeAtRandom(store: Store, file: Inode): number {
    let most = 0;
    for (const block of scattered(blocks)) {
      write(store, file, BigInt(block * 4096), content(block), 0, 4096, false);
      most = Math.max(most, file.extents?.length ?? 0);
    }
    const found = Buffer.alloc(4096);
    for (let block = 0; block < blocks; block += 1) {
      read(store, file, BigInt(block * 4096), found, 0, 4096);
      if (!found.equals(content(block))) throw new Error(`block ${block} has other bytes`);
    }
    checkVolume(store);
    return most;
  }

  test("into allocated space cut it into pieces of 64 KiB at most, and leave it as it was allocated", async () => {
    const store = await opened();
    const file = makeFile(store, "allocated");
    fallocate(store, file, 0, 0n, BigInt(FILE_BYTES), false);
    expect(writeAtRandom(store, file)).toBeLessThanOrEqual(FILE_BYTES / 65536);
    expect([...(file.extents ?? [])].map(({ state }) => state)).toEqual([WRITTEN]);
  });

  test("into a sparse file join again as it fills", async () => {
    const store = await opened();
    const file = makeFile(store, "sparse");
    truncate(store, file, BigInt(FILE_BYTES), false);
    expect(writeAtRandom(store, file)).toBeGreaterThan(1000);
    expect(file.extents?.length).toBe(1);
  });

  test("over a clone give it blocks of its own side by side", async () => {
    const store = await opened();
    const [file, copy] = [makeFile(store, "original"), makeFile(store, "copy")];
    append(store, file, 16 * MIB, MIB);
    const length = BigInt(16 * MIB);
    for (let done = 0n; done < length; ) {
      const rest = { sourceOffset: done, targetOffset: done, length: length - done, killPrivileges: false };
      done += BigInt(cloneRange(store, { source: file, target: copy, ...rest }));
    }
    const half = blocks / 2;
    for (const block of scattered(half)) {
      if (block % 8 !== 0) write(store, copy, BigInt(block * 4096), content(block), 0, 4096, false);
    }
    for (let block = 0; block < half; block += 8)
      write(store, copy, BigInt(block * 4096), content(block), 0, 4096, false);
    // Before, nearly every write was an extent for good.
    expect(copy.extents?.length).toBeLessThanOrEqual(half / 16);
    checkVolume(store);
  });

  test("convert no block behind the end of the file, none of another extent and none that a lease pins", async () => {
    const store = await opened();
    const file = makeFile(store, "short");
    fallocate(store, file, FALLOC_KEEP_SIZE, 0n, BigInt(MIB), false);
    const states = (): string =>
      Array.from({ length: 32 }, (_, block) => ".uw"[file.extents?.at(block, 1).state ?? 0]).join("");
    write(store, file, BigInt(2 * 4096), content(0), 0, 100, false);
    expect(states()).toBe("w".repeat(3) + "u".repeat(29));
    truncate(store, file, BigInt(MIB), false);
    fallocate(store, file, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, BigInt(6 * 4096), 4096n, false);
    const pinned = { block: 10, count: 1 };
    store.guard = {
      ...store.guard,
      isLeased: (_, block, count) => block < pinned.block + pinned.count && pinned.block < block + count,
    };
    write(store, file, BigInt(8 * 4096), content(0), 0, 4096, false);
    expect(states()).toBe(`wwwuuu.ww${"u".repeat(23)}`);
    write(store, file, BigInt(20 * 4096), content(0), 0, 4096, false);
    expect(states()).toBe(`wwwuuu.ww${"u".repeat(7)}${"w".repeat(16)}`);
    checkVolume(store);
  });

  test("that convert what lies around them leave zeros there, whatever was in the blocks before", async () => {
    const store = await opened();
    const old = makeFile(store, "old");
    append(store, old, 48 * MIB, MIB);
    truncate(store, old, 0n, false);
    await store.sync();
    const file = makeFile(store, "new");
    fallocate(store, file, 0, 0n, BigInt(32 * MIB), false);
    for (let at = 4096; at < 32 * MIB; at += 5 * 65536)
      write(store, file, BigInt(at), content(7), 0, 10, false);
    const found = Buffer.alloc(MIB);
    for (let at = 0; at < 32 * MIB; at += MIB) {
      read(store, file, BigInt(at), found, 0, MIB);
      const strange = found.findIndex((byte, index) => byte !== 0 && (at + index - 4096) % (5 * 65536) >= 10);
      expect(strange).toBe(-1);
    }
  });
});
