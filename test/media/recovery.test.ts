/** One test for each row of the recovery table: the image that leads to it is made by real operations. */
import { readFileSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import { CorruptionError } from "../../src/base/errors.ts";
import { retrying } from "../../src/base/wait.ts";
import { GroupHeader, GroupKind } from "../../src/media/format.ts";
import { groupAt } from "../../src/media/group.ts";
import { judge, type RecoveryFacts, recoveryCases } from "../../src/media/recovery.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { write } from "../../src/namespace/data.ts";
import { S_IFREG } from "../../src/namespace/inode.ts";
import { create } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { pattern } from "../namespace/bench.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import {
  crowd,
  MIB,
  makeVolume,
  onAnotherBoot,
  owner,
  patchSuperblock,
  withoutCopies,
} from "../support/volume.ts";

const reached = new Set<string>();

async function used(granularity: Granularity, sizeMib = 4): Promise<{ region: MemoryRegion; store: Store }> {
  const region = await makeVolume(sizeMib * MIB, granularity);
  return { region, store: await Store.open(region, { readOnly: false }) };
}

function makeFiles(store: Store, prefix: string, count: number): void {
  for (let index = 0; index < count; index += 1) {
    const file = create(store, store.root, `${prefix}${index}`, S_IFREG | 0o644, 0, owner, null);
    write(store, file, 0n, pattern(100, index), 0, 100, false);
  }
}

/** Where the groups of the log lie, in order, and of what kind each is. */
function logGroups(image: Uint8Array, store: Store): { at: number; kind: number }[] {
  const { geometry, superblock } = { geometry: store.recovery.geometry, superblock: store.superblock };
  const found: { at: number; kind: number }[] = [];
  const view = new DataView(image.buffer);
  for (let at = superblock.logSegment + 64; ; ) {
    const group = groupAt(image, view, at, superblock.logSegment + geometry.segmentBytes, geometry.seed);
    if (group === null) return found;
    found.push({ at, kind: group.kind });
    at += group.length;
  }
}

function spoil(image: Uint8Array, at: number): void {
  image[at + GroupHeader.size] = (image[at + GroupHeader.size] as number) ^ 0x55;
}

async function open(image: Uint8Array, granularity: Granularity): Promise<Store> {
  const store = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: true });
  reached.add(store.recovery.label);
  checkVolume(store);
  return store;
}

async function refused(image: Uint8Array, granularity: Granularity, label: string): Promise<void> {
  withoutCopies(image);
  const region = MemoryRegion.fromImage(image, { granularity });
  const error = await Store.open(region, { readOnly: false }).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(CorruptionError);
  expect((error as CorruptionError).where).toContain(`(${label})`);
  reached.add(label);
  // Refusing changes nothing: whoever repairs it finds what we found.
  expect(Buffer.compare(region.image(), image)).toBe(0);
}

const names = (store: Store): string[] => [...store.root.directory!.names.keys()];

describe("recovery", () => {
  test("clean: a volume that was unmounted is what its checkpoint says", async () => {
    const { region, store } = await used("page");
    makeFiles(store, "f", 3);
    await store.close();
    const again = await open(onAnotherBoot(region.image()), "page");
    expect([again.recovery.label, again.recovery.groupsApplied]).toEqual(["clean", 0]);
    expect(names(again)).toHaveLength(3);
  });

  test("clean-but-different: a log that does not end where a clean superblock says is refused", async () => {
    const { region, store } = await used("cacheline");
    makeFiles(store, "f", 3);
    const image = region.image();
    patchSuperblock(image, ({ logLsn }) => ({ state: 1, tailLsn: logLsn }));
    await refused(image, "cacheline", "clean-but-different");
    await store.close();
    const clean = region.image();
    patchSuperblock(clean, ({ tailLsn }) => ({ tailLsn: tailLsn + 1 }));
    await refused(clean, "cacheline", "clean-but-different");
  });

  test("checkpoint-ahead-of-log: a log that ends before its checkpoint was complete is refused", async () => {
    for (const otherBoot of [false, true]) {
      const { region, store } = await used("page", 16);
      // More than one slice takes.
      for (let index = 0; index < 8000; index += 1) {
        await retrying(() => create(store, store.root, `many-${index}`, S_IFREG | 0o644, 0, owner, null));
      }
      await store.checkpoint();
      // Changes while the checkpoint is written are in the log before its end.
      const running = store.checkpoint();
      makeFiles(store, "during", 3);
      await running;
      const image = otherBoot ? onAnotherBoot(region.image()) : region.image();
      const [first] = logGroups(image, store);
      spoil(image, (first as { at: number }).at);
      await refused(image, "page", "checkpoint-ahead-of-log");
    }
  });

  test("hole-in-synced-log: a damaged group that a later barrier vouches for is refused", async () => {
    for (const otherBoot of [false, true]) {
      const { region, store } = await used("page");
      makeFiles(store, "f", 3);
      await store.sync();
      makeFiles(store, "g", 1);
      const image = otherBoot ? onAnotherBoot(region.image()) : region.image();
      const groups = logGroups(image, store);
      expect(groups.some(({ kind }) => kind === GroupKind.BARRIER)).toBe(true);
      spoil(image, (groups[1] as { at: number }).at);
      await refused(image, "page", "hole-in-synced-log");
    }
  });

  test("hole-in-log: a damaged group before whole ones is refused where every store was kept", async () => {
    for (const granularity of ["cacheline", "page"] as const) {
      const { region, store } = await used(granularity);
      makeFiles(store, "f", 3);
      const image = granularity === "cacheline" ? onAnotherBoot(region.image()) : region.image();
      spoil(image, (logGroups(image, store)[2] as { at: number }).at);
      await refused(image, granularity, "hole-in-log");
    }
  });

  test("replay: after the daemon's death every whole group is applied, an interrupted last one is not", async () => {
    for (const [granularity, otherBoot] of [
      ["cacheline", false],
      ["cacheline", true],
      ["page", false],
    ] as const) {
      const { region, store } = await used(granularity);
      makeFiles(store, "f", 3);
      const image = otherBoot ? onAnotherBoot(region.image()) : region.image();
      const whole = await open(image, granularity);
      expect([whole.recovery.label, whole.recovery.groupsApplied, names(whole).length]).toEqual([
        "replay",
        6,
        3,
      ]);
      const last = logGroups(image, store).at(-2) as { at: number };
      image.fill(0, last.at + 20, last.at + 4000);
      const torn = await open(withoutCopies(image), granularity);
      expect([torn.recovery.label, torn.recovery.groupsApplied, names(torn).length]).toEqual([
        "replay",
        4,
        2,
      ]);
    }
  });

  test("replay-to-barrier: after a power cut on pages what the last sync did not cover is not applied", async () => {
    const { region, store } = await used("page");
    makeFiles(store, "f", 3);
    await store.sync();
    makeFiles(store, "g", 3);
    const image = onAnotherBoot(region.image());
    const again = await open(image, "page");
    expect([again.recovery.label, again.recovery.groupsApplied, again.recovery.groupsDropped]).toEqual([
      "replay-to-barrier",
      6,
      6,
    ]);
    expect(names(again)).toEqual(["f0", "f1", "f2"]);
    // A hole behind the barrier is what a power cut leaves.
    spoil(image, (logGroups(image, store)[8] as { at: number }).at);
    expect(names(await open(image, "page"))).toEqual(["f0", "f1", "f2"]);
  });

  test("takes another boot for granted when it does not know which one it was", async () => {
    const { region, store } = await used("page");
    makeFiles(store, "f", 1);
    const image = region.image();
    patchSuperblock(image, () => ({ bootId: new Uint8Array(16) }));
    expect((await open(image, "page")).recovery.label).toBe("replay-to-barrier");
    expect(readFileSync("/proc/sys/kernel/random/boot_id", "utf8")).toHaveLength(37);
  });

  test("is the same when it is interrupted by another crash, however often and wherever", async () => {
    const { region, store } = await used("page");
    makeFiles(store, "f", 40);
    await store.sync();
    makeFiles(store, "g", 2);
    const image = onAnotherBoot(region.image());
    const images: Uint8Array[] = [];
    const recovering = MemoryRegion.fromImage(image, { granularity: "page", recording: true });
    recovering.onStore = () => {
      images.push(
        recovering.image(),
        recovering.afterPowerCut(() => Math.random() < 0.5),
      );
    };
    await Store.open(recovering, { readOnly: false });
    expect(images.length).toBeGreaterThan(10);
    for (const one of images) expect(names(await open(one, "page"))).toHaveLength(40);
  });

  test("takes a log that was closed without a checkpoint as it was closed, and no other", async () => {
    for (const granularity of ["cacheline", "page"] as const) {
      const { region, store } = await used(granularity);
      makeFiles(store, "file-", 3);
      await retrying(() => crowd(store, 0));
      await store.close();
      for (const image of [region.image(), onAnotherBoot(region.image())]) {
        const again = await open(image.slice(), granularity);
        expect(again.recovery.label).toBe("closed-with-log");
        expect(names(again)).toHaveLength(4);
        const last = logGroups(image, store).findLast(({ kind }) => kind === GroupKind.RECORDS);
        spoil(image, last?.at as number);
        await refused(image, granularity, "closed-with-another-log");
      }
    }
  });

  test("decides every combination of facts, and each row of the table decides some", () => {
    const deciding = new Set<string>();
    const flags = [false, true];
    const numbers = [-1, 0, 5, 9, 10, 11, 20];
    for (const clean of flags)
      for (const allStoresKept of flags)
        for (const groupsBeyond of flags)
          for (const endLsn of numbers)
            for (const tailLsn of numbers)
              for (const checkpointEndLsn of numbers)
                for (const barrierBeyondLsn of numbers) {
                  const facts: RecoveryFacts = {
                    clean,
                    allStoresKept,
                    groupsBeyond,
                    endLsn,
                    tailLsn,
                    checkpointEndLsn,
                    barrierBeyondLsn,
                    logLsn: 5,
                    vouchedLsn: 4,
                  };
                  const row = judge(facts);
                  deciding.add(row.label);
                  if (row.verdict === "use") expect(row.through(facts)).toBeLessThan(Math.max(endLsn, 5));
                }
    expect([...deciding].sort()).toEqual(recoveryCases.map(({ label }) => label).sort());
  });

  afterAll(() => {
    expect([...reached].sort()).toEqual(recoveryCases.map(({ label }) => label).sort());
  });
});
