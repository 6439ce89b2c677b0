/**
 * Bringing the blocks of a file together.
 *
 * Invariants:
 * - what a file holds, its size and its times stay; only where its blocks are changes, and the guard is asked first;
 * - the old blocks are as they were until the record that names the new ones survives a power cut;
 * - nothing moves that would not end in one piece: a second call changes nothing.
 */
import { WRITTEN } from "../media/group.ts";
import type { Piece } from "../space/extent-map.ts";
import type { Inode } from "./inode.ts";
import type { Store } from "./store.ts";

/**
 * Make the next stretch of [block, end) one extent: written blocks, side by side in the file, at most a chunk (2 MiB) of
 * them, so that mappings can use huge pages. Shared blocks stay: moving them would give the file its own.
 * Returns where to go on. @throws FsError ETXTBSY, EROFS; Wait.
 */
export function defragSome(store: Store, inode: Inode, block: number, end: number): number {
  store.writable();
  const pieces = stretch(store, inode, block, end);
  const [first] = pieces;
  const last = pieces.at(-1);
  if (first === undefined || last === undefined) return end;
  const next = last.block + last.count;
  if (pieces.length === 1) return next;
  const count = next - first.block;
  const { allocator, region, blockBytes } = store;
  store.guard.beforeMapChange(inode, [{ block: first.block, count }]);
  const group = store.begin(true);
  const run =
    count === allocator.chunkBlocks ? allocator.allocateChunks(count) : allocator.allocate(count, 0);
  if (run === null) return next;
  if (run.count < count) {
    // As it is, it is as good as it gets.
    store.giveBack([run]);
    return next;
  }
  try {
    for (const piece of pieces) {
      const target = run.start + piece.block - first.block;
      region.copy(piece.physical * blockBytes, target * blockBytes, piece.count * blockBytes);
    }
    group.extent(inode.ino, first.block, run.start, count, WRITTEN);
    store.commit();
  } catch (error) {
    store.giveBack([run]);
    throw error;
  }
  return next;
}

/** Pieces that could be one: written, without a gap, in one chunk of the file. */
function stretch(store: Store, inode: Inode, block: number, end: number): Piece[] {
  const map = inode.extents;
  let piece = map?.next(block) ?? null;
  while (piece !== null && piece.block < end && piece.state !== WRITTEN)
    piece = map?.next(piece.block + piece.count) ?? null;
  if (map === null || piece === null || piece.block >= end) return [];
  const { chunkBlocks } = store.allocator;
  const limit = Math.min(end, (Math.floor(piece.block / chunkBlocks) + 1) * chunkBlocks);
  const pieces: Piece[] = [];
  for (let at = piece.block; at < limit; ) {
    const next = map.at(at, limit - at);
    if (next.state !== WRITTEN) break;
    pieces.push(next);
    at += next.count;
  }
  return pieces;
}
