/**
 * Runs in order, each with a value and a tag: an ordered map for tables of millions of rows, outside the garbage-collected
 * heap.
 *
 * The rows lie in leaves of at most ROWS_MAX, the leaves in order in one array: a B+ tree of two levels. A change moves the
 * rows of one leaf, so that its time hardly grows with the table; the array of leaves moves only once in some hundred
 * insertions.
 *
 * Invariants (check()):
 * - rows are sorted by their start, do not overlap, and have a count of at least one;
 * - a leaf has from 1 to ROWS_MAX rows, and two neighbours together have more than half of ROWS_MAX;
 * - `length` is the number of rows.
 */
import { invariant } from "../base/errors.ts";

export interface Row {
  /** First of `count` numbers that belong to this row. */
  start: number;
  count: number;
  value: number;
  tag: number;
}

interface Leaf {
  rows: number;
  /** CELLS numbers for each row. */
  cells: Float64Array<ArrayBuffer>;
}

const ROWS_MAX = 256;
/** Rows that a leaf has room for at first: most tables stay small. */
const ROWS_AT_FIRST = 4;

const CELLS = 4;
const COUNT = 1;
const VALUE = 2;
const TAG = 3;

export class RunTable {
  readonly #leaves: Leaf[] = [];
  #length = 0;
  /** Where seek() stopped: leaf and row in it. A leaf behind the last one: there is none. */
  #leaf = 0;
  #row = 0;

  get length(): number {
    return this.#length;
  }

  /** The first row that ends behind `at`. */
  first(at: number): Row | undefined {
    this.#seek(at);
    return this.#here();
  }

  /** The last row that starts before `at`. */
  lastBefore(at: number): Row | undefined {
    this.#seekStart(at);
    if (this.#row === 0) {
      if (this.#leaf === 0) return undefined;
      this.#leaf -= 1;
      this.#row = (this.#leaves[this.#leaf] as Leaf).rows;
    }
    this.#row -= 1;
    return this.#here();
  }

  last(): Row | undefined {
    return this.lastBefore(Number.POSITIVE_INFINITY);
  }

  /** All rows. The table may change in between: what is behind the row that was yielded last comes as it is then. */
  *[Symbol.iterator](): IterableIterator<Row> {
    for (let row = this.first(0); row !== undefined; row = this.first(row.start + row.count)) yield row;
  }

  /** Rows that start in [from, end) make room for `rows`, which are in order and lie between those that stay. */
  replace(from: number, end: number, rows: readonly Readonly<Row>[]): void {
    if (this.#replaceInLeaf(from, end, rows)) return;
    this.#remove(from, end);
    for (const row of rows) this.#insert(row);
  }

  /** Leaves that hold the rows that start in [from, end): of each but the first and the last, all rows are among them. */
  leavesOf(from: number, end: number): number {
    this.#seekLeaf(from);
    const first = this.#leaf;
    this.#seekLeaf(end);
    return this.#leaves.length === 0 ? 0 : this.#leaf - first + 1;
  }

  /** Rows that start in [from, end) become a table of their own: whole leaves move as they are. */
  take(from: number, end: number): RunTable {
    const taken = new RunTable();
    this.#seekStart(from);
    const first = this.#leaf;
    for (let index = first; index < this.#leaves.length; index += 1) {
      const leaf = this.#leaves[index] as Leaf;
      const begin = index === first ? this.#row : 0;
      const behind = rowsBefore(leaf, end);
      if (behind > begin) taken.#adopt(leaf, begin, behind, index === first);
      if (behind < leaf.rows) break;
    }
    taken.#merge(0);
    taken.#merge(taken.#leaves.length - 2);
    this.#remove(from, end);
    return taken;
  }

  /** Behind all other rows. With `copied`, the leaf stays somebody else's. */
  #adopt(leaf: Leaf, begin: number, behind: number, copied: boolean): void {
    const whole = begin === 0 && behind === leaf.rows && !copied;
    const rows = behind - begin;
    this.#leaves.push(whole ? leaf : { rows, cells: leaf.cells.slice(begin * CELLS, behind * CELLS) });
    this.#length += rows;
  }

  /** The counts of all rows added up, and of those with this tag. */
  sums(tag: number): { all: number; tagged: number } {
    let all = 0;
    let tagged = 0;
    for (const { rows, cells } of this.#leaves) {
      for (let at = 0; at < rows * CELLS; at += CELLS) {
        const count = cells[at + COUNT] as number;
        all += count;
        if (cells[at + TAG] === tag) tagged += count;
      }
    }
    return { all, tagged };
  }

  /** As replace(), if all that goes and comes is in one leaf, which does not become smaller: the common case. */
  #replaceInLeaf(from: number, end: number, rows: readonly Readonly<Row>[]): boolean {
    this.#seekStart(from);
    const leaf = this.#leaves[this.#leaf];
    if (leaf === undefined) return false;
    const first = this.#row;
    const behind = Math.max(first, rowsBefore(leaf, end));
    if (
      behind === leaf.rows &&
      this.#leaf + 1 < this.#leaves.length &&
      this.#firstStart(this.#leaf + 1) < end
    )
      return false;
    const more = rows.length - (behind - first);
    if (more < 0 || leaf.rows + more > ROWS_MAX) return false;
    reserve(leaf, leaf.rows + more);
    leaf.cells.copyWithin((first + rows.length) * CELLS, behind * CELLS, leaf.rows * CELLS);
    for (const [index, row] of rows.entries()) put(leaf, first + index, row);
    leaf.rows += more;
    this.#length += more;
    return true;
  }

  #here(): Row | undefined {
    const leaf = this.#leaves[this.#leaf];
    if (leaf === undefined) return undefined;
    const { cells } = leaf;
    const at = this.#row * CELLS;
    return {
      start: cells[at] as number,
      count: cells[at + COUNT] as number,
      value: cells[at + VALUE] as number,
      tag: cells[at + TAG] as number,
    };
  }

  #firstStart(leaf: number): number {
    return (this.#leaves[leaf] as Leaf).cells[0] as number;
  }

  /** To the last leaf that begins at or before `at`, or to the first leaf. */
  #seekLeaf(at: number): void {
    const { length } = this.#leaves;
    // The leaf of the last search, or the one behind it, is the common case.
    for (let leaf = this.#leaf; leaf < Math.min(this.#leaf + 2, length); leaf += 1) {
      if (this.#firstStart(leaf) > at) break;
      if (leaf + 1 === length || this.#firstStart(leaf + 1) > at) {
        this.#leaf = leaf;
        return;
      }
    }
    let low = 1;
    let high = length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#firstStart(middle) <= at) low = middle + 1;
      else high = middle;
    }
    this.#leaf = low - 1;
  }

  /** To the first row that starts at or behind `at`: perhaps one behind the last of its leaf. */
  #seekStart(at: number): void {
    this.#seekLeaf(at);
    const leaf = this.#leaves[this.#leaf];
    this.#row = leaf === undefined ? 0 : rowsBefore(leaf, at);
  }

  /** To the first row that ends behind `at`, or behind the last leaf. */
  #seek(at: number): void {
    this.#seekLeaf(at);
    const leaf = this.#leaves[this.#leaf];
    if (leaf === undefined) return;
    this.#row = rowsBefore(leaf, at + 1);
    if (this.#row > 0) {
      const before = (this.#row - 1) * CELLS;
      // Differences: the sum of the two may be no exact double.
      if ((leaf.cells[before + COUNT] as number) > at - (leaf.cells[before] as number)) this.#row -= 1;
    }
    if (this.#row === leaf.rows) {
      this.#leaf += 1;
      this.#row = 0;
    }
  }

  #remove(from: number, end: number): void {
    this.#seekStart(from);
    const first = this.#leaf;
    let leaf = this.#leaves[first];
    if (leaf === undefined) return;
    this.#length -= cutRows(leaf, this.#row, rowsBefore(leaf, end));
    let behind = first + 1;
    for (; behind < this.#leaves.length && this.#firstStart(behind) < end; behind += 1) {
      leaf = this.#leaves[behind] as Leaf;
      const rows = rowsBefore(leaf, end);
      this.#length -= rows;
      if (rows < leaf.rows) {
        cutRows(leaf, 0, rows);
        break;
      }
    }
    const emptied = (this.#leaves[first] as Leaf).rows === 0 ? first : first + 1;
    this.#leaves.splice(emptied, behind - emptied);
    this.#merge(emptied);
    this.#merge(emptied - 1);
    this.#merge(emptied - 2);
  }

  /** One leaf of this one and the next, if that leaves room for more. */
  #merge(index: number): void {
    const leaf = this.#leaves[index];
    const next = this.#leaves[index + 1];
    if (leaf === undefined || next === undefined || leaf.rows + next.rows > ROWS_MAX / 2) return;
    reserve(leaf, leaf.rows + next.rows);
    leaf.cells.set(next.cells.subarray(0, next.rows * CELLS), leaf.rows * CELLS);
    leaf.rows += next.rows;
    this.#leaves.splice(index + 1, 1);
  }

  #insert(row: Readonly<Row>): void {
    this.#seekStart(row.start);
    let leaf = this.#leaves[this.#leaf];
    if (leaf === undefined) {
      leaf = { rows: 0, cells: new Float64Array(0) };
      this.#leaves.push(leaf);
    } else if (leaf.rows === ROWS_MAX) {
      // Behind the last row of all: the table is being built in order, and full leaves stay full.
      const atEnd = this.#row === ROWS_MAX && this.#leaf === this.#leaves.length - 1;
      const stay = atEnd ? ROWS_MAX : ROWS_MAX / 2;
      const next = { rows: ROWS_MAX - stay, cells: leaf.cells.slice(stay * CELLS) };
      leaf.rows = stay;
      this.#leaves.splice(this.#leaf + 1, 0, next);
      if (this.#row > stay || atEnd) {
        this.#leaf += 1;
        this.#row -= stay;
        leaf = next;
      }
    }
    reserve(leaf, leaf.rows + 1);
    leaf.cells.copyWithin((this.#row + 1) * CELLS, this.#row * CELLS, leaf.rows * CELLS);
    put(leaf, this.#row, row);
    leaf.rows += 1;
    this.#length += 1;
  }

  check(): void {
    let length = 0;
    let end = 0;
    let before = ROWS_MAX;
    for (const leaf of this.#leaves) {
      invariant(leaf.rows >= 1 && leaf.rows <= ROWS_MAX, () => `leaf of ${leaf.rows} rows`);
      invariant(before + leaf.rows > ROWS_MAX / 2, () => `leaves of ${before} and ${leaf.rows} rows`);
      for (let at = 0; at < leaf.rows * CELLS; at += CELLS) {
        const start = leaf.cells[at] as number;
        invariant(start >= end, () => `rows overlap at ${start}`);
        invariant((leaf.cells[at + COUNT] as number) >= 1, () => `row of nothing at ${start}`);
        end = start + (leaf.cells[at + COUNT] as number);
      }
      length += leaf.rows;
      before = leaf.rows;
    }
    invariant(length === this.#length, () => `${length} rows, ${this.#length} counted`);
  }
}

/** Room for so many rows. */
function reserve(leaf: Leaf, rows: number): void {
  if (rows * CELLS <= leaf.cells.length) return;
  const room = Math.max(rows, ROWS_AT_FIRST, (leaf.cells.length / CELLS) * 2);
  const cells = new Float64Array(Math.min(ROWS_MAX, room) * CELLS);
  cells.set(leaf.cells);
  leaf.cells = cells;
}

function put({ cells }: Leaf, index: number, row: Readonly<Row>): void {
  const at = index * CELLS;
  cells[at] = row.start;
  cells[at + COUNT] = row.count;
  cells[at + VALUE] = row.value;
  cells[at + TAG] = row.tag;
}

/** How many rows of a leaf start before `end`. */
function rowsBefore(leaf: Leaf, end: number): number {
  let low = 0;
  let high = leaf.rows;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((leaf.cells[middle * CELLS] as number) < end) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Without rows [from, to). Returns how many went. */
function cutRows(leaf: Leaf, from: number, to: number): number {
  if (to <= from) return 0;
  leaf.cells.copyWithin(from * CELLS, to * CELLS, leaf.rows * CELLS);
  leaf.rows -= to - from;
  return to - from;
}
