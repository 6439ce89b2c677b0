/**
 * The blocks of a volume as a picture has them: cut into cells of equal size, and in each cell how many blocks are what.
 *
 * Invariants:
 * - the counts of a cell add up to its blocks, however many extents lie in it;
 * - what is under lease is counted as such and not as data. Where several leases share a part of a cell, and it is not
 *   clear which, the most urgent state gets the blocks;
 * - a generator that yields after a bounded number of extents: a volume in use may change meanwhile, and the counts are
 *   then those of several moments.
 */
import { SHARED, UNWRITTEN } from "../media/group.ts";
import type { Run } from "../space/allocator.ts";
import type { Inode } from "./inode.ts";
import type { State } from "./state.ts";

/** In the order of a cell's counts. `leased`: under a breakable lease that nobody is breaking. */
export const BLOCK_STATES = [
  "free",
  "metadata",
  "data",
  "unwritten",
  "shared",
  "leased",
  "sealed",
  "breaking",
  "quarantined",
] as const;
export type BlockState = (typeof BLOCK_STATES)[number];

const N = BLOCK_STATES.length;
const at = (state: BlockState): number => BLOCK_STATES.indexOf(state);
/** Under lease, the most urgent first. */
const LEASED = [at("breaking"), at("sealed"), at("leased")] as const;
/** What a lease can lie on. */
const USED = [at("data"), at("unwritten"), at("shared")] as const;

export interface MarkedRun extends Run {
  readonly state: BlockState;
}

export interface BlockMapSource {
  readonly state: State;
  readonly blockCount: number;
  readonly blockBytes: number;
  /** Metadata, quarantine and leases; everything else the files tell. */
  readonly marked: Iterable<MarkedRun>;
}

/** How many files have so many extents: from `from` to `to`. */
export interface ExtentCountRow {
  readonly from: number;
  readonly to: number;
  readonly files: number;
}

export interface BlockMap {
  readonly blockBytes: number;
  readonly blockCount: number;
  /** The last cell may have fewer. */
  readonly blocksPerCell: number;
  /** Cell by cell, a count for each of BLOCK_STATES. */
  readonly counts: Uint32Array;
  readonly files: number;
  readonly extents: number;
  readonly byExtents: readonly ExtentCountRow[];
  /** Those with most extents, most first. */
  readonly mostExtents: readonly Inode[];
}

/** How many files are named that have most extents. */
const MOST_FILES = 20;
/** Extents between two yields. */
const STRIDE = 512;

export function cellsOf(map: Pick<BlockMap, "blockCount" | "blocksPerCell">): number {
  return Math.ceil(map.blockCount / map.blocksPerCell);
}

export function* drawBlockMap(source: BlockMapSource, cellsWanted: number): Generator<void, BlockMap> {
  const { state, blockCount, blockBytes } = source;
  const blocksPerCell = Math.max(1, Math.ceil(blockCount / cellsWanted));
  const cells = Math.ceil(blockCount / blocksPerCell);
  const counts = new Uint32Array(cells * N);
  const add = (kind: number, start: number, count: number): void => {
    const end = Math.min(start + count, blockCount);
    for (let block = start; block < end; ) {
      const cell = Math.floor(block / blocksPerCell);
      const length = Math.min(end, (cell + 1) * blocksPerCell) - block;
      counts[cell * N + kind] = (counts[cell * N + kind] as number) + length;
      block += length;
    }
  };
  let steps = 0;
  for (const run of source.marked) {
    add(at(run.state), run.start, run.count);
    steps += 1;
    if (steps % STRIDE === 0) yield;
  }
  // The blocks of files that share them, once each.
  const { references } = state;
  for (const { start, count } of references) {
    add(at("shared"), start, count);
    steps += 1;
    if (steps % STRIDE === 0) yield;
  }
  let files = 0;
  let extents = 0;
  const histogram: number[] = [];
  const most: Inode[] = [];
  for (const inode of state.inodes.values()) {
    steps += 1;
    if (steps % STRIDE === 0) yield;
    if (inode.extents === null) continue;
    files += 1;
    const { length } = inode.extents;
    extents += length;
    const row = length === 0 ? 0 : 1 + Math.floor(Math.log2(length));
    histogram[row] = (histogram[row] ?? 0) + 1;
    noteMost(most, inode);
    // By position: the map may change between two slices.
    for (let piece = inode.extents.next(0); piece !== null; ) {
      if (piece.state !== SHARED)
        add(piece.state === UNWRITTEN ? at("unwritten") : at("data"), piece.physical, piece.count);
      const from = piece.block + piece.count;
      steps += 1;
      if (steps % STRIDE === 0) yield;
      piece = inode.extents?.next(from) ?? null;
    }
  }
  for (let cell = 0; cell < cells; cell += 1) {
    settle(
      counts.subarray(cell * N, (cell + 1) * N),
      Math.min(blocksPerCell, blockCount - cell * blocksPerCell),
    );
    if (cell % STRIDE === 0) yield;
  }
  const byExtents = [...histogram.entries()].map(([row, count = 0]) => ({
    from: row === 0 ? 0 : 2 ** (row - 1),
    to: row === 0 ? 0 : 2 ** row - 1,
    files: count,
  }));
  return { blockBytes, blockCount, blocksPerCell, counts, files, extents, byExtents, mostExtents: most };
}

/** Leases lie on blocks that files have: those are not counted twice. What is left is free. */
function settle(cell: Uint32Array, blocks: number): void {
  const get = (kind: number): number => cell[kind] as number;
  let used = 0;
  for (const kind of USED) used += get(kind);
  let leased = 0;
  for (const kind of LEASED) {
    cell[kind] = Math.min(get(kind), used - leased);
    leased += get(kind);
  }
  for (const kind of USED) {
    const covered = Math.min(get(kind), leased);
    cell[kind] = get(kind) - covered;
    leased -= covered;
  }
  let taken = 0;
  for (let kind = 1; kind < N; kind += 1) {
    // A volume that changed while it was looked at may seem to have more blocks than it has.
    cell[kind] = Math.min(get(kind), blocks - taken);
    taken += get(kind);
  }
  cell[0] = blocks - taken;
}

function noteMost(most: Inode[], inode: Inode): void {
  const length = inode.extents?.length ?? 0;
  const least = most.length < MOST_FILES ? 1 : (most.at(-1)?.extents?.length ?? 0);
  if (length <= least) return;
  const place = most.findIndex((other) => (other.extents?.length ?? 0) < length);
  most.splice(place < 0 ? most.length : place, 0, inode);
  if (most.length > MOST_FILES) most.pop();
}

/** An extent that reaches into a run of blocks. */
export interface FoundExtent {
  readonly inode: Inode;
  /** First block of the file, and how many follow. */
  readonly block: number;
  readonly count: number;
  readonly physical: number;
  readonly state: number;
}

export interface FoundExtents {
  /** All there are. */
  readonly total: number;
  /** The longest of them. */
  readonly extents: readonly FoundExtent[];
}

/** Which files have blocks of this run. Looks through all extents. */
export function* extentsWithin(state: State, run: Run, limit: number): Generator<void, FoundExtents> {
  const end = run.start + run.count;
  const found: FoundExtent[] = [];
  let total = 0;
  let steps = 0;
  for (const inode of state.inodes.values()) {
    steps += 1;
    if (steps % STRIDE === 0) yield;
    for (let piece = inode.extents?.next(0) ?? null; piece !== null; ) {
      if (piece.physical < end && piece.physical + piece.count > run.start) {
        total += 1;
        found.push({ inode, ...piece });
        if (found.length >= 2 * limit) keepLongest(found, limit);
      }
      const from = piece.block + piece.count;
      steps += 1;
      if (steps % STRIDE === 0) yield;
      piece = inode.extents?.next(from) ?? null;
    }
  }
  keepLongest(found, limit);
  return { total, extents: found };
}

function keepLongest(found: FoundExtent[], limit: number): void {
  found.sort((a, b) => b.count - a.count);
  found.length = Math.min(found.length, limit);
}

/**
 * One path for each of these inodes that has a name, without the mountpoint. Inodes do not know their names, so this
 * looks through all directories.
 */
export function* pathsOf(
  state: State,
  root: number,
  wanted: ReadonlySet<Inode>,
): Generator<void, Map<Inode, string>> {
  const found = new Map<Inode, string>();
  if (wanted.size === 0) return found;
  const parts = new Map<number, { parent: number; name: string }>();
  let steps = 0;
  for (const inode of state.inodes.values()) {
    steps += 1;
    if (steps % STRIDE === 0) yield;
    if (inode.directory === null) continue;
    for (const entry of inode.directory.names.values()) {
      steps += 1;
      if (steps % STRIDE === 0) yield;
      const child = state.inodes.get(entry.ino);
      if (child === undefined) continue;
      if (child.directory !== null || wanted.has(child))
        parts.set(child.ino, { parent: inode.ino, name: entry.name });
    }
  }
  for (const inode of wanted) {
    let path = "";
    let ino = inode.ino;
    // A directory that was moved meanwhile must not make this a circle.
    for (let depth = 0; ino !== root && depth < 4096; depth += 1) {
      const part = parts.get(ino);
      if (part === undefined) break;
      path = `/${Buffer.from(part.name, "latin1").toString("utf8")}${path}`;
      ino = part.parent;
    }
    if (ino === root) found.set(inode, path === "" ? "/" : path);
  }
  return found;
}
