/** What is wrong with a volume: where, what should be there, what is, and what a repair makes of it. */

export type ProblemCode =
  /** One copy of the superblock is damaged, absent or older. */
  | "superblock-copy"
  /** No copy is whole. */
  | "superblock"
  /** Whole metadata is not what the superblock names, or no superblock is left to name it. */
  | "superblock-old"
  /** The region is smaller than its volume. */
  | "region-short"
  /** A part of the checkpoint or of the log is damaged or missing. */
  | "checkpoint"
  | "log"
  /** The log has set aside a segment that is in use. */
  | "spare"
  /** A segment is damaged that has a whole copy, or a copy is. */
  | "segment"
  | "copy"
  /** Links and headers contradict each other, though all transactions were found without them. */
  | "layout"
  /** A record says what cannot be. */
  | "record"
  | "root"
  | "inode"
  | "link-count"
  | "parent"
  /** A name that means nothing, or the wrong kind of thing. */
  | "entry"
  | "unreachable"
  | "symlink"
  | "xattr"
  /** Blocks outside the volume, in its metadata, or of several files at a time. */
  | "extent";

export interface Problem {
  readonly code: ProblemCode;
  readonly place: string;
  readonly expected: string;
  readonly found: string;
  /** What a repair does about it; null: nothing can be done. */
  readonly repair: string | null;
}

/** What is wrong here is known from elsewhere: a repair of nothing else loses nothing. */
const LOSES_NOTHING: ReadonlySet<ProblemCode> = new Set([
  "superblock-copy",
  "layout",
  "spare",
  "link-count",
  "parent",
]);

/** More are counted, not kept: a damaged image decides how many there are. */
const KEPT_MAX = 10_000;

export class Problems {
  readonly list: Problem[] = [];
  count = 0;
  #beyondRepair = false;
  #losesSomething = false;

  add(code: ProblemCode, place: string, expected: string, found: string, repair: string | null): void {
    this.count += 1;
    if (repair === null) this.#beyondRepair = true;
    if (!LOSES_NOTHING.has(code)) this.#losesSomething = true;
    if (this.list.length < KEPT_MAX) this.list.push({ code, place, expected, found, repair });
  }

  /** A repair gives up something that the volume had before it was damaged. */
  get losesSomething(): boolean {
    return this.#losesSomething;
  }

  /** Something cannot be repaired at all. */
  get beyondRepair(): boolean {
    return this.#beyondRepair;
  }
}
