import { describe, expect, test } from "vitest";
import { FsError, InvariantError } from "../../src/base/errors.ts";
import { retrying } from "../../src/base/wait.ts";
import { noteAccess } from "../../src/namespace/attributes.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { prepareSome, seekData, seekHole, truncate, write } from "../../src/namespace/data.ts";
import { fallocate } from "../../src/namespace/fallocate.ts";
import { ENTRIES_MAX, type Inode, S_IFDIR, S_IFREG } from "../../src/namespace/inode.ts";
import { create, createUnnamed, link, lookup, rename, unlink } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, makeVolume, owner } from "../support/volume.ts";
import { pattern } from "./bench.ts";

const makeFile = (store: Store, name: string): Inode =>
  create(store, store.root, name, S_IFREG | 0o644, 0, owner, null);

async function opened(
  granularity: Granularity,
  sizeMib = 4,
): Promise<{ region: MemoryRegion; store: Store }> {
  const made = await makeVolume(sizeMib * MIB, granularity);
  const region = MemoryRegion.fromImage(made.image(), { granularity, recording: true });
  return { region, store: await Store.open(region, { readOnly: false }) };
}

describe("a store", () => {
  test.each(["cacheline", "page"] as const)(
    "that is closed while others change and sync it leaves a clean volume (%s)",
    async (granularity) => {
      for (let delay = 0; delay < 8; delay += 1) {
        const { region, store } = await opened(granularity);
        const file = makeFile(store, "f");
        let closed = false;
        let round = 0;
        const syncs: Promise<unknown>[] = [];
        const disturb = async (): Promise<void> => {
          while (!closed) {
            round += 1;
            try {
              write(store, file, BigInt(round * 10), pattern(10, round), 0, 10, false);
            } catch (error) {
              // Being unmounted: EROFS is the answer, and nothing has changed.
              if (!(error instanceof FsError && error.code === "EROFS")) throw error;
            }
            noteAccess(store, file, "strictatime");
            syncs.push(store.sync());
            await new Promise((resolve) => setImmediate(resolve));
          }
        };
        const disturbing = disturb();
        for (let tick = 0; tick < delay; tick += 1) await new Promise((resolve) => setImmediate(resolve));
        await store.close();
        closed = true;
        await disturbing;
        await Promise.all(syncs);
        const again = await Store.open(region, { readOnly: false });
        expect(again.recovery.label).toBe("clean");
        checkVolume(again);
        expect(lookup(again, again.root, "f").size).toBe(file.size);
      }
    },
  );

  test("frees thousands of orphans when it is opened, checkpoints included", async () => {
    const { region, store } = await opened("page", 16);
    for (let index = 0; index < 12_000; index += 1) {
      const file = await retrying(() => makeFile(store, "orphan"));
      file.opens = 1;
      await retrying(() => unlink(store, store.root, "orphan"));
    }
    await store.sync();
    checkVolume(store);
    const again = await Store.open(MemoryRegion.fromImage(region.image(), { granularity: "page" }), {
      readOnly: false,
    });
    expect(again.state.inodes.size).toBe(1);
    await again.sync();
    checkVolume(again);
    await again.close();
  });

  test("takes no more inodes, and a directory no more names, than a Map can hold: ENOSPC, before anything is logged", async () => {
    const { store } = await opened("cacheline");
    const file = makeFile(store, "f");
    const folder = create(store, store.root, "d", S_IFDIR | 0o755, 0, owner, null);
    const { names } = folder.directory!;
    const { lastLsn } = store.journal!;
    /** As if there were so many: to make them takes minutes, and gigabytes. */
    const full = (map: Map<unknown, unknown>, action: () => void): void => {
      Object.defineProperty(map, "size", { value: ENTRIES_MAX, configurable: true });
      expect(action).toThrow(expect.objectContaining({ code: "ENOSPC" }));
      Reflect.deleteProperty(map, "size");
    };
    full(store.state.inodes, () => makeFile(store, "g"));
    full(store.state.inodes, () => createUnnamed(store, store.root, S_IFREG | 0o600, owner));
    full(names, () => create(store, folder, "g", S_IFREG | 0o600, 0, owner, null));
    full(names, () => link(store, file, folder, "g"));
    full(names, () => rename(store, store.root, "f", folder, "g", 0));
    expect(store.journal!.lastLsn).toBe(lastLsn);
    rename(store, store.root, "f", folder, "g", 0);
    checkVolume(store);
    await store.close();
  });

  test("opened for reading alone refuses every change with EROFS, and stores nothing", async () => {
    const { region, store } = await opened("cacheline");
    const file = makeFile(store, "f");
    write(store, file, 0n, pattern(100, 1), 0, 100, false);
    const image = region.image();
    const left = MemoryRegion.fromImage(image);
    left.onStore = () => {
      throw new Error("a store");
    };
    const again = await Store.open(left, { readOnly: true });
    const twin = lookup(again, again.root, "f");
    for (const change of [
      () => makeFile(again, "g"),
      () => unlink(again, again.root, "f"),
      () => write(again, twin, 0n, pattern(1, 1), 0, 1, false),
      () => truncate(again, twin, 0n, false),
      () => fallocate(again, twin, 0, 0n, 10n, false),
      () => prepareSome(again, twin, 0, 1, 1),
    ])
      expect(change).toThrow(expect.objectContaining({ code: "EROFS" }));
    noteAccess(again, twin, "strictatime");
    await again.sync();
    await again.close();
    checkVolume(again);
  });

  test("refuses to change anything after a failed sync, and what was durable before is there", async () => {
    const { region, store } = await opened("page");
    makeFile(store, "before");
    await store.sync();
    makeFile(store, "after");
    region.failSync();
    await expect(store.sync()).rejects.toMatchObject({ code: "EIO" });
    expect(() => makeFile(store, "never")).toThrow(expect.objectContaining({ code: "EROFS" }));
    await expect(store.close()).rejects.toMatchObject({ code: "EIO" });
    const image = region.afterPowerCut(() => false);
    const again = await Store.open(MemoryRegion.fromImage(image, { granularity: "page" }), {
      readOnly: false,
    });
    expect(again.root.directory?.names.has("before")).toBe(true);
  });

  test("asks the guard before each change of a map or size, and a refusal changes nothing", async () => {
    const { region, store } = await opened("cacheline");
    const file = makeFile(store, "f");
    write(store, file, 0n, pattern(20_000, 1), 0, 20_000, false);
    const asked: string[] = [];
    const refuse = (what: string): void => {
      asked.push(what);
      throw new FsError("ETXTBSY");
    };
    store.guard = {
      beforeMapChange: () => refuse("map"),
      beforeSizeChange: () => refuse("size"),
      isLeased: () => true,
      beforeTailMoves: () => {},
    };
    const image = Buffer.from(region.image());
    const free = store.allocator.freeBlocks;
    for (const change of [
      () => write(store, file, 30_000n, pattern(10, 2), 0, 10, false),
      () => write(store, file, 19_999n, pattern(10, 2), 0, 10, false),
      () => truncate(store, file, 5n, false),
      () => truncate(store, file, 20_001n, false),
      () => fallocate(store, file, 3, 0n, 4096n, false),
      () => fallocate(store, file, 0x10, 0n, 4096n, false),
      () => fallocate(store, file, 0, 0n, 30_000n, false),
      () => fallocate(store, file, 1, 40_960n, 1n, false),
      () => prepareSome(store, file, 8, 1, 1),
    ])
      expect(change).toThrow(expect.objectContaining({ code: "ETXTBSY" }));
    expect(asked).toHaveLength(9);
    expect(image.equals(region.image())).toBe(true);
    expect(store.allocator.freeBlocks).toBe(free);
    // Overwriting in place is no change of the map, and neither is making a hole of a hole.
    write(store, file, 0n, pattern(20_000, 3), 0, 20_000, false);
    fallocate(store, file, 3, 1n << 40n, 1n << 30n, false);
    checkVolume(store);
  });

  test("finds data and holes as lseek(2) says, unwritten blocks being holes", async () => {
    const { store } = await opened("cacheline");
    const file = makeFile(store, "f");
    write(store, file, 8192n, pattern(4096, 1), 0, 4096, false);
    fallocate(store, file, 0, 0n, 30_000n, false);
    write(store, file, 1n << 50n, pattern(10, 1), 0, 10, false);
    const far = 1n << 50n;
    expect([seekData(store, file, 0n), seekData(store, file, 9000n), seekData(store, file, 12_288n)]).toEqual(
      [8192n, 9000n, far],
    );
    expect([seekHole(store, file, 0n), seekHole(store, file, 9000n), seekHole(store, file, far)]).toEqual([
      0n,
      12_288n,
      far + 10n,
    ]);
    expect(() => seekData(store, file, far + 10n)).toThrow(expect.objectContaining({ code: "ENXIO" }));
    truncate(store, file, 8192n, false);
    expect(() => seekData(store, file, 0n)).toThrow(expect.objectContaining({ code: "ENXIO" }));
    expect(seekHole(store, file, 8191n)).toBe(8191n);
  });
});

describe("checkVolume", () => {
  test("notices what it is there for", async () => {
    const { store } = await opened("cacheline");
    const file = makeFile(store, "f");
    write(store, file, 0n, pattern(5000, 1), 0, 5000, false);
    checkVolume(store);
    const broken = (change: () => () => void, message: RegExp): void => {
      const undo = change();
      expect(() => checkVolume(store)).toThrow(InvariantError);
      expect(() => checkVolume(store)).toThrow(message);
      undo();
      checkVolume(store);
    };
    broken(() => {
      file.nlink = 2;
      return () => {
        file.nlink = 1;
      };
    }, /link count 2, should be 1/);
    broken(() => {
      const run = store.allocator.allocate(1, 0);
      return () => store.allocator.free(run?.start as number, 1);
    }, /1 blocks are neither free nor used/);
    broken(() => {
      const extent = [...(file.extents ?? [])][0] as { physical: number };
      store.allocator.free(extent.physical, 1);
      return () => store.allocator.claim(extent.physical, 1);
    }, /is free/);
    broken(() => {
      store.root.parent = 5;
      return () => {
        store.root.parent = 1;
      };
    }, /parent/);
    broken(() => {
      file.xattrs = new Map([["user.a", new Uint8Array(3)]]);
      return () => {
        file.xattrs = null;
      };
    }, /a snapshot takes/);
    broken(() => {
      store.root.directory?.names.delete("f");
      return () => store.root.directory?.set("f", file.ino, 8, 3);
    }, /reading order|link count|neither/);
    broken(() => {
      const other = makeFile(store, "g");
      other.extents?.set(0, 1, [...(file.extents ?? [])][0]?.physical as number, 2, () => {});
      return () => {
        other.extents?.remove(0, 1, () => {});
        unlink(store, store.root, "g");
      };
    }, /belongs to inode 2 and to inode 3/);
  });

  test("a file has 65,000 names at most: EMLINK", async () => {
    const { store } = await opened("cacheline", 64);
    const file = makeFile(store, "f");
    for (let names = 1; names < 65_000; names += 1)
      await retrying(() => link(store, file, store.root, `name-${names}`));
    expect(file.nlink).toBe(65_000);
    await expect(retrying(() => link(store, file, store.root, "one more"))).rejects.toThrow("EMLINK");
    checkVolume(store);
    await retrying(() => unlink(store, store.root, "f"));
    await retrying(() => link(store, file, store.root, "one more"));
    await store.close();
  }, 60_000);
});
