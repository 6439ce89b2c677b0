/**
 * Second copies of metadata segments: of each segment of the checkpoint and of the log behind it there is another, as long
 * as the reserve has room for it. So any one block of metadata may be damaged, and nothing is lost.
 *
 * A copy holds the transactions of its segment, byte for byte at the same places, behind a header of its own that says what
 * it is a copy of. A log segment is copied transaction by transaction as it is written (chain.ts), a checkpoint when it is
 * complete.
 *
 * Invariants:
 * - a transaction is stored in the copy after the one in the segment itself is, so a copy never says more than the log did;
 * - a copy is believed only where the segment itself holds no whole transaction with the number that is expected there.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { FsError } from "../base/errors.ts";
import { viewOf } from "../layout/struct.ts";
import type { Region } from "../region/region.ts";
import {
  type ChainGeometry,
  copySegment,
  encodeSegmentHeader,
  isSegmentPlace,
  type LentSegment,
  type SegmentHead,
  type SegmentSource,
  segmentHead,
  segmentPlaces,
} from "./chain.ts";
import { readCopyTable, writeCopyTable } from "./copy-table.ts";
import { COPY_ROLE, GroupKind, SegmentHeader, SegmentRole } from "./format.ts";
import { groupAt } from "./group.ts";
import { type Media, readSome } from "./reading.ts";
import type { SuperblockValue } from "./superblock.ts";

/** Segments of a checkpoint with their copies. */
export interface CheckpointPlaces {
  readonly incarnation: number;
  readonly segments: readonly number[];
  /** How much of the last one is in use. */
  readonly lastBytes: number;
  /** In the order of the segments; null: none. */
  copies: (LentSegment | null)[];
}

/**
 * Make the copies that a checkpoint lacks, as far as there is room, and say where they are.
 * @param durably before it is said
 */
export async function copyCheckpoint(
  region: Region,
  geometry: ChainGeometry,
  source: SegmentSource,
  checkpoint: CheckpointPlaces,
  durably = false,
): Promise<void> {
  const { segments, incarnation, lastBytes } = checkpoint;
  const copies = segments.map((_, index) => checkpoint.copies[index] ?? null);
  let added = false;
  try {
    for (const [index, segment] of segments.entries()) {
      const before = copies[index] ?? null;
      if (before !== null && source.copies?.holds(before) === true) continue;
      const copy = source.copies?.take() ?? null;
      copies[index] = copy;
      if (copy === null) break;
      added = true;
      const bytes = index === segments.length - 1 ? lastBytes : geometry.segmentBytes;
      copySegment(region, geometry, segment, copy.place, bytes);
      await nextTurn();
    }
    if (added) {
      if (durably) await region.sync();
      const places = copies.map((copy) => copy?.place ?? 0);
      const table = { incarnation, firstIndex: 0, copies: places };
      writeCopyTable(region, SegmentRole.CHECKPOINT, table, geometry.seed);
    }
  } catch (error) {
    // Nothing but the copies is affected.
    if (!(error instanceof FsError)) throw error;
  }
  checkpoint.copies = copies;
}

/** Whether `copy` says of itself that it is a copy of this segment. */
export function isCopyOf(
  region: Media,
  geometry: ChainGeometry,
  copy: number,
  of: Pick<SegmentHead, "role" | "index" | "incarnation"> & { readonly segment: number },
): boolean {
  if (!isSegmentPlace(copy, geometry)) return false;
  const head = segmentHead(readSome(region, copy, SegmentHeader.size), copy, geometry);
  return (
    typeof head !== "string" &&
    head.role === of.role + COPY_ROLE &&
    head.index === of.index &&
    head.incarnation === of.incarnation &&
    head.next === of.segment
  );
}

/** Whether `copy` holds all that a whole segment does. */
export function isWholeCopy(
  region: Media,
  geometry: ChainGeometry,
  copy: number,
  of: Pick<SegmentHead, "role" | "index" | "incarnation"> & { readonly segment: number },
): boolean {
  if (!isCopyOf(region, geometry, copy, of)) return false;
  const { segment } = of;
  const data = readSome(region, segment, geometry.segmentBytes);
  const head = segmentHead(data, segment, geometry);
  if (typeof head === "string") return true;
  const copied = readSome(region, copy, data.length);
  data.copy(copied, 0, 0, SegmentHeader.size);
  return !merge(copied, data, segment, { ...head, role: head.role + COPY_ROLE }, geometry);
}

/** Copies by the segment that they are copies of. */
export type CopiesBySegment = ReadonlyMap<
  number,
  readonly { readonly place: number; readonly head: SegmentHead }[]
>;

/** Of the checkpoint and the log that this superblock names: those that the tables list, or all that lie anywhere. */
export function findCopies(
  region: Media,
  geometry: ChainGeometry,
  superblock: SuperblockValue,
  where: "listed" | "anywhere",
): CopiesBySegment {
  const found = new Map<number, { place: number; head: SegmentHead }[]>();
  for (const place of where === "listed" ? listed(region, geometry) : segmentPlaces(geometry)) {
    const head = segmentHead(readSome(region, place, SegmentHeader.size), place, geometry);
    if (typeof head === "string" || !isSegmentPlace(head.next, geometry)) continue;
    const ofLog =
      head.role === SegmentRole.LOG_COPY &&
      head.incarnation === superblock.logIncarnation &&
      head.index >= superblock.logIndex;
    const ofCheckpoint =
      head.role === SegmentRole.CHECKPOINT_COPY && head.incarnation === superblock.checkpointIncarnation;
    if (!ofLog && !ofCheckpoint) continue;
    const others = found.get(head.next);
    if (others === undefined) found.set(head.next, [{ place, head }]);
    else others.push({ place, head });
  }
  return found;
}

function* listed(region: Media, geometry: ChainGeometry): IterableIterator<number> {
  for (const role of [SegmentRole.CHECKPOINT, SegmentRole.LOG]) {
    const table = readCopyTable(region, role, geometry.seed);
    if (table === null || table === "damaged") continue;
    for (const place of table.copies) if (isSegmentPlace(place, geometry)) yield place;
  }
}

/** A region in which segments are whole again as far as they and their copies together are. */
export class Mended implements Media {
  /** Segments that were read and are not whole by themselves, and the copy that was used. */
  readonly segments = new Map<number, number>();
  readonly facts: Region["facts"];
  readonly #region: Media;
  readonly #geometry: ChainGeometry;
  readonly #copies: CopiesBySegment;

  constructor(region: Media, geometry: ChainGeometry, copies: CopiesBySegment) {
    this.facts = region.facts;
    this.#region = region;
    this.#geometry = geometry;
    this.#copies = copies;
  }

  read(offset: number, target: Uint8Array, targetStart: number, length: number): void {
    const copies = this.#copies.get(offset);
    if (copies === undefined) {
      // Parts that cannot be read may have a copy elsewhere.
      this.#region.read(offset, target, targetStart, length);
      return;
    }
    const data = readSome(this.#region, offset, this.#geometry.segmentBytes);
    for (const { place, head } of copies) {
      if (merge(data, readSome(this.#region, place, data.length), offset, head, this.#geometry))
        this.segments.set(offset, place);
    }
    data.copy(target, targetStart, 0, length);
  }
}

/** Put into `data` what it lacks and the copy has. Returns whether anything was. */
function merge(
  data: Buffer,
  copy: Buffer,
  segment: number,
  ofCopy: SegmentHead,
  geometry: ChainGeometry,
): boolean {
  const { index, incarnation, firstLsn } = ofCopy;
  const role = ofCopy.role - COPY_ROLE;
  let changed = false;
  const head = segmentHead(data, segment, geometry);
  const isRight =
    typeof head !== "string" &&
    head.role === role &&
    head.index === index &&
    head.incarnation === incarnation &&
    head.firstLsn === firstLsn;
  if (!isRight) {
    // Which segment it had set aside, only its own header told.
    const header = encodeSegmentHeader(
      { role, index, incarnation, firstLsn, self: segment, next: 0 },
      geometry.seed,
    );
    header.copy(data);
    changed = true;
  }
  const views = [viewOf(data), viewOf(copy)] as const;
  let lsn = firstLsn;
  for (let at: number = SegmentHeader.size; ; lsn += 1) {
    const [own, other] = [data, copy].map((bytes, which) => {
      const group = groupAt(bytes, views[which] as DataView, at, bytes.length, geometry.seed);
      return group !== null && group.lsn === lsn && group.incarnation === incarnation ? group : null;
    });
    const group = own ?? other ?? null;
    if (group === null) return changed;
    if (own === null) {
      copy.copy(data, at, at, at + group.length);
      changed = true;
    }
    if (group.kind === GroupKind.LINK || group.kind === GroupKind.END) return changed;
    at += group.length;
  }
}
