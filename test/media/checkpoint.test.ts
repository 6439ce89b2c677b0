/** A checkpoint is fuzzy: written in slices while the state changes. Here the state changes between all of them. */
import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { retrying } from "../../src/base/wait.ts";
import type { ChainStart } from "../../src/media/chain.ts";
import { Checkpoint } from "../../src/media/checkpoint.ts";
import { VolumeState } from "../../src/media/format.ts";
import { recover } from "../../src/media/recovery.ts";
import { setXattr } from "../../src/namespace/attributes.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { truncate, write } from "../../src/namespace/data.ts";
import { fallocate } from "../../src/namespace/fallocate.ts";
import { type Inode, S_IFDIR, S_IFREG } from "../../src/namespace/inode.ts";
import { create, lookup, rename, unlink } from "../../src/namespace/names.ts";
import { State } from "../../src/namespace/state.ts";
import { Store } from "../../src/namespace/store.ts";
import { pattern } from "../namespace/bench.ts";
import { difference, foreignBytes, Model } from "../namespace/model.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, makeVolume, onAnotherBoot, owner, randomOf } from "../support/volume.ts";

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));

function unlessFull(error: unknown): void {
  if (!(error instanceof FsError && error.code === "ENOSPC")) throw error;
}

const makeFile = (store: Store, parent: Inode, name: string): Inode =>
  create(store, parent, name, S_IFREG | 0o644, 0, owner, null);

/** So much of everything that a checkpoint takes many slices. */
async function populate(store: Store, files: number): Promise<void> {
  for (let index = 0; index < files; index += 1) {
    const file = await retrying(() => makeFile(store, store.root, `file-${index}`));
    if (index % 5 === 0) await retrying(() => setXattr(store, file, "user.x", pattern(300, index), 0));
    if (index % 7 === 0)
      await retrying(() => write(store, file, 8192n, pattern(5000, index), 0, 5000, false));
  }
}

describe(`a checkpoint (seed ${seed})`, () => {
  test.each(["cacheline", "page"] as const)(
    "during which everything changes gives the live state, at whatever moment the daemon or the machine dies (%s)",
    async (granularity) => {
      const random = randomOf(seed);
      const region = MemoryRegion.fromImage((await makeVolume(20 * MIB, granularity)).image(), {
        granularity,
        recording: true,
      });
      const store = await Store.open(region, { readOnly: false });
      await populate(store, 6000);
      let serial = 0;
      const change = async (): Promise<void> => {
        const names = [...store.root.directory!.names.keys()];
        const pick = (): string => names[Math.floor(random() * names.length)] as string;
        const kind = Math.floor(random() * 6);
        const name = pick();
        const inode = lookup(store, store.root, name);
        serial += 1;
        if (kind === 0) await retrying(() => makeFile(store, store.root, `new-${serial}`));
        else if (kind === 1) await retrying(() => unlink(store, store.root, name));
        else if (kind === 2) await retrying(() => rename(store, store.root, name, store.root, pick(), 0));
        else if (kind === 3)
          await retrying(() => write(store, inode, 4000n, pattern(9000, serial), 0, 9000, false));
        else if (kind === 4)
          await retrying(() => truncate(store, inode, BigInt(Math.floor(random() * 20000)), false));
        else {
          await retrying(() => setXattr(store, inode, "user.y", pattern(50, serial), 0));
          await retrying(() => fallocate(store, inode, 3, 4096n, 4096n, false));
        }
      };
      const before = store.counters.checkpoints;
      for (let round = 0; round < 3; round += 1) {
        let done = false;
        let slices = 0;
        const running = store.checkpoint().then(() => {
          done = true;
        });
        while (!done) {
          slices += 1;
          for (let step = 0; step < 4; step += 1) await change().catch(unlessFull);
          if (slices % 8 === 1) {
            checkVolume(store);
            const again = await Store.open(MemoryRegion.fromImage(region.image(), { granularity }), {
              readOnly: true,
            });
            checkVolume(again);
            expect(difference(Model.of(again, false), Model.of(store, false))).toBeNull();
          }
          await new Promise((resolve) => setImmediate(resolve));
        }
        await running;
        await store.sync();
        const live = Model.of(store);
        for (const image of [region.image(), onAnotherBoot(region.afterPowerCut(() => false))]) {
          const again = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: false });
          checkVolume(again);
          const seen = Model.of(again);
          expect(difference(seen, live)).toBeNull();
          expect(foreignBytes(seen, [live])).toBeNull();
        }
      }
      expect(store.counters.checkpoints - before).toBeGreaterThanOrEqual(3);
      await store.close();
    },
  );

  test("keeps each slice short", async () => {
    const store = await Store.open(await makeVolume(96 * MIB, "cacheline"), { readOnly: false });
    await populate(store, 20_000);
    store.counters.longestSliceMs = 0;
    await store.checkpoint();
    // 2 ms are meant; other tests run beside this one.
    expect(store.counters.longestSliceMs).toBeLessThan(50);
  });

  test("that fails for lack of space leaves everything as it was, and gives its segments back", async () => {
    const region = await makeVolume(4 * MIB, "cacheline");
    const { superblock, geometry } = recover(region, new State());
    let next = 262144 * 4;
    const given: number[] = [];
    const taken: number[] = [];
    const source = {
      take: () => {
        if (taken.length === 4) throw new Error("full");
        next += 131072;
        taken.push(next);
        return next;
      },
      give: (segment: number) => given.push(segment),
    };
    const snapshot = {
      nextIno: 2,
      nextGeneration: 1,
      *capture(group: Parameters<State["capture"]>[0]) {
        for (let round = 0; round < 100; round += 1) {
          group.xattr(1, "user.large", pattern(60_000, round));
          yield;
        }
      },
    };
    const start: ChainStart = { segment: superblock.logSegment, index: 0, incarnation: 1, lsn: 1 };
    const checkpoint = new Checkpoint(region, geometry, source, snapshot, 9, start);
    expect(() => {
      while (!checkpoint.step(1000));
    }).toThrow("full");
    // It cannot be taken up again: what it had captured of this group is lost.
    expect(() => checkpoint.step(1000)).toThrow("full");
    expect([checkpoint.failed, checkpoint.captured]).toEqual([true, false]);
    checkpoint.abandon(source as never);
    expect(given.sort()).toEqual(taken.sort());
    expect((await Store.open(region, { readOnly: true })).recovery.label).toBe("clean");
  });

  test("is the truth only when both superblocks say so: until then the old one and its log are whole", async () => {
    const region = MemoryRegion.fromImage((await makeVolume(4 * MIB, "page")).image(), {
      granularity: "page",
      recording: true,
    });
    const store = await Store.open(region, { readOnly: false });
    const dir = create(store, store.root, "dir", S_IFDIR | 0o755, 0, owner, null);
    makeFile(store, dir, "file");
    await store.sync();
    const live = Model.of(store);
    const labels = new Set<string>();
    const images: Uint8Array[] = [];
    region.onStore = () => {
      for (const kept of [() => false, () => true, () => Math.random() < 0.5])
        images.push(onAnotherBoot(region.afterPowerCut(kept)));
    };
    await store.checkpoint();
    region.onStore = () => {};
    for (const image of images) {
      const again = await Store.open(MemoryRegion.fromImage(image, { granularity: "page" }), {
        readOnly: true,
      });
      labels.add(`${again.recovery.label} ${again.superblock.state === VolumeState.MOUNTED}`);
      expect(difference(Model.of(again), live)).toBeNull();
    }
    expect([...labels]).toEqual(["replay-to-barrier true"]);
    expect(images.length).toBeGreaterThan(10);
  });
});
