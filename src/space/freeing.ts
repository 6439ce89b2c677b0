/**
 * Extents that a change has taken out of a file, so many that their blocks are given back in slices, while others are
 * served. On the media they are gone with the record of the change; until all is done their blocks count as pending.
 *
 * Invariants:
 * - each extent is given back exactly once, in the order of the changes, and not before its record survives a power cut;
 * - `pendingBlocks` are the blocks of those that are left and no other file shares.
 */
import { inBackground } from "../base/faults.ts";
import { inSlices } from "../base/slices.ts";
import { SHARED } from "../media/group.ts";
import type { RunTable } from "../tables/run-table.ts";
import { type Extent, extentOf } from "./extent-map.ts";

interface Entry {
  readonly extents: RunTable;
  readonly lsn: number;
}

export class Freeing {
  readonly #giveBack: (extent: Readonly<Extent>, lsn: number) => void;
  readonly #queue: Entry[] = [];
  /** What is left of the first of them begins here. */
  #from = 0;
  #durableLsn = 0;
  #pendingBlocks = 0;
  #running: Promise<void> | null = null;

  /** @param giveBack an extent, which the group with this number has taken out */
  constructor(giveBack: (extent: Readonly<Extent>, lsn: number) => void) {
    this.#giveBack = giveBack;
  }

  get pendingBlocks(): number {
    return this.#pendingBlocks;
  }

  /** When those whose records are durable are given back; null if they are. */
  get running(): Promise<void> | null {
    return this.#running;
  }

  /** @param own blocks of those that are not SHARED */
  add(extents: RunTable, own: number, lsn: number): void {
    this.#queue.push({ extents, lsn });
    this.#pendingBlocks += own;
  }

  /** Everything up to this group number is durable. */
  releaseThrough(lsn: number): void {
    this.#durableLsn = lsn;
    if (this.#running !== null || this.#due() === undefined) return;
    this.#running = inSlices(this.#work()).finally(() => {
      this.#running = null;
    });
    inBackground("freeing blocks", this.#running);
  }

  #due(): Entry | undefined {
    const first = this.#queue[0];
    return first !== undefined && first.lsn <= this.#durableLsn ? first : undefined;
  }

  *#work(): Generator<void, void> {
    for (let entry = this.#due(); entry !== undefined; entry = this.#due()) {
      const { extents, lsn } = entry;
      for (let row = extents.first(this.#from); row !== undefined; row = extents.first(this.#from)) {
        const extent = extentOf(row);
        this.#from = row.start + row.count;
        if (extent.state !== SHARED) this.#pendingBlocks -= extent.count;
        this.#giveBack(extent, lsn);
        yield;
      }
      this.#queue.shift();
      this.#from = 0;
    }
  }

  /** What is left, for the invariants of the whole volume. */
  *left(): IterableIterator<Readonly<Extent>> {
    for (const [index, { extents }] of this.#queue.entries()) {
      const from = index === 0 ? this.#from : 0;
      for (let row = extents.first(from); row !== undefined; row = extents.first(row.start + row.count))
        yield extentOf(row);
    }
  }
}
