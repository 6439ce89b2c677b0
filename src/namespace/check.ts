/**
 * The invariants of a whole volume, as one call: after every operation in tests, and for `mapdirect check`.
 *
 * It reads nothing but memory: what recovery found on the media has been judged there. Whatever it finds is therefore
 * our own bug (InvariantError), and it names the first thing that does not fit.
 */
import { InvariantError, invariant } from "../base/errors.ts";
import { GroupBuilder, SHARED } from "../media/group.ts";
import { ROOT_INO } from "../media/mkfs.ts";
import type { Extent } from "../space/extent-map.ts";
import { FILE_BYTES_MAX, type Inode, LINK_MAX, S_IFDIR, S_IFLNK, S_IFREG } from "./inode.ts";
import type { Store } from "./store.ts";

/** @throws InvariantError */
export function checkVolume(store: Store): void {
  store.allocator.check();
  checkBlocks(store);
  checkInodes(store);
  checkTree(store);
  checkSnapshotBytes(store);
}

/**
 * Every block is free, or has exactly one owner, or as many shared extents as are counted; and the allocator agrees.
 */
function checkBlocks(store: Store): void {
  const { allocator } = store;
  const blocks = allocator.blockCount;
  const owners: string[] = ["nobody"];
  /** Index into owners; 32 bits, because a volume may have millions of extents' worth of files. */
  const owned = new Uint32Array(blocks);
  let used = 0;
  const claim = (name: string, start: number, count: number): void => {
    invariant(
      Number.isSafeInteger(start) && start >= 0 && count >= 1 && start + count <= blocks,
      () => `${name}: blocks ${start} to ${start + count - 1} of ${blocks}`,
    );
    if (owners[owners.length - 1] !== name) owners.push(name);
    for (let block = start; block < start + count; block += 1) {
      const before = owned[block] as number;
      if (before !== 0)
        throw new InvariantError(`block ${block} belongs to ${owners[before]} and to ${name}`);
      if (allocator.isFree(block)) throw new InvariantError(`block ${block} of ${name} is free`);
      owned[block] = owners.length - 1;
    }
    used += count;
  };
  for (const run of store.metadataRuns()) claim(run.name, run.start, run.count);
  for (const run of allocator.withheldRuns()) claim("withheld", run.start, run.count);
  for (const rows of store.claimed)
    for (const { value, count } of rows) claim("a change under way", value, count);
  let pending = 0;
  for (const run of store.pendingRuns()) {
    claim("pending", run.start, run.count);
    pending += run.count;
  }
  const references = new Map<number, number>();
  const refer = ({ physical, count }: Readonly<Extent>): void => {
    for (let block = physical; block < physical + count; block += 1)
      references.set(block, (references.get(block) ?? 0) + 1);
  };
  for (const inode of store.state.inodes.values()) {
    for (const extent of inode.extents ?? []) {
      if (extent.state === SHARED) refer(extent);
      else claim(`inode ${inode.ino}`, extent.physical, extent.count);
    }
  }
  for (const extent of store.freeing.left()) if (extent.state === SHARED) refer(extent);
  store.state.references.check();
  let shared = 0;
  for (const run of store.state.references) {
    claim("shared", run.start, run.count);
    shared += run.count;
    for (let block = run.start; block < run.start + run.count; block += 1) {
      invariant(
        references.get(block) === run.references,
        () => `block ${block}: ${references.get(block) ?? 0} shared extents, ${run.references} counted`,
      );
    }
  }
  invariant(shared === references.size, () => `${references.size} blocks shared, ${shared} counted`);
  invariant(pending === store.pendingBlocks, () => `${pending} blocks pending, not ${store.pendingBlocks}`);
  if (used + allocator.freeBlocks !== blocks) {
    let lost = 0;
    while (owned[lost] !== 0 || allocator.isFree(lost)) lost += 1;
    throw new InvariantError(
      `${blocks - used - allocator.freeBlocks} blocks are neither free nor used, the first is ${lost}`,
    );
  }
}

/** Each inode by itself. */
function checkInodes(store: Store): void {
  for (const [ino, inode] of store.state.inodes) {
    const name = `inode ${ino}`;
    invariant(inode.ino === ino, () => `${name} is filed under another number: ${inode.ino}`);
    invariant(
      ino < store.state.nextIno,
      () => `${name}, but the next number to hand out is ${store.state.nextIno}`,
    );
    invariant(inode.size >= 0n && inode.size <= FILE_BYTES_MAX, () => `${name}: size ${inode.size}`);
    invariant((inode.extents !== null) === (inode.type === S_IFREG), () => `${name}: type and extents`);
    invariant((inode.directory !== null) === (inode.type === S_IFDIR), () => `${name}: type and entries`);
    invariant((inode.target !== null) === (inode.type === S_IFLNK), () => `${name}: type and target`);
    invariant(
      inode.lookups >= 0 && inode.opens >= 0,
      () => `${name}: ${inode.lookups} lookups, ${inode.opens} opens`,
    );
    invariant(inode.xattrs === null || inode.xattrs.size > 0, () => `${name}: an empty table of attributes`);
    if (inode.target !== null) {
      const bytes = inode.target.length;
      invariant(inode.size === BigInt(bytes), () => `${name}: size ${inode.size}, target of ${bytes} bytes`);
    }
    inode.extents?.check();
    inode.directory?.check();
  }
  for (const inode of store.dirtyTimes) {
    invariant(
      store.state.inodes.get(inode.ino) === inode,
      () => `times of inode ${inode.ino}, which is gone`,
    );
  }
}

/** Names, link counts, parents; everything is reachable from the root or an orphan that somebody uses. */
function checkTree(store: Store): void {
  const { inodes } = store.state;
  const root = inodes.get(ROOT_INO);
  invariant(root !== undefined && root.directory !== null, "there is no root directory");
  invariant(root.parent === ROOT_INO, () => `the root's parent is inode ${root.parent}`);
  const names = new Map<Inode, number>([[root, 1]]);
  const subdirectories = new Map<Inode, number>();
  const queue: Inode[] = [root];
  for (let parent = queue.pop(); parent !== undefined; parent = queue.pop()) {
    for (const entry of parent.directory?.names.values() ?? []) {
      const where = `entry "${entry.name}" of directory ${parent.ino}`;
      const inode = inodes.get(entry.ino);
      invariant(inode !== undefined, () => `${where}: there is no inode ${entry.ino}`);
      invariant(
        inode.mode >>> 12 === entry.type,
        () => `${where}: type ${entry.type}, mode ${inode.mode.toString(8)}`,
      );
      names.set(inode, (names.get(inode) ?? 0) + 1);
      if (inode.directory === null) continue;
      invariant(names.get(inode) === 1, () => `${where}: directory ${inode.ino} has two names`);
      invariant(inode.parent === parent.ino, () => `${where}: says its parent is ${inode.parent}`);
      subdirectories.set(parent, (subdirectories.get(parent) ?? 0) + 1);
      queue.push(inode);
    }
  }
  for (const inode of inodes.values()) {
    const found = names.get(inode) ?? 0;
    const expected = inode.isDirectory && found > 0 ? 2 + (subdirectories.get(inode) ?? 0) : found;
    invariant(
      inode.nlink === expected,
      () => `inode ${inode.ino}: link count ${inode.nlink}, should be ${expected}`,
    );
    invariant(inode.isDirectory || inode.nlink <= LINK_MAX, () => `inode ${inode.ino}: ${inode.nlink} links`);
    if (found > 0) continue;
    invariant(
      (inode.directory?.names.size ?? 0) === 0,
      () => `directory ${inode.ino} was removed and has entries`,
    );
    // Whoever can write frees it with the last reference; only the log being busy or broken may delay that.
    invariant(
      inode.lookups > 0 ||
        inode.opens > 0 ||
        store.journal === null ||
        store.journal.failure !== null ||
        store.checkpointing,
      () => `inode ${inode.ino} has no name and no user`,
    );
  }
}

/** The estimate that the reserve rests on is what a checkpoint would write now. */
function checkSnapshotBytes(store: Store): void {
  const group = new GroupBuilder(1 << 20);
  let bytes = 0;
  let before = group.length;
  for (const _ of store.state.capture(group)) {
    bytes += group.length - before;
    if (group.length > 1 << 16) group.reset();
    before = group.length;
  }
  const counted = store.state.snapshotBytes;
  invariant(bytes === counted, () => `a snapshot takes ${bytes} bytes, ${counted} counted`);
}
