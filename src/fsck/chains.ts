/**
 * Walking a damaged chain of segments.
 *
 * A group's checksum covers its number and the incarnation of its chain, so a whole group is to be believed wherever it is
 * found: what is damaged is noted and stepped over, and the chain is taken up again behind it.
 */

import { CorruptionError } from "../base/errors.ts";
import { PROGRESS_STRIDE, progress } from "../base/progress.ts";
import { viewOf } from "../layout/struct.ts";
import {
  type ChainGeometry,
  isSegmentPlace,
  kindsByRole,
  type SegmentHead,
  segmentHead,
  segmentPlaces,
} from "../media/chain.ts";
import { GROUP_MAGIC, GroupKind, SegmentHeader, SegmentRole } from "../media/format.ts";
import { type GroupInfo, groupAt, readRecords, refusingSink } from "../media/group.ts";
import { type Media, readSome } from "../media/reading.ts";

/** Where a segment is whose predecessor does not tell. Looks at every place once, when first asked. */
export class SegmentFinder {
  readonly #region: Media;
  readonly #geometry: ChainGeometry;
  #places: Map<string, number> | null = null;

  constructor(region: Media, geometry: ChainGeometry) {
    this.#region = region;
    this.#geometry = geometry;
  }

  find(role: number, incarnation: number, index: number): number | undefined {
    this.#places ??= this.#search();
    return this.#places.get(`${role} ${incarnation} ${index}`);
  }

  #search(): Map<string, number> {
    const places = new Map<string, number>();
    const { segmentBytes } = this.#geometry;
    for (const at of segmentPlaces(this.#geometry)) {
      const head = segmentHead(readSome(this.#region, at, SegmentHeader.size), at, this.#geometry);
      if ((at / segmentBytes) % PROGRESS_STRIDE === 0)
        progress("searching the region", at, this.#geometry.regionBytes);
      if (typeof head !== "string") places.set(`${head.role} ${head.incarnation} ${head.index}`, at);
    }
    return places;
  }
}

export interface FoundGroup {
  readonly group: GroupInfo;
  readonly data: Buffer;
  /** Where in `data`. */
  readonly at: number;
}

type OnGroup = (found: FoundGroup) => void;

interface Damage {
  /** Byte offset in the region. */
  readonly at: number;
  /** Number of the group that should be there. */
  readonly lsn: number;
  readonly expected: string;
  readonly found: string;
}

const magic = Buffer.alloc(4);
magic.writeUInt32LE(GROUP_MAGIC);

export class ChainReader {
  readonly segments: number[] = [];
  readonly damages: Damage[] = [];
  /** Byte ranges of the region that hold nothing whole, where transactions of the chain were. */
  readonly passedOver: { readonly from: number; readonly to: number }[] = [];
  /** Its END was found. */
  complete = false;
  nextLsn = 0;
  lastIndex = 0;
  readonly #region: Media;
  readonly #geometry: ChainGeometry;
  readonly #role: number;
  readonly #finder: SegmentFinder;

  constructor(region: Media, geometry: ChainGeometry, role: number, finder: SegmentFinder) {
    this.#region = region;
    this.#geometry = geometry;
    this.#role = role;
    this.#finder = finder;
  }

  /** Hand over every group from `lsn` on that can be found, in order. */
  read(start: number, firstIndex: number, incarnation: number, lsn: number, onGroup: OnGroup): void {
    this.lastIndex = firstIndex;
    this.nextLsn = lsn;
    let named = start;
    for (let index = firstIndex; ; index += 1) {
      const found = this.#segment(named, index, incarnation);
      if (found === null) {
        if (index === firstIndex) this.#damaged(named, `segment ${index}`, "none, there or elsewhere");
        return;
      }
      const { place, data, head } = found;
      this.segments.push(place);
      this.lastIndex = index;
      if (head === null) this.#damaged(place, `the header of segment ${index}`, "none that is whole");
      const { offset, linked } = this.#groups(place, data, incarnation, onGroup);
      if (this.complete) return;
      named = linked ?? head?.next ?? 0;
      // The log may end anywhere; that it went on, only a later segment of it can tell.
      if (linked === null && this.#role === SegmentRole.CHECKPOINT)
        this.#passOver(place + offset, place + this.#geometry.segmentBytes);
      if (linked !== null || this.#role === SegmentRole.CHECKPOINT) continue;
      const following = this.#segment(named, index + 1, incarnation);
      if (following === null || (following.head !== null && following.head.firstLsn < this.nextLsn)) return;
      this.#passOver(place + offset, place + this.#geometry.segmentBytes);
      this.#damaged(place + offset, `group ${this.nextLsn}`, "none, though the log goes on elsewhere");
    }
  }

  #passOver(from: number, to: number): void {
    this.passedOver.push({ from, to });
  }

  #damaged(at: number, expected: string, found: string): void {
    this.damages.push({ at, lsn: this.nextLsn, expected, found });
  }

  /** The segment where its predecessor says, or wherever else it is. `head` is null if that is damaged. */
  #segment(
    named: number,
    index: number,
    incarnation: number,
  ): { place: number; data: Buffer; head: SegmentHead | null } | null {
    const isRight = (head: SegmentHead | string): head is SegmentHead =>
      typeof head !== "string" &&
      head.role === this.#role &&
      head.index === index &&
      head.incarnation === incarnation;
    const load = (place: number): Buffer => readSome(this.#region, place, this.#geometry.segmentBytes);
    if (isSegmentPlace(named, this.#geometry) && !this.segments.includes(named)) {
      const data = load(named);
      const head = segmentHead(data, named, this.#geometry);
      if (isRight(head)) return { place: named, data, head };
      // Its groups say whose they are.
      const { nextLsn } = this;
      if (
        typeof head === "string" &&
        laterGroup(data, SegmentHeader.size, this.#geometry, incarnation, nextLsn)
      )
        return { place: named, data, head: null };
    }
    const place = this.#finder.find(this.#role, incarnation, index);
    if (place === undefined || this.segments.includes(place)) return null;
    const data = load(place);
    const head = segmentHead(data, place, this.#geometry);
    return isRight(head) ? { place, data, head } : null;
  }

  #groups(
    place: number,
    data: Buffer,
    incarnation: number,
    onGroup: OnGroup,
  ): { offset: number; linked: number | null } {
    const view = viewOf(data);
    let offset: number = SegmentHeader.size;
    for (;;) {
      const later = laterGroup(data, offset, this.#geometry, incarnation, this.nextLsn);
      if (later === null) return { offset, linked: null };
      const { group, at } = later;
      if (at !== offset) {
        this.#damaged(place + offset, `group ${this.nextLsn}`, `nothing whole up to byte ${place + at}`);
        this.#passOver(place + offset, place + at);
      } else if (group.lsn > this.nextLsn)
        this.#damaged(place + offset, `group ${this.nextLsn}`, `group ${group.lsn}`);
      this.nextLsn = group.lsn + 1;
      offset = at + group.length;
      if (!kindsByRole[this.#role]?.includes(group.kind)) {
        this.#damaged(place + at, "a group of another kind", `kind ${group.kind}`);
        continue;
      }
      if (group.kind === GroupKind.LINK) return { offset, linked: linkOf(data, view, at, group) };
      onGroup({ group, data, at });
      if (group.kind === GroupKind.END) {
        this.complete = true;
        return { offset, linked: null };
      }
    }
  }
}

/** 0: it leads nowhere. */
function linkOf(data: Buffer, view: DataView, at: number, group: GroupInfo): number {
  let linked = 0;
  try {
    readRecords(data, view, at, group.length, at, {
      ...refusingSink("link"),
      link: (segment) => {
        linked = segment;
      },
    });
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
  }
  return linked;
}

/** The first whole group of the chain at or behind `from` with this number or a higher one. */
function laterGroup(
  data: Buffer,
  from: number,
  geometry: ChainGeometry,
  incarnation: number,
  lsn: number,
): { group: GroupInfo; at: number } | null {
  const view = viewOf(data);
  // Old file data may hold anything, also what looks like thousands of overlapping groups: no more than this is summed.
  let budget = 16 * data.length;
  for (let at = data.indexOf(magic, from); at >= 0 && budget > 0; at = data.indexOf(magic, at + 1)) {
    if (at % 8 !== 0 || at + 12 > data.length) continue;
    budget -= Math.min(view.getUint32(at + 8, true), data.length - at);
    const group = groupAt(data, view, at, geometry.segmentBytes, geometry.seed);
    if (group !== null && group.incarnation === incarnation && group.lsn >= lsn) return { group, at };
  }
  return null;
}
