/** Volumes for tests: made in memory, damaged and moved to another boot at will. */
import { crc32c } from "../../src/media/checksum.ts";
import {
  COPY_ROLE,
  COPY_TABLE_BYTES_MAX,
  COPY_TABLE_OFFSETS,
  SEGMENT_BYTES_MIN,
  SEGMENT_MAGIC,
  SegmentHeader,
  SegmentRole,
  SUPERBLOCK_OFFSETS,
  Superblock,
} from "../../src/media/format.ts";
import { GroupBuilder, readRecords, WRITTEN } from "../../src/media/group.ts";
import { makeFileSystem } from "../../src/media/mkfs.ts";
import { encodeSuperblock, judgeCopy, type SuperblockValue } from "../../src/media/superblock.ts";
import { fieldsOf, S_IFREG } from "../../src/namespace/inode.ts";
import { create } from "../../src/namespace/names.ts";
import type { Store } from "../../src/namespace/store.ts";
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

/** As if its metadata had no second copies, and no earlier checkpoint were left: what is damaged has to be done without. */
export function withoutCopies(image: Uint8Array): Uint8Array {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  for (const at of Object.values(COPY_TABLE_OFFSETS)) image.fill(0, at, at + COPY_TABLE_BYTES_MAX);
  for (let at = 0; at < image.length; at += SEGMENT_BYTES_MIN) {
    if (view.getUint32(at, true) !== SEGMENT_MAGIC) continue;
    const role = view.getUint32(at + SegmentHeader.at.role, true);
    const incarnation = view.getBigUint64(at + SegmentHeader.at.incarnation, true);
    const isNamed = SUPERBLOCK_OFFSETS.some(
      (copy) => view.getBigUint64(copy + Superblock.at.checkpointIncarnation, true) === incarnation,
    );
    if (role > COPY_ROLE || (role === SegmentRole.CHECKPOINT && !isNamed))
      image.fill(0, at, at + SegmentHeader.size);
  }
  return image;
}

/** Make the checksum of a group that was changed in place right again. */
export function resealGroup(image: Uint8Array, at: number, seed: number): void {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const length = view.getUint32(at + 8, true);
  view.setUint32(at + 4, crc32c(image, at + 8, length - 8, seed), true);
}

/**
 * Files get all that is free but `segments` of it, the reserve of metadata included, as no version of today would have it.
 * The blocks go to as many files in turn as there are names.
 */
export function crowd(store: Store, segments: number, names: readonly string[] = ["crowd"]): void {
  const { allocator, pool, state } = store;
  const inodes = names.map((name) => create(store, store.root, name, S_IFREG | 0o644, 0, owner, null));
  pool.trim(segments);
  const blocks = allocator
    .claimFree(0, allocator.blockCount)
    .flatMap(({ start, count }) => Array.from({ length: count }, (_, index) => start + index));
  state.lsn = (store.journal?.lastLsn ?? 0) + 1;
  const ends = inodes.map(() => 0);
  // Not by begin(), which would take the reserve anew.
  let group = new GroupBuilder(64 * 1024);
  const flush = (): void => {
    store.journal?.commit(group);
    readRecords(group.data, group.view, 0, group.length, 0, state);
    group = new GroupBuilder(64 * 1024);
  };
  for (let at = 0; at < blocks.length; ) {
    const whose = at % inodes.length;
    let count = 1;
    while (inodes.length === 1 && blocks[at + count] === (blocks[at] as number) + count) count += 1;
    const inode = inodes[whose] as (typeof inodes)[0];
    group.extent(inode.ino, ends[whose] as number, blocks[at] as number, count, WRITTEN);
    ends[whose] = (ends[whose] as number) + count;
    at += count;
    if (group.length > 60_000) flush();
  }
  for (const [index, inode] of inodes.entries()) {
    const size = BigInt(ends[index] as number) * BigInt(store.blockBytes);
    group.inode({ ...fieldsOf(inode), size });
  }
  flush();
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
