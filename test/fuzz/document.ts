/**
 * A volume's metadata taken apart into superblocks, segments, groups and records, changed there, and put together again under
 * right checksums: what random damage to bytes never gets past is no obstacle here.
 *
 * Invariant: a document that nobody changed is written as the very image that it was read from.
 */
import { type Struct, viewOf } from "../../src/layout/struct.ts";
import { crc32c } from "../../src/media/checksum.ts";
import {
  EndRecord,
  GROUP_MAGIC,
  GroupHeader,
  GroupKind,
  RecordHeader,
  RecordType,
  recordBodies,
  SEGMENT_MAGIC,
  SegmentHeader,
  SegmentRole,
  SUPERBLOCK_OFFSETS,
  Superblock,
  VolumeState,
} from "../../src/media/format.ts";
import { groupAt } from "../../src/media/group.ts";

type AnyStruct = Pick<Struct<never>, "fields" | "size" | "name">;

/** Header and body, padding and all. */
export type RecordBytes = Buffer;

export interface GroupParts {
  readonly header: Buffer;
  records: RecordBytes[];
  /** What the header says is what it says, right or wrong; otherwise length and count are made right. */
  keeps: Set<"length" | "count">;
}

export interface SegmentParts {
  /** Byte offset in the region. */
  readonly at: number;
  readonly header: Buffer;
  groups: GroupParts[];
}

export class Document {
  readonly superblocks: Buffer[];
  readonly segments: SegmentParts[];
  readonly segmentBytes: number;
  readonly #image: Uint8Array;
  readonly #seed: number;
  /** Where each segment's groups ended. */
  readonly #ends: number[] = [];

  /** @param segments byte offsets of those in use; @param seed of their checksums */
  constructor(image: Uint8Array, segments: readonly number[], segmentBytes: number, seed: number) {
    this.#image = image;
    this.#seed = seed;
    this.segmentBytes = segmentBytes;
    this.superblocks = SUPERBLOCK_OFFSETS.map((at) => Buffer.from(image.slice(at, at + Superblock.size)));
    this.segments = segments.map((at) => {
      const data = Buffer.from(image.slice(at, at + segmentBytes));
      const view = viewOf(data);
      if (view.getUint32(0, true) !== SEGMENT_MAGIC) throw new Error(`no segment at ${at}`);
      const groups: GroupParts[] = [];
      let from: number = SegmentHeader.size;
      for (;;) {
        const group = groupAt(data, view, from, data.length, seed);
        if (group === null) break;
        groups.push(takeApart(data.subarray(from, from + group.length)));
        from += group.length;
      }
      this.#ends.push(from);
      return { at, header: data.subarray(0, SegmentHeader.size), groups };
    });
  }

  /** Everything on which records can be found, in order. */
  groups(): GroupParts[] {
    return this.segments.flatMap(({ groups }) => groups);
  }

  /** Numbers follow one another, the checkpoint counts its records rightly, and a clean superblock says where the log ends. */
  renumber(): void {
    let logEnd = 0;
    for (const role of [SegmentRole.CHECKPOINT, SegmentRole.LOG]) {
      const chain = this.segments.filter(
        ({ header }) => header.readUInt32LE(SegmentHeader.at.role) === role && header.length > 0,
      );
      let next = chain[0]?.header.readBigUInt64LE(SegmentHeader.at.firstLsn) ?? 0n;
      let records = 0;
      for (const { header, groups } of chain) {
        header.writeBigUInt64LE(BigInt.asUintN(64, next), SegmentHeader.at.firstLsn);
        for (const group of groups) {
          group.header.writeBigUInt64LE(BigInt.asUintN(64, next), GroupHeader.at.lsn);
          next += 1n;
          const kind = group.header.readUInt16LE(GroupHeader.at.kind);
          if (kind === GroupKind.RECORDS) records += group.records.length;
          for (const record of group.records) {
            if (typeOf(record) === RecordType.END && record.length >= RecordHeader.size + EndRecord.size)
              record.writeBigUInt64LE(BigInt(records), RecordHeader.size + EndRecord.at.records);
          }
        }
      }
      logEnd = Number(BigInt.asUintN(53, next));
    }
    for (const superblock of this.superblocks) {
      if (superblock.readUInt32LE(Superblock.at.state) === VolumeState.CLEAN)
        superblock.writeBigUInt64LE(BigInt(logEnd), Superblock.at.tailLsn);
    }
  }

  image(): Uint8Array {
    const image = this.#image.slice();
    for (const [index, at] of SUPERBLOCK_OFFSETS.entries()) {
      const data = Buffer.from(this.superblocks[index] as Buffer);
      data.fill(0, Superblock.at.crc, Superblock.at.crc + 4);
      data.writeUInt32LE(crc32c(data, 0, data.length), Superblock.at.crc);
      image.set(data, at);
    }
    for (const [index, segment] of this.segments.entries()) {
      const { at, groups } = segment;
      const header = Buffer.from(segment.header);
      header.fill(0, SegmentHeader.at.crc, SegmentHeader.at.crc + 4);
      header.writeUInt32LE(crc32c(header, 0, header.length, this.#seed), SegmentHeader.at.crc);
      image.set(header, at);
      let end = at + SegmentHeader.size;
      for (const group of groups) {
        const bytes = putTogether(group, this.#seed);
        if (end + bytes.length > at + this.segmentBytes) break;
        image.set(bytes, end);
        end += bytes.length;
      }
      const before = at + (this.#ends[index] as number);
      if (end < before) image.fill(0, end, before);
    }
    return image;
  }
}

function takeApart(data: Buffer): GroupParts {
  const records: RecordBytes[] = [];
  for (let at: number = GroupHeader.size; at < data.length; ) {
    const length = data.readUInt32LE(at + RecordHeader.at.length);
    records.push(Buffer.from(data.subarray(at, at + length)));
    at += length;
  }
  return { header: Buffer.from(data.subarray(0, GroupHeader.size)), records, keeps: new Set() };
}

function putTogether({ header, records, keeps }: GroupParts, seed: number): Buffer {
  const bytes = Buffer.concat([header, ...records]);
  bytes.writeUInt32LE(GROUP_MAGIC, GroupHeader.at.magic);
  if (!keeps.has("length")) bytes.writeUInt32LE(bytes.length, GroupHeader.at.length);
  if (!keeps.has("count")) bytes.writeUInt16LE(records.length & 0xffff, GroupHeader.at.count);
  // As far as a reader will sum it, if it can.
  const length = Math.min(bytes.readUInt32LE(GroupHeader.at.length), bytes.length);
  const from = GroupHeader.at.length;
  if (length > from) bytes.writeUInt32LE(crc32c(bytes, from, length - from, seed), GroupHeader.at.crc);
  return bytes;
}

export const typeOf = (record: RecordBytes): number => record.readUInt16LE(RecordHeader.at.type);

/** The struct of a record's body; undefined for a type that there is not. */
export function bodyOf(record: RecordBytes): AnyStruct | undefined {
  const name = Object.entries(RecordType).find(([, value]) => value === typeOf(record))?.[0];
  return name === undefined ? undefined : recordBodies[name as keyof typeof recordBodies];
}
