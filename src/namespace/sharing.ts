/**
 * Blocks that several extents refer to, and how a file gets its own again.
 *
 * Invariants:
 * - blocks of a SHARED extent are never stored to: whoever wants to write takes new ones (copy on write), or takes the
 *   blocks back first, if no other extent refers to them any more;
 * - blocks are taken back only when the record that removed the last other reference survives a power cut. Otherwise
 *   the other file could come back, with what was written here since.
 */
import { FeatureIncompatible } from "../media/format.ts";
import { SHARED, WRITTEN } from "../media/group.ts";
import type { Inode } from "./inode.ts";
import type { Store } from "./store.ts";

/** Most records in one group here: bounds its size. */
const RECORDS_MAX = 1024;

/** Volumes made before extents could be shared know no such state: nothing is shared there, only copied. */
export function knowsSharing(store: Store): boolean {
  return (store.superblock.featuresIncompatible & FeatureIncompatible.SHARED_EXTENTS) !== 0;
}

/**
 * What is marked as shared in [block, block + count) and has no other reference any more is the file's own again. The
 * same blocks stay where they are, so this is no change of the block map. As much as one group takes: returns where to go
 * on, or the end of the range. @throws FsError; Wait.
 */
export function takeBack(store: Store, inode: Inode, block: number, count: number): number {
  const { references, unsharedLsn } = store.state;
  const { extents } = inode;
  const end = block + count;
  if (references.length === 0 || extents === null || unsharedLsn > store.writable().durableLsn) return end;
  const own: { block: number; physical: number; count: number }[] = [];
  for (let piece = extents.next(block); piece !== null && piece.block < end && own.length < RECORDS_MAX; ) {
    if (piece.state === SHARED) {
      const limit = Math.min(piece.count, end - piece.block);
      for (let at = 0; at < limit; ) {
        const run = references.at(piece.physical + at, limit - at);
        if (run.references === 1)
          own.push({ block: piece.block + at, physical: piece.physical + at, count: run.count });
        at += run.count;
      }
    }
    piece = extents.next(piece.block + piece.count);
  }
  if (own.length === 0) return end;
  // The file may have more extents then.
  const group = store.begin(store.reserveIsLow());
  for (const run of own.slice(0, RECORDS_MAX))
    group.extent(inode.ino, run.block, run.physical, run.count, WRITTEN);
  store.commit();
  const last = own[RECORDS_MAX - 1];
  return last === undefined ? end : last.block + last.count;
}
