/**
 * The block map of one file: which run of file blocks lies where in the region.
 *
 * Invariants (check()):
 * - extents are sorted by file block, do not overlap, and have at least one block each;
 * - neighbours that could be one extent are one extent;
 * - `blocks` is the sum of their lengths.
 */
import { replaceRange } from "../base/arrays.ts";
import { invariant } from "../base/errors.ts";
import { type MappedState, SHARED, WRITTEN } from "../media/group.ts";

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

/** Reading there gives what was written, not zeros. */
export function holdsData(state: Piece["state"]): boolean {
  return state === WRITTEN || state === SHARED;
}

const COUNT_MAX = 0xffff_ffff;
const HOLE_END = Number.MAX_SAFE_INTEGER;

export class ExtentMap {
  /** Most files have one extent, and a volume may have millions of files: they have no array. */
  #only: Extent | null = null;
  /** Two or more; null while there are fewer. */
  #many: Extent[] | null = null;
  #blocks = 0;

  get blocks(): number {
    return this.#blocks;
  }
  get length(): number {
    return this.#many?.length ?? (this.#only === null ? 0 : 1);
  }
  /** First file block behind the last extent. */
  get end(): number {
    const last = this.#last();
    return last === null ? 0 : last.block + last.count;
  }

  #last(): Extent | null {
    return this.#many === null ? this.#only : (this.#many[this.#many.length - 1] as Extent);
  }

  /** All of them, to be changed; #keep() takes what has become of them. */
  #list(): Extent[] {
    return this.#many ?? (this.#only === null ? [] : [this.#only]);
  }

  #keep(extents: Extent[]): void {
    this.#many = extents.length > 1 ? extents : null;
    this.#only = extents.length === 1 ? (extents[0] as Extent) : null;
  }

  /** The first extent that ends behind `block`. */
  #find(block: number): Extent | undefined {
    if (this.#many !== null) return this.#many[search(this.#many, block)];
    const only = this.#only;
    return only !== null && only.block + only.count > block ? only : undefined;
  }

  /** What lies at `block`, and for how long, but no more than `limit` blocks. */
  at(block: number, limit: number): Piece {
    const extent = this.#find(block);
    if (extent === undefined) return { block, count: limit, physical: 0, state: 0 };
    if (extent.block > block) {
      return { block, count: Math.min(limit, extent.block - block), physical: 0, state: 0 };
    }
    const skip = block - extent.block;
    return {
      block,
      count: Math.min(limit, extent.count - skip),
      physical: extent.physical + skip,
      state: extent.state,
    };
  }

  /** First extent that ends behind `block`, cut to begin at `block` or later; null if there is none. */
  next(block: number): Piece | null {
    const extent = this.#find(block);
    if (extent === undefined) return null;
    const skip = Math.max(0, block - extent.block);
    return {
      block: extent.block + skip,
      count: extent.count - skip,
      physical: extent.physical + skip,
      state: extent.state,
    };
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

  [Symbol.iterator](): IterableIterator<Readonly<Extent>> {
    return this.#list()[Symbol.iterator]();
  }

  /** Map [block, block + count) to `physical`. What lay there before is reported. */
  set(block: number, count: number, physical: number, state: MappedState, onCut: OnCut): void {
    const last = this.#last();
    if (last === null || last.block + last.count <= block) {
      // Append: no search, no splice.
      this.#blocks += count;
      if (last === null) this.#only = { block, count, physical, state };
      else if (canJoin(last, block, count, physical, state)) last.count += count;
      else if (this.#many !== null) this.#many.push({ block, count, physical, state });
      else this.#keep([last, { block, count, physical, state }]);
      return;
    }
    this.#cut(block, count, (oldPhysical, oldCount, oldState, oldBlock) => {
      onCut(oldPhysical, oldCount, oldState, oldPhysical - oldBlock === physical - block);
    });
    const extents = this.#list();
    const index = search(extents, block);
    extents.splice(index, 0, { block, count, physical, state });
    this.#blocks += count;
    join(extents, index);
    join(extents, index - 1);
    this.#keep(extents);
  }

  /** Making [block, block + count) a hole leaves parts of one extent on both sides. */
  splitBy(block: number, count: number): boolean {
    const extent = this.#find(block);
    return extent !== undefined && extent.block < block && extent.block + extent.count > block + count;
  }

  /** Make [block, block + count) a hole. */
  remove(block: number, count: number, onCut: OnCut): void {
    this.#cut(block, count, (physical, cut, state) => onCut(physical, cut, state, false));
  }

  #cut(
    block: number,
    count: number,
    onCut: (physical: number, count: number, state: MappedState, block: number) => void,
  ): void {
    const end = Math.min(block + count, HOLE_END);
    const extents = this.#list();
    const first = search(extents, block);
    let index = first;
    const rest: Extent[] = [];
    for (; index < extents.length; index += 1) {
      const extent = extents[index] as Extent;
      if (extent.block >= end) break;
      const from = Math.max(block, extent.block);
      const to = Math.min(end, extent.block + extent.count);
      onCut(extent.physical + (from - extent.block), to - from, extent.state, from);
      this.#blocks -= to - from;
      if (extent.block < from) rest.push({ ...extent, count: from - extent.block });
      const tail = extent.block + extent.count - to;
      if (tail > 0) {
        rest.push({
          block: to,
          count: tail,
          physical: extent.physical + (to - extent.block),
          state: extent.state,
        });
      }
    }
    if (index > first) replaceRange(extents, first, index - first, rest);
    this.#keep(extents);
  }

  check(): void {
    let blocks = 0;
    let previous: Extent | null = null;
    invariant(
      this.#many === null || (this.#many.length > 1 && this.#only === null),
      "few extents are kept as many",
    );
    for (const extent of this) {
      invariant(extent.count >= 1, () => `extent of ${extent.count} blocks`);
      if (previous !== null) {
        invariant(
          previous.block + previous.count <= extent.block,
          () => `extents overlap at file block ${extent.block}`,
        );
        invariant(
          !canJoin(previous, extent.block, extent.count, extent.physical, extent.state),
          () => `extents at file block ${extent.block} should be one`,
        );
      }
      blocks += extent.count;
      previous = extent;
    }
    invariant(blocks === this.#blocks, () => `${blocks} blocks mapped, ${this.#blocks} counted`);
  }
}

/** Index of the first extent that ends behind `block`. */
function search(extents: readonly Extent[], block: number): number {
  let low = 0;
  let high = extents.length;
  // Appending and reading sequentially near the end is the common case.
  if (high > 0) {
    const last = extents[high - 1] as Extent;
    if (last.block + last.count <= block) return high;
    if (last.block <= block) return high - 1;
  }
  while (low < high) {
    const middle = (low + high) >>> 1;
    const extent = extents[middle] as Extent;
    if (extent.block + extent.count <= block) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Join the extent at `index` with its successor if they fit. */
function join(extents: Extent[], index: number): void {
  const extent = extents[index];
  const following = extents[index + 1];
  if (extent === undefined || following === undefined) return;
  if (!canJoin(extent, following.block, following.count, following.physical, following.state)) return;
  extent.count += following.count;
  extents.splice(index + 1, 1);
}

function canJoin(
  extent: Extent,
  block: number,
  count: number,
  physical: number,
  state: MappedState,
): boolean {
  return (
    extent.state === state &&
    extent.block + extent.count === block &&
    extent.physical + extent.count === physical &&
    extent.count + count <= COUNT_MAX
  );
}
