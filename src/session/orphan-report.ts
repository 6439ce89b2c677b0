/** The answer to ORPHANS: who still maps blocks of files from before this mount (orphans.ts), and of which files. */
import type { Mapper } from "../lease/ghosts.ts";
import { processOfThread, userOfProcess } from "../lease/process.ts";
import { ROOT_INO } from "../media/mkfs.ts";
import { pathsOf } from "../namespace/blockmap.ts";
import type { Inode } from "../namespace/inode.ts";
import type { State } from "../namespace/state.ts";
import type { Run } from "../space/allocator.ts";
import { blocksIn, intersection, overlapping, union } from "../space/runs.ts";
import { fileName } from "./blockmap.ts";
import type { Volume } from "./volume.ts";

/** One process, and one file of which it maps blocks. Sizes are bytes. */
export interface OrphanReport {
  readonly pid: number;
  readonly uid: number;
  readonly command: string;
  /** "" for blocks that no file has any more: they are in quarantine. */
  readonly file: string;
  /** 0 for those. */
  readonly inode: number;
  readonly bytes: number;
  readonly quarantined: number;
}

/** Extents that are looked at in one turn of the event loop. */
const STRIDE = 512;

/** @param only the user whose processes are shown, and no names of files; null: everybody's. */
export function* orphanReport(
  volume: Volume,
  mountpoint: string,
  only: number | null,
): Generator<void, OrphanReport[]> {
  const { store } = volume;
  const found: { mapper: Mapper; uid: number; files: Map<Inode, number>; rest: number }[] = [];
  for (const mapper of orphanedMappers(volume)) {
    const uid = userOfProcess(mapper.pid);
    if (only !== null && uid !== only) continue;
    found.push({ mapper, uid, ...(yield* filesOver(store.state, mapper.runs)) });
  }
  const wanted = new Set(only === null ? found.flatMap(({ files }) => [...files.keys()]) : []);
  const paths = yield* pathsOf(store.state, ROOT_INO, wanted);
  return found.flatMap(({ mapper: { pid }, uid, files, rest }) => {
    const who = { pid, uid, command: processOfThread(pid).command };
    const rows = [...files].map(([inode, blocks]) => ({
      ...who,
      file: fileName(mountpoint, paths, inode),
      inode: inode.ino,
      bytes: blocks * store.blockBytes,
      quarantined: 0,
    }));
    const bytes = rest * store.blockBytes;
    return rest > 0 ? [...rows, { ...who, file: "", inode: 0, bytes, quarantined: bytes }] : rows;
  });
}

/** Without those that map it all by leases of this mount: they are in the list of leases. */
export function orphanedMappers(volume: Volume): Mapper[] {
  if (volume.orphanedMappers.length === 0) return [];
  const leased = new Map<number, Run[]>();
  for (const { holder, runs } of volume.leases.all()) {
    const before = leased.get(holder.pid);
    leased.set(holder.pid, before === undefined ? [...runs] : before.concat(runs));
  }
  return volume.orphanedMappers.filter(({ pid, runs }) => {
    const own = union(leased.get(pid) ?? []);
    return blocksIn(intersection(runs, own)) < blocksIn(runs);
  });
}

/** How many of these blocks each file has, shared ones counting for each; and how many no file has. */
function* filesOver(
  state: State,
  runs: readonly Run[],
): Generator<void, { files: Map<Inode, number>; rest: number }> {
  const files = new Map<Inode, number>();
  const covered: Run[] = [];
  let steps = 0;
  for (const inode of state.inodes.values()) {
    steps += 1;
    if (steps % STRIDE === 0) yield;
    for (let piece = inode.extents?.next(0) ?? null; piece !== null; ) {
      const { physical, count } = piece;
      for (const run of overlapping(runs, physical, physical + count)) {
        const start = Math.max(run.start, physical);
        const end = Math.min(run.start + run.count, physical + count);
        files.set(inode, (files.get(inode) ?? 0) + end - start);
        covered.push({ start, count: end - start });
      }
      const next = piece.block + piece.count;
      steps += 1;
      if (steps % STRIDE === 0) yield;
      piece = inode.extents?.next(next) ?? null;
    }
  }
  return { files, rest: blocksIn(runs) - blocksIn(union(covered)) };
}
