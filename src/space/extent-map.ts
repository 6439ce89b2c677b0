/**
 * The block map of one file: which run of file blocks lies where in the region.
 *
 * Invariants (check()):
 * - extents are sorted by file block, do not overlap, and have at least one block each;
 * - neighbours that could be one extent are one extent;
 * - `blocks` is the sum of their lengths.
 */
import { invariant } from "../base/errors.ts";
import { type MappedState, SHARED, WRITTEN } from "../media/group.ts";
import { type Row, RunTable } from "../tables/run-table.ts";

export interface Extent {
  /** First file block. */
  block: number;
  /** Blocks. */
  count: number;
  /** First block in the region. */
  physical: number;
  state: MappedState;
}

/** What lies at a file block: `count` blocks of the same kind follow from there on. */
export interface Piece {
  block: number;
  count: number;
  /** Meaningless for a hole. */
  physical: number;
  state: 0 | MappedState;
}

/**
 * What a change took out of the map. `stays`: the same blocks lie at the same place again, in another state perhaps.
 */
export type OnCut = (physical: number, count: number, state: MappedState, stays: boolean) => void;
/**
 * The same of very many extents at once, none of which stays: each is a row, as in the map. `own`: blocks of those that are
 * not SHARED.
 */
export type OnManyCut = (extents: RunTable, own: number) => void;

/** Leaves of its table from which on extents are taken out as a table of their own. */
const MANY_LEAVES = 8;

/** Reading there gives what was written, not zeros. */
export function holdsData(state: Piece["state"]): boolean {
  return state === WRITTEN || state === SHARED;
}

const COUNT_MAX = 0xffff_ffff;
const HOLE_END = Number.MAX_SAFE_INTEGER;

/** An extent as a row: `start` is its file block, `value` its physical block, `tag` its state. */
const rowOf = (block: number, count: number, physical: number, state: MappedState): Row => ({
  start: block,
  count,
  value: physical,
  tag: state,
});
export const extentOf = ({ start, count, value, tag }: Row): Extent => ({
  block: start,
  count,
  physical: value,
  state: tag as MappedState,
});

export class ExtentMap {
  /** Most files have one extent, and a volume may have millions of files: they have no table. */
  #only: Row | null = null;
  /** Two or more; null while there are fewer. */
  #many: RunTable | null = null;
  #blocks = 0;

  get blocks(): number {
    return this.#blocks;
  }
  get length(): number {
    return this.#many?.length ?? (this.#only === null ? 0 : 1);
  }
  /** First file block behind the last extent. */
  get end(): number {
    const last = this.#many?.last() ?? this.#only;
    return last === null ? 0 : last.start + last.count;
  }

  /** The first extent that ends behind `block`. */
  #first(block: number): Row | undefined {
    if (this.#many !== null) return this.#many.first(block);
    const only = this.#only;
    return only !== null && only.start + only.count > block ? only : undefined;
  }

  /** What lies at `block`, and for how long, but no more than `limit` blocks. */
  at(block: number, limit: number): Piece {
    const row = this.#first(block);
    if (row === undefined) return { block, count: limit, physical: 0, state: 0 };
    if (row.start > block) {
      return { block, count: Math.min(limit, row.start - block), physical: 0, state: 0 };
    }
    const skip = block - row.start;
    return {
      block,
      count: Math.min(limit, row.count - skip),
      physical: row.value + skip,
      state: row.tag as MappedState,
    };
  }

  /** First extent that ends behind `block`, cut to begin at `block` or later; null if there is none. */
  next(block: number): Piece | null {
    const row = this.#first(block);
    if (row === undefined) return null;
    const skip = Math.max(0, block - row.start);
    return {
      block: row.start + skip,
      count: row.count - skip,
      physical: row.value + skip,
      state: row.tag as MappedState,
    };
  }

  /** The last extent that begins before `block`; null if there is none. */
  lastBefore(block: number): Readonly<Extent> | null {
    const row = this.#many === null ? this.#only : this.#many.lastBefore(block);
    return row == null || row.start >= block ? null : extentOf(row);
  }

  /** The whole run [block, block + count) is written, and nobody else's: it can be written in place. */
  isWritten(block: number, count: number): boolean {
    let at = block;
    const end = block + count;
    while (at < end) {
      const piece = this.at(at, end - at);
      if (piece.state !== WRITTEN) return false;
      at += piece.count;
    }
    return true;
  }

  /** All extents. The map may change in between: what lies behind the last one that was yielded comes as it is then. */
  *[Symbol.iterator](): IterableIterator<Readonly<Extent>> {
    if (this.#many === null) {
      if (this.#only !== null) yield extentOf(this.#only);
    } else for (const row of this.#many) yield extentOf(row);
  }

  /** Map [block, block + count) to `physical`. What lay there before is reported. */
  set(block: number, count: number, physical: number, state: MappedState, onCut: OnCut): void {
    this.#change(block, block + count, rowOf(block, count, physical, state), onCut);
    this.#blocks += count;
  }

  /** Making [block, block + count) a hole leaves parts of one extent on both sides. */
  splitBy(block: number, count: number): boolean {
    const row = this.#first(block);
    return row !== undefined && row.start < block && row.start + row.count > block + count;
  }

  /** Make [block, block + count) a hole, in time that does not grow with what lay there if `onManyCut` takes it. */
  remove(block: number, count: number, onCut: OnCut, onManyCut?: OnManyCut): void {
    const end = Math.min(block + count, HOLE_END);
    const many = this.#many;
    if (many === null || onManyCut === undefined || many.leavesOf(block, end) < MANY_LEAVES) {
      this.#change(block, end, null, onCut);
      return;
    }
    // First what reaches beyond on either side.
    for (const edge of [many.first(block), many.lastBefore(end)]) {
      if (edge === undefined) continue;
      const from = Math.max(block, edge.start);
      const upTo = Math.min(end, edge.start + edge.count);
      if (from > edge.start || upTo < edge.start + edge.count) this.#change(from, upTo, null, onCut);
    }
    const taken = many.take(block, end);
    const { all, tagged } = taken.sums(SHARED);
    this.#blocks -= all;
    this.#replace(block, block, []);
    onManyCut(taken, all - tagged);
  }

  /** What lies in [block, end) is reported, and goes; `put` comes there. Neighbours that fit are joined. */
  #change(block: number, end: number, put: Row | null, onCut: OnCut): void {
    const rows: Row[] = [];
    const tail: Row[] = [];
    // From the neighbour before to the neighbour behind.
    let from = block;
    let upTo = end;
    for (let row = this.#first(Math.max(block - 1, 0)); row !== undefined && row.start <= end; ) {
      const rowEnd = row.start + row.count;
      const cutFrom = Math.max(block, row.start);
      const cutEnd = Math.min(end, rowEnd);
      from = Math.min(from, row.start);
      upTo = Math.max(upTo, rowEnd);
      if (row.start < block) rows.push({ ...row, count: Math.min(rowEnd, block) - row.start });
      if (cutEnd > cutFrom) {
        const physical = row.value + (cutFrom - row.start);
        const stays = put !== null && physical - cutFrom === put.value - put.start;
        onCut(physical, cutEnd - cutFrom, row.tag as MappedState, stays);
        this.#blocks -= cutEnd - cutFrom;
      }
      if (rowEnd > end) {
        const skip = Math.max(end - row.start, 0);
        tail.push({ ...row, start: row.start + skip, count: row.count - skip, value: row.value + skip });
      }
      row = this.#first(rowEnd);
    }
    if (put !== null) join(rows, put);
    for (const row of tail) join(rows, row);
    this.#replace(from, upTo, rows);
  }

  /** Extents that begin in [from, end) make room for these. */
  #replace(from: number, end: number, rows: Row[]): void {
    if (this.#many !== null) {
      this.#many.replace(from, end, rows);
      if (this.#many.length > 1) return;
      this.#only = this.#many.last() ?? null;
      this.#many = null;
      return;
    }
    const only = this.#only;
    if (only !== null && only.start < from) rows.unshift(only);
    else if (only !== null && only.start >= end) rows.push(only);
    this.#only = rows[0] ?? null;
    if (rows.length < 2) return;
    this.#only = null;
    this.#many = new RunTable();
    this.#many.replace(0, 0, rows);
  }

  check(): void {
    let blocks = 0;
    let previous: Extent | null = null;
    invariant(
      this.#many === null || (this.#many.length > 1 && this.#only === null),
      "few extents are kept as many",
    );
    this.#many?.check();
    for (const extent of this) {
      invariant(extent.count >= 1, () => `extent of ${extent.count} blocks`);
      const { block, count, physical, state } = extent;
      if (previous !== null) {
        const before = previous;
        invariant(before.block + before.count <= block, () => `extents overlap at file block ${block}`);
        invariant(
          !fits(
            rowOf(before.block, before.count, before.physical, before.state),
            rowOf(block, count, physical, state),
          ),
          () => `extents at file block ${block} should be one`,
        );
      }
      blocks += count;
      previous = extent;
    }
    invariant(blocks === this.#blocks, () => `${blocks} blocks mapped, ${this.#blocks} counted`);
  }
}

/** Both are parts of one extent. */
function fits(row: Row, next: Row): boolean {
  return (
    row.tag === next.tag &&
    row.start + row.count === next.start &&
    row.value + row.count === next.value &&
    row.count + next.count <= COUNT_MAX
  );
}

/** Put a row behind these, or make the last one longer. */
function join(rows: Row[], row: Row): void {
  const last = rows[rows.length - 1];
  if (last !== undefined && fits(last, row)) last.count += row.count;
  else rows.push(row);
}
