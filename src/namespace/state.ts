/**
 * All metadata of a volume, in memory.
 *
 * Invariants:
 * - it changes only by applying records, and it is the same code that applies them in recovery and in use: what a
 *   crash brings back is what was there;
 * - applying a record twice gives the same state as once (a fuzzy checkpoint relies on it);
 * - a record that does not fit (an inode that is not there, a run outside the volume) is damage in the checkpoint and in
 *   the exact part of the log, and skipped in the fuzzy part, where the checkpoint may already lack what later goes;
 * - `references` counts the SHARED extents; blocks are freed with the last of them;
 * - `snapshotBytes` is at least what a checkpoint of this state takes on the media.
 */
import { CorruptionError } from "../base/errors.ts";
import type { Snapshot } from "../media/checkpoint.ts";
import {
  COUNTER_MAX,
  DentryRecord,
  ExtentRecord,
  InodeRecord,
  RecordHeader,
  SymlinkRecord,
  XattrRecord,
} from "../media/format.ts";
import { type GroupBuilder, type InodeFields, type MappedState, SHARED } from "../media/group.ts";
import { ROOT_INO } from "../media/mkfs.ts";
import type { RecoverySink } from "../media/recovery.ts";
import type { Run } from "../space/allocator.ts";
import type { Extent, OnCut, OnManyCut } from "../space/extent-map.ts";
import { References } from "../space/references.ts";
import type { RunTable } from "../tables/run-table.ts";
import { FIRST_COOKIE } from "./directory.ts";
import {
  FILE_BLOCKS_MAX,
  FILE_BYTES_MAX,
  FILE_TYPES,
  Inode,
  isEntryName,
  LINK_MAX,
  MODE_MAX,
  NSEC_PER_SEC,
  S_IFDIR,
  S_IFLNK,
  S_IFMT,
} from "./inode.ts";
import { decodeFlags, FLAGS_ATTRIBUTE } from "./inode-flags.ts";

const pad8 = (bytes: number): number => (bytes + 7) & ~7;
const INODE_BYTES = RecordHeader.size + InodeRecord.size;
/** What an extent takes in a checkpoint. */
export const EXTENT_BYTES = RecordHeader.size + ExtentRecord.size;
const dentryBytes = (name: string): number => pad8(RecordHeader.size + DentryRecord.size + name.length);
const symlinkBytes = (target: string): number => pad8(RecordHeader.size + SymlinkRecord.size + target.length);
function flagsIn(ino: number, value: Uint8Array): number {
  const flags = decodeFlags(value);
  if (flags === null) throw new CorruptionError(`inode flags of inode ${ino}`, "4 bytes", `${value.length}`);
  return flags;
}

const xattrBytes = (name: string, value: Uint8Array): number =>
  pad8(RecordHeader.size + XattrRecord.size + name.length + value.length);

export class State implements RecoverySink, Snapshot {
  readonly inodes = new Map<number, Inode>();
  nextIno = ROOT_INO + 1;
  nextGeneration = 1;
  /** Counted from countReferences() on: recovery, where nothing is freed, has no use for them. */
  readonly references = new References();
  #counting = false;
  /** Blocks that no map has any more since the group with this number. */
  onFreed: (physical: number, count: number, lsn: number) => void = () => {};
  /** So very many extents that whoever takes them hands them to extentCut() one by one, later. */
  onManyCut: ((extents: RunTable, own: number, lsn: number) => void) | null = null;
  /** A record is about to change this inode, or what belongs to it. */
  beforeChange: ((inode: Inode) => void) | null = null;
  /** Blocks of the region are shared by this file from now on, from this block of it on. */
  onShared: ((inode: Inode, block: number, physical: number, count: number) => void) | null = null;
  /** Number of the group that is being applied; 0 in recovery. */
  lsn = 0;
  /** The group that last took a reference away from blocks that others still have. */
  unsharedLsn = 0;
  #snapshotBytes = 0;
  #phase: "checkpoint" | "fuzzy" | "exact" = "exact";
  #blockCount = Number.MAX_SAFE_INTEGER;

  get snapshotBytes(): number {
    return this.#snapshotBytes;
  }

  /** Blocks of the volume: no extent may reach past them. */
  setBlockCount(blocks: number): void {
    this.#blockCount = blocks;
  }

  /** Recovery is over: from now on blocks are freed. */
  countReferences(): void {
    const shared: Run[] = [];
    for (const inode of this.inodes.values()) {
      for (const extent of inode.extents ?? []) {
        if (extent.state === SHARED) shared.push({ start: extent.physical, count: extent.count });
      }
    }
    this.references.build(shared);
    this.#counting = true;
  }

  phase(name: "checkpoint" | "fuzzy" | "exact"): void {
    this.#phase = name;
  }

  #inode(ino: number, record: string): Inode | null {
    const inode = this.inodes.get(ino);
    if (inode !== undefined) {
      this.beforeChange?.(inode);
      return inode;
    }
    if (this.#phase === "fuzzy") return null;
    throw new CorruptionError(`${record} record`, `inode ${ino} to exist`, "no such inode");
  }

  inode(fields: InodeFields): void {
    const bad = (what: string, expected: string, found: unknown): never => {
      throw new CorruptionError(`inode ${fields.ino}: ${what}`, expected, String(found));
    };
    const type = fields.mode & S_IFMT;
    if (fields.ino === 0 || fields.ino >= COUNTER_MAX) bad("number", `1 to ${COUNTER_MAX - 1}`, fields.ino);
    if (!FILE_TYPES.has(type) || fields.mode > MODE_MAX) bad("mode", "a file type", fields.mode.toString(8));
    if (fields.size > FILE_BYTES_MAX) bad("size", `at most ${FILE_BYTES_MAX}`, fields.size);
    if (fields.nlink > LINK_MAX + 1 && type !== S_IFDIR)
      bad("link count", `at most ${LINK_MAX}`, fields.nlink);
    for (const nsec of [fields.atimeNsec, fields.mtimeNsec, fields.ctimeNsec, fields.btimeNsec]) {
      if (nsec >= NSEC_PER_SEC) bad("nanoseconds", "below 10^9", nsec);
    }
    const inode = this.inodes.get(fields.ino);
    if (inode !== undefined) {
      if (inode.type !== type) bad("type", inode.type.toString(8), type.toString(8));
      this.beforeChange?.(inode);
      inode.assign(fields);
      return;
    }
    const made = new Inode(fields);
    made.mapLsn = this.lsn;
    this.inodes.set(fields.ino, made);
    this.#snapshotBytes += INODE_BYTES;
    if (fields.ino >= this.nextIno) this.nextIno = fields.ino + 1;
    if (fields.generation >= this.nextGeneration) this.nextGeneration = fields.generation + 1;
  }

  inodeGone(ino: number): void {
    const inode = this.#inode(ino, "INODE_GONE");
    if (inode === null) return;
    if (ino === ROOT_INO) throw new CorruptionError("INODE_GONE record", "not the root", "the root");
    if (inode.extents !== null) this.extentGone(ino, 0, Number.MAX_SAFE_INTEGER);
    if (inode.directory !== null) {
      for (const name of inode.directory.names.keys()) this.#snapshotBytes -= dentryBytes(name);
    }
    if (inode.target !== null) this.#snapshotBytes -= symlinkBytes(inode.target);
    for (const [name, value] of inode.xattrs ?? []) this.#snapshotBytes -= xattrBytes(name, value);
    this.#snapshotBytes -= INODE_BYTES;
    this.inodes.delete(ino);
  }

  touch(
    ino: number,
    size: bigint,
    mode: number,
    mtimeSec: number,
    mtimeNsec: number,
    ctimeSec: number,
    ctimeNsec: number,
  ): void {
    const inode = this.#inode(ino, "TOUCH");
    if (inode === null) return;
    if (
      size > FILE_BYTES_MAX ||
      (mode & S_IFMT) !== inode.type ||
      mtimeNsec >= NSEC_PER_SEC ||
      ctimeNsec >= NSEC_PER_SEC
    ) {
      throw new CorruptionError(`TOUCH record of inode ${ino}`, "size, mode and times in range", "others");
    }
    inode.size = size;
    inode.mode = mode;
    inode.mtimeSec = mtimeSec;
    inode.mtimeNsec = mtimeNsec;
    inode.ctimeSec = ctimeSec;
    inode.ctimeNsec = ctimeNsec;
  }

  dentry(parent: number, name: string, ino: number, type: number, cookie: number): void {
    const inode = this.#inode(parent, "DENTRY");
    if (inode === null) return;
    if (inode.directory === null) {
      if (this.#phase === "fuzzy") return;
      throw new CorruptionError("DENTRY record", `inode ${parent} to be a directory`, "something else");
    }
    if (!isEntryName(name) || ino === 0) {
      throw new CorruptionError(`DENTRY record in directory ${parent}`, "a valid name and inode", name);
    }
    if (cookie < FIRST_COOKIE || cookie >= COUNTER_MAX) {
      throw new CorruptionError(
        `DENTRY record in directory ${parent}: cookie`,
        `${FIRST_COOKIE} to ${COUNTER_MAX - 1}`,
        `${cookie}`,
      );
    }
    if (inode.directory.set(name, ino, type, cookie) === undefined) this.#snapshotBytes += dentryBytes(name);
  }

  dentryGone(parent: number, name: string): void {
    const directory = this.#inode(parent, "DENTRY_GONE")?.directory;
    if (directory === undefined) return;
    if (directory?.remove(name) !== undefined) {
      this.#snapshotBytes -= dentryBytes(name);
    } else if (this.#phase !== "fuzzy") {
      throw new CorruptionError(`DENTRY_GONE record in directory ${parent}`, "an entry", "none of that name");
    }
  }

  extent(ino: number, block: number, physical: number, count: number, state: MappedState): void {
    const inode = this.#inode(ino, "EXTENT");
    if (inode === null) return;
    if (
      inode.extents === null ||
      count === 0 ||
      physical + count > this.#blockCount ||
      block + count > FILE_BLOCKS_MAX
    ) {
      throw new CorruptionError(
        `EXTENT record of inode ${ino}`,
        `a regular file and blocks below ${this.#blockCount}`,
        `${count} blocks at ${physical}`,
      );
    }
    const before = inode.extents.length;
    // Before the old ones go: a block that only changes its place in the file is not to be freed.
    if (state === SHARED && this.#counting) {
      this.references.add(physical, count);
      this.onShared?.(inode, block, physical, count);
    }
    inode.extents.set(block, count, physical, state, this.#onCut);
    inode.mapLsn = this.lsn;
    this.#snapshotBytes += (inode.extents.length - before) * EXTENT_BYTES;
  }

  extentGone(ino: number, block: number, count: number): void {
    const inode = this.#inode(ino, "EXTENT_GONE");
    if (inode === null || inode.extents === null) return;
    if (count === 0) throw new CorruptionError(`EXTENT_GONE record of inode ${ino}`, "blocks", "none");
    const before = inode.extents.length;
    inode.extents.remove(block, count, this.#onCut, this.#onManyCut);
    inode.mapLsn = this.lsn;
    this.#snapshotBytes += (inode.extents.length - before) * EXTENT_BYTES;
  }

  readonly #onCut: OnCut = (physical, count, state, stays) => {
    if (this.#counting) this.#cut(physical, count, state, stays, this.lsn);
  };

  readonly #onManyCut: OnManyCut = (extents, own) => {
    if (this.onManyCut !== null) this.onManyCut(extents, own, this.lsn);
    else for (const row of extents) this.#onCut(row.value, row.count, row.tag as MappedState, false);
  };

  /** An extent of onManyCut(). */
  extentCut({ physical, count, state }: Readonly<Extent>, lsn: number): void {
    this.#cut(physical, count, state, false, lsn);
  }

  #cut(physical: number, count: number, state: MappedState, stays: boolean, lsn: number): void {
    if (state !== SHARED) {
      if (!stays) this.onFreed(physical, count, lsn);
      return;
    }
    this.unsharedLsn = Math.max(this.unsharedLsn, lsn);
    for (const run of this.references.remove(physical, count)) {
      if (!stays) this.onFreed(run.start, run.count, lsn);
    }
  }

  symlink(ino: number, target: string): void {
    const inode = this.#inode(ino, "SYMLINK");
    if (inode === null) return;
    if (inode.type !== S_IFLNK || target.includes("\0")) {
      throw new CorruptionError(`SYMLINK record of inode ${ino}`, "a symbolic link", "something else");
    }
    if (inode.target !== null) this.#snapshotBytes -= symlinkBytes(inode.target);
    inode.target = target;
    this.#snapshotBytes += symlinkBytes(target);
  }

  xattr(ino: number, name: string, value: Uint8Array): void {
    const inode = this.#inode(ino, "XATTR");
    if (inode === null) return;
    if (name.includes("\0")) throw new CorruptionError(`XATTR record of inode ${ino}`, "a valid name", name);
    if (name === FLAGS_ATTRIBUTE) inode.flags = flagsIn(ino, value);
    inode.xattrs ??= new Map();
    const previous = inode.xattrs.get(name);
    if (previous !== undefined) this.#snapshotBytes -= xattrBytes(name, previous);
    inode.xattrs.set(name, value);
    this.#snapshotBytes += xattrBytes(name, value);
  }

  xattrGone(ino: number, name: string): void {
    const inode = this.#inode(ino, "XATTR_GONE");
    const previous = inode?.xattrs?.get(name);
    if (inode === null || previous === undefined) return;
    this.#snapshotBytes -= xattrBytes(name, previous);
    if (name === FLAGS_ATTRIBUTE) inode.flags = 0;
    inode.xattrs?.delete(name);
    if (inode.xattrs?.size === 0) inode.xattrs = null;
  }

  barrier(): void {
    throw new CorruptionError("group of records", "no BARRIER record", "one");
  }
  link(): void {
    throw new CorruptionError("group of records", "no LINK record", "one");
  }
  end(): void {
    throw new CorruptionError("group of records", "no END record", "one");
  }

  /** Everything as records. Map iterators visit what lives throughout exactly once, whatever changes meanwhile. */
  *capture(group: GroupBuilder): IterableIterator<void> {
    for (const inode of this.inodes.values()) {
      group.inode(inode);
      yield;
      if (inode.target !== null) {
        group.symlink(inode.ino, inode.target);
        yield;
      }
      if (inode.xattrs !== null) {
        for (const [name, value] of inode.xattrs) {
          group.xattr(inode.ino, name, value);
          yield;
        }
      }
      if (inode.extents !== null) {
        // By position, not by index: the map may change between two slices.
        for (let piece = inode.extents.next(0); piece !== null; ) {
          group.extent(inode.ino, piece.block, piece.physical, piece.count, piece.state as MappedState);
          const from = piece.block + piece.count;
          yield;
          piece = inode.extents.next(from);
        }
      }
      if (inode.directory !== null) {
        for (const entry of inode.directory.names.values()) {
          group.dentry(inode.ino, entry.name, entry.ino, entry.type, entry.cookie);
          yield;
        }
      }
    }
  }
}
