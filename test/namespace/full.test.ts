import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { retrying } from "../../src/base/wait.ts";
import { removeXattr, setXattr } from "../../src/namespace/attributes.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { prepareSome, RUNS_MAX, read, truncate, write } from "../../src/namespace/data.ts";
import {
  beginFallocate,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  fallocate,
} from "../../src/namespace/fallocate.ts";
import { type Inode, S_IFREG } from "../../src/namespace/inode.ts";
import { create, lookup, unlink } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, makeVolume, onAnotherBoot, owner } from "../support/volume.ts";
import { pattern } from "./bench.ts";

/** Run until there is no space; the number of times that it succeeded. Whatever else it throws is passed on. */
async function untilFull(...operations: ((round: number) => void)[]): Promise<number> {
  for (let round = 0; ; round += 1) {
    try {
      for (const operation of operations) await retrying(() => operation(round));
    } catch (error) {
      if (error instanceof FsError && error.code === "ENOSPC") return round;
      throw error;
    }
  }
}

const makeFile = (store: Store, name: string): Inode =>
  create(store, store.root, name, S_IFREG | 0o644, 0, owner, null);

async function writeAll(store: Store, inode: Inode, offset: bigint, bytes: Uint8Array): Promise<number> {
  let done = 0;
  while (done < bytes.length) {
    try {
      done += await retrying(() =>
        write(store, inode, offset + BigInt(done), bytes, done, bytes.length - done, false),
      );
    } catch (error) {
      if (error instanceof FsError && error.code === "ENOSPC") break;
      throw error;
    }
  }
  return done;
}

/** Fill by every means: large files, then blocks, then names, then attributes. */
async function fill(store: Store, round: number): Promise<void> {
  const files: Inode[] = [];
  await untilFull(
    (index) => {
      files.push(makeFile(store, `large-${index}`));
    },
    (index) => {
      // Not written to the end in one operation: some of it fits.
      write(store, files[index] as Inode, 0n, pattern(200_000, index + round), 0, 200_000, false);
    },
  );
  for (const inode of files) await writeAll(store, inode, inode.size, pattern(9000, round));
  await untilFull((index) => {
    makeFile(store, `name-${index}-${"x".repeat(200)}`);
  });
  for (const inode of files) {
    await untilFull((index) => {
      if (index > 50) throw new FsError("ENOSPC");
      setXattr(store, inode, `user.${index}`, pattern(4000, index), 0);
    });
  }
}

async function empty(store: Store): Promise<void> {
  for (const name of [...store.root.directory!.names.keys()])
    await retrying(() => unlink(store, store.root, name));
}

/** Free space when everything is at rest: with nothing pending and the reserve as large as it must be. */
async function restingFree(store: Store): Promise<number> {
  await store.checkpoint();
  await store.sync();
  checkVolume(store);
  return store.allocator.freeBlocks + store.pool.blocks;
}

async function openImage(image: Uint8Array, granularity: Granularity): Promise<Store> {
  return Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: false });
}

describe.each(["cacheline", "page"] as const)("a full volume (%s)", (granularity) => {
  test.each([4, 6, 16])(
    "of %d MiB can be emptied and filled again, twenty times, and no block is lost",
    async (size) => {
      const region = await makeVolume(size * MIB, granularity);
      const store = await Store.open(region, { readOnly: false });
      const rounds = size > 8 ? 3 : 20;
      let free = await restingFree(store);
      for (let round = 0; round < rounds; round += 1) {
        await fill(store, round);
        checkVolume(store);
        expect(() => makeFile(store, "one more")).toThrow();
        await empty(store);
        checkVolume(store);
        const now = await restingFree(store);
        // A little of the first difference is the log's own, which a fresh volume has not begun.
        if (round === 0) free = now;
        expect(now).toBe(free);
      }
      await store.close();
      expect((await openImage(region.image(), granularity)).recovery.label).toBe("clean");
    },
  );

  test("survives the daemon's death and a power cut, with all that was synced", async () => {
    const region = await makeVolume(4 * MIB, granularity);
    const store = await Store.open(region, { readOnly: false });
    await fill(store, 1);
    await store.sync();
    const names = [...store.root.directory!.names.keys()].sort();
    for (const image of [region.image(), onAnotherBoot(region.image())]) {
      let again = await openImage(image, granularity);
      // Recovery of the full state must not need what is not there: twice more, each after another crash.
      for (let crash = 0; crash < 3; crash += 1) {
        checkVolume(again);
        expect([...again.root.directory!.names.keys()].sort()).toEqual(names);
        for (const name of names.filter((one) => one.startsWith("large-"))) {
          const inode = lookup(again, again.root, name);
          const twin = lookup(store, store.root, name);
          expect(inode.size).toBe(twin.size);
          const bytes = [Buffer.alloc(Number(inode.size)), Buffer.alloc(Number(inode.size))] as const;
          read(again, inode, 0n, bytes[0], 0, bytes[0].length);
          read(store, twin, 0n, bytes[1], 0, bytes[1].length);
          expect(bytes[0].equals(bytes[1])).toBe(true);
        }
        again = await openImage((again.region as MemoryRegion).image(), granularity);
      }
      await empty(again);
      checkVolume(again);
      await again.close();
    }
  });

  test("lets files shrink: truncate, punch hole and removing attributes always work", async () => {
    const region = await makeVolume(4 * MIB, granularity);
    const store = await Store.open(region, { readOnly: false });
    for (let round = 0; round < 5; round += 1) {
      await fill(store, round);
      for (const inode of [...store.state.inodes.values()]) {
        for (const name of [...(inode.xattrs?.keys() ?? [])])
          await retrying(() => removeXattr(store, inode, name));
        if (inode.extents === null || inode.size < 20_000n) continue;
        const mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE;
        await retrying(() => fallocate(store, inode, mode, 4096n, inode.size - 9000n, false));
        await retrying(() => truncate(store, inode, 3n, false));
        checkVolume(store);
      }
      const after = await retrying(() => makeFile(store, `after-${round}`));
      expect(await writeAll(store, after, 0n, pattern(100_000, 1))).toBe(100_000);
      await empty(store);
    }
    await store.close();
  });

  test("answers ENOSPC to an allocation that does not fit, and allocates nothing", async () => {
    const store = await Store.open(await makeVolume(4 * MIB, granularity), { readOnly: false });
    const inode = makeFile(store, "f");
    const free = store.allocator.freeBlocks;
    await expect(retrying(() => fallocate(store, inode, 0, 0n, 1n << 40n, false))).rejects.toMatchObject({
      code: "ENOSPC",
    });
    expect(inode.extents?.length).toBe(0);
    expect(inode.size).toBe(0n);
    expect(store.allocator.freeBlocks).toBeGreaterThanOrEqual(free - store.pool.blocks);
    checkVolume(store);
    // What is there can be had to the last block that the reserve leaves.
    const all = BigInt(store.allocator.freeBlocks) * BigInt(store.blockBytes);
    await retrying(() => fallocate(store, inode, 0, 0n, all, false));
    expect(store.allocator.freeBlocks).toBe(0);
    checkVolume(store);
    await retrying(() => truncate(store, inode, 0n, false));
    await store.close();
  });

  test("answers ENOSPC to an allocation whose records do not fit, and changes nothing", async () => {
    const store = await Store.open(await makeVolume(64 * MIB, granularity), { readOnly: false });
    const [file, rest] = [makeFile(store, "file"), makeFile(store, "rest")];
    const holes = 6000;
    const bytes = pattern((2 * holes + 1) * 4096, 1);
    await writeAll(store, file, 0n, bytes);
    // Enough for the records of some of the holes, and not of all.
    store.pool.ensure(23);
    await writeAll(store, rest, 0n, pattern(64 * MIB, 2));
    for (let hole = 0; hole < holes; hole += 1) {
      const mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE;
      await retrying(() => fallocate(store, file, mode, BigInt(1 + 2 * hole) * 4096n, 4096n, false));
      bytes.fill(0, (1 + 2 * hole) * 4096, (2 + 2 * hole) * 4096);
    }
    await store.sync();
    const extents = [...(file.extents ?? [])];
    const wanted = Math.min(holes, store.allocator.freeBlocks);
    expect(wanted).toBeGreaterThan(2 * RUNS_MAX);
    for (const mode of [0, FALLOC_ZERO_RANGE]) {
      // From the middle of a block to the middle of another; the last step at which something may fail, each time.
      const length = BigInt(2 * wanted) * 4096n - 1000n;
      const call = retrying(() => fallocate(store, file, mode | FALLOC_KEEP_SIZE, 100n, length, false));
      await expect(call).rejects.toMatchObject({ code: "ENOSPC" });
      expect([...(file.extents ?? [])]).toEqual(extents);
      const back = Buffer.alloc(bytes.length);
      read(store, file, 0n, back, 0, back.length);
      expect(back.equals(bytes)).toBe(true);
      expect(store.claimed.size).toBe(0);
      checkVolume(store);
    }
    await store.close();
  });

  test("an allocation of many groups that is given up half way leaves every block somebody's", async () => {
    const store = await Store.open(await makeVolume(64 * MIB, granularity), { readOnly: false });
    const file = makeFile(store, "file");
    const blocks = 8000;
    for (let block = 0; block < blocks; block += 2)
      await retrying(() => write(store, file, BigInt(block) * 4096n, pattern(10, block), 0, 10, false));
    const { freeBlocks } = store.allocator;
    for (let steps = 1; ; steps = Math.ceil(steps * 1.5)) {
      const fallocation = beginFallocate(store, file, FALLOC_ZERO_RANGE, 0n, BigInt(blocks) * 4096n, false);
      let done = false;
      for (let step = 0; step < steps && !done; step += 1) {
        done = await retrying(() => fallocation.step());
        checkVolume(store);
      }
      const { hasRecords } = fallocation;
      fallocation.abandon();
      checkVolume(store);
      expect(store.claimed.size).toBe(0);
      if (!hasRecords) expect(file.extents?.length).toBe(blocks / 2);
      if (done) break;
    }
    expect(file.extents?.blocks).toBe(blocks);
    expect(file.extents?.isWritten(0, 1)).toBe(false);
    await retrying(() => truncate(store, file, 0n, false));
    checkVolume(store);
    await store.sync();
    await store.freeing.running;
    checkVolume(store);
    expect(store.allocator.freeBlocks + 64).toBeGreaterThan(freeBlocks);
    await store.close();
  });

  test("writes as much as fits and says how much that was", async () => {
    const store = await Store.open(await makeVolume(4 * MIB, granularity), { readOnly: false });
    const inode = makeFile(store, "f");
    const bytes = pattern(8 * MIB, 1);
    const written = await retrying(() => write(store, inode, 100n, bytes, 0, bytes.length, false));
    expect(written).toBeGreaterThan(MIB);
    expect(written).toBeLessThan(4 * MIB);
    expect(inode.size).toBe(100n + BigInt(written));
    const back = Buffer.alloc(written);
    read(store, inode, 100n, back, 0, written);
    expect(back.equals(bytes.subarray(0, written))).toBe(true);
    checkVolume(store);
    await store.close();
  });

  test("keeps working when the snapshot is large: thousands of names and the longest attributes", async () => {
    const store = await Store.open(await makeVolume(16 * MIB, granularity), { readOnly: false });
    for (let round = 0; round < 2; round += 1) {
      const files: Inode[] = [];
      await untilFull(
        (index) => {
          files.push(makeFile(store, `${index}`));
        },
        (index) => setXattr(store, files[index] as Inode, "user.long", pattern(65_536, index), 0),
      );
      expect(files.length).toBeGreaterThan(20);
      checkVolume(store);
      await store.checkpoint();
      const again = await openImage((store.region as MemoryRegion).image(), granularity);
      checkVolume(again);
      await retrying(() => unlink(again, again.root, "0"));
      await again.close();
      await empty(store);
      checkVolume(store);
    }
    await store.close();
  });

  test("in crumbs still gives its blocks to one allocation, and to one mapping", async () => {
    const store = await Store.open(await makeVolume(40 * MIB, granularity), { readOnly: false });
    const big = makeFile(store, "big");
    const crumbs = [makeFile(store, "allocated"), makeFile(store, "prepared")];
    // The holes alone would leave no whole segment for the metadata of so many runs.
    store.pool.ensure(store.pool.available + 12);
    await writeAll(store, big, 0n, pattern(40 * MIB, 1));
    const holes = 3600;
    for (let hole = 0; hole < holes; hole += 1) {
      const mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE;
      await retrying(() => fallocate(store, big, mode, BigInt(1 + 2 * hole) * 4096n, 4096n, false));
    }
    await store.sync();
    const want = store.allocator.freeBlocks;
    expect(want).toBeGreaterThanOrEqual(holes);
    for (const inode of crumbs) {
      if (inode === crumbs[0])
        await retrying(() => fallocate(store, inode, 0, 0n, BigInt(want) * 4096n, false));
      for (let at = 0; at < want; ) {
        const from = at;
        at = await retrying(() => prepareSome(store, inode, from, want - from, want));
        expect(at).toBeGreaterThan(from);
      }
      expect(inode.extents?.blocks).toBe(want);
      // More runs than go into one group of records, though some crumbs were brought together to make room for it.
      expect(inode.extents?.length).toBeGreaterThan(2 * RUNS_MAX);
      checkVolume(store);
      const again = await openImage((store.region as MemoryRegion).image(), granularity);
      checkVolume(again);
      expect(again.inode(inode.ino).extents?.blocks).toBe(want);
      await retrying(() => truncate(store, inode, 0n, false));
      checkVolume(store);
      await store.sync();
      await store.freeing.running;
    }
    await store.close();
  });

  test("whose free space is in single blocks still has room for metadata, to the last of them", async () => {
    const store = await Store.open(await makeVolume(40 * MIB, granularity), { readOnly: false });
    const big = makeFile(store, "big");
    await writeAll(store, big, 0n, pattern(40 * MIB, 1));
    const mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE;
    for (let at = 4096n; at < big.size; at += 8192n)
      await retrying(() => fallocate(store, big, mode, at, 4096n, false));
    await store.sync();
    const { freeBlocks } = store.allocator;
    expect(freeBlocks).toBeGreaterThan(4000);
    for (let index = 0; index < 40; index += 1) {
      const file = await retrying(() => makeFile(store, `file-${index}`));
      await retrying(() => setXattr(store, file, "user.long", pattern(30_000, index), 0));
    }
    const half = makeFile(store, "half");
    const bytesFree = BigInt(store.allocator.freeBlocks) * 4096n;
    await retrying(() => fallocate(store, half, 0, 0n, bytesFree / 2n, false));
    checkVolume(store);
    const again = await openImage((store.region as MemoryRegion).image(), granularity);
    checkVolume(again);
    expect(again.root.directory?.names.size).toBe(42);
    const bytes = Buffer.alloc(4096);
    read(again, lookup(again, again.root, "big"), 8192n, bytes, 0, 4096);
    expect(bytes.equals(pattern(40 * MIB, 1).subarray(8192, 12_288))).toBe(true);
    await store.close();
  });

  test("that is punched full of holes keeps room for its next checkpoint, and is not lost at the next crash", async () => {
    const store = await Store.open(await makeVolume(120 * MIB, granularity), { readOnly: false });
    const big = makeFile(store, "big");
    await writeAll(store, big, 0n, pattern(120 * MIB, 1));
    let punched = 0;
    for (let at = 4096n; at < big.size; at += 8192n) {
      try {
        await retrying(() => fallocate(store, big, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, at, 4096n, false));
        punched += 1;
      } catch (error) {
        if (!(error instanceof FsError && error.code === "ENOSPC")) throw error;
        break;
      }
    }
    expect(punched).toBeGreaterThan(3000);
    await store.checkpoint();
    await store.sync();
    const again = await openImage((store.region as MemoryRegion).image(), granularity);
    checkVolume(again);
    await retrying(() => unlink(again, again.root, "big"));
    await again.close();
    await retrying(() => truncate(store, big, 0n, false));
    await store.close();
  });
});
