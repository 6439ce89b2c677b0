/** A volume with files all over, for tests of what moves them. */
import { expect } from "vitest";
import { checkVolume } from "../../src/namespace/check.ts";
import { cloneRange } from "../../src/namespace/clone.ts";
import { write } from "../../src/namespace/data.ts";
import { fallocate } from "../../src/namespace/fallocate.ts";
import { type Inode, S_IFREG } from "../../src/namespace/inode.ts";
import { create, unlink } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, makeVolume, owner } from "../support/volume.ts";
import { pattern } from "./bench.ts";
import { difference, foreignBytes, Model } from "./model.ts";

/** Files all over a volume of 12 MiB, of which little is left at the front. */
export async function spread(granularity: Granularity): Promise<Uint8Array> {
  const region = await makeVolume(12 * MIB, granularity);
  const store = await Store.open(region, { readOnly: false });
  const make = (name: string): Inode => create(store, store.root, name, S_IFREG | 0o644, 0, owner, null);
  for (let index = 0; index < 9; index += 1) {
    const file = make(`file-${index}`);
    write(store, file, 0n, pattern(1 << 20, index), 0, 1 << 20, false);
    if (index === 8) {
      fallocate(store, file, 0, 1n << 20n, 300_000n, false);
      const range = { sourceOffset: 0n, targetOffset: 8192n, length: 1n << 20n, killPrivileges: false };
      cloneRange(store, { source: file, target: make("twin"), ...range });
    }
  }
  await store.sync();
  for (let index = 0; index < 4; index += 1) unlink(store, store.root, `file-${index}`);
  await store.close();
  return region.image();
}

export async function modelOf(image: Uint8Array, granularity: Granularity): Promise<Model> {
  const store = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: true });
  checkVolume(store);
  return Model.of(store);
}

export function expectSame(seen: Model, expected: Model): void {
  expect(difference(seen, expected)).toBeNull();
  expect(foreignBytes(seen, [expected])).toBeNull();
}
