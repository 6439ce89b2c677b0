/**
 * fallocate(2): allocating, punching holes, making zeros of a range.
 *
 * Invariants:
 * - all or nothing: what is refused, for a lease or for want of room, has changed neither the file nor its neighbours;
 * - every group of records is a state in which the file reads the same, until the last one;
 * - blocks that are claimed and not in a record yet are nobody's: whoever gives up gives them back.
 */
import { FsError } from "../base/errors.ts";
import { SHARED, UNWRITTEN, WRITTEN } from "../media/group.ts";
import type { ExtentMap, Piece } from "../space/extent-map.ts";
import { holdsData } from "../space/extent-map.ts";
import { type Row, RunTable } from "../tables/run-table.ts";
import { type Kill, withoutPrivileges } from "./attributes.ts";
import { blocksFor, extentsOf, goalFor, ownBlock, ownEnd, RUNS_MAX, touch, zeroBehindEnd } from "./data.ts";
import { FILE_BYTES_MAX, type Inode } from "./inode.ts";
import { mustNotBeImmutable, mustNotBePinned } from "./inode-flags.ts";
import { EXTENT_BYTES } from "./state.ts";
import type { BlockRange, Room, Store } from "./store.ts";

export const FALLOC_KEEP_SIZE = 0x01;
export const FALLOC_PUNCH_HOLE = 0x02;
export const FALLOC_ZERO_RANGE = 0x10;

/** Pieces of the file's map that are looked at in one step. */
const STEP_PIECES = 256;
/** Making zeros of a range cuts an extent at each edge. */
const EDGES_BYTES = 2 * EXTENT_BYTES;

/** A call, checked, and what it is about. */
interface Wish {
  readonly offset: bigint;
  readonly end: bigint;
  /** Blocks that lie wholly in the range; the parts of blocks at its edges are outside. */
  readonly innerFirst: number;
  readonly innerEnd: number;
  readonly keepSize: boolean;
  readonly killPrivileges: Kill;
}

/**
 * Modes: 0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE with or without KEEP_SIZE.
 * @throws FsError EPERM (inode flags), EOPNOTSUPP for other modes, EINVAL, EFBIG
 */
export function beginFallocate(
  store: Store,
  inode: Inode,
  mode: number,
  offset: bigint,
  length: bigint,
  killPrivileges: Kill,
): Fallocation {
  extentsOf(inode);
  store.writable();
  if (length <= 0n || offset < 0n) throw new FsError("EINVAL");
  if ((mode & ~FALLOC_KEEP_SIZE) === 0) mustNotBeImmutable(inode);
  else mustNotBePinned(inode);
  const end = offset + length;
  if (end > FILE_BYTES_MAX) throw new FsError("EFBIG");
  const keepSize = (mode & FALLOC_KEEP_SIZE) !== 0;
  const action = mode & ~FALLOC_KEEP_SIZE;
  if (action === FALLOC_PUNCH_HOLE) {
    if (!keepSize) throw new FsError("EOPNOTSUPP", "punch hole without keep size");
  } else if (action !== 0 && action !== FALLOC_ZERO_RANGE) {
    throw new FsError("EOPNOTSUPP", `fallocate mode ${mode}`);
  }
  const wish: Wish = {
    offset,
    end,
    innerFirst: blocksFor(store, offset),
    innerEnd: Number(end >> store.blockShift),
    keepSize,
    killPrivileges,
  };
  if (action === FALLOC_PUNCH_HOLE)
    return { step: () => punch(store, inode, wish), hasRecords: false, abandon: () => {} };
  return new Allocation(store, inode, wish, action === FALLOC_ZERO_RANGE);
}

/** A call under way. The file may not change between two steps but by them (session/held-files.ts). */
export interface Fallocation {
  /**
   * Some of it; true when all is done. After a Wait it may be called again.
   * @throws FsError ENOSPC, ETXTBSY: nothing has changed; Wait
   */
  step(): boolean;
  /** A record has been written: it is to go on, whoever loses patience. */
  readonly hasRecords: boolean;
  /** It does not go on: after an error, or because nobody waits for it any more. */
  abandon(): void;
}

/** The whole call in one turn. After a Wait it begins anew. @throws as beginFallocate() and Fallocation */
export function fallocate(
  store: Store,
  inode: Inode,
  mode: number,
  offset: bigint,
  length: bigint,
  killPrivileges: Kill,
): void {
  const fallocation = beginFallocate(store, inode, mode, offset, length, killPrivileges);
  try {
    while (!fallocation.step());
  } catch (error) {
    fallocation.abandon();
    throw error;
  }
}

function punch(
  store: Store,
  inode: Inode,
  { offset, end, innerFirst, innerEnd, killPrivileges }: Wish,
): true {
  const map = extentsOf(inode);
  const { guard } = store;
  const first = Math.min(innerFirst, map.end);
  const count = Math.min(innerEnd, map.end) - first;
  if (count > 0 && guard.isLeased(inode, first, count)) {
    const mapped = mappedPieces(map, first, count);
    if (mapped.length > 0) guard.beforeMapChange(inode, mapped);
  }
  // A hole in the middle of an extent makes two of one: many such holes are more metadata, and a full volume, where
  // they free no whole segment, must keep room for its next checkpoint.
  ownEdges(store, inode, offset, end);
  const splits = count > 0 && map.splitBy(first, count);
  const group = splits && store.reserveIsLow() ? store.begin(true) : store.beginFreeing();
  zeroEdges(store, inode, offset, end, innerFirst, innerEnd);
  if (count > 0) group.extentGone(inode.ino, first, count);
  touch(group, inode, inode.size, withoutPrivileges(inode.mode, killPrivileges));
  store.commit();
  return true;
}

/**
 * Allocating, and making zeros. First all blocks are counted, then claimed, then room for the records is made sure of; only
 * then is the first record written.
 */
class Allocation implements Fallocation {
  readonly #store: Store;
  readonly #inode: Inode;
  readonly #wish: Wish;
  readonly #zeroRange: boolean;
  readonly #first: number;
  readonly #end: number;
  #phase: "begin" | "count" | "claim" | "record" = "begin";
  /** Where the phase has got to. */
  #at: number;
  #wanted = 0;
  /** Records that are to be written for blocks that are allocated already. */
  #conversions = 0;
  /** Blocks that are claimed and in no record yet: rows with the file's block as start and the region's as value. */
  readonly #claimed = new RunTable();
  #room: Room | null = null;
  hasRecords = false;

  constructor(store: Store, inode: Inode, wish: Wish, zeroRange: boolean) {
    this.#store = store;
    this.#inode = inode;
    this.#wish = wish;
    this.#zeroRange = zeroRange;
    this.#first = Number(wish.offset >> store.blockShift);
    this.#end = blocksFor(store, wish.end);
    this.#at = this.#first;
  }

  step(): boolean {
    switch (this.#phase) {
      case "begin":
        this.#begin();
        break;
      case "count":
        this.#count();
        break;
      case "claim":
        this.#claim();
        break;
      case "record":
        return this.#record();
    }
    return false;
  }

  abandon(): void {
    const { allocator } = this.#store;
    for (const { value, count } of this.#claimed) allocator.free(value, count);
    this.#claimed.replace(0, Number.POSITIVE_INFINITY, []);
    this.#store.claimed.delete(this.#claimed);
    this.#room?.end();
    this.#room = null;
  }

  #next(phase: "count" | "claim" | "record"): void {
    this.#phase = phase;
    this.#at = this.#first;
  }

  /** The part of a piece that needs new blocks: a hole, or what is shared and to be zeros. */
  #lacking(piece: Piece): Piece | null {
    if (piece.state === 0) return piece;
    return this.#zeroRange && piece.state === SHARED ? this.#inner(piece) : null;
  }

  /** The file's size, afterwards. */
  #sizeThen(): bigint {
    const { keepSize, end } = this.#wish;
    return !keepSize && end > this.#inode.size ? end : this.#inode.size;
  }

  #inner(piece: Piece): Piece | null {
    return clip(piece, this.#wish.innerFirst, this.#wish.innerEnd);
  }

  #begin(): void {
    const { guard } = this.#store;
    const inode = this.#inode;
    const { offset, end } = this.#wish;
    const size = this.#sizeThen();
    if (size !== inode.size) guard.beforeSizeChange(inode);
    if (guard.isLeased(inode, this.#first, this.#end - this.#first)) {
      const changing: Piece[] = [];
      for (let at = this.#first; at < this.#end; ) {
        const piece = extentsOf(inode).at(at, this.#end - at);
        const zeroes = this.#zeroRange && holdsData(piece.state) && this.#inner(piece) !== null;
        if (piece.state === 0 || zeroes) changing.push(piece);
        at += piece.count;
      }
      if (changing.length > 0) guard.beforeMapChange(inode, changing);
    }
    if (this.#zeroRange) ownEdges(this.#store, inode, offset, end);
    ownEnd(this.#store, inode, size);
    // Most of what is far too much is seen at once.
    const { blocks } = extentsOf(inode);
    this.#mustBeFree(this.#end - this.#first - blocks);
    this.#next("count");
  }

  #mustBeFree(blocks: number): void {
    const { allocator } = this.#store;
    if (blocks <= allocator.freeBlocks) return;
    this.#store.waitForPending("space");
    throw new FsError("ENOSPC", `${blocks} blocks wanted, ${allocator.freeBlocks} free`);
  }

  #count(): void {
    const map = extentsOf(this.#inode);
    for (let pieces = 0; this.#at < this.#end && pieces < STEP_PIECES; pieces += 1) {
      const piece = map.at(this.#at, this.#end - this.#at);
      this.#wanted += this.#lacking(piece)?.count ?? 0;
      if (this.#zeroRange && piece.state === WRITTEN && this.#inner(piece) !== null) this.#conversions += 1;
      this.#at += piece.count;
    }
    if (this.#at < this.#end) return;
    this.#mustBeFree(this.#wanted);
    this.#next("claim");
  }

  #claim(): void {
    const store = this.#store;
    const map = extentsOf(this.#inode);
    const from = this.#claimed.length;
    // At once: whoever checks the volume may come while this waits.
    store.claimed.add(this.#claimed);
    for (
      let pieces = 0;
      this.#at < this.#end && pieces < STEP_PIECES && this.#claimed.length < from + STEP_PIECES;
      pieces += 1
    ) {
      const piece = map.at(this.#at, this.#end - this.#at);
      const fresh = this.#lacking(piece);
      if (fresh !== null) {
        const rows: Row[] = [];
        let at = fresh.block;
        const before = this.#claimed.last();
        // Behind what was claimed last, where that is its neighbour.
        const goal =
          before !== undefined && before.start + before.count === fresh.block
            ? before.value + before.count
            : goalFor(store, this.#inode, fresh.block);
        for (const { start, count } of store.allocate(fresh.count, goal, fresh.block)) {
          rows.push({ start: at, count, value: start, tag: UNWRITTEN });
          at += count;
        }
        this.#claimed.replace(fresh.block, at, rows);
        if (at < fresh.block + fresh.count)
          throw new FsError("ENOSPC", `${this.#wanted} blocks wanted, and others have taken some`);
      }
      this.#at += piece.count;
    }
    if (this.#at < this.#end) return;
    // What fits into one group is judged with it.
    const records = this.#claimed.length + this.#conversions;
    if (records > RUNS_MAX) this.#room ??= store.makeRoom(records * EXTENT_BYTES + EDGES_BYTES);
    this.#next("record");
  }

  #record(): boolean {
    const store = this.#store;
    const inode = this.#inode;
    const map = extentsOf(inode);
    const { offset, end, innerFirst, innerEnd, killPrivileges } = this.#wish;
    const size = this.#sizeThen();
    const group = store.begin(true);
    let records = 0;
    let at = this.#at;
    for (let pieces = 0; at < this.#end && pieces < STEP_PIECES && records < RUNS_MAX; pieces += 1) {
      const claim = this.#claimed.first(at);
      if (claim?.start === at) {
        group.extent(inode.ino, at, claim.value, claim.count, UNWRITTEN);
        records += 1;
        at += claim.count;
        continue;
      }
      const piece = map.at(at, (claim?.start ?? this.#end) - at);
      const inner = this.#zeroRange && piece.state === WRITTEN ? this.#inner(piece) : null;
      if (inner !== null) {
        group.extent(inode.ino, inner.block, inner.physical, inner.count, UNWRITTEN);
        records += 1;
      }
      at += piece.count;
    }
    const isLast = at >= this.#end;
    if (isLast) {
      if (size > inode.size) zeroBehindEnd(store, inode, size);
      if (this.#zeroRange) zeroEdges(store, inode, offset, end, innerFirst, innerEnd);
    }
    if (isLast || records > 0)
      touch(group, inode, isLast ? size : inode.size, withoutPrivileges(inode.mode, killPrivileges));
    store.commit();
    this.hasRecords = true;
    this.#claimed.replace(this.#at, at, []);
    this.#room?.used(records * EXTENT_BYTES);
    this.#at = at;
    if (isLast) this.abandon();
    return isLast;
  }
}

/** The mapped parts of a run: making a hole of a hole changes nothing. */
function mappedPieces(map: ExtentMap, block: number, count: number): BlockRange[] {
  const end = block + count;
  const pieces: BlockRange[] = [];
  for (let piece = map.next(block); piece !== null && piece.block < end; ) {
    pieces.push({ block: piece.block, count: Math.min(piece.count, end - piece.block) });
    piece = map.next(piece.block + piece.count);
  }
  return pieces;
}

function clip(piece: Piece, from: number, to: number): Piece | null {
  const block = Math.max(piece.block, from);
  const end = Math.min(piece.block + piece.count, to);
  if (end <= block) return null;
  return { block, count: end - block, physical: piece.physical + (block - piece.block), state: piece.state };
}

/** The blocks at the edges of [offset, end) that are not wholly in it will be stored to: they must be the file's own. */
function ownEdges(store: Store, inode: Inode, offset: bigint, end: bigint): void {
  if ((offset & store.blockMask) !== 0n) ownBlock(store, inode, Number(offset >> store.blockShift));
  if ((end & store.blockMask) !== 0n) ownBlock(store, inode, Number(end >> store.blockShift));
}

/** Zero the written parts of [offset, end) that are not whole blocks: in place, no change of the map. */
function zeroEdges(
  store: Store,
  inode: Inode,
  offset: bigint,
  end: bigint,
  innerFirst: number,
  innerEnd: number,
): void {
  const zero = (block: number, from: number, to: number): void => {
    const piece = extentsOf(inode).at(block, 1);
    if (piece.state === WRITTEN && to > from)
      store.region.zero(piece.physical * store.blockBytes + from, to - from);
  };
  const head = Number(offset & store.blockMask);
  const tail = Number(end & store.blockMask);
  if (innerFirst > innerEnd) {
    // Both ends in one block.
    zero(innerEnd, head, tail);
    return;
  }
  if (head > 0) zero(innerFirst - 1, head, store.blockBytes);
  if (tail > 0) zero(innerEnd, 0, tail);
}
