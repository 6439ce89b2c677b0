/**
 * What direct mappings may have stored to and nobody has flushed: fsync(2) promises that it is durable, and on a region of
 * cache-line granularity it may still be in the CPU's caches. There a flush by address reaches every CPU, whoever stored.
 *
 * Invariants:
 * - a range stays noted from the grant of a lease on it until a flush that began after the lease had ended;
 * - a flush never keeps the daemon from other requests for longer than SLICE_BYTES take.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { largest, smallest } from "../base/arrays.ts";
import type { LeaseTable } from "../lease/table.ts";
import type { Inode } from "../namespace/inode.ts";
import type { Store } from "../namespace/store.ts";

interface Range {
  readonly block: number;
  readonly count: number;
}

const SLICE_BYTES = 4 * 1024 * 1024;
/** More are taken as one that covers them all. */
const RANGES_MAX = 64;

export class DirectStores {
  readonly #store: Store;
  readonly #leases: LeaseTable;
  readonly #ranges = new WeakMap<Inode, Range[]>();

  constructor(store: Store, leases: LeaseTable) {
    this.#store = store;
    this.#leases = leases;
  }

  /** A lease on this range has been granted. */
  note(inode: Inode, block: number, count: number): void {
    if (this.#store.region.facts.granularity !== "cacheline") return;
    const ranges = this.#ranges.get(inode) ?? [];
    if (ranges.some((range) => range.block <= block && block + count <= range.block + range.count)) return;
    ranges.push({ block, count });
    this.#ranges.set(inode, ranges.length > RANGES_MAX ? [cover(ranges)] : ranges);
  }

  async flush(inode: Inode): Promise<void> {
    const ranges = this.#ranges.get(inode);
    if (ranges === undefined) return;
    const held = this.#leases.of(inode).map(({ block, count }) => ({ block, count }));
    if (held.length > 0) this.#ranges.set(inode, held);
    else this.#ranges.delete(inode);
    const { region, blockBytes } = this.#store;
    for (const { block, count } of ranges) {
      // Looked up anew after each pause: the map may have changed meanwhile.
      for (let at = block; at < block + count; ) {
        const piece = inode.extents?.next(at) ?? null;
        if (piece === null || piece.block >= block + count) break;
        const first = Math.max(at, piece.block);
        const slice = Math.max(1, SLICE_BYTES / blockBytes);
        const blocks = Math.min(piece.block + piece.count, block + count, first + slice) - first;
        region.flush((piece.physical + first - piece.block) * blockBytes, blocks * blockBytes);
        at = first + blocks;
        await nextTurn();
      }
    }
    region.drain();
  }
}

function cover(ranges: readonly Range[]): Range {
  const block = smallest(ranges, (range) => range.block);
  return { block, count: largest(ranges, (range) => range.block + range.count) - block };
}
