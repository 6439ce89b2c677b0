/**
 * Another size for a volume in use.
 *
 * Invariants:
 * - larger: nothing behind the old end is allocated before both superblocks durably say that it is there;
 * - smaller: nothing behind the new end is allocated from the first moment on (Store.withholdTail). What files have there
 *   moves by ordinary records, a slice at a time, and others are served in between; metadata moves last, by the checkpoint
 *   whose superblocks say the new size. A crash at any moment finds the old size or the new, and what has moved has moved;
 * - nothing moves that a lease, or somebody who lost one, can reach: that is refused before anything has changed, and no
 *   new lease gets there (the grant looks at the allocator's end);
 * - when it ends early, the tail is ordinary space again.
 */
import { FsError } from "../base/errors.ts";
import { type MappedState, SHARED, UNWRITTEN, WRITTEN } from "../media/group.ts";
import type { ExtentMap, Piece } from "../space/extent-map.ts";
import { goalFor } from "./data.ts";
import type { Inode } from "./inode.ts";
import { doesNotFit, noRoomForMetadata, type Resized, wholeSize } from "./resize.ts";
import type { BlockRange, Store } from "./store.ts";

/** How the caller has it done. */
export interface Pace {
  /** Run an operation to its end, waiting as it asks (base/wait.ts). @throws FsError EINTR */
  run<T>(operation: () => T): Promise<T>;
  /** Let others have a turn. @throws FsError EINTR */
  pause(): Promise<void>;
}

/** Longest time without a look at the event loop, milliseconds; one slice of copying may come on top. */
const SLICE_MS = 2;
/** Most records in one group: bounds its size. */
const RECORDS_MAX = 1024;

/**
 * @param wantedBytes rounded down to whole blocks; 0 for all of the region as it is now
 * @throws FsError EINVAL (too small, or more than a device has), ENOMEM (no address space), ENOSPC (the files do not fit
 *   before the new end), ETXTBSY (somebody maps blocks behind it), EBUSY (another one is under way), EINTR, EROFS, EIO
 */
export async function resizeMounted(store: Store, wantedBytes: number, pace: Pace): Promise<Resized> {
  store.writable();
  if (store.resizing) throw new FsError("EBUSY", "it is being given another size already");
  store.resizing = true;
  try {
    const { region, blockBytes } = store;
    const beforeBytes = store.superblock.regionBytes;
    const wanted = wantedBytes === 0 ? region.measure() : wantedBytes;
    const afterBytes = wholeSize(store.superblock, wanted);
    let moved = 0;
    if (afterBytes > beforeBytes) {
      await region.grow(wanted);
      await store.extend(afterBytes);
    } else if (afterBytes < beforeBytes) {
      moved = await shrink(store, afterBytes / blockBytes, pace);
    }
    return { beforeBytes, afterBytes, movedBytes: moved * blockBytes };
  } finally {
    store.resizing = false;
  }
}

/** Returns how many blocks had to move. */
async function shrink(store: Store, end: number, pace: Pace): Promise<number> {
  const { allocator, state, quarantine, guard } = store;
  await store.cleared();
  // What was freed and not durably so may be just the room that is needed.
  await store.sync();
  const sharers = new Sharers(store);
  state.onShared = (inode, block, physical, count) => sharers.note(inode, block, physical, count);
  try {
    await pace.run(() => {
      store.writable();
      guard.beforeTailMoves(end);
      if (quarantine.isClaimed(end, allocator.blockCount - end)) {
        const who =
          "a process that mapped the region before this mount, or lost its lease, reaches blocks there";
        throw new FsError("ETXTBSY", who);
      }
      store.withholdTail(end);
    });
    await mustFit(store, sharers, pace);
    let moved = 0;
    do {
      moved += await moveFiles(store, sharers, pace);
      // What has been moved away from is withheld when that survives a power cut.
      await store.sync();
      await pace.pause();
    } while (!(await store.cut()));
    return moved;
  } catch (error) {
    // Unless it was cut, and what failed came after.
    if (allocator.end < allocator.blockCount) store.restoreTail();
    throw error;
  } finally {
    state.onShared = null;
  }
}

/** Looked at before anything moves; others may take the room meanwhile. @throws FsError ENOSPC, EINTR */
async function mustFit(store: Store, sharers: Sharers, pace: Pace): Promise<void> {
  const { allocator, state } = store;
  const { end } = allocator;
  if (!store.hasReserve()) throw noRoomForMetadata();
  let blocks = 0;
  for (const { start, count } of state.references) blocks += behind(start, count, end);
  await everyFile(store, pace, (inode) => {
    for (const { block, physical, count, state: kind } of inode.extents ?? []) {
      if (physical + count <= end) continue;
      if (kind === SHARED) sharers.note(inode, block, physical, count);
      else blocks += behind(physical, count, end);
    }
  });
  if (blocks > allocator.freeBlocks + store.pendingBlocks) throw doesNotFit(blocks * store.blockBytes);
}

const behind = (start: number, count: number, end: number): number =>
  Math.max(0, start + count - Math.max(start, end));

/** Every inode that lives throughout is visited, with turns for others in between. */
async function everyFile(
  store: Store,
  pace: Pace,
  visit: (inode: Inode) => Promise<void> | void,
): Promise<void> {
  let until = performance.now() + SLICE_MS;
  let untilLook = 64;
  for (const inode of store.state.inodes.values()) {
    if (inode.extents === null || inode.extents.length === 0) continue;
    const visiting = visit(inode);
    if (visiting !== undefined) await visiting;
    untilLook -= visiting === undefined ? 1 : 64;
    if (untilLook > 0) continue;
    untilLook = 64;
    if (performance.now() < until) continue;
    await pace.pause();
    until = performance.now() + SLICE_MS;
  }
}

/** One pass over all files. Returns how many blocks have moved. */
async function moveFiles(store: Store, sharers: Sharers, pace: Pace): Promise<number> {
  let moved = 0;
  let until = performance.now() + SLICE_MS;
  const move = async (inode: Inode): Promise<void> => {
    for (let block = 0; ; ) {
      const from = block;
      const slice = await pace.run(() => moveSome(store, sharers, inode, from));
      if (slice === null) return;
      moved += slice.moved;
      block = slice.next;
      if (performance.now() < until) continue;
      await pace.pause();
      until = performance.now() + SLICE_MS;
    }
  };
  await everyFile(store, pace, (inode) =>
    inTail(inode.extents, 0, store.allocator.end) === null ? undefined : move(inode),
  );
  return moved;
}

/** The first piece at or behind file block `from` that lies behind `end` in the region; the part of it that does. */
function inTail(map: ExtentMap | null, from: number, end: number): Piece | null {
  for (let piece = map?.next(from) ?? null; piece !== null; ) {
    const before = Math.max(0, end - piece.physical);
    if (before < piece.count) {
      return {
        block: piece.block + before,
        count: piece.count - before,
        physical: piece.physical + before,
        state: piece.state,
      };
    }
    piece = map?.next(piece.block + piece.count) ?? null;
  }
  return null;
}

/**
 * Move the next blocks of the file out of the tail, no more than a chunk (2 MiB) of them. Returns where to go on, null if
 * none are left. @throws FsError ENOSPC; Wait.
 */
function moveSome(
  store: Store,
  sharers: Sharers,
  inode: Inode,
  from: number,
): { next: number; moved: number } | null {
  store.writable();
  const { allocator, region, blockBytes } = store;
  // It may have gone while others had their turn.
  if (store.state.inodes.get(inode.ino) !== inode) return null;
  const piece = inTail(inode.extents, from, allocator.end);
  if (piece === null) return null;
  if (piece.state === SHARED) return moveShared(store, sharers, inode, piece);
  // Chunk by chunk of the file: where huge pages could be used, they still can.
  const { chunkBlocks } = allocator;
  const count = Math.min(piece.count, chunkBlocks - (piece.block % chunkBlocks));
  store.guard.beforeMapChange(inode, [{ block: piece.block, count }]);
  const group = store.begin(true);
  const whole = count === chunkBlocks ? allocator.allocateChunks(count) : null;
  const run = whole ?? allocator.allocate(count, goalFor(store, inode, piece.block));
  if (run === null) throw noRoom(store);
  try {
    if (piece.state !== UNWRITTEN)
      region.copy(piece.physical * blockBytes, run.start * blockBytes, run.count * blockBytes);
    group.extent(inode.ino, piece.block, run.start, run.count, piece.state as MappedState);
    store.commit();
  } catch (error) {
    store.giveBack([run]);
    throw error;
  }
  return { next: piece.block + run.count, moved: run.count };
}

/** Others have taken the room. @throws Wait if some is on its way */
function noRoom(store: Store): FsError {
  store.waitForPending("space");
  return doesNotFit(store.allocator.usedBehindEnd * store.blockBytes);
}

/** All files that share these blocks get the same new ones. */
function moveShared(
  store: Store,
  sharers: Sharers,
  inode: Inode,
  piece: Piece,
): { next: number; moved: number } {
  const { allocator, region, blockBytes, guard } = store;
  const { physical } = piece;
  const chunkEnd = (Math.floor(physical / allocator.chunkBlocks) + 1) * allocator.chunkBlocks;
  let count = Math.min(piece.count, chunkEnd - physical);
  let owners = sharers.of(inode, piece, count);
  // Fewer blocks at a time have fewer owners. More than go into one group for one block: the rest will get a copy.
  while (owners.length > RECORDS_MAX && count > 1) {
    count = Math.ceil(count / 2);
    owners = sharers.of(inode, piece, count);
  }
  owners = owners.slice(0, RECORDS_MAX);
  for (const owner of owners) guard.beforeMapChange(owner.inode, [owner]);
  const group = store.begin(true);
  const run = allocator.allocate(count, 0);
  if (run === null) throw noRoom(store);
  try {
    region.copy(physical * blockBytes, run.start * blockBytes, run.count * blockBytes);
    for (const owner of owners) {
      const skip = owner.physical - physical;
      const blocks = Math.min(owner.count, run.count - skip);
      const state = owners.length === 1 ? WRITTEN : SHARED;
      if (blocks > 0) group.extent(owner.inode.ino, owner.block, run.start + skip, blocks, state);
    }
    store.commit();
  } catch (error) {
    store.giveBack([run]);
    throw error;
  }
  return { next: piece.block + run.count, moved: run.count };
}

interface Owner extends BlockRange {
  readonly inode: Inode;
  readonly physical: number;
}

/** Blocks of a file that lay in one chunk of the tail. */
interface Note extends BlockRange {
  readonly inode: Inode;
}

/**
 * Who shares blocks of the tail: noted when a file is found or becomes one of them, looked up by the place of the blocks. What
 * is noted may be over by now, so each is looked at again; nobody is missing.
 */
class Sharers {
  readonly #store: Store;
  readonly #notes = new Map<number, Note[]>();

  constructor(store: Store) {
    this.#store = store;
  }

  note(inode: Inode, block: number, physical: number, count: number): void {
    const { end, chunkBlocks } = this.#store.allocator;
    for (let at = Math.max(physical, end); at < physical + count; ) {
      const upTo = Math.min(physical + count, (Math.floor(at / chunkBlocks) + 1) * chunkBlocks);
      const note = { inode, block: block + at - physical, count: upTo - at };
      for (const group of groupsOf(at, upTo)) {
        const noted = this.#notes.get(group);
        if (noted === undefined) this.#notes.set(group, [note]);
        else noted.push(note);
      }
      at = upTo;
    }
  }

  /** Who shares the first `count` blocks of the piece, which lie in one chunk; `inode`, whose piece it is, first. */
  of(inode: Inode, piece: Piece, count: number): Owner[] {
    const from = piece.physical;
    const owner = { inode, block: piece.block, physical: from, count };
    const found = new Map<string, Owner>([[`${inode.ino} ${piece.block}`, owner]]);
    const looked = new Set<Note>();
    for (const group of groupsOf(from, from + count)) {
      for (const note of this.#notes.get(group) ?? []) {
        if (looked.has(note)) continue;
        looked.add(note);
        if (this.#store.state.inodes.get(note.inode.ino) !== note.inode) continue;
        const last = note.block + note.count;
        for (let at = note.block; at < last; ) {
          const there = (note.inode.extents as ExtentMap).at(at, last - at);
          at += there.count;
          const first = Math.max(there.physical, from);
          const blocks = Math.min(there.physical + there.count, from + count) - first;
          if (there.state !== SHARED || blocks <= 0) continue;
          const block = there.block + first - there.physical;
          const key = `${note.inode.ino} ${block}`;
          const known = found.get(key);
          if (known === undefined || known.count < blocks)
            found.set(key, { inode: note.inode, block, physical: first, count: blocks });
        }
      }
    }
    return [...found.values()];
  }
}

/** Blocks of the region whose sharers are noted together: a file that random writes have cut has a note for each block. */
const GROUP_BLOCKS = 16;

function* groupsOf(start: number, end: number): IterableIterator<number> {
  for (let group = Math.floor(start / GROUP_BLOCKS); group * GROUP_BLOCKS < end; group += 1) yield group;
}
