/** Shared extents: what recovery, the quarantine and durability demand of them. Contents: see model.test.ts. */
import { describe, expect, test } from "vitest";
import { CorruptionError, FsError } from "../../src/base/errors.ts";
import { retrying } from "../../src/base/wait.ts";
import { SHARED, WRITTEN } from "../../src/media/group.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { cloneRange, copyRange } from "../../src/namespace/clone.ts";
import { read, write } from "../../src/namespace/data.ts";
import { type Inode, S_IFREG } from "../../src/namespace/inode.ts";
import { create, unlink } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, makeVolume, onAnotherBoot, owner, patchSuperblock } from "../support/volume.ts";
import { pattern } from "./bench.ts";

const BYTES = 20_000;

function file(store: Store, name: string, content?: Uint8Array): Inode {
  const inode = create(store, store.root, name, S_IFREG | 0o644, 0, owner, null);
  if (content !== undefined) write(store, inode, 0n, content, 0, content.length, false);
  return inode;
}

const whole = (source: Inode, target: Inode) => ({
  source,
  sourceOffset: 0n,
  target,
  targetOffset: 0n,
  length: source.size,
  killPrivileges: false,
});

const statesOf = (inode: Inode): number[] => [...(inode.extents ?? [])].map((extent) => extent.state);

function contentOf(store: Store, inode: Inode): Buffer {
  const bytes = Buffer.alloc(Number(inode.size));
  read(store, inode, 0n, bytes, 0, bytes.length);
  return bytes;
}

async function openVolume(granularity: Granularity = "cacheline", sizeBytes = 4 * MIB): Promise<Store> {
  const made = await makeVolume(sizeBytes, granularity);
  const region = MemoryRegion.fromImage(made.image(), { granularity, recording: true });
  return Store.open(region, { readOnly: false });
}

describe("shared extents", () => {
  test("a write to a copy takes along nothing that lies behind the end of either", async () => {
    const store = await openVolume();
    const a = file(store, "a", pattern(100, 1));
    const b = file(store, "b");
    // As a direct mapping of the whole block may have stored.
    const [extent] = a.extents ?? [];
    store.region.write(extent!.physical * store.blockBytes + 100, Buffer.alloc(3000, "secret"), 0, 3000);
    cloneRange(store, whole(a, b));
    write(store, b, 50n, Buffer.from("x"), 0, 1, false);
    const [own] = b.extents ?? [];
    expect(own!.physical).not.toBe(extent!.physical);
    const block = Buffer.alloc(store.blockBytes);
    store.region.read(own!.physical * store.blockBytes, block, 0, block.length);
    const expected = Buffer.alloc(store.blockBytes);
    expected.set(pattern(100, 1));
    expected.write("x", 50);
    expect(block.equals(expected)).toBe(true);
    await store.close();
  });

  test("in blocks that others have to themselves are damage", async () => {
    const store = await openVolume();
    const [a, b] = [file(store, "a", pattern(BYTES, 1)), file(store, "b", pattern(BYTES, 2))];
    const [extent] = b.extents ?? [];
    const group = store.begin(true);
    group.extent(a.ino, 0, extent!.physical, 1, SHARED);
    store.commit();
    expect(() => checkVolume(store)).toThrow();
    const region = MemoryRegion.fromImage((store.region as MemoryRegion).image(), {
      granularity: "cacheline",
    });
    await expect(Store.open(region, { readOnly: false })).rejects.toThrow(CorruptionError);
  });

  test("are damage in a volume whose superblock knows none, and such a volume copies instead", async () => {
    const store = await openVolume();
    const a = file(store, "a", pattern(BYTES, 1));
    expect(cloneRange(store, whole(a, file(store, "b")))).toBe(BYTES);
    const image = Buffer.from((store.region as MemoryRegion).image());
    patchSuperblock(image, () => ({ featuresIncompatible: 0 }));
    await expect(
      Store.open(MemoryRegion.fromImage(image, { granularity: "cacheline" }), { readOnly: true }),
    ).rejects.toThrow(/shared/);

    const blank = Buffer.from((await makeVolume(4 * MIB, "cacheline")).image());
    patchSuperblock(blank, () => ({ featuresIncompatible: 0 }));
    const old = await Store.open(MemoryRegion.fromImage(blank, { granularity: "cacheline" }), {
      readOnly: false,
    });
    const [source, target] = [file(old, "a", pattern(BYTES, 1)), file(old, "b")];
    expect(() => cloneRange(old, whole(source, target))).toThrow(FsError);
    expect(copyRange(old, whole(source, target))).toBe(BYTES);
    expect(contentOf(old, target).equals(contentOf(old, source))).toBe(true);
    expect(statesOf(target)).toEqual([WRITTEN]);
    checkVolume(old);
  });

  test("are not made of blocks that somebody without a lease can still store into: those are copied", async () => {
    const store = await openVolume();
    const a = file(store, "a", pattern(BYTES, 1));
    const [extent] = a.extents ?? [];
    store.quarantine.claim(7, [{ start: extent!.physical + 2, count: 1 }]);
    const b = file(store, "b");
    for (let done = 0; done < BYTES; ) {
      const at = BigInt(done);
      const rest = { ...whole(a, b), sourceOffset: at, targetOffset: at, length: BigInt(BYTES - done) };
      done += cloneRange(store, rest);
    }
    expect(contentOf(store, b).equals(contentOf(store, a))).toBe(true);
    expect(statesOf(a)).toEqual([WRITTEN]);
    expect(statesOf(b)).toEqual([WRITTEN]);
    checkVolume(store);
  });

  test("become a file's own again only when the others' end survives a power cut", async () => {
    const store = await openVolume("page");
    const a = file(store, "a", pattern(BYTES, 1));
    const b = file(store, "b");
    cloneRange(store, whole(a, b));
    await store.sync();
    unlink(store, store.root, "b");
    store.reap(b);
    const before = [...(a.extents ?? [])].map((extent) => extent.physical);
    write(store, a, 0n, pattern(4096, 9), 0, 4096, false);
    expect((a.extents?.at(0, 1).physical ?? 0) === before[0]).toBe(false);
    // Power goes: the file that was removed is back, as it was.
    const image = onAnotherBoot((store.region as MemoryRegion).afterPowerCut(() => false));
    const again = await Store.open(MemoryRegion.fromImage(image, { granularity: "page" }), {
      readOnly: false,
    });
    const twin = again.inode(b.ino);
    expect(contentOf(again, twin).equals(Buffer.from(pattern(BYTES, 1)))).toBe(true);
    // And when it cannot come back, the blocks are written in place.
    await store.sync();
    const place = a.extents?.at(1, 1).physical;
    write(store, a, 4096n, pattern(4096, 8), 0, 4096, false);
    expect(a.extents?.at(1, 1)).toMatchObject({ state: WRITTEN, physical: place });
    checkVolume(store);
    await store.close();
  });

  test("of very many pieces are handed over in several groups", async () => {
    const store = await openVolume("cacheline", 16 * MIB);
    const [a, filler, b] = [file(store, "a"), file(store, "filler"), file(store, "b")];
    for (let block = 0; block < 400; block += 1) {
      const at = BigInt(block * 4096);
      write(store, a, at, pattern(4096, block), 0, 4096, false);
      write(store, filler, at, pattern(4096, 1), 0, 4096, false);
    }
    expect(a.extents?.length).toBeGreaterThan(100);
    for (let done = 0n; done < a.size; ) {
      const rest = { ...whole(a, b), sourceOffset: done, targetOffset: done, length: a.size - done };
      done += BigInt(await retrying(() => cloneRange(store, rest)));
    }
    expect(contentOf(store, b).equals(contentOf(store, a))).toBe(true);
    expect([...(b.extents ?? [])].map((extent) => extent.physical)).toEqual(
      [...(a.extents ?? [])].map((extent) => extent.physical),
    );
    checkVolume(store);
    await store.close();
    const again = await Store.open(store.region, { readOnly: false });
    checkVolume(again);
  });
});
