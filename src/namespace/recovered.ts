/**
 * What recovery brought back, judged as a whole before it is used: names, link counts and parents fit together, and
 * every block has one owner. What does not fit is damage (CorruptionError), and nothing has been written then.
 *
 * check.ts looks for the same in a volume in use, where it would be our own bug, and goes about it another way on purpose:
 * a mistake in one is not repeated in the other.
 */
import { CorruptionError, FsError, InvariantError } from "../base/errors.ts";
import { PROGRESS_STRIDE, progress } from "../base/progress.ts";
import { isSegmentPlace } from "../media/chain.ts";
import { findCopies, Mended } from "../media/copies.ts";
import { COUNTER_MAX, COUNTER_ROOM, FeatureIncompatible, RESERVED_BYTES } from "../media/format.ts";
import { SHARED } from "../media/group.ts";
import { ROOT_INO } from "../media/mkfs.ts";
import { readSome } from "../media/reading.ts";
import { geometryOf, type Recovery, recover, type Sources } from "../media/recovery.ts";
import { readSuperblock, type SuperblockValue } from "../media/superblock.ts";
import type { Region } from "../region/region.ts";
import { Allocator } from "../space/allocator.ts";
import type { Dentry } from "./directory.ts";
import { type Inode, S_IFLNK } from "./inode.ts";
import { State } from "./state.ts";

export interface BroughtBack {
  readonly state: State;
  readonly recovery: Recovery;
  /** Everything that is in use is taken. */
  readonly allocator: Allocator;
  /** Byte offsets of the segments that hold metadata. */
  readonly segments: readonly number[];
  /** The place that the log has set aside to go on at, where a file or other metadata is; 0: it is free, or there is none. */
  readonly spareTaken: number;
}

/**
 * Recover and judge; nothing is written. What is damaged and has a second copy is taken from there.
 * @throws CorruptionError, FsError EINVAL (no volume that we know), EIO.
 */
export function bringBack(region: Region): BroughtBack {
  let found: BroughtBack;
  try {
    found = bringBackFrom(region, { media: region });
  } catch (error) {
    if (!(error instanceof CorruptionError || (error instanceof FsError && error.code === "EIO")))
      throw error;
    const mended = withCopies(region, "anywhere");
    if (mended === null) throw error;
    try {
      return bringBackFrom(region, mended);
    } catch (again) {
      if (again instanceof CorruptionError || again instanceof FsError) throw error;
      throw again;
    }
  }
  if (found.recovery.label === "clean") return found;
  // Damage at the very end of the log looks like a write that was interrupted; its copy may go on.
  const mended = withCopies(region, "listed");
  if (mended === null) return found;
  for (const segment of found.recovery.log.segments)
    readSome(mended.media, segment, found.recovery.geometry.segmentBytes);
  if (mended.media.segments.size === 0) return found;
  try {
    const further = bringBackFrom(region, mended);
    if (further.recovery.groupsApplied <= found.recovery.groupsApplied) return found;
    // Which of both it was, nobody can tell: no reason to warn.
    return { ...further, recovery: { ...further.recovery, warnings: found.recovery.warnings } };
  } catch (error) {
    if (error instanceof CorruptionError || error instanceof FsError) return found;
    throw error;
  }
}

/** null: there are none, or no superblock says of what. */
function withCopies(region: Region, where: "listed" | "anywhere"): { media: Mended } | null {
  let superblock: SuperblockValue;
  try {
    superblock = readSuperblock(region).value;
  } catch (error) {
    if (error instanceof CorruptionError || error instanceof FsError) return null;
    throw error;
  }
  const geometry = geometryOf(superblock);
  const copies = findCopies(region, geometry, superblock, where);
  return copies.size === 0 ? null : { media: new Mended(region, geometry, copies) };
}

/** As bringBack(), from what `found` names alone. */
export function bringBackFrom(region: Region, found: Sources): BroughtBack {
  const state = new State();
  const recovery = recover(region, state, found);
  const { superblock } = recovery;
  const { regionBytes, blockBytes } = superblock;
  state.phase("exact");
  state.setBlockCount(regionBytes / blockBytes);
  const highest = Math.max(
    superblock.sequence,
    superblock.incarnations,
    recovery.log.index,
    recovery.log.incarnation,
    recovery.nextLsn,
  );
  if (highest > COUNTER_MAX - COUNTER_ROOM) {
    throw new CorruptionError(
      "superblock or log",
      `counters below ${COUNTER_MAX - COUNTER_ROOM}`,
      `${highest}`,
    );
  }
  if (recovery.nextIno > COUNTER_MAX) {
    throw new CorruptionError(
      "end of the checkpoint: next inode number",
      `at most ${COUNTER_MAX}`,
      `${recovery.nextIno}`,
    );
  }
  state.nextIno = Math.max(state.nextIno, recovery.nextIno);
  state.nextGeneration = Math.max(state.nextGeneration, recovery.nextGeneration);
  checkTree(state);
  state.countReferences();
  const allocator = new Allocator(regionBytes / blockBytes, blockBytes);
  const segments = [...recovery.checkpoint.segments, ...recovery.log.segments];
  claimAll(allocator, state, { superblock, segments });
  // All of it has been read once, and is in memory in another form now.
  for (const segment of segments) region.unload(segment, superblock.segmentBytes);
  const spareTaken = takenSpare(recovery, allocator);
  if (spareTaken === 0) return { state, recovery, allocator, segments, spareTaken };
  const warning = `the segment at byte ${spareTaken}, which the log has set aside, is in use: all metadata is written anew`;
  return {
    ...{ state, allocator, segments, spareTaken },
    recovery: {
      ...recovery,
      log: { ...recovery.log, spare: 0 },
      warnings: [...recovery.warnings, warning],
    },
  };
}

/** Only behind a log that was closed is it gone on at. */
function takenSpare({ label, log, superblock, geometry }: Recovery, allocator: Allocator): number {
  if (label !== "clean" || log.spare === 0) return 0;
  const { segmentBytes, blockBytes } = superblock;
  const blocks = segmentBytes / blockBytes;
  const start = log.spare / blockBytes;
  if (!isSegmentPlace(log.spare, geometry) || !allocator.claim(start, blocks)) return log.spare;
  allocator.free(start, blocks);
  return 0;
}

/** How often each inode was counted. An array where the numbers lie close together: a Map takes ten times the memory. */
class Counts {
  readonly #array: Uint32Array | null;
  readonly #map = new Map<number, number>();

  constructor(state: State) {
    this.#array = state.nextIno <= 8 * state.inodes.size + 1024 ? new Uint32Array(state.nextIno) : null;
  }

  get(ino: number): number {
    return (this.#array === null ? this.#map.get(ino) : this.#array[ino]) ?? 0;
  }

  /** Of an inode that exists, so its number is below the next one. */
  add(ino: number): void {
    if (this.#array === null) this.#map.set(ino, this.get(ino) + 1);
    else this.#array[ino] = this.get(ino) + 1;
  }
}

function checkCookies(inode: Inode): void {
  let last = 0;
  let inOrder = true;
  const entries = inode.directory?.names ?? new Map<string, Readonly<Dentry>>();
  for (const { cookie } of entries.values()) {
    inOrder &&= cookie > last;
    last = cookie;
  }
  // They are, unless entries were made while the checkpoint was written.
  if (inOrder) return;
  const cookies = new Set<number>();
  for (const { cookie } of entries.values()) {
    if (cookies.has(cookie)) {
      throw new CorruptionError(`directory ${inode.ino}`, "each cookie once", `${cookie} twice`);
    }
    cookies.add(cookie);
  }
}

/** Names, link counts and parents of what was recovered must fit together. */
export function checkTree(state: State): void {
  const root = state.inodes.get(ROOT_INO);
  if (root === undefined || root.directory === null) {
    throw new CorruptionError("root directory", "inode 1 to be a directory", "none");
  }
  if (root.parent !== ROOT_INO) {
    throw new CorruptionError("root directory", "to be its own parent", `inode ${root.parent}`);
  }
  const names = new Counts(state);
  const subdirectories = new Map<number, number>();
  let looked = 0;
  for (const inode of state.inodes.values()) {
    looked += 1;
    if (looked % PROGRESS_STRIDE === 0) progress("checking names", looked, state.inodes.size);
    if (inode.directory === null) continue;
    if (inode.nlink === 0 && inode.directory.names.size > 0) {
      throw new CorruptionError(`directory ${inode.ino}`, "no entries once removed", "some");
    }
    checkCookies(inode);
    for (const entry of inode.directory.names.values()) {
      const target = state.inodes.get(entry.ino);
      if (target === undefined) {
        throw new CorruptionError(
          `directory ${inode.ino}`,
          `inode ${entry.ino} of entry "${entry.name}" to exist`,
          "no such inode",
        );
      }
      if (target.mode >>> 12 !== entry.type) {
        throw new CorruptionError(
          `entry "${entry.name}" in directory ${inode.ino}`,
          `type ${target.mode >>> 12}`,
          `${entry.type}`,
        );
      }
      if (target.directory !== null) {
        if (target.parent !== inode.ino || names.get(target.ino) > 0 || target.ino === ROOT_INO) {
          throw new CorruptionError(`directory ${target.ino}`, "one name, in its parent", "another place");
        }
        subdirectories.set(inode.ino, (subdirectories.get(inode.ino) ?? 0) + 1);
      }
      names.add(target.ino);
    }
  }
  for (const inode of state.inodes.values()) {
    const found = names.get(inode.ino);
    const expected =
      inode.directory === null
        ? found
        : inode.ino === ROOT_INO || found > 0
          ? 2 + (subdirectories.get(inode.ino) ?? 0)
          : 0;
    if (inode.nlink !== expected) {
      throw new CorruptionError(`inode ${inode.ino}: link count`, `${expected}`, `${inode.nlink}`);
    }
    if (inode.type === S_IFLNK && (inode.target === null || inode.size !== BigInt(inode.target.length))) {
      throw new CorruptionError(
        `symbolic link ${inode.ino}`,
        `a target of ${inode.size} bytes`,
        inode.target === null ? "none" : `one of ${inode.target.length}`,
      );
    }
  }
  // A cycle of directories would be reachable from nowhere: walk up from each, remembering what leads to the root.
  const rooted = new Set<number>([ROOT_INO]);
  for (const inode of state.inodes.values()) {
    if (inode.directory === null || inode.nlink === 0) continue;
    const path: number[] = [];
    let at = inode.ino;
    while (!rooted.has(at)) {
      path.push(at);
      if (path.length > state.inodes.size) {
        throw new CorruptionError(`directory ${inode.ino}`, "a path to the root", "a cycle");
      }
      at = (state.inodes.get(at) as Inode).parent;
      if (!state.inodes.has(at))
        throw new CorruptionError(`directory ${inode.ino}`, "a parent that exists", `${at}`);
    }
    for (const ino of path) rooted.add(ino);
  }
}

/** Build the free space: everything that is used is claimed once, and claiming something twice is damage. */
export function claimAll(
  allocator: Allocator,
  state: State,
  used: { readonly superblock: SuperblockValue; readonly segments: readonly number[] },
): void {
  const { blockBytes, segmentBytes, featuresIncompatible } = used.superblock;
  if (!allocator.claim(0, Math.ceil(RESERVED_BYTES / blockBytes)))
    throw new InvariantError("fresh allocator");
  for (const segment of used.segments) {
    if (!allocator.claim(segment / blockBytes, segmentBytes / blockBytes)) {
      throw new CorruptionError(`metadata segment at byte ${segment}`, "used once", "used twice");
    }
  }
  // What may be shared first, each block once: the references were counted as the extents came.
  for (const run of state.references) {
    if ((featuresIncompatible & FeatureIncompatible.SHARED_EXTENTS) === 0) {
      throw new CorruptionError(
        `shared blocks ${run.start} to ${run.start + run.count - 1}`,
        "none in this volume, whose superblock says so",
        `${run.references} references`,
      );
    }
    if (!allocator.claim(run.start, run.count)) {
      throw new CorruptionError(
        `shared blocks ${run.start} to ${run.start + run.count - 1}`,
        "to lie inside the volume and not in its metadata",
        "others use them, or there are none",
      );
    }
  }
  let looked = 0;
  for (const inode of state.inodes.values()) {
    looked += 1;
    if (looked % PROGRESS_STRIDE === 0) progress("checking blocks", looked, state.inodes.size);
    for (const extent of inode.extents ?? []) {
      if (extent.state !== SHARED && !allocator.claim(extent.physical, extent.count)) {
        throw new CorruptionError(
          `inode ${inode.ino}: extent at file block ${extent.block}`,
          `blocks ${extent.physical} to ${extent.physical + extent.count - 1} to belong to it alone, inside the volume`,
          "others use them, or there are none",
        );
      }
    }
  }
}
