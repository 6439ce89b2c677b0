/**
 * A chain of segments: writing groups into it, and walking it.
 *
 * Invariants of the writer:
 * - a segment's header is stored before any group in it, and the LINK group that leads to it after the header: a LINK
 *   never leads to a segment that is not there, except on page granularity after a power cut: then the log ends there;
 * - a group is written after everything stored before it has been drained: data, then the record that makes it visible;
 * - LINK_GROUP_BYTES at the end of each segment stay free for the LINK.
 */
import { CorruptionError, FsError } from "../base/errors.ts";
import { getU64, type StructValue, viewOf } from "../layout/struct.ts";
import type { Region } from "../region/region.ts";
import { crc32c } from "./checksum.ts";
import { writeCopyTable } from "./copy-table.ts";
import {
  BarrierRecord,
  COPY_ROLE,
  GROUP_MAGIC,
  GroupHeader,
  GroupKind,
  LINK_GROUP_BYTES,
  RESERVED_BYTES,
  RecordHeader,
  SEGMENT_MAGIC,
  SegmentHeader,
  SegmentRole,
} from "./format.ts";
import { GroupBuilder, type GroupInfo, groupAt, readRecords, refusingSink } from "./group.ts";
import type { Media } from "./reading.ts";

/** Where segments come from: the space floor's reserve, or a simple counter in mkfs. */
export interface SegmentSource {
  /** Byte offset of a free segment. @throws FsError ENOSPC */
  take(): number;
  give(segment: number): void;
  /** For second copies (copies.ts); without, none are made. */
  readonly copies?: CopySource;
}

/** A segment that is lent for a second copy. */
export interface LentSegment {
  /** Byte offset. */
  readonly place: number;
}

/** Lends segments for second copies: what cannot do without a segment gets them back. */
export interface CopySource {
  /** null if none is to be had. */
  take(): LentSegment | null;
  /** It was not taken back. */
  holds(copy: LentSegment): boolean;
  give(copy: LentSegment): void;
}

export interface ChainGeometry {
  readonly segmentBytes: number;
  /** End of the volume in bytes. */
  readonly regionBytes: number;
  /** Checksum seed: CRC32C of the volume uuid, so that segments of another volume never pass for ours. */
  readonly seed: number;
}

/** Largest group that fits into a segment, in bytes. */
export function groupCapacity(geometry: ChainGeometry): number {
  return geometry.segmentBytes - SegmentHeader.size - COMMIT_POINT_BYTES - LINK_GROUP_BYTES;
}

/**
 * Room behind every group of records for two barriers: what was logged can be made durable when no further segment is
 * free. Two, since one for what came before may be on its way.
 */
const COMMIT_POINT_BYTES = 2 * (GroupHeader.size + RecordHeader.size + BarrierRecord.size);

export interface ChainStart {
  readonly segment: number;
  readonly index: number;
  readonly incarnation: number;
  readonly lsn: number;
}

export class ChainWriter {
  readonly #region: Region;
  readonly #geometry: ChainGeometry;
  readonly #role: number;
  readonly #source: SegmentSource;
  readonly #link: GroupBuilder;
  /** Segments in use, oldest first; the last one is being written. */
  readonly segments: number[] = [];
  /** Their second copies; null where there is none. */
  readonly #copies: (LentSegment | null)[] = [];
  #next = 0;
  #index: number;
  #incarnation: number;
  #lsn: number;
  #tail: number = SegmentHeader.size;
  /** Bytes written, headers and links included. */
  bytesWritten = 0;

  private constructor(
    region: Region,
    geometry: ChainGeometry,
    role: number,
    source: SegmentSource,
    start: Omit<ChainStart, "segment">,
  ) {
    this.#region = region;
    this.#geometry = geometry;
    this.#role = role;
    this.#source = source;
    this.#link = new GroupBuilder(LINK_GROUP_BYTES);
    this.#index = start.index;
    this.#incarnation = start.incarnation;
    this.#lsn = start.lsn;
  }

  /** Begin a new chain in fresh segments. */
  static begin(
    region: Region,
    geometry: ChainGeometry,
    role: number,
    source: SegmentSource,
    start: Omit<ChainStart, "segment">,
  ): ChainWriter {
    const chain = new ChainWriter(region, geometry, role, source, start);
    const first = source.take();
    try {
      chain.#next = chain.#setAside();
    } catch (error) {
      source.give(first);
      throw error;
    }
    chain.#writeHeader(first, start.index, start.lsn, chain.#next);
    chain.segments.push(first);
    chain.#beginCopy();
    return chain;
  }

  /** Go on behind the end of a chain that is on the media already; `spare` is the segment that it set aside, 0 for none. */
  static resume(
    region: Region,
    geometry: ChainGeometry,
    role: number,
    source: SegmentSource,
    end: Pick<ChainEnd, "segments" | "offset" | "lsn" | "index" | "incarnation" | "spare">,
  ): ChainWriter {
    const chain = new ChainWriter(region, geometry, role, source, end);
    chain.#tail = end.offset;
    chain.#next = end.spare;
    for (const segment of end.segments) {
      chain.segments.push(segment);
      chain.#beginCopy();
    }
    return chain;
  }

  get nextLsn(): number {
    return this.#lsn;
  }

  /** The segment set aside for what follows; 0 if there is none. */
  get spare(): number {
    return this.#next;
  }

  /** Write the group and make it visible in order. Returns its lsn. @throws FsError ENOSPC before anything changed. */
  append(group: GroupBuilder, kind: number): number {
    const region = this.#region;
    const behind = LINK_GROUP_BYTES + (kind === GroupKind.RECORDS ? COMMIT_POINT_BYTES : 0);
    if (this.#tail + group.length + behind > this.#geometry.segmentBytes) this.#advance();
    const lsn = this.#lsn;
    group.finish(kind, lsn, this.#incarnation, this.#geometry.seed);
    region.drain();
    region.write(this.#current() + this.#tail, group.data, 0, group.length);
    region.drain();
    this.#writeCopy(group.data, group.length);
    this.#tail += group.length;
    this.bytesWritten += group.length;
    this.#lsn += 1;
    return lsn;
  }

  /**
   * Make what was written last as if it had never been: a group of `length` bytes, behind which nothing has been written. Its
   * header goes, and with it replay ends before it.
   */
  retract(length: number): void {
    this.#tail -= length;
    const nothing = Buffer.alloc(GroupHeader.size);
    this.#region.write(this.#current() + this.#tail, nothing, 0, nothing.length);
    this.#writeCopy(nothing, nothing.length);
    this.#region.drain();
    this.#lsn -= 1;
  }

  /** Continue in a fresh segment, so that replay can begin there. Returns that place. */
  rotate(): ChainStart {
    if (this.#tail !== SegmentHeader.size) this.#advance();
    return {
      segment: this.#current(),
      index: this.#index,
      incarnation: this.#incarnation,
      lsn: this.#lsn,
    };
  }

  /** Go on in segments that end at or before byte `end`, the one set aside included. @throws FsError ENOSPC */
  leaveTail(end: number): void {
    const { segmentBytes } = this.#geometry;
    // What follows is named in the header: only by going there it can be left behind.
    while (this.#current() + segmentBytes > end || this.#next + segmentBytes > end) this.#advance();
  }

  /** Forget segments before this one: a checkpoint has taken their place. Returns them. */
  dropBefore(segment: number): number[] {
    const at = this.segments.indexOf(segment);
    if (at <= 0) return [];
    for (const copy of this.#copies.splice(0, at)) if (copy !== null) this.#source.copies?.give(copy);
    return this.segments.splice(0, at);
  }

  /** The chain is complete: give the spare segment back. */
  finish(): void {
    if (this.#next !== 0) this.#source.give(this.#next);
    this.#next = 0;
  }

  #current(): number {
    return this.segments[this.segments.length - 1] as number;
  }

  /** Begin the copy of the segment that was added last, with what is in it already. */
  #beginCopy(): void {
    const { copies } = this.#source;
    // A checkpoint is copied when it is complete.
    if (this.#role !== SegmentRole.LOG || copies === undefined) return;
    const segment = this.#current();
    let copy = copies.take();
    try {
      if (copy !== null) copySegment(this.#region, this.#geometry, segment, copy.place, this.#tail);
    } catch (error) {
      if (copy !== null) copies.give(copy);
      copy = null;
      if (!(error instanceof FsError)) throw error;
    }
    this.#copies.push(copy);
    this.#listCopies();
  }

  /** What was stored at the tail, once more. A copy that fails is one less, and no harm to what it is a copy of. */
  #writeCopy(data: Uint8Array, length: number): void {
    const copy = this.#copies.at(-1) ?? null;
    if (copy === null) return;
    try {
      if (this.#source.copies?.holds(copy) === true) {
        this.#region.write(copy.place + this.#tail, data, 0, length);
        return;
      }
    } catch (error) {
      if (!(error instanceof FsError)) throw error;
    }
    this.#copies[this.#copies.length - 1] = null;
  }

  /** For the next mount. */
  #listCopies(): void {
    const { copies } = this.#source;
    if (this.#role !== SegmentRole.LOG || copies === undefined) return;
    const firstIndex = this.#index + 1 - this.segments.length;
    const held = this.#copies.map((copy) => (copy !== null && copies.holds(copy) ? copy.place : 0));
    const table = { incarnation: this.#incarnation, firstIndex, copies: held };
    try {
      writeCopyTable(this.#region, SegmentRole.LOG, table, this.#geometry.seed);
    } catch (error) {
      if (!(error instanceof FsError)) throw error;
    }
  }

  /** A segment for what follows; 0 if none is free: then the chain ends in the segment before it. */
  #setAside(): number {
    try {
      return this.#source.take();
    } catch (error) {
      if (error instanceof FsError && error.code === "ENOSPC") return 0;
      throw error;
    }
  }

  #advance(): void {
    const next = this.#next === 0 ? this.#source.take() : this.#next;
    const spare = this.#setAside();
    this.#writeHeader(next, this.#index + 1, this.#lsn + 1, spare);
    this.#region.drain();
    this.#link.reset();
    this.#link.link(next, this.#index + 1, this.#incarnation);
    this.#link.finish(GroupKind.LINK, this.#lsn, this.#incarnation, this.#geometry.seed);
    this.#region.write(this.#current() + this.#tail, this.#link.data, 0, this.#link.length);
    this.#region.drain();
    this.#writeCopy(this.#link.data, this.#link.length);
    this.bytesWritten += this.#link.length;
    this.segments.push(next);
    this.#next = spare;
    this.#index += 1;
    this.#lsn += 1;
    this.#tail = SegmentHeader.size;
    this.#beginCopy();
  }

  #writeHeader(segment: number, index: number, firstLsn: number, next: number): void {
    const head = { role: this.#role, index, incarnation: this.#incarnation, firstLsn, self: segment, next };
    const data = encodeSegmentHeader(head, this.#geometry.seed);
    this.#region.write(segment, data, 0, data.length);
    this.bytesWritten += data.length;
  }

  /** Bytes of the last segment that are in use. */
  get tail(): number {
    return this.#tail;
  }
}

export function encodeSegmentHeader(head: SegmentHead & { readonly self: number }, seed: number): Buffer {
  const data = Buffer.alloc(SegmentHeader.size);
  const view = viewOf(data);
  SegmentHeader.encode(view, 0, { magic: SEGMENT_MAGIC, ...head, crc: 0 });
  view.setUint32(SegmentHeader.at.crc, crc32c(data, 0, data.length, seed), true);
  return data;
}

/** Copy the first `bytes` of a segment (copies.ts). @throws FsError EIO */
export function copySegment(
  region: Region,
  geometry: ChainGeometry,
  segment: number,
  copy: number,
  bytes: number,
): void {
  const header = Buffer.alloc(SegmentHeader.size);
  region.read(segment, header, 0, header.length);
  const head = segmentHead(header, segment, geometry);
  if (typeof head === "string") throw new FsError("EIO", `segment at byte ${segment}: ${head}`);
  const behind = SegmentHeader.size;
  if (bytes > behind) region.copy(segment + behind, copy + behind, bytes - behind);
  const role = head.role + COPY_ROLE;
  const own = encodeSegmentHeader({ ...head, role, self: copy, next: segment }, geometry.seed);
  region.write(copy, own, 0, own.length);
}

export interface SegmentHead {
  readonly role: number;
  readonly index: number;
  readonly incarnation: number;
  readonly firstLsn: number;
  readonly next: number;
}

/** The header of the segment in `data`, or the reason why it is none. */
export function segmentHead(data: Buffer, segment: number, geometry: ChainGeometry): SegmentHead | string {
  const view = viewOf(data);
  if (view.getUint32(0, true) !== SEGMENT_MAGIC) return "no segment header";
  const found = view.getUint32(SegmentHeader.at.crc, true);
  const copy = Buffer.from(data.subarray(0, SegmentHeader.size));
  copy.fill(0, SegmentHeader.at.crc, SegmentHeader.at.crc + 4);
  if (crc32c(copy, 0, copy.length, geometry.seed) !== found) return "a header with a wrong checksum";
  let value: StructValue<typeof SegmentHeader>;
  try {
    value = SegmentHeader.decode(view, 0);
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
    return `a header with ${error.where} ${error.found}`;
  }
  if (value.self !== segment) return `the header of the segment at byte ${value.self}`;
  return value;
}

export function isSegmentPlace(at: number, geometry: ChainGeometry): boolean {
  return (
    at % geometry.segmentBytes === 0 &&
    at >= RESERVED_BYTES &&
    at + geometry.segmentBytes <= geometry.regionBytes
  );
}

/** All places where a segment can be. */
export function* segmentPlaces(geometry: ChainGeometry): IterableIterator<number> {
  const { segmentBytes } = geometry;
  const start = Math.ceil(RESERVED_BYTES / segmentBytes) * segmentBytes;
  for (let at = start; isSegmentPlace(at, geometry); at += segmentBytes) yield at;
}

export interface ChainGroup extends GroupInfo {
  readonly data: Buffer;
  readonly view: DataView;
  /** Where the group lies in `data`. */
  readonly at: number;
  /** Byte offset in the region. */
  readonly place: number;
}

export interface ChainEnd {
  readonly segments: readonly number[];
  /** Segment and byte offset in it where no further group was found. */
  readonly segment: number;
  readonly offset: number;
  /** Number that the next group would have. */
  readonly lsn: number;
  readonly index: number;
  readonly incarnation: number;
  /** Segment set aside behind the last one. */
  readonly spare: number;
  /** The chain ended with an END group. */
  readonly complete: boolean;
  /** What lies behind the end: groups that continue it though one in between is missing. */
  readonly beyond: Beyond;
}

export interface Beyond {
  /** A valid later group of the same chain exists: not a torn tail but a hole in the middle. */
  readonly groups: boolean;
  /** Highest number that a barrier behind the hole vouches for; -1 without one. */
  readonly barrierLsn: number;
}

/**
 * Walk a chain from its start and hand over each group. Ends where no valid group with the expected number follows.
 * @throws CorruptionError if its first segment is not there, the chain bites its own tail, or a kind of group occurs
 *   that has no place in it.
 */
export function walkChain(
  region: Media,
  geometry: ChainGeometry,
  role: number,
  start: ChainStart,
  onGroup: (group: ChainGroup) => void,
): ChainEnd {
  const name = role === SegmentRole.LOG ? "log" : "checkpoint";
  const segments: number[] = [];
  const seen = new Set<number>();
  let { segment, index, incarnation, lsn } = start;
  /** Where the chain ends if the segment that it has just linked to is not there. */
  let previous: { segment: number; offset: number; index: number; spare: number } | null = null;
  for (;;) {
    const place = `${name} segment ${index} at byte ${segment}`;
    if (!isSegmentPlace(segment, geometry))
      throw new CorruptionError(place, "an aligned place in the region", "none");
    if (seen.has(segment)) throw new CorruptionError(place, "a segment not seen before", "a cycle");
    seen.add(segment);
    const data = Buffer.allocUnsafe(geometry.segmentBytes);
    const view = viewOf(data);
    region.read(segment, data, 0, data.length);
    const header = segmentHead(data, segment, geometry);
    const complaint = complaintAbout(header, { role, index, incarnation, firstLsn: lsn });
    if (complaint !== null || typeof header === "string") {
      // On page granularity a power cut may keep the LINK and lose the header that was stored before it.
      if (previous === null || role !== SegmentRole.LOG)
        throw new CorruptionError(place, "its segment header", complaint ?? "none");
      const barrierLsn = Math.max(
        lookAt(data, view, 0, { geometry, incarnation, lsn }).barrierLsn,
        searchBarrier(region, geometry, { role, index, incarnation, lsn }),
      );
      return {
        segments,
        ...previous,
        lsn,
        incarnation,
        complete: false,
        beyond: { groups: true, barrierLsn },
      };
    }
    segments.push(segment);
    let offset: number = SegmentHeader.size;
    let linked = false;
    for (;;) {
      const group = groupAt(data, view, offset, geometry.segmentBytes, geometry.seed);
      if (group === null || group.lsn !== lsn || group.incarnation !== incarnation) break;
      const full: ChainGroup = { ...group, data, view, at: offset, place: segment + offset };
      if (!kindsByRole[role]?.includes(group.kind))
        throw new CorruptionError(
          `kind of the group at byte ${full.place}`,
          `one of a ${name}`,
          `${group.kind}`,
        );
      lsn += 1;
      offset += group.length;
      if (group.kind === GroupKind.LINK) {
        let target: ChainStart | null = null;
        readRecords(data, view, full.at, full.length, full.place, {
          ...refusingSink(`link in ${place}`),
          link: (nextSegment, nextIndex, nextIncarnation) => {
            target = { segment: nextSegment, index: nextIndex, incarnation: nextIncarnation, lsn };
          },
        });
        if (target === null) throw new CorruptionError(`link in ${place}`, "one LINK record", "none");
        previous = { segment, offset, index, spare: header.next };
        ({ segment, index, incarnation } = target as ChainStart);
        linked = true;
        break;
      }
      onGroup(full);
      if (group.kind === GroupKind.END) {
        return {
          segments,
          segment,
          offset,
          lsn,
          index,
          incarnation,
          spare: header.next,
          complete: true,
          beyond: { groups: false, barrierLsn: -1 },
        };
      }
    }
    if (linked) continue;
    return {
      segments,
      segment,
      offset,
      lsn,
      index,
      incarnation,
      spare: header.next,
      complete: false,
      beyond: lookBeyond(region, data, offset, header.next, seen, {
        geometry,
        role,
        index,
        incarnation,
        lsn,
      }),
    };
  }
}

/** What a chain of a role may hold. */
export const kindsByRole: Record<number, readonly number[]> = {
  [SegmentRole.LOG]: [GroupKind.RECORDS, GroupKind.BARRIER, GroupKind.LINK],
  [SegmentRole.CHECKPOINT]: [GroupKind.RECORDS, GroupKind.LINK, GroupKind.END],
};

function complaintAbout(
  header: SegmentHead | string,
  expected: Pick<SegmentHead, "role" | "index" | "incarnation" | "firstLsn">,
): string | null {
  if (typeof header === "string") return header;
  for (const field of ["role", "index", "incarnation", "firstLsn"] as const) {
    if (header[field] !== expected[field])
      return `one with ${field} ${header[field]} instead of ${expected[field]}`;
  }
  return null;
}

/** Of the chain that breaks off before group `lsn`. */
interface Break {
  readonly geometry: ChainGeometry;
  readonly incarnation: number;
  readonly lsn: number;
}

const groupMagic = Buffer.alloc(4);
groupMagic.writeUInt32LE(GROUP_MAGIC);

/** Groups in data[from, …) that continue the chain behind a break. */
function lookAt(data: Buffer, view: DataView, from: number, { geometry, incarnation, lsn }: Break): Beyond {
  let groups = false;
  let barrierLsn = -1;
  // Old file data may hold anything, also what looks like thousands of overlapping groups: no more than this is summed.
  let budget = 16 * data.length;
  for (let at = data.indexOf(groupMagic, from); at >= 0 && budget > 0; at = data.indexOf(groupMagic, at)) {
    const here = at;
    at += 1;
    // Groups are multiples of 8 bytes behind a 64-byte header.
    if (here % 8 !== 0 || here + GroupHeader.size > data.length) continue;
    if (getU64(view, here + GroupHeader.at.incarnation) !== incarnation) continue;
    const length = view.getUint32(here + GroupHeader.at.length, true);
    if (here + length > data.length) continue;
    budget -= length;
    const group = groupAt(data, view, here, data.length, geometry.seed);
    if (group === null || group.lsn < lsn) continue;
    groups = true;
    if (group.kind === GroupKind.BARRIER) {
      readRecords(data, view, here, group.length, here, {
        ...refusingSink("barrier"),
        barrier: (covered) => {
          barrierLsn = Math.max(barrierLsn, covered);
        },
      });
    }
    // Nothing begins within a group.
    at = here + group.length;
  }
  return { groups, barrierLsn };
}

/** A segment that the chain reached after the break. */
function isBehind(
  header: SegmentHead | string,
  where: { role: number; incarnation: number; lsn: number },
): header is SegmentHead {
  return (
    typeof header !== "string" &&
    header.role === where.role &&
    header.incarnation === where.incarnation &&
    header.firstLsn > where.lsn
  );
}

/** Search what follows a break for groups that prove that the chain went on. */
function lookBeyond(
  region: Media,
  firstData: Buffer,
  firstOffset: number,
  firstNext: number,
  seen: ReadonlySet<number>,
  where: Break & { role: number; index: number },
): Beyond {
  const { geometry } = where;
  let groups = false;
  let barrierLsn = -1;
  let data = firstData;
  let offset = firstOffset;
  let { index } = where;
  let next = firstNext;
  const visited = new Set(seen);
  for (;;) {
    const found = lookAt(data, viewOf(data), offset, where);
    groups ||= found.groups;
    barrierLsn = Math.max(barrierLsn, found.barrierLsn);
    if (!isSegmentPlace(next, geometry) || visited.has(next)) break;
    visited.add(next);
    const following = Buffer.allocUnsafe(geometry.segmentBytes);
    try {
      region.read(next, following, 0, following.length);
    } catch (error) {
      if (error instanceof FsError) break;
      throw error;
    }
    const header = segmentHead(following, next, geometry);
    if (!isBehind(header, where) || header.index !== index + 1) break;
    data = following;
    offset = SegmentHeader.size;
    index += 1;
    next = header.next;
  }
  return { groups, barrierLsn };
}

/**
 * The highest number that a barrier in any later segment of the chain vouches for; -1 without one. It looks at every
 * place where a segment can be: the one that would name the next is not there. After a mere power cut it finds nothing.
 */
function searchBarrier(
  region: Media,
  geometry: ChainGeometry,
  where: { role: number; index: number; incarnation: number; lsn: number },
): number {
  let barrierLsn = -1;
  const head = Buffer.alloc(SegmentHeader.size);
  for (const at of segmentPlaces(geometry)) {
    region.read(at, head, 0, head.length);
    const header = segmentHead(head, at, geometry);
    if (!isBehind(header, where) || header.index <= where.index) continue;
    const data = Buffer.allocUnsafe(geometry.segmentBytes);
    region.read(at, data, 0, data.length);
    const found = lookAt(data, viewOf(data), SegmentHeader.size, { geometry, ...where });
    barrierLsn = Math.max(barrierLsn, found.barrierLsn);
  }
  return barrierLsn;
}
