/** Where a file's blocks are put: few extents, and large files so that a mapping can use huge pages. */
import { describe, expect, test } from "vitest";
import { checkVolume } from "../../src/namespace/check.ts";
import { fallocate, write } from "../../src/namespace/data.ts";
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
