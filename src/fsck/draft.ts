/**
 * The metadata as damaged media tell it: everything that can be read, nothing refused. A sink for records that notes what
 * cannot be instead of throwing.
 *
 * Invariants:
 * - no record of any content throws;
 * - an inode that only other records speak of is there, with `fields` null.
 */
import { COUNTER_MAX } from "../media/format.ts";
import type { InodeFields, MappedState, RecordSink } from "../media/group.ts";
import { FIRST_COOKIE } from "../namespace/directory.ts";
import {
  FILE_BLOCKS_MAX,
  FILE_BYTES_MAX,
  FILE_TYPES,
  isEntryName,
  MODE_MAX,
  NSEC_PER_SEC,
  S_IFDIR,
  S_IFMT,
  S_IFREG,
} from "../namespace/inode.ts";
import { decodeFlags, FLAGS_ATTRIBUTE } from "../namespace/inode-flags.ts";
import { ExtentMap } from "../space/extent-map.ts";
import type { Problems } from "./problem.ts";

export interface DraftEntry {
  ino: number;
  type: number;
  cookie: number;
}

export interface DraftInode {
  readonly ino: number;
  fields: InodeFields | null;
  readonly extents: ExtentMap;
  readonly entries: Map<string, DraftEntry>;
  target: string | null;
  readonly xattrs: Map<string, Uint8Array>;
}

export const isDirectory = (inode: DraftInode): boolean => typeOf(inode) === S_IFDIR;
export const typeOf = (inode: DraftInode): number => (inode.fields?.mode ?? 0) & S_IFMT;

const nothing = (): void => {};

export class Draft implements RecordSink {
  readonly inodes = new Map<number, DraftInode>();
  nextIno = 0;
  nextGeneration = 0;
  readonly #problems: Problems;

  constructor(problems: Problems) {
    this.#problems = problems;
  }

  #bad(place: string, expected: string, found: unknown, repair: string): void {
    this.#problems.add("record", place, expected, String(found), repair);
  }

  /** null: a number that no inode has. */
  #inode(ino: number, record: string): DraftInode | null {
    if (ino === 0 || ino >= COUNTER_MAX) {
      this.#bad(`${record} record`, `an inode from 1 to ${COUNTER_MAX - 1}`, ino, "it is passed over");
      return null;
    }
    return this.inodes.get(ino) ?? this.add(ino);
  }

  /** One of which nothing is known yet; whatever had the number is gone. */
  add(ino: number): DraftInode {
    const inode: DraftInode = {
      ...{ ino, fields: null, target: null },
      ...{ extents: new ExtentMap(), entries: new Map(), xattrs: new Map() },
    };
    this.inodes.set(ino, inode);
    return inode;
  }

  inode(fields: InodeFields): void {
    const inode = this.#inode(fields.ino, "INODE");
    if (inode === null) return;
    const place = `inode ${fields.ino}`;
    const good = { ...fields };
    const before = inode.fields;
    if (!FILE_TYPES.has(fields.mode & S_IFMT) || fields.mode > MODE_MAX) {
      this.#bad(`${place}: mode`, "a file type", fields.mode.toString(8), "a regular file, mode 600");
      good.mode = S_IFREG | 0o600;
    } else if (before !== null && (before.mode & S_IFMT) !== (fields.mode & S_IFMT)) {
      this.#bad(`${place}: type`, before.mode.toString(8), fields.mode.toString(8), "the later one counts");
    }
    if (fields.size > FILE_BYTES_MAX || fields.size < 0n) {
      this.#bad(`${place}: size`, `at most ${FILE_BYTES_MAX}`, fields.size, "the end of its last extent");
      good.size = -1n;
    }
    for (const time of ["atime", "mtime", "ctime", "btime"] as const) {
      if (fields[`${time}Nsec`] < NSEC_PER_SEC) continue;
      this.#bad(`${place}: ${time}`, "nanoseconds below 10^9", fields[`${time}Nsec`], "0 nanoseconds");
      good[`${time}Nsec`] = 0;
    }
    inode.fields = good;
  }

  inodeGone(ino: number): void {
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
    const inode = this.inodes.get(ino);
    // Of an inode whose record is lost this is too little to know it by.
    if (inode === undefined || inode.fields === null) return;
    this.inode({ ...inode.fields, size, mode, mtimeSec, mtimeNsec, ctimeSec, ctimeNsec });
  }

  dentry(parent: number, name: string, ino: number, type: number, cookie: number): void {
    const directory = this.#inode(parent, "DENTRY");
    if (directory === null) return;
    const place = `entry ${JSON.stringify(name)} of directory ${parent}`;
    if (!isEntryName(name) || ino === 0) {
      this.#bad(place, "a valid name and inode", ino, "it is removed");
      return;
    }
    if (cookie < FIRST_COOKIE || cookie >= COUNTER_MAX) {
      this.#bad(`${place}: cookie`, `${FIRST_COOKIE} to ${COUNTER_MAX - 1}`, cookie, "a new one");
      directory.entries.set(name, { ino, type, cookie: 0 });
      return;
    }
    directory.entries.set(name, { ino, type, cookie });
  }

  dentryGone(parent: number, name: string): void {
    this.inodes.get(parent)?.entries.delete(name);
  }

  extent(ino: number, block: number, physical: number, count: number, state: MappedState): void {
    const inode = this.#inode(ino, "EXTENT");
    if (inode === null) return;
    if (count === 0 || block + count > FILE_BLOCKS_MAX) {
      this.#bad(`inode ${ino}: extent at file block ${block}`, "blocks", `${count} of them`, "it is removed");
      return;
    }
    if (physical >= COUNTER_MAX) {
      // Where numbers end, those of the blocks behind it are not exact any more.
      const place = `inode ${ino}: extent at file block ${block}`;
      this.#bad(place, `blocks below ${COUNTER_MAX}`, `${count} at ${physical}`, "they become a hole");
      inode.extents.remove(block, count, nothing);
      return;
    }
    inode.extents.set(block, count, physical, state, nothing);
  }

  extentGone(ino: number, block: number, count: number): void {
    if (count > 0) this.inodes.get(ino)?.extents.remove(block, count, nothing);
  }

  symlink(ino: number, target: string): void {
    const inode = this.#inode(ino, "SYMLINK");
    if (inode !== null) inode.target = target;
  }

  xattr(ino: number, name: string, value: Uint8Array): void {
    const inode = this.#inode(ino, "XATTR");
    if (inode === null) return;
    if (name.includes("\0")) {
      this.#bad(`inode ${ino}: attribute`, "a valid name", JSON.stringify(name), "it is removed");
      return;
    }
    if (name === FLAGS_ATTRIBUTE && decodeFlags(value) === null) {
      this.#bad(`inode ${ino}: inode flags`, "4 bytes", `${value.length}`, "they are removed");
      return;
    }
    inode.xattrs.set(name, value);
  }

  xattrGone(ino: number, name: string): void {
    this.inodes.get(ino)?.xattrs.delete(name);
  }

  barrier(): void {}
  link(): void {}
  end(_endLsn: number, _records: number, nextIno: number, nextGeneration: number): void {
    if (nextIno <= COUNTER_MAX) this.nextIno = Math.max(this.nextIno, nextIno);
    if (nextGeneration <= 0xffff_ffff) this.nextGeneration = Math.max(this.nextGeneration, nextGeneration);
  }
}
