/**
 * Every operation, and in each of its steps that can fail, a failure: no space from there on, or a medium that does not take
 * a store or a sync. It is answered, and has happened whole or not at all.
 */
import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { COPY_TABLE_OFFSETS } from "../../src/media/format.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { Store } from "../../src/namespace/store.ts";
import { baseImage, OPERATIONS, Scene } from "../powercut/operations.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { difference, foreignBytes, Model } from "./model.ts";

/** No operation takes this many steps. */
const STEPS_MAX = 400;

const operations = Object.entries(OPERATIONS);

async function sceneOf(image: Uint8Array, granularity: "cacheline" | "page"): Promise<Scene> {
  return Scene.over(MemoryRegion.fromImage(image, { granularity }));
}

/** From its n-th call on, finding room fails. Returns how often that was asked for. */
function withoutRoom(store: Store, from: number): () => number {
  const { allocator } = store;
  let calls = 0;
  const failing =
    <A extends unknown[], R>(call: (...words: A) => R): ((...words: A) => R | null) =>
    (...words) => {
      calls += 1;
      return calls >= from ? null : call.apply(allocator, words);
    };
  allocator.allocate = failing(allocator.allocate);
  allocator.allocateChunks = failing(allocator.allocateChunks);
  allocator.allocateAligned = failing(allocator.allocateAligned);
  return () => calls;
}

describe("no space", () => {
  test.each(operations)("at any step of %s: ENOSPC, and nothing has changed", async (_, operation) => {
    const image = await baseImage("cacheline");
    for (let from = 1; from < STEPS_MAX; from += 1) {
      const scene = await sceneOf(image, "cacheline");
      scene.bench.mayLackRoom = true;
      const asked = withoutRoom(scene.bench.store, from);
      // The bench compares with the model, which has not changed when the answer is ENOSPC.
      await operation(scene);
      scene.bench.compare(null);
      if (asked() < from) return;
    }
    throw new Error("it never comes to an end");
  });

  test("from the beginning on: those that need room notice, the others do not", async () => {
    const image = await baseImage("cacheline");
    const refused: string[] = [];
    for (const [name, operation] of operations) {
      const scene = await sceneOf(image, "cacheline");
      scene.bench.mayLackRoom = true;
      withoutRoom(scene.bench.store, 1);
      const before = scene.bench.model.clone();
      const whole = await sceneOf(image, "cacheline");
      await operation(whole);
      await operation(scene);
      const changesNothing = difference(whole.bench.model, before) === null;
      if (!changesNothing && difference(scene.bench.model, before) === null) refused.push(name);
    }
    // Metadata has its reserve, so names can be made and unmade for a while: it is data that lacks room.
    expect(refused).not.toContain("unlink");
    expect(refused).not.toContain("truncate");
    expect(refused).not.toContain("create");
  });
});

interface Failing {
  readonly stores: number;
  /** Byte offset of the first store that failed. */
  readonly firstAt: number;
}

/** The n-th store, and each one behind it, fails. */
function withoutStores(region: MemoryRegion, from: number): () => Failing {
  let stores = 0;
  let firstAt = -1;
  const { write, zero, copy } = region;
  const failing =
    <A extends unknown[]>(call: (...words: A) => void, target: 0 | 1): ((...words: A) => void) =>
    (...words) => {
      stores += 1;
      if (stores === from) firstAt = words[target] as number;
      if (stores >= from) region.failWrites(0, region.facts.sizeBytes);
      call.apply(region, words);
    };
  region.write = failing(write, 0);
  region.zero = failing(zero, 0);
  region.copy = failing(copy, 1);
  return () => ({ stores, firstAt });
}

/** A second copy of metadata, or the table of them: nobody depends on it. */
function isOfCopies({ pool, blockBytes }: Store, at: number): boolean {
  const block = Math.floor(at / blockBytes);
  for (const { start, count } of pool.runs()) if (block >= start && block < start + count) return true;
  return Object.values(COPY_TABLE_OFFSETS).includes(at);
}

describe("a medium that takes no more stores", () => {
  for (const granularity of ["cacheline", "page"] as const) {
    test.each(operations)(
      `from any step of %s on: an error, and afterwards all of it or nothing (${granularity})`,
      async (_, operation) => {
        const image = await baseImage(granularity);
        const whole = await sceneOf(image, granularity);
        const before = whole.bench.model.withoutOrphans();
        await operation(whole);
        const states = [before, ...whole.bench.history.map((model) => model.withoutOrphans())];
        for (let from = 1; from < STEPS_MAX; from += 1) {
          const scene = await sceneOf(image, granularity);
          const { region, bench } = scene;
          const stored = withoutStores(region, from);
          let failed = false;
          try {
            await operation(scene);
            await bench.store.sync();
          } catch (error) {
            failed = true;
            // An inode whose name went, and whose end did not get into the log, goes with the next mount.
            expect(`${error}`).toMatch(/EIO|EROFS|inode \d+ should not be/);
          }
          const { stores, firstAt } = stored();
          if (stores < from) return;
          const mayBeSilent = granularity === "page" || isOfCopies(bench.store, firstAt);
          expect(failed || mayBeSilent, `store ${from} failed without a word`).toBe(true);
          // Once the log has failed nothing is written any more.
          const { journal } = bench.store;
          if (journal !== null && journal.failure !== null) {
            expect(() => bench.store.begin(false)).toThrow(FsError);
          }
          // The medium is well again, and the daemon is started anew.
          const again = await Store.open(MemoryRegion.fromImage(region.image(), { granularity }), {
            readOnly: false,
          });
          checkVolume(again);
          const seen = Model.of(again);
          const complaints = states.map((state) => difference(seen, state));
          expect(complaints.includes(null), complaints.join("; ")).toBe(true);
          expect(foreignBytes(seen, states)).toBeNull();
        }
        throw new Error("it never comes to an end");
      },
    );
  }
});

/** Applying a record throws what no validation foresaw: the n-th of them, and each one behind it. */
function withoutApplying(store: Store, from: number): () => number {
  let calls = 0;
  const { state } = store;
  const failing =
    <A extends unknown[]>(call: (...words: A) => void): ((...words: A) => void) =>
    (...words) => {
      calls += 1;
      if (calls >= from) throw new RangeError("injected");
      call.apply(state, words);
    };
  state.inode = failing(state.inode);
  state.inodeGone = failing(state.inodeGone);
  state.touch = failing(state.touch);
  state.dentry = failing(state.dentry);
  state.dentryGone = failing(state.dentryGone);
  state.extent = failing(state.extent);
  state.extentGone = failing(state.extentGone);
  state.symlink = failing(state.symlink);
  state.xattr = failing(state.xattr);
  state.xattrGone = failing(state.xattrGone);
  return () => calls;
}

describe("a bug of ours in what applies a record", () => {
  for (const granularity of ["cacheline", "page"] as const) {
    test.each(operations)(
      `at any record of %s: nothing is written any more, and a group that cannot be applied is not in the log (${granularity})`,
      async (_, operation) => {
        const image = await baseImage(granularity);
        const sound = await sceneOf(image, granularity);
        const before = sound.bench.model.withoutOrphans();
        await operation(sound);
        const states = [before, ...sound.bench.history.map((model) => model.withoutOrphans())];
        for (let from = 1; from < STEPS_MAX; from += 1) {
          const scene = await sceneOf(image, granularity);
          const { region, bench } = scene;
          const applied = withoutApplying(bench.store, from);
          // Groups that were committed and applied as well.
          let whole = bench.store.counters.groups;
          const { commit } = bench.store;
          bench.store.commit = () => {
            const lsn = commit.call(bench.store);
            whole += 1;
            return lsn;
          };
          try {
            await operation(scene);
            await bench.store.sync();
          } catch (error) {
            expect(`${error}`).toMatch(/injected|EIO|EROFS|inode \d+ should not be|already/);
          }
          if (applied() < from) return;
          expect(bench.store.journal?.failure?.message).toBe("injected");
          expect(() => bench.store.begin(false)).toThrow(expect.objectContaining({ code: "EROFS" }));
          await expect(bench.store.close()).rejects.toThrow("injected");
          // Replay in the next daemon, which has the same bug, meets only what could be applied before.
          const again = await Store.open(MemoryRegion.fromImage(region.image(), { granularity }), {
            readOnly: false,
          });
          expect(again.recovery.groupsApplied).toBeLessThanOrEqual(whole);
          checkVolume(again);
          const seen = Model.of(again);
          const complaints = states.map((state) => difference(seen, state));
          expect(complaints.includes(null), complaints.join("; ")).toBe(true);
          expect(foreignBytes(seen, states)).toBeNull();
        }
        throw new Error("it never comes to an end");
      },
    );
  }

  test("during a checkpoint: the old one stays the truth", async () => {
    for (const granularity of ["cacheline", "page"] as const) {
      const scene = await sceneOf(await baseImage(granularity), granularity);
      const { store } = scene.bench;
      const { sequence } = store.superblock;
      const checkpoint = store.checkpoint();
      store.distrust(new Error("an invariant"));
      await expect(checkpoint).rejects.toThrow("an invariant");
      await expect(store.close()).rejects.toThrow("an invariant");
      const again = await Store.open(MemoryRegion.fromImage(scene.region.image(), { granularity }), {
        readOnly: true,
      });
      expect(again.superblock.sequence).toBe(sequence);
      checkVolume(again);
    }
  });
});

describe("a bug of ours in what opens a volume for writing", () => {
  test("leaves one that can be read, with the reason, and nothing on the media has changed its meaning", async () => {
    for (const granularity of ["cacheline", "page"] as const) {
      const scene = await sceneOf(await baseImage(granularity), granularity);
      const image = scene.region.image();
      const seen = Model.of(scene.bench.store);
      for (let from = 1; ; from += 1) {
        const region = MemoryRegion.fromImage(image, { granularity });
        let calls = 0;
        region.onStore = () => {
          calls += 1;
          if (calls === from) throw new RangeError("injected");
        };
        const told: string[] = [];
        const opened = await Store.open(region, { readOnly: false, tell: (text) => told.push(text) });
        if (calls < from) break;
        if (opened.readOnlyReason !== null) {
          expect(opened.readOnlyReason).toContain("injected");
          expect(told).toHaveLength(1);
        }
        expect(difference(Model.of(opened), seen)).toBeNull();
        const again = await Store.open(MemoryRegion.fromImage(region.image(), { granularity }), {
          readOnly: false,
        });
        expect(difference(Model.of(again), seen.withoutOrphans())).toBeNull();
        checkVolume(again);
      }
    }
  });
});

describe("a sync that fails", () => {
  test("is told to who asked, and to everybody after: the log is over", async () => {
    const scene = await sceneOf(await baseImage("page"), "page");
    const { store, region } = scene.bench;
    await scene.run({ do: "create", dir: 0, name: "before", kind: 0, mode: 0o644 });
    region.failSync();
    await expect(store.sync()).rejects.toThrow("EIO");
    region.heal();
    await expect(store.sync()).rejects.toThrow("EIO");
    expect(() => store.begin(false)).toThrow("EROFS");
    // What was there can still be read.
    checkVolume(store);
    expect(scene.ino("before")).toBeGreaterThan(0);
  });
});
