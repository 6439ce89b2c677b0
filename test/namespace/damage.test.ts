import { describe, expect, test } from "vitest";
import { CorruptionError, FsError } from "../../src/base/errors.ts";
import { retrying } from "../../src/base/wait.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { write } from "../../src/namespace/data.ts";
import { S_IFREG } from "../../src/namespace/inode.ts";
import { create, rmdir, unlink } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { damage, makeSpecimen, withLies } from "../support/specimen.ts";
import { onAnotherBoot, owner, randomOf } from "../support/volume.ts";
import { pattern } from "./bench.ts";
import { difference, foreignBytes, Model } from "./model.ts";

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));
const runs = Number(process.env.MAPDIRECT_RUNS ?? 150);

/** By default each byte is changed in one of these ways, with more runs in each of them. */
const flips = [0x01, 0x80, 0xff];
const thorough = runs > 1000;

/** Errors that say what is wrong and where; anything else is a bug of ours. */
function isHonest(error: unknown): boolean {
  return (error instanceof CorruptionError || error instanceof FsError) && error.message.length > 8;
}

async function openDamaged(region: MemoryRegion): Promise<Store | null> {
  const from = performance.now();
  try {
    return await Store.open(region, { readOnly: true });
  } catch (error) {
    if (isHonest(error)) return null;
    throw error;
  } finally {
    expect(performance.now() - from).toBeLessThan(5000);
  }
}

function matches(seen: Model, state: Model): boolean {
  return difference(seen, state) === null && foreignBytes(seen, [state]) === null;
}

describe(`a damaged volume (seed ${seed})`, () => {
  for (const [title, granularity, clean, otherBoot] of [
    ["unmounted cleanly", "cacheline", true, false],
    ["after the daemon's death", "cacheline", false, false],
    ["after a power cut, on pages", "page", false, true],
  ] as const) {
    test(`is refused or shows a state that was, whichever byte is changed (${title})`, async () => {
      const specimen = await makeSpecimen(granularity, clean);
      const image = otherBoot ? onAnotherBoot(specimen.image) : specimen.image;
      const region = MemoryRegion.fromImage(image, { granularity });
      const whole = await openDamaged(region);
      if (whole === null) throw new Error("the undamaged volume cannot be opened");
      const intact = Model.of(whole);
      // A damaged barrier looks like one that the power cut has torn: then an earlier one counts.
      const before = otherBoot ? specimen.states : specimen.states.slice(-2);
      const allowed = [intact, ...before.map((state) => state.withoutOrphans())];
      let opened = 0;
      let refused = 0;
      const one = new Uint8Array(1);
      for (const { name, at, length } of specimen.places) {
        for (let byte = at; byte < at + length; byte += 1) {
          const right = image[byte] as number;
          for (const flip of thorough ? flips : [flips[byte % 3] as number]) {
            const wrong = right ^ flip;
            one[0] = wrong;
            region.write(byte, one, 0, 1);
            const store = await openDamaged(region);
            if (store === null) refused += 1;
            else {
              opened += 1;
              const seen = Model.of(store);
              if (!allowed.some((state) => matches(seen, state))) {
                throw new Error(
                  `${name} at ${at}: byte ${byte} changed from ${right} to ${wrong} shows another state`,
                );
              }
            }
          }
          one[0] = right;
          region.write(byte, one, 0, 1);
        }
      }
      expect(opened).toBeGreaterThan(500);
      expect(refused).toBeGreaterThan(500);
    });
  }

  test("is refused or consistent after random damage to many bytes", async () => {
    const random = randomOf(seed);
    for (const granularity of ["cacheline", "page"] as const) {
      const specimen = await makeSpecimen(granularity, false);
      const region = MemoryRegion.fromImage(specimen.image, { granularity });
      for (let run = 0; run < runs; run += 1) {
        const undo = damage(specimen, region, random);
        const store = await openDamaged(region);
        if (store !== null) checkVolume(store);
        for (const { at, old } of undo.reverse()) region.write(at, old, 0, old.length);
      }
    }
  });

  test("whose checksums are right but whose records lie is refused, or consistent and usable", async () => {
    const random = randomOf(seed + 1);
    const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
    const specimens = [await makeSpecimen("cacheline", false), await makeSpecimen("page", false)];
    const clean = await makeSpecimen("page", true);
    let opened = 0;
    for (let run = 0; run < runs * 2; run += 1) {
      const specimen = pick([...specimens, clean]);
      const image = withLies(specimen, random);
      const granularity = specimen === specimens[0] ? "cacheline" : "page";
      const from = performance.now();
      try {
        const store = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: false });
        opened += 1;
        await useUp(store);
      } catch (error) {
        if (!isHonest(error)) {
          throw new Error(`seed ${seed}, run ${run}: ${error instanceof Error ? error.stack : error}`);
        }
      }
      expect(performance.now() - from).toBeLessThan(5000);
    }
    expect(opened).toBeGreaterThan(runs / 10);
  });
});

/** Whatever was accepted must work like any volume: use it, empty it, unmount it, mount it again. */
async function useUp(store: Store): Promise<void> {
  checkVolume(store);
  const file = await retrying(() => create(store, store.root, "new file", S_IFREG | 0o644, 0, owner, null));
  await retrying(() => write(store, file, 5n, pattern(5000, 9), 0, 5000, false));
  checkVolume(store);
  const clear = async (ino: number): Promise<void> => {
    const directory = store.inode(ino);
    for (const [name, entry] of [...(directory.directory?.names ?? [])]) {
      if (store.inode(entry.ino).isDirectory) {
        await clear(entry.ino);
        await retrying(() => rmdir(store, directory, name));
      } else await retrying(() => unlink(store, directory, name));
    }
  };
  await clear(1);
  checkVolume(store);
  if (store.state.inodes.size !== 1) throw new Error("not all could be removed");
  await store.close();
  const again = await Store.open(store.region, { readOnly: false });
  checkVolume(again);
}
