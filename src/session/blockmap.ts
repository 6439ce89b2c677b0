/** The picture of a volume in use: its blocks with its leases, for `mapdirect map` and `dashboard`. */
import { FsError } from "../base/errors.ts";
import { type Lease, leaseMark } from "../lease/table.ts";
import { MAP_CELLS_MAX, WHERE_CELLS } from "../lease/wire.ts";
import { SHARED, UNWRITTEN } from "../media/group.ts";
import { ROOT_INO } from "../media/mkfs.ts";
import {
  BLOCK_STATES,
  type BlockMap,
  cellsOf,
  drawBlockMap,
  extentsWithin,
  type MarkedRun,
  pathsOf,
} from "../namespace/blockmap.ts";
import type { Inode } from "../namespace/inode.ts";
import type { Store } from "../namespace/store.ts";
import type { Volume } from "./volume.ts";

/** The answer to MAP: a BlockMap in JSON. Sizes are bytes. */
export interface MapReport {
  readonly uuid: string;
  readonly label: string;
  readonly size: number;
  readonly block_size: number;
  readonly cell_blocks: number;
  readonly states: readonly string[];
  /** How many cells alike, then the blocks in each state of one of them; the last cell may be shorter. */
  readonly cells: readonly (readonly number[])[];
  readonly totals: Readonly<Record<string, number>>;
  readonly files: number;
  readonly extents: number;
  readonly leases: number;
  readonly files_by_extents: readonly { from: number; to: number; files: number }[];
  readonly most_extents: readonly { inode: number; file: string; extents: number; size: number }[];
}

/** The answer to WHERE. */
export interface WhereReport {
  /** Bytes of the region. */
  readonly offset: number;
  readonly length: number;
  /** Extents that reach into it; `extents` has the longest. */
  readonly count: number;
  readonly extents: readonly {
    file: string;
    inode: number;
    state: string;
    offset: number;
    physical: number;
    length: number;
  }[];
  readonly metadata: readonly string[];
  readonly leases: readonly {
    id: number;
    kind: string;
    state: string;
    pid: number;
    uid: number;
    command: string;
    inode: number;
  }[];
}

const WHERE_EXTENTS_MAX = 50;

export function* metadataMarks(store: Store): IterableIterator<MarkedRun> {
  for (const { name, start, count } of store.metadataRuns())
    yield { start, count, state: name === "quarantine" ? "quarantined" : "metadata" };
}

function* marks({ store, leases }: Volume): IterableIterator<MarkedRun> {
  yield* metadataMarks(store);
  for (const lease of leases.all()) {
    const state = leaseMark(lease);
    if (state !== null) for (const { start, count } of lease.runs) yield { start, count, state };
  }
}

export const fileName = (root: string, paths: ReadonlyMap<Inode, string>, inode: Inode): string => {
  const path = paths.get(inode);
  if (path !== undefined) return `${root.replace(/\/$/, "")}${path}`;
  return `inode ${inode.ino}${inode.nlink === 0 ? " (deleted)" : ""}`;
};

export function* mapReport(
  volume: Volume,
  cellsWanted: number,
  mountpoint: string,
): Generator<void, MapReport> {
  if (!Number.isInteger(cellsWanted) || cellsWanted < 1 || cellsWanted > MAP_CELLS_MAX)
    throw new FsError("EINVAL", `a map of 1 to ${MAP_CELLS_MAX} cells`);
  const { store } = volume;
  const map = yield* drawBlockMap(
    {
      state: store.state,
      blockCount: blockCountOf(store),
      blockBytes: store.blockBytes,
      marked: marks(volume),
    },
    cellsWanted,
  );
  const paths = yield* pathsOf(store.state, ROOT_INO, new Set(map.mostExtents));
  const { uuid, label } = volume.summary();
  const states = BLOCK_STATES.length;
  const totals = Object.fromEntries(BLOCK_STATES.map((state) => [state, 0]));
  for (let index = 0; index < map.counts.length; index += 1) {
    const state = BLOCK_STATES[index % states] as string;
    totals[state] = (totals[state] ?? 0) + (map.counts[index] as number) * map.blockBytes;
  }
  return {
    uuid,
    label,
    size: map.blockCount * map.blockBytes,
    block_size: map.blockBytes,
    cell_blocks: map.blocksPerCell,
    states: BLOCK_STATES,
    cells: runLengths(map),
    totals,
    files: map.files,
    extents: map.extents,
    leases: volume.leases.size,
    files_by_extents: map.byExtents,
    most_extents: map.mostExtents.map((inode) => ({
      inode: inode.ino,
      file: fileName(mountpoint, paths, inode),
      extents: inode.extents?.length ?? 0,
      size: Number(inode.size),
    })),
  };
}

const blockCountOf = (store: Store): number => store.superblock.regionBytes / store.blockBytes;

/** A volume is mostly free, or mostly full: neighbours that are alike are said once. */
function runLengths(map: BlockMap): number[][] {
  const states = BLOCK_STATES.length;
  const rows: number[][] = [];
  for (let cell = 0; cell < cellsOf(map); cell += 1) {
    const counts = map.counts.subarray(cell * states, (cell + 1) * states);
    const last = rows.at(-1);
    if (last !== undefined && counts.every((count, state) => last[state + 1] === count))
      last[0] = (last[0] as number) + 1;
    else rows.push([1, ...counts]);
  }
  return rows;
}

/** What lies in one cell of such a map. */
export function* whereReport(
  volume: Volume,
  argument: number,
  mountpoint: string,
): Generator<void, WhereReport> {
  const { store, leases } = volume;
  const blockCount = blockCountOf(store);
  const cells = Math.floor(argument / WHERE_CELLS);
  const cell = argument % WHERE_CELLS;
  if (cells < 1 || cells > MAP_CELLS_MAX) throw new FsError("EINVAL", `a map of 1 to ${MAP_CELLS_MAX} cells`);
  const blocksPerCell = Math.max(1, Math.ceil(blockCount / cells));
  const start = cell * blocksPerCell;
  if (start >= blockCount) throw new FsError("EINVAL", `cell ${cell}`);
  const run = { start, count: Math.min(blocksPerCell, blockCount - start) };
  const touches = (other: { start: number; count: number }): boolean =>
    other.start < run.start + run.count && other.start + other.count > run.start;
  const metadata = new Set<string>();
  for (const one of store.metadataRuns()) if (touches(one)) metadata.add(one.name);
  const holders: Lease[] = [];
  for (const lease of [...leases.all(), ...leases.lingering()]) {
    if (lease.runs.some(touches)) holders.push(lease);
    yield;
  }
  const found = yield* extentsWithin(store.state, run, WHERE_EXTENTS_MAX);
  const paths = yield* pathsOf(store.state, ROOT_INO, new Set(found.extents.map(({ inode }) => inode)));
  return {
    offset: run.start * store.blockBytes,
    length: run.count * store.blockBytes,
    count: found.total,
    extents: found.extents.map(({ inode, block, count, physical, state }) => ({
      file: fileName(mountpoint, paths, inode),
      inode: inode.ino,
      state: state === UNWRITTEN ? "unwritten" : state === SHARED ? "shared" : "written",
      offset: block * store.blockBytes,
      physical: physical * store.blockBytes,
      length: count * store.blockBytes,
    })),
    metadata: [...metadata],
    leases: holders.slice(0, WHERE_EXTENTS_MAX).map(({ id, kind, state, holder, inode }) => ({
      ...{ id, kind, state, pid: holder.pid, uid: holder.uid, command: holder.command, inode: inode.ino },
    })),
  };
}
