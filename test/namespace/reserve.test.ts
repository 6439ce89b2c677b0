/** What frees space always works: on every volume, however small, full or cut to pieces, whatever its history. */
import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { retrying } from "../../src/base/wait.ts";
import { changeAttributes } from "../../src/namespace/attributes.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { truncate, write } from "../../src/namespace/data.ts";
import { type Inode, S_IFREG } from "../../src/namespace/inode.ts";
import { create, lookup, unlink } from "../../src/namespace/names.ts";
import { resize } from "../../src/namespace/resize.ts";
import { Store } from "../../src/namespace/store.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { crowd, MIB, makeVolume, owner } from "../support/volume.ts";
import { pattern } from "./bench.ts";

const makeFile = (store: Store, name: string): Inode =>
  create(store, store.root, name, S_IFREG | 0o644, 0, owner, null);

/** Whatever else it throws is passed on. */
async function orFull(operation: () => unknown): Promise<boolean> {
  try {
    await retrying(operation);
    return true;
  } catch (error) {
    if (error instanceof FsError && error.code === "ENOSPC") return false;
    throw error;
  }
}

async function writeFile(store: Store, name: string, bytes: number): Promise<Inode> {
  const inode = await retrying(() => makeFile(store, name));
  for (let done = 0; done < bytes; ) {
    const from = done;
    done += await retrying(() =>
      write(store, inode, BigInt(from), pattern(bytes - from, from), 0, bytes - from, false),
    );
  }
  return inode;
}

/** The smallest size that resize accepts, given to the volume. */
async function shrinkToLeast(image: Uint8Array, granularity: "cacheline" | "page"): Promise<Uint8Array> {
  let [refused, accepted] = [0, image.length / 4096];
  let smallest = image;
  while (accepted - refused > 1) {
    const blocks = Math.floor((refused + accepted) / 2);
    const region = MemoryRegion.fromImage(image.slice(), { granularity });
    try {
      await resize(region, blocks * 4096);
      accepted = blocks;
      smallest = region.image().slice(0, blocks * 4096);
    } catch (error) {
      if (!(error instanceof FsError)) throw error;
      refused = blocks;
    }
  }
  return smallest;
}

describe.each(["cacheline", "page"] as const)("what frees space works (%s)", (granularity) => {
  test.each([0, 3000])(
    "in a volume as small as resize makes it, with %d more files, after more changes than its log holds",
    async (names) => {
      const made = await makeVolume(24 * MIB, granularity);
      const store = await Store.open(made, { readOnly: false });
      await writeFile(store, "large", 14 * MIB);
      for (let index = 0; index < names; index += 1) await retrying(() => makeFile(store, `name-${index}`));
      await store.close();
      const image = await shrinkToLeast(made.image(), granularity);
      const region = MemoryRegion.fromImage(image, { granularity });
      const small = await Store.open(region, { readOnly: false });
      expect(small.readOnlyReason).toBeNull();
      const large = lookup(small, small.root, "large");
      for (let round = 0; round < 10_000; round += 1)
        await retrying(() => changeAttributes(small, large, { mode: 0o600 + (round % 8) }));
      checkVolume(small);
      await retrying(() => truncate(small, large, 14n * 1024n * 1024n - 5000n, false));
      await retrying(() => unlink(small, small.root, "large"));
      await small.close();
      const again = await Store.open(MemoryRegion.fromImage(region.image(), { granularity }), {
        readOnly: false,
      });
      expect(again.recovery.label).toBe("clean");
      expect(again.readOnlyReason).toBeNull();
      checkVolume(again);
      await writeFile(again, "after", 5 * MIB);
      await again.close();
    },
  );

  test.each([0, 1, 2, 3, 4, 5, 6, 8])(
    "in a volume that begins with %d segments in reserve, as earlier versions made them",
    async (segments) => {
      const region = await makeVolume(8 * MIB, granularity);
      const before = await Store.open(region, { readOnly: false });
      await writeFile(before, "small", 10_000);
      crowd(before, segments);
      checkVolume(before);
      await before.close();
      const store = await Store.open(region, { readOnly: false });
      expect(store.readOnlyReason).toBeNull();
      const small = lookup(store, store.root, "small");
      for (let round = 0; round < 5000; round += 1) {
        await orFull(() => changeAttributes(store, small, { mode: 0o600 + (round % 8) }));
        await orFull(() => makeFile(store, `file-${round}`));
      }
      await store.sync();
      await retrying(() => truncate(store, small, 100n, false));
      await retrying(() => unlink(store, store.root, "small"));
      checkVolume(store);
      await store.close();
      // Nothing that was done is lost, and it goes on.
      const again = await Store.open(MemoryRegion.fromImage(region.image(), { granularity }), {
        readOnly: false,
      });
      expect(again.readOnlyReason).toBeNull();
      expect(again.root.directory?.names.has("small")).toBe(false);
      const large = lookup(again, again.root, "crowd");
      await retrying(() => truncate(again, large, 1_000_000n, false));
      await again.sync();
      await retrying(() => makeFile(again, "another"));
      await writeFile(again, "after", 2 * MIB);
      checkVolume(again);
      await again.close();
      const last = await Store.open(again.region, { readOnly: false });
      expect(last.recovery.label).toBe("clean");
      await last.close();
    },
  );
});
