/**
 * How much a repair gives up: counted before it is done, so that whoever runs it can decide.
 *
 * What was never read cannot be counted for certain. Records in a transaction whose checksum is wrong are not believed,
 * but they are counted.
 */
import { viewOf } from "../layout/struct.ts";
import type { ChainGeometry } from "../media/chain.ts";
import { COUNTER_MAX, ExtentRecord, InodeRecord, RecordHeader, RecordType } from "../media/format.ts";
import { groupAt, UNWRITTEN } from "../media/group.ts";
import { FILE_BLOCKS_MAX, FILE_TYPES, S_IFMT } from "../namespace/inode.ts";
import type { Draft, DraftInode } from "./draft.ts";

export interface Loss {
  /** Inodes that are lost, or lose their name, attributes or data. */
  readonly inodes: number;
  /** Inodes that the volume seems to have had. */
  readonly ofInodes: number;
  /** Of file data that no file has afterwards. */
  readonly bytes: number;
  /** Parts of the metadata hold nothing that can be read: there may be more. */
  readonly atLeast: boolean;
}

/** Blocks with data by inode number, of records that cannot be believed. */
export type Glimpsed = Map<number, number>;

/** Count what look like records of inodes and extents in bytes that hold no whole transaction. */
export function glimpse(data: Buffer, geometry: ChainGeometry, glimpsed: Glimpsed): void {
  const view = viewOf(data);
  const body = RecordHeader.size;
  for (let at = 0; at + body <= data.length; at += 8) {
    // What an earlier use of the segment has left.
    const stale = groupAt(data, view, at, data.length, geometry.seed);
    if (stale !== null) {
      at += stale.length - 8;
      continue;
    }
    const type = view.getUint16(at, true);
    const length = view.getUint32(at + RecordHeader.at.length, true);
    if (view.getUint16(at + 2, true) !== 0 || at + length > data.length) continue;
    const number = (offset: number): number => Number(view.getBigUint64(at + body + offset, true));
    if (type === RecordType.INODE && length === body + InodeRecord.size) {
      const ino = number(InodeRecord.at.ino);
      const mode = view.getUint32(at + body + InodeRecord.at.mode, true);
      if (ino === 0 || ino >= COUNTER_MAX || !FILE_TYPES.has(mode & S_IFMT)) continue;
      glimpsed.set(ino, glimpsed.get(ino) ?? 0);
    } else if (type === RecordType.EXTENT && length === body + ExtentRecord.size) {
      const ino = number(ExtentRecord.at.ino);
      const count = view.getUint32(at + body + ExtentRecord.at.count, true);
      if (ino === 0 || ino >= COUNTER_MAX || count > FILE_BLOCKS_MAX) continue;
      if (view.getUint32(at + body + ExtentRecord.at.state, true) === UNWRITTEN) continue;
      glimpsed.set(ino, (glimpsed.get(ino) ?? 0) + count);
    }
  }
}

/** Compares a draft as it was read with what was made of it. */
export class LossCounter {
  readonly #blocks = new Map<number, number>();
  readonly #orphans = new Set<number>();
  readonly #withoutRecord = new Set<number>();
  readonly #atLeast: boolean;

  /** @param atLeast parts of the metadata were passed over */
  constructor(draft: Draft, glimpsed: Glimpsed, atLeast: boolean) {
    this.#atLeast = atLeast;
    for (const [ino, blocks] of glimpsed) this.#blocks.set(ino, blocks);
    for (const inode of draft.inodes.values()) {
      this.#blocks.set(inode.ino, Math.max(dataBlocks(inode), glimpsed.get(inode.ino) ?? 0));
      if (inode.fields === null) this.#withoutRecord.add(inode.ino);
      else if (inode.fields.nlink === 0) this.#orphans.add(inode.ino);
    }
    for (const { entries } of draft.inodes.values()) {
      for (const { ino } of entries.values()) if (!this.#blocks.has(ino)) this.#blocks.set(ino, 0);
    }
  }

  /** @param unnamed inodes that lost their name */
  count(draft: Draft, unnamed: ReadonlySet<number>, blockBytes: number): Loss {
    let inodes = 0;
    let ofInodes = 0;
    let bytes = 0;
    for (const [ino, before] of this.#blocks) {
      const inode = draft.inodes.get(ino);
      // Its blocks were to be freed anyway.
      if (inode === undefined && this.#orphans.has(ino)) continue;
      ofInodes += 1;
      const lostBlocks = Math.max(0, before - (inode === undefined ? 0 : dataBlocks(inode)));
      bytes += lostBlocks * blockBytes;
      if (inode === undefined || lostBlocks > 0 || unnamed.has(ino) || this.#withoutRecord.has(ino))
        inodes += 1;
    }
    return { inodes, ofInodes, bytes, atLeast: this.#atLeast };
  }
}

function dataBlocks(inode: DraftInode): number {
  let blocks = 0;
  for (const { count, state } of inode.extents) if (state !== UNWRITTEN) blocks += count;
  return blocks;
}

/** @param what happens: "would be lost" */
export function lossInWords({ inodes, ofInodes, bytes, atLeast }: Loss, what: string): string {
  const how = atLeast ? ", as far as the damaged parts can be read" : "";
  return `${inodes} of ${ofInodes} inodes, ${bytes} bytes ${what}${how}`;
}
