/**
 * What a file contains: reading, writing, size, allocation.
 *
 * Invariants:
 * - data is stored and drained before the record that makes it visible: a crash shows old or new, never foreign bytes;
 * - a block that becomes visible is written whole: with the caller's bytes, and zeros around them;
 * - blocks of a SHARED extent are read only: what is written there goes to new blocks, the rest of them is copied;
 * - bytes behind the end of a file are not to be trusted (a mapping may have stored there): whoever moves the end
 *   further zeroes them first;
 * - `guard` hears of every change of the block map before anything has changed, and in-place writes are none.
 */
import { append } from "../base/arrays.ts";
import { now } from "../base/clock.ts";
import { FsError } from "../base/errors.ts";
import { type GroupBuilder, SHARED, UNWRITTEN, WRITTEN } from "../media/group.ts";
import type { Run } from "../space/allocator.ts";
import { type ExtentMap, holdsData, type Piece } from "../space/extent-map.ts";
import {
  dropCapabilities,
  hasCapabilities,
  type Kill,
  noteModification,
  withoutPrivileges,
} from "./attributes.ts";
import { FILE_BYTES_MAX, fieldsOf, type Inode } from "./inode.ts";
import { mayWriteAt, mustNotBePinned } from "./inode-flags.ts";
import { takeBack } from "./sharing.ts";
import type { BlockRange, Store } from "./store.ts";

/** Most runs in one group of records: bounds its size. A longer allocation is several groups. */
export const RUNS_MAX = 1024;

export function extentsOf(inode: Inode): ExtentMap {
  if (inode.extents === null) throw new FsError(inode.isDirectory ? "EISDIR" : "EINVAL");
  return inode.extents;
}

/** Blocks needed for that many bytes. */
export function blocksFor(store: Store, bytes: bigint): number {
  return Number((bytes + store.blockMask) >> store.blockShift);
}

/** The blocks that have bytes of [offset, offset + length). */
export function blocksOver(store: Store, offset: bigint, length: bigint): BlockRange {
  const count = blocksFor(store, (offset & store.blockMask) + length);
  return { block: Number(offset >> store.blockShift), count };
}

/**
 * Where the bytes of [offset, offset + length) lie: pairs of region offset (-1 for zeros) and length, into `pieces`.
 * Ends at the end of the file. Returns the number of pairs; `total` bytes is the sum of the lengths.
 */
export function locate(
  store: Store,
  inode: Inode,
  offset: bigint,
  length: number,
  pieces: Float64Array,
): { count: number; total: number } {
  const map = extentsOf(inode);
  if (offset >= inode.size || length === 0) return { count: 0, total: 0 };
  const left = inode.size - offset;
  const total = left < BigInt(length) ? Number(left) : length;
  let block = Number(offset >> store.blockShift);
  let within = Number(offset & store.blockMask);
  let todo = total;
  let count = 0;
  while (todo > 0) {
    const limit = Math.ceil((within + todo) / store.blockBytes);
    // The last pair takes what the array has no room for: the reply is cut short there.
    if (count * 2 >= pieces.length) return { count, total: total - todo };
    const piece = map.at(block, limit);
    const bytes = Math.min(todo, piece.count * store.blockBytes - within);
    pieces[count * 2] = holdsData(piece.state) ? piece.physical * store.blockBytes + within : -1;
    pieces[count * 2 + 1] = bytes;
    count += 1;
    todo -= bytes;
    block += piece.count;
    within = 0;
  }
  return { count, total };
}

/** Read into memory; for those who cannot send straight from the region. Returns the bytes read. */
export function read(
  store: Store,
  inode: Inode,
  offset: bigint,
  target: Uint8Array,
  start: number,
  length: number,
): number {
  const pieces = new Float64Array(512);
  let done = 0;
  for (;;) {
    const { count, total } = locate(store, inode, offset + BigInt(done), length - done, pieces);
    if (total === 0) return done;
    for (let index = 0; index < count; index += 1) {
      const from = pieces[index * 2] as number;
      const bytes = pieces[index * 2 + 1] as number;
      if (from < 0) target.fill(0, start + done, start + done + bytes);
      else store.region.read(from, target, start + done, bytes);
      done += bytes;
    }
  }
}

/** Zero the rest of the block that holds the end of the file, up to `limit`: the end is about to move. */
export function zeroBehindEnd(store: Store, inode: Inode, limit: bigint): void {
  const within = Number(inode.size & store.blockMask);
  if (within === 0 || limit <= inode.size) return;
  const piece = extentsOf(inode).at(Number(inode.size >> store.blockShift), 1);
  if (piece.state !== WRITTEN) return;
  const gap = limit - inode.size;
  const bytes = Math.min(
    store.blockBytes - within,
    gap > BigInt(store.blockBytes) ? store.blockBytes : Number(gap),
  );
  store.region.zero(piece.physical * store.blockBytes + within, bytes);
}

/** The block is written, and the file's own, or a hole: one that is shared is copied. Returns whether it was. */
export function ownBlock(store: Store, inode: Inode, block: number): boolean {
  const map = extentsOf(inode);
  if (map.at(block, 1).state !== SHARED) return false;
  takeBack(store, inode, block, 1);
  if (map.at(block, 1).state === SHARED) prepareSome(store, inode, block, 1, 1);
  return true;
}

/**
 * The end of the file is about to move to `limit`, and what lies behind it in its block to be zeroed: not in a block
 * that is shared. Returns whether the block map has changed. @throws FsError ENOSPC; Wait.
 */
export function ownEnd(store: Store, inode: Inode, limit: bigint): boolean {
  if ((inode.size & store.blockMask) === 0n || limit <= inode.size) return false;
  return ownBlock(store, inode, Number(inode.size >> store.blockShift));
}

/** The pieces of [block, block + count) that cannot be written in place. */
function unwrittenPieces(map: ExtentMap, block: number, count: number): Piece[] {
  const found: Piece[] = [];
  const end = block + count;
  for (let at = block; at < end; ) {
    const piece = map.at(at, end - at);
    if (piece.state !== WRITTEN) found.push(piece);
    at += piece.count;
  }
  return found;
}

/** Extents on each side that are looked at for a goal: blocks that others share, or whose neighbours are taken, give none. */
const NEAR_MAX = 8;

/**
 * Goal for new blocks at `block`: where they would lie if they and an extent nearby were one, so that extents join as a
 * file fills, in whatever order. Where nothing of its chunk is allocated yet, a large file gets a whole chunk, behind that
 * of its neighbour if it is free, and the block goes to the same place in it as in the file's.
 */
export function goalFor(store: Store, inode: Inode, block: number): number {
  const { allocator } = store;
  const { chunkBlocks } = allocator;
  const map = extentsOf(inode);
  const chunk = Math.floor(block / chunkBlocks) * chunkBlocks;
  const beside = (near: Piece, at: number): number => near.physical + (at - near.block);
  const isGoal = (goal: number): boolean => goal > 0 && goal < allocator.blockCount && allocator.isFree(goal);
  const before = map.lastBefore(block);
  const behind = map.next(block);
  let near: Piece | null = before;
  for (let looked = 0; near !== null && near.block + near.count >= chunk && looked < NEAR_MAX; looked += 1) {
    if (isGoal(beside(near, block))) return beside(near, block);
    near = map.lastBefore(near.block);
  }
  near = behind;
  for (let looked = 0; near !== null && near.block < chunk + chunkBlocks && looked < NEAR_MAX; looked += 1) {
    if (isGoal(beside(near, block))) return beside(near, block);
    near = map.next(near.block + near.count);
  }
  const blocks = Math.max(blocksFor(store, inode.size), block + 1);
  if (blocks <= chunkBlocks) return 0;
  near = before ?? behind;
  if (near !== null && allocator.isWholeChunk(beside(near, chunk))) return beside(near, block);
  // Its first extent leaves room for the others, if there is so much in one place.
  const row = allocator.wholeChunks(near === null ? blocks : chunkBlocks);
  if (row === null) return 0;
  return row.start + (row.count > block ? block : block - chunk);
}

/**
 * Blocks that are written by one conversion of unwritten ones, bytes: those around what was asked for get zeros. Otherwise
 * random writes into allocated space would cut it into as many extents as there are writes. ext4 does so up to 32 KiB
 * (extent_max_zeroout_kb; ext4_ext_convert_to_initialized() in fs/ext4/extents.c).
 */
const CONVERSION_BYTES = 64 * 1024;

/**
 * How many blocks before and behind an unwritten piece are converted with it: those of the same extent, of the same
 * CONVERSION_BYTES of the file, before `end`, the first block behind the file's end, and none that a lease pins.
 */
function convertedAround(
  store: Store,
  inode: Inode,
  piece: Piece,
  end: number,
): { before: number; after: number } {
  const map = extentsOf(inode);
  const unit = Math.max(1, CONVERSION_BYTES / store.blockBytes);
  const pieceEnd = piece.block + piece.count;
  let from = Math.floor(piece.block / unit) * unit;
  while (from < piece.block) {
    const left = piece.block - from;
    const part = map.at(from, left);
    if (part.state === UNWRITTEN && part.count === left && part.physical + left === piece.physical) break;
    from += part.count;
  }
  const limit = Math.min(Math.ceil(pieceEnd / unit) * unit, end);
  const part = pieceEnd < limit ? map.at(pieceEnd, limit - pieceEnd) : null;
  const goesOn = part?.state === UNWRITTEN && part.physical === piece.physical + piece.count;
  const pinned = (block: number, count: number): boolean =>
    count > 0 && store.guard.isLeased(inode, block, count);
  const before = piece.block - from;
  const after = goesOn ? part.count : 0;
  return {
    before: pinned(from, before) ? 0 : before,
    after: pinned(pieceEnd, after) ? 0 : after,
  };
}

/**
 * Write data[start, start + length) at `offset`. Returns the bytes written: fewer than asked for on a full volume.
 * @param killPrivileges clear setuid and setgid (the writer is not privileged).
 * @throws FsError EPERM (inode flags), EFBIG, ENOSPC (nothing at all fits), ETXTBSY from the guard; Wait.
 */
export function write(
  store: Store,
  inode: Inode,
  offset: bigint,
  data: Uint8Array,
  start: number,
  length: number,
  killPrivileges: Kill,
): number {
  const map = extentsOf(inode);
  store.writable();
  if (length === 0) return 0;
  mayWriteAt(inode, offset);
  if (offset >= FILE_BYTES_MAX) throw new FsError("EFBIG");
  let bytes = length;
  if (offset + BigInt(bytes) > FILE_BYTES_MAX) bytes = Number(FILE_BYTES_MAX - offset);
  const first = Number(offset >> store.blockShift);
  const head = Number(offset & store.blockMask);
  const blocks = Math.ceil((head + bytes) / store.blockBytes);
  const grows = offset + BigInt(bytes) > inode.size;
  const mode = withoutPrivileges(inode.mode, killPrivileges);

  takeBack(store, inode, first, blocks);
  if (map.isWritten(first, blocks)) {
    if (grows || mode !== inode.mode || hasCapabilities(inode)) {
      if (grows) {
        store.guard.beforeSizeChange(inode);
        ownEnd(store, inode, offset);
      }
      const group = store.begin(false);
      if (grows) zeroBehindEnd(store, inode, offset);
      storeBytes(store, map, first, head, data, start, bytes);
      const end = offset + BigInt(bytes);
      touch(group, inode, end > inode.size ? end : inode.size, mode);
      store.commit();
    } else {
      storeBytes(store, map, first, head, data, start, bytes);
      store.region.drain();
      noteModification(store, inode);
    }
    return bytes;
  }

  const missing = unwrittenPieces(map, first, blocks);
  store.guard.beforeMapChange(inode, missing);
  if (grows) {
    store.guard.beforeSizeChange(inode);
    // Another map: what is missing has to be looked for again.
    if (ownEnd(store, inode, offset)) return write(store, inode, offset, data, start, length, killPrivileges);
  }
  const group = store.begin(true);
  const taken: Run[] = [];
  try {
    // What each missing block becomes: the runs in order; shortage cuts the write.
    const becomes: Becoming[] = [];
    const fileEnd = blocksFor(store, grows ? offset + BigInt(bytes) : inode.size);
    let reached = first + blocks;
    for (const piece of missing) {
      if (piece.state === UNWRITTEN) {
        const { block, count, physical } = piece;
        becomes.push({
          block,
          count,
          physical,
          copyOf: -1,
          ...convertedAround(store, inode, piece, fileEnd),
        });
        continue;
      }
      const last = becomes[becomes.length - 1];
      const goal =
        last !== undefined && last.block + last.count === piece.block
          ? last.physical + last.count
          : goalFor(store, inode, piece.block);
      let at = piece.block;
      for (const run of store.allocate(piece.count, goal, piece.block)) {
        taken.push(run);
        const copyOf = piece.state === SHARED ? piece.physical + (at - piece.block) : -1;
        becomes.push({ block: at, count: run.count, physical: run.start, copyOf, before: 0, after: 0 });
        at += run.count;
      }
      if (at < piece.block + piece.count) {
        reached = at;
        break;
      }
    }
    // Byte offsets near the largest file size are no exact doubles: only differences of blocks are multiplied.
    const fits = (reached - first) * store.blockBytes - head;
    if (fits <= 0) throw new FsError("ENOSPC");
    bytes = Math.min(bytes, fits);
    const end = offset + BigInt(bytes);
    const lastByte = head + bytes;
    const lastBlock = first + Math.ceil(lastByte / store.blockBytes) - 1;
    const tail = lastByte - (lastBlock - first) * store.blockBytes;
    zeroBehindEnd(store, inode, offset);
    let writtenPart = 0;
    for (const run of becomes) {
      // Zeros, or what was there, around the caller's bytes in blocks that become visible.
      if (run.block === first && head > 0) fill(store, inode, run, 0, head);
      if (run.block + run.count - 1 === lastBlock && tail < store.blockBytes) {
        fill(store, inode, run, (run.count - 1) * store.blockBytes + tail, store.blockBytes - tail);
      }
      const from = run.block === first ? head : 0;
      const byteStart = (run.block - first) * store.blockBytes + from - head;
      const runBytes = Math.min(run.count * store.blockBytes - from, bytes - byteStart);
      store.region.write(run.physical * store.blockBytes + from, data, start + byteStart, runBytes);
      const { before, after } = run;
      if (before > 0)
        store.region.zero((run.physical - before) * store.blockBytes, before * store.blockBytes);
      if (after > 0)
        store.region.zero((run.physical + run.count) * store.blockBytes, after * store.blockBytes);
      const converted = before + run.count + after;
      group.extent(inode.ino, run.block - before, run.physical - before, converted, WRITTEN);
      writtenPart += runBytes;
    }
    if (writtenPart < bytes) {
      // Blocks in between that were written already.
      const stop = first + Math.ceil(lastByte / store.blockBytes);
      for (let at = first; at < stop; ) {
        const piece = map.at(at, stop - at);
        if (piece.state === WRITTEN) {
          const from = piece.block === first ? head : 0;
          const byteStart = (piece.block - first) * store.blockBytes + from - head;
          const pieceBytes = Math.min(piece.count * store.blockBytes - from, bytes - byteStart);
          store.region.write(piece.physical * store.blockBytes + from, data, start + byteStart, pieceBytes);
        }
        at += piece.count;
      }
    }
    touch(group, inode, end > inode.size ? end : inode.size, mode);
    store.commit();
  } catch (error) {
    store.giveBack(taken);
    throw error;
  }
  return bytes;
}

/** A run of file blocks that gets its bytes, at `physical`. */
interface Filled {
  readonly block: number;
  readonly count: number;
  readonly physical: number;
  /** First block of the run that was shared there; -1 if nothing was. */
  readonly copyOf: number;
}

interface Becoming extends Filled {
  /** Unwritten blocks before and behind it that become zeros. */
  readonly before: number;
  readonly after: number;
}

/**
 * The bytes from `from` on in such a run are what they were: copied, or zeros. Of what was shared, only what this file shows:
 * behind its end may lie what is another file's.
 */
function fill(store: Store, inode: Inode, run: Filled, from: number, bytes: number): void {
  const at = run.physical * store.blockBytes + from;
  const shown = run.copyOf < 0 ? 0n : inode.size - (BigInt(run.block) << store.blockShift) - BigInt(from);
  const kept = shown >= BigInt(bytes) ? bytes : shown > 0n ? Number(shown) : 0;
  if (kept > 0) store.region.copy(run.copyOf * store.blockBytes + from, at, kept);
  if (kept < bytes) store.region.zero(at + kept, bytes - kept);
}

/** Store bytes into blocks that are all written. */
function storeBytes(
  store: Store,
  map: ExtentMap,
  first: number,
  head: number,
  data: Uint8Array,
  start: number,
  bytes: number,
): void {
  let block = first;
  let within = head;
  let done = 0;
  while (done < bytes) {
    const piece = map.at(block, Math.ceil((within + bytes - done) / store.blockBytes));
    const length = Math.min(bytes - done, piece.count * store.blockBytes - within);
    store.region.write(piece.physical * store.blockBytes + within, data, start + done, length);
    done += length;
    block += piece.count;
    within = 0;
  }
}

export function touch(group: GroupBuilder, inode: Inode, size: bigint, mode: number): void {
  const time = now();
  group.touch(inode.ino, size, mode, time.sec, time.nsec, time.sec, time.nsec);
  dropCapabilities(group, inode);
}

/**
 * Set the size. A larger one leaves what is allocated behind the end as it is; any other frees it, the same size too, as on
 * ext4 (ext4_setattr, fs/ext4/inode.c). @throws FsError EPERM (inode flags), EFBIG, EISDIR, EINVAL; ETXTBSY from the guard; Wait.
 */
export function truncate(store: Store, inode: Inode, size: bigint, killPrivileges: Kill): void {
  const map = extentsOf(inode);
  store.writable();
  mustNotBePinned(inode);
  if (size < 0n || size > FILE_BYTES_MAX) throw new FsError("EFBIG");
  const keep = blocksFor(store, size);
  const grows = size > inode.size;
  const cut = grows ? 0 : Math.max(map.end, blocksFor(store, inode.size)) - keep;
  if (cut > 0) store.guard.beforeMapChange(inode, [{ block: keep, count: cut }]);
  if (size !== inode.size) store.guard.beforeSizeChange(inode);
  ownEnd(store, inode, size);
  const group = grows ? store.begin(false) : store.beginFreeing();
  if (grows) zeroBehindEnd(store, inode, size);
  else if (map.end > keep) group.extentGone(inode.ino, keep, map.end - keep);
  touch(group, inode, size, withoutPrivileges(inode.mode, killPrivileges));
  store.commit();
}

/**
 * Throws what prepareSome() of any part of [block, block + count) would throw because of a lease, before any part has
 * changed. @throws FsError ETXTBSY; Wait.
 */
export function guardPrepare(store: Store, inode: Inode, block: number, count: number): void {
  const map = extentsOf(inode);
  store.writable();
  mustNotBePinned(inode);
  takeBack(store, inode, block, count);
  const changes: BlockRange[] = [];
  for (let at = block; at < block + count; ) {
    const piece = map.at(at, block + count - at);
    if (piece.state !== WRITTEN) changes.push(piece);
    at += piece.count;
  }
  if (changes.length > 0) store.guard.beforeMapChange(inode, changes);
}

/**
 * Make a part of [block, block + count) ready to be mapped: allocated, zeroed where it was a hole or unwritten, copied
 * where it was shared, written. At most `limit` blocks are zeroed or copied; returns the block up to which all is ready. Call again from there.
 * @throws FsError ENOSPC, ETXTBSY; Wait.
 */
export function prepareSome(store: Store, inode: Inode, block: number, count: number, limit: number): number {
  const map = extentsOf(inode);
  store.writable();
  mustNotBePinned(inode);
  takeBack(store, inode, block, count);
  const end = block + count;
  let at = block;
  while (at < end) {
    const piece = map.at(at, end - at);
    if (piece.state !== WRITTEN) break;
    at += piece.count;
  }
  if (at >= end) return end;
  const piece = map.at(at, Math.min(end - at, limit));
  store.guard.beforeMapChange(inode, [piece]);
  const group = store.begin(true);
  const runs: Filled[] = [];
  const taken: Run[] = [];
  if (piece.state === UNWRITTEN)
    runs.push({ block: piece.block, count: piece.count, physical: piece.physical, copyOf: -1 });
  else {
    let next = piece.block;
    append(taken, store.allocate(piece.count, goalFor(store, inode, piece.block), piece.block));
    for (const run of taken) {
      const copyOf = piece.state === SHARED ? piece.physical + (next - piece.block) : -1;
      runs.push({ block: next, count: run.count, physical: run.start, copyOf });
      next += run.count;
    }
    if (next < piece.block + piece.count) {
      store.giveBack(taken);
      throw new FsError("ENOSPC");
    }
    // More runs than go into one group (a volume in crumbs): the rest comes with the next call.
    if (runs.length > RUNS_MAX) {
      runs.length = RUNS_MAX;
      store.giveBack(taken.splice(RUNS_MAX));
    }
  }
  try {
    for (const run of runs) {
      fill(store, inode, run, 0, run.count * store.blockBytes);
      group.extent(inode.ino, run.block, run.physical, run.count, WRITTEN);
    }
    const time = now();
    group.inode({ ...fieldsOf(inode), ctimeSec: time.sec, ctimeNsec: time.nsec });
    store.commit();
  } catch (error) {
    store.giveBack(taken);
    throw error;
  }
  const last = runs[runs.length - 1] as (typeof runs)[0];
  return last.block + last.count;
}

/** lseek(2) SEEK_DATA: first byte at or behind `offset` that may hold data. @throws FsError ENXIO */
export function seekData(store: Store, inode: Inode, offset: bigint): bigint {
  const map = extentsOf(inode);
  if (offset < 0n || offset >= inode.size) throw new FsError("ENXIO");
  let block = Number(offset >> store.blockShift);
  for (let piece = map.next(block); piece !== null; piece = map.next(block)) {
    if (holdsData(piece.state)) {
      const at = BigInt(piece.block) << store.blockShift;
      if (at >= inode.size) break;
      return at > offset ? at : offset;
    }
    block = piece.block + piece.count;
  }
  throw new FsError("ENXIO");
}

/** lseek(2) SEEK_HOLE: first byte at or behind `offset` that no data lies at; the end of the file is one. */
export function seekHole(store: Store, inode: Inode, offset: bigint): bigint {
  const map = extentsOf(inode);
  if (offset < 0n || offset >= inode.size) throw new FsError("ENXIO");
  let block = Number(offset >> store.blockShift);
  for (;;) {
    const piece = map.at(block, Number.MAX_SAFE_INTEGER - block);
    if (!holdsData(piece.state)) {
      const at = BigInt(piece.block) << store.blockShift;
      const hole = at > offset ? at : offset;
      return hole < inode.size ? hole : inode.size;
    }
    block = piece.block + piece.count;
  }
}
