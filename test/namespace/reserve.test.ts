/** What frees space always works: on every volume, however small, full or cut to pieces, whatever its history. */
import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { retrying, Wait } from "../../src/base/wait.ts";
import { fsck } from "../../src/fsck/fsck.ts";
import { GroupBuilder } from "../../src/media/group.ts";
import { changeAttributes, setXattr } from "../../src/namespace/attributes.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { cloneRange } from "../../src/namespace/clone.ts";
import { truncate, write } from "../../src/namespace/data.ts";
import { FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate } from "../../src/namespace/fallocate.ts";
import { fieldsOf, type Inode, S_IFREG } from "../../src/namespace/inode.ts";
import { create, lookup, rename, unlink } from "../../src/namespace/names.ts";
import { resize } from "../../src/namespace/resize.ts";
import { resizeMounted } from "../../src/namespace/resize-mounted.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { Recorder } from "../powercut/recorder.ts";
import { apply, settle, statesOf } from "../powercut/states.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import {
  crowd,
  MIB,
  makeVolume,
  onAnotherBoot,
  owner,
  patchSuperblock,
  randomOf,
} from "../support/volume.ts";
import { pattern } from "./bench.ts";

const PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE;
const ROUNDS = Number(process.env.MAPDIRECT_ROUNDS ?? 6);

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

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));

/** One change out of all that fill a volume or cut it to pieces; ENOSPC is an answer to each. */
async function fillSome(store: Store, random: () => number, serial: number): Promise<void> {
  const names = [...(store.root.directory?.names.keys() ?? [])];
  const name = names[Math.floor(random() * names.length)] ?? "none";
  const inode = names.length === 0 ? store.root : lookup(store, store.root, name);
  const size = Math.floor(random() * 2 ** (4 + random() * 18));
  const kind = names.length === 0 ? 0 : Math.floor(random() * 9);
  if (kind === 0) await orFull(() => makeFile(store, `file-${serial}-${"x".repeat(random() * 200)}`));
  else if (kind === 1 || kind === 2) {
    const at = BigInt(Math.floor(random() * 2 ** 22));
    await orFull(() => write(store, inode, at, pattern(size, serial), 0, size, false));
  } else if (kind === 3)
    await orFull(() =>
      setXattr(store, inode, `user.${serial % 7}`, pattern(Math.min(size, 65_000), serial), 0),
    );
  else if (kind === 4) {
    const from = BigInt(Math.floor(random() * 1024)) * 8192n;
    for (let hole = 0n; hole < 200n; hole += 1n)
      await orFull(() => fallocate(store, inode, PUNCH, from + hole * 8192n, 4096n, false));
  } else if (kind === 5)
    // No more metadata than before: no volume of today gets to where that is refused.
    await retrying(() => changeAttributes(store, inode, { mode: serial % 512 }));
  else if (kind === 6)
    await orFull(() =>
      rename(store, store.root, name, store.root, `renamed-${serial}-${"y".repeat(random() * 200)}`, 0),
    );
  else if (kind === 7) await orFull(() => fallocate(store, inode, 0, 0n, BigInt(size + 1), false));
  else {
    const target = await retrying(() => makeFile(store, `clone-${serial}`)).catch(() => null);
    const range = { sourceOffset: 0n, targetOffset: 0n, length: inode.size, killPrivileges: false };
    if (target !== null && inode.size > 0n)
      await orFull(() => cloneRange(store, { source: inode, target, ...range }));
  }
}

/** What may become of a volume from one mount to the next. */
async function nextMount(store: Store, granularity: Granularity, random: () => number): Promise<Store> {
  const how = Math.floor(random() * 5);
  if (how === 0) await store.sync();
  if (how >= 2) await store.close();
  const region = store.region as MemoryRegion;
  let image = Uint8Array.from(region.image());
  if (how === 0) onAnotherBoot(image);
  if (how === 4) {
    // Larger by up to 2 MiB, or as small as it can be.
    const larger = new Uint8Array(image.length + Math.floor(random() * 512) * 4096);
    larger.set(image);
    const grown = MemoryRegion.fromImage(larger, { granularity });
    try {
      await resize(grown, larger.length);
      image = Uint8Array.from(grown.image());
    } catch (error) {
      if (!(error instanceof FsError && error.code === "ENOSPC")) throw error;
    }
  }
  if (how === 3) image = Uint8Array.from(await shrinkToLeast(image, granularity));
  const next = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: false });
  expect(next.readOnlyReason).toBeNull();
  return next;
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

  test.each(Array.from({ length: ROUNDS }, (_, round) => round))(
    `in a volume of any size and history (seed ${seed}, round %d)`,
    async (round) => {
      const random = randomOf(seed + round);
      const blocks = 1024 + Math.floor(random() * 1500);
      let store = await Store.open(await makeVolume(blocks * 4096, granularity), { readOnly: false });
      let serial = 0;
      for (let mounts = 0; mounts < 4; mounts += 1) {
        for (let changes = 0; changes < 300; changes += 1) {
          serial += 1;
          await fillSome(store, random, serial);
        }
        checkVolume(store);
        store = await nextMount(store, granularity, random);
        checkVolume(store);
        // Nobody has to have waited for anything else.
        const names = [...(store.root.directory?.names.keys() ?? [])];
        for (const name of names.filter(() => random() < 0.3)) {
          const inode = lookup(store, store.root, name);
          if (random() < 0.5) await retrying(() => unlink(store, store.root, name));
          else await retrying(() => truncate(store, inode, inode.size / 2n, false));
        }
      }
      for (const name of [...(store.root.directory?.names.keys() ?? [])])
        await retrying(() => unlink(store, store.root, name));
      await store.sync();
      await writeFile(store, "after", MIB / 2);
      checkVolume(store);
      await store.close();
      expect((await Store.open(store.region, { readOnly: true })).recovery.label).toBe("clean");
    },
  );

  test.each([0, 3000, 40_000, 65_000])(
    "in a volume full of metadata alone (attributes of %d bytes), where changes go on, after a crash as well",
    async (bytes) => {
      const store = await Store.open(await makeVolume(9 * MIB, granularity), { readOnly: false });
      const names: string[] = [];
      for (let index = 0; ; index += 1) {
        const name = `file-${index}-${"x".repeat(index % 200)}`;
        if (!(await orFull(() => makeFile(store, name)))) break;
        names.push(name);
        const value = pattern(bytes, index);
        if (!(await orFull(() => setXattr(store, lookup(store, store.root, name), "user.a", value, 0))))
          break;
      }
      const region = MemoryRegion.fromImage((store.region as MemoryRegion).image(), { granularity });
      for (const one of [store, await Store.open(region, { readOnly: false })]) {
        expect(one.readOnlyReason).toBeNull();
        const inode = lookup(one, one.root, names[0] as string);
        for (let round = 0; round < 5000; round += 1)
          await retrying(() => changeAttributes(one, inode, { mode: round % 512 }));
        checkVolume(one);
        for (const name of names) await retrying(() => unlink(one, one.root, name));
        await one.close();
      }
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

  test.each([0, 1, 3, 5])(
    "in one that begins with %d segments, and is cut to pieces besides",
    async (segments) => {
      const region = await makeVolume(8 * MIB, granularity);
      const before = await Store.open(region, { readOnly: false });
      crowd(before, segments, ["odd", "even"]);
      await before.close();
      expect((await fsck(region, { repair: false })).warnings).toEqual([
        expect.stringMatching(/metadata has \d+ bytes in reserve and needs \d+/),
      ]);
      const told: string[] = [];
      const store = await Store.open(region, { readOnly: false, tell: (text) => told.push(text) });
      expect(store.readOnlyReason).toBeNull();
      const odd = lookup(store, store.root, "odd");
      for (let round = 0; round < 3000; round += 1)
        await orFull(() => changeAttributes(store, odd, { mode: 0o600 + (round % 8) }));
      if (segments === 0) expect(told.join()).toMatch(/metadata has too little room in reserve/);
      await retrying(() => unlink(store, store.root, "even"));
      for (let index = 0; index < 100; index += 1) await retrying(() => makeFile(store, `file-${index}`));
      checkVolume(store);
      await store.close();
      const again = await Store.open(region, { readOnly: false });
      expect(again.recovery.label).toBe("clean");
      expect(again.root.directory?.names.size).toBe(101);
      await again.close();
      expect((await fsck(region, { repair: false })).warnings).toEqual([]);
    },
  );

  test("in the log of an earlier mount, of which no power cut takes what was synced", async () => {
    const random = randomOf(seed);
    const region = await makeVolume(4 * MIB, granularity);
    const before = await Store.open(region, { readOnly: false });
    for (const name of ["first", "second", "third"]) await writeFile(before, name, 5000);
    crowd(before, 0);
    await before.close();
    const media = region.image().slice();
    const recorder = new Recorder(region);
    const store = await Store.open(region, { readOnly: false });
    expect(store.recovery.label).toBe("closed-with-log");
    expect(store.readOnlyReason).toBeNull();
    const epochs = [recorder.take()];
    for (const name of ["first", "second", "third"]) {
      await retrying(() => unlink(store, store.root, name));
      await store.sync();
      epochs.push(recorder.take());
    }
    await store.close();
    epochs.push(recorder.take());
    // Where the end of the log is uncertain, and no room to write it anew: it can be read, and made larger.
    const lost = onAnotherBoot(media.slice());
    patchSuperblock(lost, () => ({ tailLsn: 0 }));
    if (granularity === "page") {
      const larger = new Uint8Array(6 * MIB);
      larger.set(lost);
      const grown = MemoryRegion.fromImage(larger, { granularity });
      const cut = await Store.open(grown, { readOnly: false });
      expect(cut.readOnlyReason).toMatch(/no room for its metadata; make it larger/);
      await resize(grown, 6 * MIB);
      const wide = await Store.open(grown, { readOnly: false });
      expect(wide.readOnlyReason).toBeNull();
      await retrying(() => makeFile(wide, "another"));
      await wide.close();
    }
    const names = ["first", "second", "third", "crowd"];
    for (const [synced, part] of epochs.entries()) {
      for (const epoch of part) {
        for (const choice of statesOf(epoch, 12, random)) {
          const state = media.slice();
          apply(state, epoch, choice);
          if (granularity === "page") onAnotherBoot(state);
          const again = await Store.open(MemoryRegion.fromImage(state, { granularity }), { readOnly: true });
          checkVolume(again);
          const left = [...(again.root.directory?.names.keys() ?? [])];
          // One may be on its way, and those before it are gone for good.
          const gone = names.length - left.length;
          expect(left).toEqual(names.slice(gone));
          expect(gone).toBeGreaterThanOrEqual(Math.max(0, Math.min(3, synced - 1)));
          expect(gone).toBeLessThanOrEqual(synced);
        }
        settle(media, [epoch]);
      }
    }
  });

  test.each([1, 2, 3, 4, 5])(
    "in one of %d segments with some room in pieces, without waiting for ever",
    async (segments) => {
      const region = await makeVolume(8 * MIB, granularity);
      const before = await Store.open(region, { readOnly: false });
      await writeFile(before, "block", 4096);
      for (const name of ["piece-0", "keeps-0", "piece-1", "keeps-1", "piece-2"])
        await writeFile(before, name, name.startsWith("piece") ? 150_000 : 120_000);
      crowd(before, segments);
      for (const name of ["piece-0", "piece-1", "piece-2"])
        await retrying(() => unlink(before, before.root, name));
      // As many records as earlier versions let in, which kept nothing for a checkpoint but the log's spare segment.
      const group = new GroupBuilder(4096);
      while (before.pool.available > 0) {
        group.reset();
        group.inode(fieldsOf(before.root));
        before.journal?.commit(group);
      }
      expect(before.journal?.chain.segments.length).toBeGreaterThan(1);
      await before.close();
      const store = await Store.open(region, { readOnly: false });
      const large = lookup(store, store.root, "crowd");
      // Each wait makes something better, or the answer is ENOSPC.
      const waitsMax = 100;
      for (let round = 0; round < 4000; round += 1) {
        for (let waits = 0; ; waits += 1) {
          expect(waits).toBeLessThan(waitsMax);
          try {
            changeAttributes(store, large, { mode: 0o600 + (round % 8) });
            break;
          } catch (error) {
            if (error instanceof FsError && error.code === "ENOSPC") break;
            if (!(error instanceof Wait)) throw error;
            await error.until.catch(() => {});
          }
        }
      }
      checkVolume(store);
      await retrying(() => truncate(store, large, large.size / 2n, false));
      await store.close();
      const again = await Store.open(region, { readOnly: false });
      expect(again.readOnlyReason).toBeNull();
      await writeFile(again, "after", MIB);
      await again.close();
    },
  );

  test("in a volume that was made as small as it can be while it was mounted", async () => {
    const region = await makeVolume(16 * MIB, granularity);
    const store = await Store.open(region, { readOnly: false });
    const large = await writeFile(store, "large", 5 * MIB);
    for (let index = 0; index < 2000; index += 1) await retrying(() => makeFile(store, `name-${index}`));
    const pace = { run: retrying, pause: async () => {} };
    for (let bytes = 15 * MIB; bytes > 4 * MIB; bytes -= 256 * 1024) {
      try {
        await resizeMounted(store, bytes, pace);
      } catch (error) {
        expect(error).toMatchObject({ code: "ENOSPC" });
        break;
      }
      checkVolume(store);
    }
    expect(store.superblock.regionBytes).toBeLessThan(10 * MIB);
    for (let round = 0; round < 8000; round += 1)
      await retrying(() => changeAttributes(store, large, { mode: 0o600 + (round % 8) }));
    await retrying(() => truncate(store, large, 5000n, false));
    await store.close();
    const { warnings } = await fsck(region, { repair: false });
    expect(warnings).toEqual([]);
  });
});
