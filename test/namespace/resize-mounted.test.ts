/** Another size for a volume in use: what others do meanwhile, and what a power cut leaves. */
import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { retrying, Wait } from "../../src/base/wait.ts";
import { LeaseTable } from "../../src/lease/table.ts";
import { LeaseKind } from "../../src/lease/wire.ts";
import { SHARED } from "../../src/media/group.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { cloneRange } from "../../src/namespace/clone.ts";
import { write } from "../../src/namespace/data.ts";
import { type Inode, S_IFREG } from "../../src/namespace/inode.ts";
import { create, unlink } from "../../src/namespace/names.ts";
import { type Pace, resizeMounted } from "../../src/namespace/resize-mounted.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { Recorder } from "../powercut/recorder.ts";
import { apply, settle, statesOf } from "../powercut/states.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, makeVolume, onAnotherBoot, owner, randomOf } from "../support/volume.ts";
import { pattern } from "./bench.ts";
import { difference, foreignBytes, Model } from "./model.ts";
import { expectSame, modelOf, spread } from "./spread.ts";

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));
const BLOCK = 4096;

/** `between` is done at every turn that others get. */
function paced(between: () => Promise<void> | void = () => {}): Pace {
  return {
    run: retrying,
    pause: async () => {
      await new Promise((resolve) => setImmediate(resolve));
      await between();
    },
  };
}

const makeFile = (store: Store, name: string): Inode =>
  create(store, store.root, name, S_IFREG | 0o644, 0, owner, null);

function named(store: Store, name: string): Inode {
  const entry = store.root.directory?.names.get(name);
  if (entry === undefined) throw new Error(`there is no ${name}`);
  return store.inode(entry.ino);
}

/** Blocks of the region that files have at or behind `from`. */
function usedFrom(store: Store, from: number): number {
  const blocks = new Set<number>();
  for (const inode of store.state.inodes.values()) {
    for (const { physical, count } of inode.extents ?? [])
      for (let block = Math.max(physical, from); block < physical + count; block += 1) blocks.add(block);
  }
  return blocks.size;
}

function clone(store: Store, source: Inode, target: Inode): void {
  const range = { sourceOffset: 0n, targetOffset: 0n, length: source.size, killPrivileges: false };
  for (let done = 0n; done < source.size; ) {
    const rest = { ...range, sourceOffset: done, targetOffset: done, length: source.size - done };
    done += BigInt(cloneRange(store, { source, target, ...rest }));
  }
}

/** Have log and checkpoint lie behind block `end`, too. */
async function metadataBehind(store: Store, end: number): Promise<void> {
  const { allocator, pool } = store;
  for (let round = 0; round < 3; round += 1) {
    // The log goes on in another segment only when there is something in this one.
    await retrying(() => makeFile(store, "passing"));
    await retrying(() => unlink(store, store.root, "passing"));
    pool.trim(0);
    const front = allocator.claimFree(0, end);
    await store.checkpoint();
    for (const { start, count } of front) allocator.free(start, count);
  }
  const names = [...store.metadataRuns()].flatMap(({ name, start }) => (start >= end ? [name] : []));
  expect(names).toEqual(expect.arrayContaining(["log", "log spare", "checkpoint"]));
}

async function opened(image: Uint8Array, granularity: Granularity): Promise<[MemoryRegion, Store]> {
  const region = MemoryRegion.fromImage(image, { granularity });
  return [region, await Store.open(region, { readOnly: false })];
}

describe(`resize of a volume in use (seed ${seed})`, () => {
  for (const granularity of ["cacheline", "page"] as const) {
    test(`grows and shrinks again and again, and every byte stays (${granularity})`, async () => {
      const image = await spread(granularity);
      const expected = await modelOf(image, granularity);
      const [region, store] = await opened(image, granularity);
      for (const [wanted, after] of [
        [20 * MIB, 20 * MIB],
        [9 * MIB + 5000, 9 * MIB + 4096],
        [7 * MIB, 7 * MIB],
        [7 * MIB, 7 * MIB],
        [13 * MIB, 13 * MIB],
        [0, 20 * MIB],
        [8 * MIB, 8 * MIB],
      ] as const) {
        const { afterBytes } = await resizeMounted(store, wanted, paced());
        expect(afterBytes).toBe(after);
        expect(store.superblock.regionBytes).toBe(after);
        expect(store.allocator.blockCount).toBe(after / BLOCK);
        checkVolume(store);
        expectSame(Model.of(store), expected);
        expect(usedFrom(store, after / BLOCK)).toBe(0);
        // As after a crash: nothing on the media leads behind the end.
        await store.sync();
        expectSame(await modelOf(region.image().subarray(0, after), granularity), expected);
      }
      expect(store.state.references.length).toBeGreaterThan(0);
      await store.close();
      expectSame(await modelOf(region.image().subarray(0, 8 * MIB), granularity), expected);
    });

    test(`a full volume that grows has room at once, and uses it (${granularity})`, async () => {
      const region = await makeVolume(6 * MIB, granularity);
      const store = await Store.open(region, { readOnly: false });
      const file = makeFile(store, "file");
      const fill = async (): Promise<void> => {
        for (;;) {
          try {
            const at = Number(file.size);
            await retrying(() => write(store, file, file.size, pattern(65536, at >>> 12), 0, 65536, false));
          } catch (error) {
            if ((error as FsError).code === "ENOSPC") return;
            throw error;
          }
        }
      };
      await fill();
      const before = file.size;
      await resizeMounted(store, 16 * MIB, paced());
      checkVolume(store);
      await fill();
      expect(file.size - before).toBeGreaterThan(BigInt(8 * MIB));
      expect(usedFrom(store, (6 * MIB) / BLOCK)).toBeGreaterThan((8 * MIB) / BLOCK);
      checkVolume(store);
      const expected = Model.of(store);
      await store.close();
      expectSame(await modelOf(region.image(), granularity), expected);
    });

    test(`others change the volume while it shrinks (${granularity})`, async () => {
      const random = randomOf(seed);
      const image = await spread(granularity);
      const [region, store] = await opened(image, granularity);
      const end = (8 * MIB) / BLOCK;
      let turns = 0;
      const disturb = async (): Promise<void> => {
        turns += 1;
        checkVolume(store);
        const kind = Math.floor(random() * 5);
        const name = `new-${Math.floor(random() * 4)}`;
        const there = store.root.directory?.names.get(name);
        if (kind === 0 && there !== undefined) {
          await retrying(() => unlink(store, store.root, name));
        } else if (kind === 1 && there === undefined) {
          // Shares blocks of the tail with one that may have been visited, and one that comes later.
          const target = makeFile(store, name);
          const source = named(store, random() < 0.5 ? "file-8" : "file-7");
          await retrying(() => clone(store, source, target));
        } else if (kind === 2) {
          await retrying(() =>
            write(store, named(store, "file-6"), 8192n, pattern(9000, turns), 0, 9000, false),
          );
        } else {
          const file = there === undefined ? makeFile(store, name) : store.inode(there.ino);
          const data = pattern(20_000, turns);
          await retrying(() => write(store, file, 0n, data, 0, data.length, false));
          if (there === undefined && store.allocator.end === end) {
            for (const { physical, count } of file.extents ?? [])
              expect(physical + count).toBeLessThanOrEqual(end);
          }
        }
        if (random() < 0.3) await store.checkpoint().catch(() => {});
      };
      const pace = paced(disturb);
      // A turn for others after every slice.
      const each: Pace = {
        run: async (operation) => {
          await pace.pause();
          return retrying(operation);
        },
        pause: pace.pause,
      };
      const { movedBytes } = await resizeMounted(store, 8 * MIB, each);
      expect(movedBytes).toBeGreaterThan(MIB);
      expect(turns).toBeGreaterThan(5);
      expect(usedFrom(store, end)).toBe(0);
      checkVolume(store);
      const expected = Model.of(store);
      await store.close();
      expectSame(await modelOf(region.image().subarray(0, 8 * MIB), granularity), expected);
    });

    test(`what is refused or interrupted has changed nothing but places (${granularity})`, async () => {
      const image = await spread(granularity);
      const expected = await modelOf(image, granularity);
      const [region, store] = await opened(image, granularity);
      const leases = new LeaseTable({
        direct: "seal",
        breakTimeSeconds: 1,
        maxLeases: 10,
        maxLeasedBytes: 1e9,
        administratorUid: 0,
      });
      leases.events = {
        onBreak: () => {},
        onRefusal: () => {},
        onRevoked: (lease) => store.quarantine.claim(lease.id, lease.runs),
        onEnded: (lease) => store.releaseQuarantine(lease.id),
      };
      store.guard = leases;
      const file = named(store, "file-7");
      const [extent] = file.extents ?? [];
      const grant = (kind: number) =>
        leases.grant({
          ...{ inode: file, kind, flags: 0, offset: 0n, length: 4096n, block: extent?.block ?? 0, count: 1 },
          ...{ blockBytes: BLOCK, holder: { pid: 1, uid: 0, command: "holder" } },
        });
      const unchanged = async (): Promise<void> => {
        checkVolume(store);
        expectSame(Model.of(store), expected);
        expect(store.superblock.regionBytes).toBe(12 * MIB);
        expect(store.allocator.end).toBe((12 * MIB) / BLOCK);
      };
      const before = usedFrom(store, (7 * MIB) / BLOCK);
      for (const kind of [LeaseKind.SEAL, LeaseKind.BREAKABLE]) {
        const lease = grant(kind);
        expect((extent?.physical ?? 0) * BLOCK).toBeGreaterThan(7 * MIB);
        await expect(resizeMounted(store, 7 * MIB, paced())).rejects.toThrow(
          /ETXTBSY: lease \d+ of process 1 \(holder\)/,
        );
        expect(lease.state).toBe("held");
        // It says that it has let go; the kernel has not.
        leases.letGo(lease);
        await expect(resizeMounted(store, 7 * MIB, paced())).rejects.toThrow(/ETXTBSY: lease/);
        leases.end(lease);
        await unchanged();
      }
      store.quarantine.claim(-77, [{ start: (11 * MIB) / BLOCK, count: 1 }]);
      await expect(resizeMounted(store, 7 * MIB, paced())).rejects.toThrow(/ETXTBSY.*before this mount/);
      store.releaseQuarantine(-77);
      await expect(resizeMounted(store, 4.5 * MIB, paced())).rejects.toThrow(/ENOSPC.*do not fit/);
      await expect(resizeMounted(store, MIB, paced())).rejects.toThrow("EINVAL");
      await unchanged();
      expect(usedFrom(store, (7 * MIB) / BLOCK)).toBe(before);

      // Interrupted after each number of turns, until there are no more.
      let turns = 0;
      for (let limit = 0; ; limit += 1) {
        turns = 0;
        const interrupted: Pace = {
          run: async (operation) => {
            const result = await retrying(operation);
            turns += 1;
            if (turns > limit) throw new FsError("EINTR");
            return result;
          },
          pause: async () => {
            await new Promise((resolve) => setImmediate(resolve));
          },
        };
        const second = limit === 0 ? resizeMounted(store, 7 * MIB, interrupted) : null;
        if (second !== null) {
          await expect(resizeMounted(store, 9 * MIB, paced())).rejects.toThrow("EBUSY");
          await expect(second).rejects.toThrow("EINTR");
          continue;
        }
        try {
          await resizeMounted(store, 7 * MIB, interrupted);
          break;
        } catch (error) {
          if (!(error instanceof FsError)) throw error;
          expect(error.code).toBe("EINTR");
          await unchanged();
        }
      }
      checkVolume(store);
      expect(store.superblock.regionBytes).toBe(7 * MIB);
      await store.close();
      expectSame(await modelOf(region.image(), granularity), expected);
    });

    test(`cut short, it has the old size or the new, and every byte (${granularity})`, async () => {
      const random = randomOf(seed);
      const made = await makeVolume(6 * MIB, granularity);
      const first = await Store.open(made, { readOnly: false });
      for (let index = 0; index < 12; index += 1) {
        const bytes = 250_000;
        const file = makeFile(first, `file-${index}`);
        await retrying(() => write(first, file, 0n, pattern(bytes, index), 0, bytes, false));
      }
      clone(first, named(first, "file-11"), makeFile(first, "twin"));
      await first.sync();
      for (let index = 0; index < 10; index += 1)
        await retrying(() => unlink(first, first.root, `file-${index}`));
      await first.close();
      const image = made.image();
      const expected = await modelOf(image, granularity);

      const [region, store] = await opened(image, granularity);
      await metadataBehind(store, (4 * MIB) / BLOCK);
      await store.sync();
      const recorder = new Recorder(region);
      // As long as it may become: a file that grows has zeros there.
      const media = new Uint8Array(9 * MIB);
      media.set(region.image());
      const models = [expected];
      const look = async (sizes: Set<number>): Promise<void> => {
        for (const epoch of recorder.take()) {
          for (const choice of statesOf(epoch, 8, random)) {
            const undo = apply(media, epoch, choice);
            const state = granularity === "page" ? onAnotherBoot(media.slice()) : media;
            const found = await Store.open(MemoryRegion.on(state, { granularity }), { readOnly: true });
            checkVolume(found);
            const seen = Model.of(found);
            const complaints = models.map((model) => difference(seen, model));
            expect(complaints).toContain(null);
            expect(foreignBytes(seen, models)).toBeNull();
            sizes.add(found.superblock.regionBytes);
            for (const { at, bytes } of undo.reverse()) media.set(bytes, at);
          }
          settle(media, [epoch]);
        }
      };
      const sizes = new Set<number>();
      const { movedBytes } = await resizeMounted(store, 4 * MIB, paced());
      expect(movedBytes).toBeGreaterThan(100_000);
      await look(sizes);
      expect([...sizes].sort((a, b) => a - b)).toEqual([4 * MIB, 6 * MIB]);

      sizes.clear();
      // Somebody who waits for room has it the moment it is there, and not before.
      const more = makeFile(store, "more");
      models.push(Model.of(store));
      const front = store.allocator.claimFree(0, (4 * MIB) / BLOCK);
      let grown = false;
      const growing = resizeMounted(store, 9 * MIB, paced()).then(() => {
        grown = true;
      });
      for (let last = false; !last; ) {
        last = grown;
        try {
          write(store, more, more.size, pattern(10_000, 99), 0, 10_000, false);
          models.push(Model.of(store));
        } catch (error) {
          if (!(error instanceof Wait || (error as FsError).code === "ENOSPC")) throw error;
        }
        await new Promise((resolve) => setImmediate(resolve));
      }
      await growing;
      for (const { start, count } of front) store.allocator.free(start, count);
      await store.sync();
      expect(more.size).toBeGreaterThan(0n);
      for (const { physical } of more.extents ?? []) expect(physical).toBeGreaterThanOrEqual(1024);
      await look(sizes);
      expect([...sizes].sort((a, b) => a - b)).toEqual([4 * MIB, 9 * MIB]);
      region.observer = null;
    });
  }

  test("what somebody can still reach behind the end is in quarantine when the volume gets there", async () => {
    const region = await makeVolume(8 * MIB, "cacheline");
    const store = await Store.open(region, { readOnly: false });
    const reached = { start: (9 * MIB) / BLOCK + 1, count: 10 };
    store.quarantine.claim(-5, [{ start: 2000, count: 2 }, reached]);
    await resizeMounted(store, 16 * MIB, paced());
    checkVolume(store);
    expect(store.quarantine.blocks).toBe(10);
    expect(store.allocator.isFree(reached.start)).toBe(false);
    expect(store.allocator.isFree(reached.start - 1)).toBe(true);
    await expect(resizeMounted(store, 8 * MIB, paced())).rejects.toThrow("ETXTBSY");
    store.releaseQuarantine(-5);
    checkVolume(store);
    expect(store.allocator.isFree(reached.start)).toBe(true);
    await resizeMounted(store, 8 * MIB, paced());
    await store.close();
  });

  test("more files than fit into a record group share blocks, and go on doing so", async () => {
    const region = await makeVolume(16 * MIB, "cacheline");
    const store = await Store.open(region, { readOnly: false });
    const front = store.allocator.claimFree(0, (8 * MIB) / BLOCK);
    const source = makeFile(store, "source");
    await retrying(() => write(store, source, 0n, pattern(12_000, 2), 0, 12_000, false));
    for (let index = 0; index < 1500; index += 1)
      await retrying(() => clone(store, source, makeFile(store, `clone-${index}`)));
    for (const { start, count } of front) store.allocator.free(start, count);
    await store.sync();
    expect(usedFrom(store, (8 * MIB) / BLOCK)).toBe(3);
    const expected = Model.of(store);
    await resizeMounted(store, 8 * MIB, paced());
    checkVolume(store);
    expectSame(Model.of(store), expected);
    // Two groups of owners, each with a copy.
    expect(usedFrom(store, 0)).toBeLessThanOrEqual(6);
    expect([...(named(store, "clone-7").extents ?? [])].every(({ state }) => state === SHARED)).toBe(true);
    await store.close();
    expectSame(await modelOf(region.image().subarray(0, 8 * MIB), "cacheline"), expected);
  });
});
