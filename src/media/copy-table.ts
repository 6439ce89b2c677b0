/**
 * Where second copies of metadata segments are (copies.ts): written beside each superblock, so that a mount keeps them
 * without searching for them.
 *
 * Nothing depends on it but that: a copy says itself what it is a copy of, and a table that is damaged, or of another chain,
 * counts as none.
 */
import { CorruptionError } from "../base/errors.ts";
import { viewOf } from "../layout/struct.ts";
import type { Region } from "../region/region.ts";
import { crc32c } from "./checksum.ts";
import { COPY_TABLE_BYTES_MAX, COPY_TABLE_MAGIC, COPY_TABLE_OFFSETS, CopyTable } from "./format.ts";
import { type Media, readSome } from "./reading.ts";

export interface CopyTableValue {
  readonly incarnation: number;
  readonly firstIndex: number;
  /** Byte offsets in the order of the segments; 0: none. */
  readonly copies: readonly number[];
}

const COPIES_MAX = (COPY_TABLE_BYTES_MAX - CopyTable.size) / 8;

/** Never seen half written where stores are durable one by one: the magic number goes first, and comes last. */
export function writeCopyTable(region: Region, role: number, value: CopyTableValue, seed: number): void {
  const at = COPY_TABLE_OFFSETS[role] as number;
  const data = encode(value, seed);
  region.write(at, Buffer.alloc(MAGIC_BYTES), 0, MAGIC_BYTES);
  region.drain();
  region.write(at + MAGIC_BYTES, data, MAGIC_BYTES, data.length - MAGIC_BYTES);
  region.drain();
  region.write(at, data, 0, MAGIC_BYTES);
  region.drain();
}

/** Magic number and checksum: one store. */
const MAGIC_BYTES = 8;

function encode(value: CopyTableValue, seed: number): Buffer {
  const count = Math.min(COPIES_MAX, value.copies.length);
  const data = Buffer.alloc(CopyTable.size + count * 8);
  const view = viewOf(data);
  const { incarnation, firstIndex } = value;
  CopyTable.encode(view, 0, { magic: COPY_TABLE_MAGIC, crc: 0, incarnation, firstIndex, count });
  for (let index = 0; index < count; index += 1)
    view.setBigUint64(CopyTable.size + index * 8, BigInt(value.copies[index] as number), true);
  view.setUint32(CopyTable.at.crc, crc32c(data, 0, data.length, seed), true);
  return data;
}

/** @param role of the chain. null: none was ever written; "damaged". */
export function readCopyTable(region: Media, role: number, seed: number): CopyTableValue | "damaged" | null {
  const data = readSome(region, COPY_TABLE_OFFSETS[role] as number, COPY_TABLE_BYTES_MAX);
  const view = viewOf(data);
  if (view.getUint32(0, true) === 0) return null;
  const count = Number(view.getBigUint64(CopyTable.at.count, true));
  if (view.getUint32(0, true) !== COPY_TABLE_MAGIC || count > COPIES_MAX) return "damaged";
  const bytes = CopyTable.size + count * 8;
  const found = view.getUint32(CopyTable.at.crc, true);
  view.setUint32(CopyTable.at.crc, 0, true);
  if (crc32c(data, 0, bytes, seed) !== found) return "damaged";
  try {
    const { incarnation, firstIndex } = CopyTable.decode(view, 0);
    const copies = Array.from({ length: count }, (_, index) =>
      Number(view.getBigUint64(CopyTable.size + index * 8, true)),
    );
    return { incarnation, firstIndex, copies };
  } catch (error) {
    if (error instanceof CorruptionError) return "damaged";
    throw error;
  }
}
