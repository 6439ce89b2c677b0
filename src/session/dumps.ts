/**
 * The metadata of a volume in use as JSON lines, as of the moment when it was asked for, handed over slice by slice.
 *
 * Invariants:
 * - every inode that existed at that moment is told once, with all that belonged to it then: before a record changes one
 *   that has not been told yet, it is told. Times alone may be newer (Store.noteTimes: they change without a record);
 * - one at a time, and it ends with the open file that it was asked for on: nobody can leave one behind.
 */
import { FsError } from "../base/errors.ts";
import { fault } from "../base/faults.ts";
import { inodeLines, superblockLine } from "../namespace/dump.ts";
import type { Inode } from "../namespace/inode.ts";
import type { Store } from "../namespace/store.ts";

/** What changes have forced out and nobody has fetched: bounds the daemon's memory. */
const AHEAD_BYTES_MAX = 256 * 1024 * 1024;

export class Dump {
  readonly #store: Store;
  readonly #aheadBytesMax: number;
  readonly #told = new Set<Inode>();
  readonly #inodes: IterableIterator<Inode>;
  /** Inodes from here on have been made since. */
  readonly #nextIno: number;
  /** The inode that is being told, and how far. */
  #current: { readonly inode: Inode; readonly lines: Iterator<string> } | null = null;
  /** Told and not fetched: from `#read` on, of that one from byte `#skip` on. */
  #ahead: Buffer[] = [];
  #read = 0;
  #skip = 0;
  #aheadBytes = 0;
  #handedOver = 0;
  #overrun = false;

  /** @throws FsError EBUSY: another one is under way */
  constructor(store: Store, aheadBytesMax = AHEAD_BYTES_MAX) {
    this.#aheadBytesMax = aheadBytesMax;
    if (store.state.beforeChange !== null) throw new FsError("EBUSY", "somebody else is having it dumped");
    this.#store = store;
    this.#inodes = store.state.inodes.values();
    this.#nextIno = store.state.nextIno;
    this.#put(superblockLine(store.state, store.superblock));
    store.state.beforeChange = (inode) => {
      // A record is being applied: whatever becomes of the dump, that goes on.
      try {
        this.#beforeChange(inode);
      } catch (error) {
        fault("a dump", error);
        this.#giveUp();
      }
    };
  }

  close(): void {
    this.#store.state.beforeChange = null;
    this.#ahead = [];
  }

  /** The next at most `limit` bytes, which begin at byte `offset`; none at the end. @throws FsError ESTALE, EAGAIN */
  next(offset: number, limit: number): { bytes: Buffer; more: boolean } {
    if (offset !== this.#handedOver) throw new FsError("ESTALE", "a dump is read from its beginning, once");
    if (this.#overrun)
      throw new FsError("EAGAIN", "too much has changed since it began: ask again, read faster");
    while (this.#aheadBytes <= limit && this.#tellSome());
    const bytes = Buffer.allocUnsafe(Math.min(limit, this.#aheadBytes));
    for (let filled = 0; filled < bytes.length; ) {
      const first = this.#ahead[this.#read] as Buffer;
      const part = first.subarray(this.#skip, this.#skip + bytes.length - filled);
      bytes.set(part, filled);
      filled += part.length;
      this.#skip += part.length;
      if (this.#skip < first.length) continue;
      this.#skip = 0;
      this.#read += 1;
    }
    // Not one by one: there may be very many.
    if (this.#read > 1024 && this.#read > this.#ahead.length / 2) {
      this.#ahead.splice(0, this.#read);
      this.#read = 0;
    }
    this.#aheadBytes -= bytes.length;
    this.#handedOver += bytes.length;
    return { bytes, more: this.#aheadBytes > 0 };
  }

  #put(line: string): void {
    const bytes = Buffer.from(line, "utf8");
    this.#ahead.push(bytes);
    this.#aheadBytes += bytes.length;
  }

  /** One more line; false if there is none. */
  #tellSome(): boolean {
    for (;;) {
      if (this.#current === null) {
        const next = this.#inodes.next();
        if (next.done === true) return false;
        if (!this.#isDue(next.value)) continue;
        this.#begin(next.value);
      }
      const line = this.#current?.lines.next();
      if (line !== undefined && line.done !== true) {
        this.#put(line.value);
        return true;
      }
      this.#current = null;
    }
  }

  #isDue(inode: Inode): boolean {
    return inode.ino < this.#nextIno && !this.#told.has(inode);
  }

  #begin(inode: Inode): void {
    this.#told.add(inode);
    this.#current = { inode, lines: inodeLines(inode, this.#store.blockBytes) };
  }

  #beforeChange(inode: Inode): void {
    if (this.#overrun) return;
    if (this.#current?.inode === inode) this.#finish();
    else if (this.#isDue(inode)) {
      const interrupted = this.#current;
      this.#begin(inode);
      this.#finish();
      this.#current = interrupted;
    }
    if (this.#aheadBytes > this.#aheadBytesMax) this.#giveUp();
  }

  #giveUp(): void {
    this.#overrun = true;
    this.#ahead = [];
  }

  /** All that is left of the inode that is being told. */
  #finish(): void {
    const current = this.#current;
    if (current === null) return;
    for (let line = current.lines.next(); line.done !== true; line = current.lines.next())
      this.#put(line.value);
    this.#current = null;
  }
}
