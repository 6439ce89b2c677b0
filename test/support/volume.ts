/** Volumes for tests: made in memory, damaged and moved to another boot at will. */
import { crc32c } from "../../src/media/checksum.ts";
import { SUPERBLOCK_OFFSETS, Superblock } from "../../src/media/format.ts";
import { makeFileSystem } from "../../src/media/mkfs.ts";
import { encodeSuperblock, judgeCopy, type SuperblockValue } from "../../src/media/superblock.ts";
import type { Granularity } from "../../src/region/region.ts";
import { MemoryRegion, type MemoryRegionOptions } from "./memory-region.ts";

export const MIB = 1024 * 1024;
export const owner = { uid: 1000, gid: 100 };

export interface VolumeOptions extends MemoryRegionOptions {
  blockSizeBytes?: number;
}

export async function makeVolume(
  sizeBytes: number,
  granularity: Granularity,
  options: VolumeOptions = {},
): Promise<MemoryRegion> {
  const { blockSizeBytes = 4096, ...regionOptions } = options;
  const region = MemoryRegion.blank(sizeBytes, { granularity, ...regionOptions });
  // The same volume each time: a seed of the test tells it all.
  const uuid = Uint8Array.from({ length: 16 }, (_, index) => index + 1);
  await makeFileSystem(region, { label: "test", blockSizeBytes, uuid, ...owner });
  return region;
}

/** Change fields of the superblock copies, checksums and all. */
export function patchSuperblock(
  image: Uint8Array,
  change: (value: SuperblockValue) => Partial<SuperblockValue>,
  copies: readonly number[] = SUPERBLOCK_OFFSETS,
): void {
  for (const offset of copies) {
    const verdict = judgeCopy(image.subarray(offset, offset + Superblock.size), offset);
    if (verdict.kind === "valid")
      image.set(encodeSuperblock({ ...verdict.value, ...change(verdict.value) }), offset);
  }
}

/** As if the machine had been restarted since: what was written after the last sync is not to be trusted. */
export function onAnotherBoot(image: Uint8Array): Uint8Array {
  patchSuperblock(image, ({ bootId }) =>
    bootId.every((byte) => byte === 0) ? {} : { bootId: new Uint8Array(16).fill(0xb0) },
  );
  return image;
}

/** Make the checksum of a group that was changed in place right again. */
export function resealGroup(image: Uint8Array, at: number, seed: number): void {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const length = view.getUint32(at + 8, true);
  view.setUint32(at + 4, crc32c(image, at + 8, length - 8, seed), true);
}

/** Deterministic numbers in [0, 1) (mulberry32): whoever prints the seed can repeat the run. */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}
