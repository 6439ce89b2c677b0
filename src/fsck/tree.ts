/**
 * Names, directories and inodes of a draft: what does not fit together is noted and made to fit.
 *
 * Order matters: inodes first, since entries depend on their types; entries next, since reachability depends on them; link
 * counts last.
 */
import { COUNTER_MAX } from "../media/format.ts";
import type { InodeFields } from "../media/group.ts";
import { ROOT_INO } from "../media/mkfs.ts";
import { FIRST_COOKIE } from "../namespace/directory.ts";
import {
  FILE_BYTES_MAX,
  LINK_MAX,
  S_IFDIR,
  S_IFLNK,
  S_IFREG,
  SYMLINK_BYTES_MAX,
} from "../namespace/inode.ts";
import { type Draft, type DraftEntry, type DraftInode, isDirectory, typeOf } from "./draft.ts";
import type { Problems } from "./problem.ts";

const LOST_AND_FOUND = "lost+found";

export class TreeJudge {
  readonly #draft: Draft;
  readonly #problems: Problems;
  readonly #nowSec: number;
  readonly #blockBytes: bigint;
  /** By inode number: directories reachable from the root, and everything that they name. */
  readonly #reached = new Set<number>();
  readonly #named = new Set<number>([ROOT_INO]);
  /** Directories that inodes were put into, and the cookies that are free there. */
  readonly #cookies = new Map<DraftInode, FreeNumbers>();
  /** What a directory named when it was first asked: a search of its entries for each child would be quadratic. */
  readonly #children = new Map<DraftInode, Set<number>>();
  #inos: FreeNumbers | null = null;
  /** Inodes that had no name and got one in lost+found. */
  readonly rescued = new Set<number>();

  constructor(draft: Draft, problems: Problems, volume: { nowSec: number; blockBytes: number }) {
    this.#draft = draft;
    this.#problems = problems;
    this.#nowSec = volume.nowSec;
    this.#blockBytes = BigInt(volume.blockBytes);
    for (const ino of draft.inodes.keys()) draft.nextIno = Math.max(draft.nextIno, ino + 1, ROOT_INO + 1);
  }

  run(): void {
    this.#inodes();
    this.#root();
    for (const inode of this.#draft.inodes.values()) if (isDirectory(inode)) this.#entries(inode);
    this.#reach(ROOT_INO);
    this.#rescue();
    this.#linkCounts();
  }

  #inodes(): void {
    for (const inode of this.#draft.inodes.values()) {
      const place = `inode ${inode.ino}`;
      if (inode.fields === null) {
        const what = inode.entries.size > 0 ? S_IFDIR : inode.target !== null ? S_IFLNK : S_IFREG;
        const kind = what === S_IFDIR ? "a directory" : what === S_IFLNK ? "a symbolic link" : "a file";
        this.#problems.add("inode", place, "its record", "none", `it becomes ${kind} of root's`);
        inode.fields = this.#made(inode.ino, what | (what === S_IFDIR ? 0o700 : 0o600));
        inode.fields.size = -1n;
      }
      this.#ofType(inode, place);
    }
  }

  /** What belongs to another type of inode goes, and the size is what its type says. */
  #ofType(inode: DraftInode, place: string): void {
    const fields = inode.fields as InodeFields;
    const type = typeOf(inode);
    const drop = (what: string): void => {
      this.#problems.add("inode", place, `no ${what}`, "some", "they are removed");
    };
    if (type !== S_IFREG && inode.extents.length > 0) {
      drop("extents, being no file");
      inode.extents.remove(0, Number.MAX_SAFE_INTEGER, () => {});
    }
    if (type !== S_IFDIR && inode.entries.size > 0) {
      drop("entries, being no directory");
      inode.entries.clear();
    }
    if (type !== S_IFLNK && inode.target !== null) {
      drop("target, being no symbolic link");
      inode.target = null;
    }
    if (type === S_IFLNK) {
      const { target } = inode;
      if (target === null || target.length > SYMLINK_BYTES_MAX || target.includes("\0")) {
        this.#problems.add(
          "symlink",
          place,
          "a target",
          target === null ? "none" : "what cannot be one",
          `the target "${LOST_AND_FOUND}"`,
        );
        inode.target = LOST_AND_FOUND;
      }
      const bytes = BigInt((inode.target as string).length);
      if (fields.size !== bytes && fields.size >= 0n && target !== null)
        this.#problems.add(
          "symlink",
          `${place}: size`,
          `${bytes}`,
          `${fields.size}`,
          "the length of its target",
        );
      fields.size = bytes;
    }
    // Unknown: its record is lost, or said what cannot be.
    if (fields.size < 0n) {
      const bytes = BigInt(inode.extents.end) * this.#blockBytes;
      fields.size = bytes < FILE_BYTES_MAX ? bytes : FILE_BYTES_MAX;
    }
  }

  #root(): void {
    const root = this.#draft.inodes.get(ROOT_INO);
    if (root !== undefined && isDirectory(root)) {
      if (root.fields?.parent === ROOT_INO) return;
      this.#problems.add(
        "root",
        "root directory",
        "to be its own parent",
        `inode ${root.fields?.parent}`,
        "it is",
      );
      (root.fields as InodeFields).parent = ROOT_INO;
      return;
    }
    this.#problems.add(
      "root",
      "root directory",
      "inode 1 to be a directory",
      root === undefined ? "none" : "something else",
      "it is made anew",
    );
    if (root !== undefined) {
      // Somebody's file under the wrong number: it gets another.
      const ino = this.#nextIno();
      this.#draft.inodes.set(ino, { ...root, ino, fields: { ...(root.fields as InodeFields), ino } });
    }
    this.#add(ROOT_INO, S_IFDIR | 0o755);
  }

  #entries(directory: DraftInode): void {
    const cookies = new Set<number>();
    let free: FreeNumbers | null = null;
    for (const [name, entry] of directory.entries) {
      const place = `entry ${JSON.stringify(name)} of directory ${directory.ino}`;
      const target = this.#draft.inodes.get(entry.ino);
      if (target === undefined) {
        this.#problems.add("entry", place, `inode ${entry.ino}`, "no such inode", "it is removed");
        directory.entries.delete(name);
        continue;
      }
      const type = typeOf(target) >>> 12;
      if (entry.type !== type) {
        this.#problems.add("entry", place, `type ${type}`, `${entry.type}`, `type ${type}`);
        entry.type = type;
      }
      if (cookies.has(entry.cookie) || entry.cookie === 0) {
        // Of a cookie that could not be, the record was noted.
        if (entry.cookie !== 0)
          this.#problems.add(
            "entry",
            place,
            "a cookie of its own",
            `${entry.cookie}, as another`,
            "a new one",
          );
        free ??= new FreeNumbers(FIRST_COOKIE, allCookies(directory));
        entry.cookie = free.take();
      }
      cookies.add(entry.cookie);
    }
  }

  /** Everything below; a directory that was reached before has a name too many. */
  #reach(start: number): void {
    this.#reached.add(start);
    const queue = [start];
    for (let at = queue.pop(); at !== undefined; at = queue.pop()) {
      const directory = this.#draft.inodes.get(at) as DraftInode;
      for (const [name, entry] of directory.entries) {
        const target = this.#draft.inodes.get(entry.ino) as DraftInode;
        if (!isDirectory(target)) {
          this.#named.add(entry.ino);
          continue;
        }
        const place = `entry ${JSON.stringify(name)} of directory ${at}`;
        if (this.#reached.has(entry.ino)) {
          this.#problems.add(
            "entry",
            place,
            `one name of directory ${entry.ino}`,
            "another",
            "it is removed",
          );
          directory.entries.delete(name);
          continue;
        }
        const fields = target.fields as InodeFields;
        if (fields.parent !== at) {
          // One that is wrong about its parent may have its right name elsewhere.
          const there = this.#draft.inodes.get(fields.parent);
          if (
            there !== undefined &&
            this.#names(there, entry.ino) &&
            !this.#reached.has(entry.ino) &&
            this.#isBelowRoot(there)
          ) {
            this.#problems.add(
              "entry",
              place,
              `directory ${entry.ino} in its parent, ${fields.parent}`,
              "a second name",
              "it is removed",
            );
            directory.entries.delete(name);
            continue;
          }
          this.#problems.add(
            "parent",
            `directory ${entry.ino}: parent`,
            `${at}`,
            `${fields.parent}`,
            `${at}`,
          );
          fields.parent = at;
        }
        this.#reached.add(entry.ino);
        this.#named.add(entry.ino);
        queue.push(entry.ino);
      }
    }
  }

  #names(directory: DraftInode, ino: number): boolean {
    let children = this.#children.get(directory);
    if (children === undefined) {
      children = new Set();
      for (const entry of directory.entries.values()) children.add(entry.ino);
      this.#children.set(directory, children);
    }
    return children.has(ino);
  }

  #isBelowRoot(directory: DraftInode): boolean {
    const seen = new Set<number>();
    for (let at: DraftInode | undefined = directory; at !== undefined && !seen.has(at.ino); ) {
      if (at.ino === ROOT_INO) return true;
      seen.add(at.ino);
      const parent = this.#draft.inodes.get(at.fields?.parent ?? 0);
      if (parent === undefined || !isDirectory(parent) || !this.#names(parent, at.ino)) return false;
      at = parent;
    }
    return false;
  }

  /** What has no name and was not being deleted, into lost+found; what was being deleted is gone. */
  #rescue(): void {
    const named = this.#named;
    const namedBy = this.#unreachableNames();
    const lost = [...this.#draft.inodes.values()].filter(({ ino }) => !named.has(ino));
    // Directories first: what is below them comes with them.
    lost.sort((a, b) => Number(isDirectory(b)) - Number(isDirectory(a)) || a.ino - b.ino);
    const rescue = (inode: DraftInode): void => {
      const fields = inode.fields as InodeFields;
      if (fields.nlink === 0 && (!isDirectory(inode) || inode.entries.size === 0)) {
        this.#draft.inodes.delete(inode.ino);
        return;
      }
      this.#problems.add(
        "unreachable",
        `inode ${inode.ino}`,
        "a name",
        "none that leads to the root",
        `it becomes /${LOST_AND_FOUND}/#${inode.ino}`,
      );
      this.rescued.add(inode.ino);
      const home = this.#lostAndFound();
      if (isDirectory(inode)) {
        // In a cycle every directory has a name: the one of it that is taken out loses it.
        for (const directory of namedBy.get(inode.ino) ?? []) {
          for (const [name, entry] of directory.entries) {
            if (entry.ino === inode.ino) directory.entries.delete(name);
          }
        }
      }
      home.entries.set(`#${inode.ino}`, {
        ...{ ino: inode.ino, type: typeOf(inode) >>> 12, cookie: this.#nextCookie(home) },
      });
      named.add(inode.ino);
      if (!isDirectory(inode)) return;
      fields.parent = home.ino;
      this.#reach(inode.ino);
    };
    // From above: what an unnamed directory contains keeps its name in there.
    for (const inode of lost) {
      while (!named.has(inode.ino)) {
        const top = isDirectory(inode) ? this.#topOf(inode, namedBy) : inode;
        rescue(top);
        // What was being deleted has no name now either.
        if (top === inode) break;
      }
    }
  }

  /** The unreachable directory that everything above this one hangs from; in a cycle, one of the cycle. */
  #topOf(inode: DraftInode, namedBy: ReadonlyMap<number, DraftInode[]>): DraftInode {
    const seen = new Set<DraftInode>();
    for (let at = inode; ; ) {
      if (seen.has(at)) return at;
      seen.add(at);
      const above = (namedBy.get(at.ino) ?? []).filter(({ ino }) => !this.#named.has(ino));
      const next = above.find(({ ino }) => ino === at.fields?.parent) ?? above[0];
      if (next === undefined) return at;
      at = next;
    }
  }

  /** By directory: those that name it and are not reachable themselves. */
  #unreachableNames(): Map<number, DraftInode[]> {
    const namedBy = new Map<number, DraftInode[]>();
    for (const directory of this.#draft.inodes.values()) {
      if (this.#reached.has(directory.ino)) continue;
      for (const { ino, type } of directory.entries.values()) {
        if (type !== S_IFDIR >>> 12) continue;
        const others = namedBy.get(ino);
        if (others === undefined) namedBy.set(ino, [directory]);
        else others.push(directory);
      }
    }
    return namedBy;
  }

  #lostAndFound(): DraftInode {
    const root = this.#draft.inodes.get(ROOT_INO) as DraftInode;
    for (let number = 0; ; number += 1) {
      const name = number === 0 ? LOST_AND_FOUND : `${LOST_AND_FOUND}.${number}`;
      const entry: DraftEntry | undefined = root.entries.get(name);
      const there = entry === undefined ? undefined : this.#draft.inodes.get(entry.ino);
      if (there !== undefined && isDirectory(there)) return there;
      if (there !== undefined) continue;
      const ino = this.#nextIno();
      const made = this.#add(ino, S_IFDIR | 0o700);
      root.entries.set(name, { ino, type: S_IFDIR >>> 12, cookie: this.#nextCookie(root) });
      this.#reached.add(ino);
      this.#named.add(ino);
      return made;
    }
  }

  #linkCounts(): void {
    const links = new Map<number, number>();
    const subdirectories = new Map<number, number>();
    for (const directory of this.#draft.inodes.values()) {
      for (const [name, entry] of directory.entries) {
        const count = (links.get(entry.ino) ?? 0) + 1;
        if (count > LINK_MAX) {
          const place = `entry ${JSON.stringify(name)} of directory ${directory.ino}`;
          const expected = `at most ${LINK_MAX} names of inode ${entry.ino}`;
          this.#problems.add("entry", place, expected, "another", "it is removed");
          directory.entries.delete(name);
          continue;
        }
        links.set(entry.ino, count);
        if (entry.type === S_IFDIR >>> 12)
          subdirectories.set(directory.ino, (subdirectories.get(directory.ino) ?? 0) + 1);
      }
    }
    for (const inode of this.#draft.inodes.values()) {
      const fields = inode.fields as InodeFields;
      const right = isDirectory(inode)
        ? 2 + (subdirectories.get(inode.ino) ?? 0)
        : (links.get(inode.ino) ?? 0);
      if (fields.nlink === right) continue;
      // Of what was made up, or moved to lost+found, it has been said.
      if (fields.nlink !== MADE_UP)
        this.#problems.add(
          "link-count",
          `inode ${inode.ino}: link count`,
          `${right}`,
          `${fields.nlink}`,
          `${right}`,
        );
      fields.nlink = right;
    }
  }

  #nextCookie(directory: DraftInode): number {
    let free = this.#cookies.get(directory);
    if (free === undefined) {
      free = new FreeNumbers(FIRST_COOKIE, allCookies(directory));
      this.#cookies.set(directory, free);
    }
    return free.take();
  }

  #nextIno(): number {
    if (this.#draft.nextIno < COUNTER_MAX) {
      this.#draft.nextIno += 1;
      return this.#draft.nextIno - 1;
    }
    this.#inos ??= new FreeNumbers(ROOT_INO + 1, new Set(this.#draft.inodes.keys()));
    return this.#inos.take();
  }

  #add(ino: number, mode: number): DraftInode {
    const made = this.#draft.add(ino);
    made.fields = this.#made(ino, mode);
    return made;
  }

  #made(ino: number, mode: number): InodeFields {
    const sec = this.#nowSec;
    return {
      ...{ ino, size: 0n, parent: mode >>> 12 === S_IFDIR >>> 12 ? ROOT_INO : 0, mode, nlink: MADE_UP },
      ...{ uid: 0, gid: 0, rdev: 0, generation: 0 },
      ...{ atimeSec: sec, mtimeSec: sec, ctimeSec: sec, btimeSec: sec },
      ...{ atimeNsec: 0, mtimeNsec: 0, ctimeNsec: 0, btimeNsec: 0 },
    };
  }
}

function allCookies(directory: DraftInode): Set<number> {
  const cookies = new Set<number>();
  for (const { cookie } of directory.entries.values()) cookies.add(cookie);
  return cookies;
}

/** Numbers above all that are used; the lowest unused ones, where a damaged record has taken the last. */
class FreeNumbers {
  readonly #used: ReadonlySet<number>;
  #next: number;
  #low: number;

  constructor(first: number, used: ReadonlySet<number>) {
    this.#used = used;
    this.#low = first;
    this.#next = first;
    for (const number of used) this.#next = Math.max(this.#next, number + 1);
  }

  take(): number {
    this.#next += 1;
    if (this.#next <= COUNTER_MAX) return this.#next - 1;
    while (this.#used.has(this.#low)) this.#low += 1;
    this.#low += 1;
    return this.#low - 1;
  }
}

/** The link count of an inode that a repair makes; no real one reaches it. */
const MADE_UP = 0xffff_ffff;
