/**
 * A small volume with one of everything, taken apart so that tests can damage any of its bytes: at random, or by records that
 * lie under right checksums.
 */
import { expect } from "vitest";
import { crc32c } from "../../src/media/checksum.ts";
import {
  GroupHeader,
  RecordHeader,
  RecordType,
  recordBodies,
  SEGMENT_MAGIC,
  SegmentHeader,
  SUPERBLOCK_OFFSETS,
  Superblock,
} from "../../src/media/format.ts";
import { groupAt } from "../../src/media/group.ts";
import { geometryOf } from "../../src/media/recovery.ts";
import { changeAttributes, setXattr } from "../../src/namespace/attributes.ts";
import { cloneRange } from "../../src/namespace/clone.ts";
import { truncate, write } from "../../src/namespace/data.ts";
import { fallocate } from "../../src/namespace/fallocate.ts";
import { S_IFDIR, S_IFLNK, S_IFREG } from "../../src/namespace/inode.ts";
import { InodeFlag, setInodeFlags } from "../../src/namespace/inode-flags.ts";
import { create, lookup, rename, unlink } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import { pattern } from "../namespace/bench.ts";
import { Model } from "../namespace/model.ts";
import { MemoryRegion } from "./memory-region.ts";
import { MIB, makeVolume, owner, resealGroup, withoutCopies } from "./volume.ts";

export interface Specimen {
  readonly image: Uint8Array;
  /** The state before each group of the log, and the last one. */
  readonly states: Model[];
  /** Runs of bytes that metadata occupies: superblocks, segment headers, groups. */
  readonly places: { name: string; at: number; length: number }[];
  readonly groups: number[];
  readonly headers: number[];
  readonly seed: number;
}

/**
 * A small volume with one of everything in its checkpoint and in its log.
 * @param copies its metadata is there twice
 */
export async function makeSpecimen(
  granularity: "cacheline" | "page",
  clean: boolean,
  copies = false,
): Promise<Specimen> {
  const region = await makeVolume(4 * MIB, granularity);
  const store = await Store.open(region, { readOnly: false });
  const dir = create(store, store.root, "dir", S_IFDIR | 0o755, 0, owner, null);
  const file = create(store, dir, "file", S_IFREG | 0o644, 0, owner, null);
  write(store, file, 0n, pattern(10_000, 1), 0, 10_000, false);
  create(store, store.root, "link", S_IFLNK | 0o777, 0, owner, "dir/file");
  setXattr(store, file, "user.a", pattern(20, 2), 0);
  const twin = create(store, dir, "twin", S_IFREG | 0o600, 0, owner, null);
  const clone = (length: bigint) =>
    cloneRange(store, {
      source: file,
      sourceOffset: 0n,
      target: twin,
      targetOffset: twin.size,
      length,
      killPrivileges: false,
    });
  clone(8192n);
  setInodeFlags(store, file, InodeFlag.NODUMP);
  await store.checkpoint();
  const states: Model[] = [];
  const steps = [
    () => create(store, dir, "second", S_IFREG | 0o600, 0, owner, null),
    () => write(store, lookup(store, dir, "second"), 9000n, pattern(9000, 3), 0, 9000, false),
    () => rename(store, dir, "second", store.root, "moved", 0),
    () => setXattr(store, dir, "user.b", pattern(7, 4), 0),
    () => fallocate(store, file, 3, 4096n, 4096n, false),
    () => unlink(store, store.root, "link"),
    () => clone(file.size),
    () => write(store, twin, 100n, pattern(50, 5), 0, 50, false),
    () => truncate(store, file, 5000n, false),
    () => changeAttributes(store, file, { mode: 0o600 }),
    () => setInodeFlags(store, dir, InodeFlag.IMMUTABLE | InodeFlag.NOATIME),
  ];
  for (const step of steps) {
    states.push(Model.of(store));
    step();
    if (granularity === "page" && step === steps[3]) await store.sync();
  }
  states.push(Model.of(store));
  if (clean) await store.close();
  const image = copies ? region.image() : withoutCopies(region.image());
  const geometry = geometryOf(store.superblock);
  const places = SUPERBLOCK_OFFSETS.map((at) => ({
    name: "superblock",
    at: at as number,
    length: Superblock.size as number,
  }));
  const groups: number[] = [];
  const headers: number[] = [];
  // Only what is in use: segments of an earlier checkpoint hold groups as well.
  const again = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: true });
  for (const segment of [...again.recovery.checkpoint.segments, ...again.recovery.log.segments]) {
    const data = image.subarray(segment, segment + geometry.segmentBytes);
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    expect(view.getUint32(0, true)).toBe(SEGMENT_MAGIC);
    headers.push(segment);
    places.push({ name: "segment header", at: segment, length: SegmentHeader.size });
    for (let at: number = SegmentHeader.size; ; ) {
      const group = groupAt(data, view, at, data.length, geometry.seed);
      if (group === null) break;
      groups.push(segment + at);
      places.push({ name: "group", at: segment + at, length: group.length });
      at += group.length;
    }
  }
  return { image, states, places, groups, headers, seed: geometry.seed };
}

/** Up to six runs of its metadata are something else: zeros, ones, or anything. Returns what was there. */
export function damage(
  specimen: Specimen,
  region: MemoryRegion,
  random: () => number,
): { at: number; old: Uint8Array }[] {
  const undo: { at: number; old: Uint8Array }[] = [];
  for (let hit = 0; hit <= random() * 6; hit += 1) {
    const place = specimen.places[Math.floor(random() * specimen.places.length)] as Specimen["places"][0];
    const at = place.at + Math.floor(random() * place.length);
    const length = Math.min(1 + Math.floor(random() * random() * 600), region.facts.sizeBytes - at);
    const old = new Uint8Array(length);
    region.read(at, old, 0, length);
    const kind = random();
    const bytes = Uint8Array.from(old, (byte) =>
      kind < 0.2 ? 0 : kind < 0.3 ? 0xff : byte ^ (random() * 256),
    );
    undo.push({ at, old });
    region.write(at, bytes, 0, length);
  }
  return undo;
}

/** Its bytes with some records, headers or superblocks that say something else; the checksums are right. */
export function withLies(specimen: Specimen, random: () => number): Uint8Array {
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
  const image = specimen.image.slice();
  const view = new DataView(image.buffer);
  const touched = new Set<number>();
  for (let hit = 0; hit <= random() * 3; hit += 1) {
    const kind = random();
    if (kind < 0.08) {
      const at = pick(SUPERBLOCK_OFFSETS.map((offset) => offset as number));
      const field = pick(Superblock.fields.filter((one) => one.name !== "crc"));
      scramble(view, at + field.offset, field.size / field.field.count);
      // Both copies, or one of them.
      for (const offset of SUPERBLOCK_OFFSETS) {
        if (random() < 0.7) image.copyWithin(offset, at, at + Superblock.size);
        view.setUint32(offset + Superblock.at.crc, 0, true);
        const crc = crc32c(image, offset, Superblock.size);
        view.setUint32(offset + Superblock.at.crc, crc, true);
      }
      continue;
    }
    if (kind < 0.16) {
      const at = pick(specimen.headers);
      const field = pick(SegmentHeader.fields.filter((one) => one.name !== "crc"));
      scramble(view, at + field.offset, field.size);
      view.setUint32(at + SegmentHeader.at.crc, 0, true);
      view.setUint32(at + SegmentHeader.at.crc, crc32c(image, at, SegmentHeader.size, specimen.seed), true);
      continue;
    }
    const at = pick(specimen.groups);
    if (kind < 0.25) {
      const field = pick(GroupHeader.fields.filter((one) => one.name !== "crc" && one.name !== "magic"));
      scramble(view, at + field.offset, field.size);
    } else scrambleRecord(view, at);
    touched.add(at);
  }
  for (const at of touched) {
    const length = view.getUint32(at + GroupHeader.at.length, true);
    if (length >= GroupHeader.size && at + length <= image.length) resealGroup(image, at, specimen.seed);
  }
  return image;

  /** Another value of this width: near, extreme, or anything. */
  function scramble(target: DataView, at: number, bytes: number): void {
    const how = random();
    if (bytes === 8) {
      const old = target.getBigUint64(at, true);
      const value =
        how < 0.3
          ? old + BigInt(Math.floor(random() * 5) - 2)
          : how < 0.6
            ? pick([
                0n,
                1n,
                2n,
                3n,
                7n,
                1n << 20n,
                1n << 32n,
                (1n << 51n) - 1n,
                (1n << 53n) - 1n,
                (1n << 63n) - 1n,
                (1n << 64n) - 1n,
              ])
            : how < 0.8
              ? BigInt(Math.floor(random() * 40)) * 131072n
              : BigInt(Math.floor(random() * 2000));
      target.setBigUint64(at, BigInt.asUintN(64, value), true);
    } else {
      for (let byte = at; byte < at + bytes; byte += 1) {
        const old = target.getUint8(byte);
        const value =
          how < 0.4 ? old ^ (1 << Math.floor(random() * 8)) : how < 0.7 ? pick([0, 1, 255]) : random() * 256;
        if (random() < 0.6) target.setUint8(byte, value);
      }
    }
  }

  /** A field of one of the group's records, or one byte of its tail. */
  function scrambleRecord(target: DataView, group: number): void {
    const end = Math.min(group + target.getUint32(group + GroupHeader.at.length, true), target.byteLength);
    const records: number[] = [];
    for (let at = group + GroupHeader.size; at + RecordHeader.size <= end; ) {
      records.push(at);
      const length = target.getUint32(at + RecordHeader.at.length, true);
      if (length < RecordHeader.size) break;
      at += length;
    }
    if (records.length === 0) return;
    const record = pick(records);
    const type = target.getUint16(record, true);
    const name = Object.entries(RecordType).find(([, value]) => value === type)?.[0] as
      | keyof typeof recordBodies
      | undefined;
    const length = target.getUint32(record + RecordHeader.at.length, true);
    if (name === undefined || random() < 0.1) {
      scramble(target, record + pick([0, 4]), pick([1, 2]));
      return;
    }
    const body = recordBodies[name];
    const field = pick(body.fields);
    if (record + RecordHeader.size + body.size > end) return;
    if (random() < 0.8)
      scramble(target, record + RecordHeader.size + field.offset, field.size / field.field.count);
    else {
      const tail = length - RecordHeader.size - body.size;
      if (tail > 0 && record + length <= end)
        scramble(target, record + RecordHeader.size + body.size + Math.floor(random() * tail), 1);
    }
  }
}
