/**
 * What the kernel keeps of files in its page cache, and how that stays one copy with what direct mappings store
 * (semantics R24).
 *
 * A file that is opened for reading, and that nobody maps directly, is opened through the page cache; any other for direct
 * I/O. What is in the cache of a range is dropped before a lease on it is granted. A descriptor from before the lease still
 * goes through the cache: from its first look at the leased range on the file *revalidates*. Its attributes are valid for no time, so that the kernel asks for them before each read(2)
 * (FUSE_AUTO_INVAL_DATA; fuse_cache_read_iter() in fs/fuse/file.c), and is answered when the pages are gone. sendfile(2),
 * splice(2) and ordinary mappings ask nobody: for them such pages are dropped again after SECOND_COPY_MS.
 *
 * The kernel itself drops pages when it is told another mtime, but not reliably: it ignores attributes that are overtaken
 * by a notification or by a write that makes the file longer (fuse_change_attributes_i() in fs/fuse/inode.c).
 *
 * Invariants:
 * - of a range that is leased, and was so when it was dropped, no page is in the cache for longer than SECOND_COPY_MS, and
 *   read(2) is never answered from one that was there before the call;
 * - every way in which pages come into the cache is noted (`filled`) before the request that brings them is answered, so
 *   that `mayHold` never says no where there are some;
 * - a file goes on revalidating until no lease is left on it and all that was to be dropped has been.
 */
import { after, inBackground } from "../base/faults.ts";
import type { Inode } from "../namespace/inode.ts";

/** Pages that a fault or a splice has brought in are dropped after this long, milliseconds: time enough for it to complete. */
const SECOND_COPY_MS = 1;

const PAGE_BYTES = 4096n;
const pageBehind = (offset: bigint): bigint => ((offset + PAGE_BYTES - 1n) / PAGE_BYTES) * PAGE_BYTES;

/** Whether files that nobody maps directly are read through the page cache. */
export type CacheMode = "auto" | "never";

/** What the kernel has to be told, and what is to be known of leases. */
export interface CacheKernel {
  /** Drop pages, writing back dirty ones first; and attributes. */
  drop(inode: Inode, offset: bigint, length: bigint): Promise<void>;
  /** At once, before this returns. */
  forgetAttributes(inode: Inode): void;
  isLeased(inode: Inode): boolean;
}

interface Extent {
  from: bigint;
  to: bigint;
}

interface Revalidation {
  /** Pages that came in since the last look, and have not been dropped for certain. */
  copies: Extent | null;
  /** Until what was to be dropped has been; null if that is nothing. */
  dropping: Promise<void> | null;
}

export class PageCache {
  readonly #kernel: CacheKernel;
  /** Of each file: where pages may be. */
  readonly #filled = new WeakMap<Inode, Extent>();
  readonly #revalidating = new Map<Inode, Revalidation>();

  constructor(kernel: CacheKernel) {
    this.#kernel = kernel;
  }

  /** Pages of [offset, offset + length) come into the cache with the answer to this request. */
  filled(inode: Inode, offset: bigint, length: number): void {
    const known = this.#filled.get(inode);
    if (known === undefined) this.#filled.set(inode, pagesOf(offset, length));
    else widen(known, pagesOf(offset, length));
  }

  /** There may be pages of [offset, offset + length). */
  mayHold(inode: Inode, offset: bigint, length: bigint): boolean {
    const known = this.#filled.get(inode);
    return known !== undefined && offset < known.to && known.from < offset + length;
  }

  /**
   * Drop what there may be of a range. With `leased`, a lease on it is in the table: what comes in from now on is noted
   * as a second copy, so that a file that was dropped as a whole counts as one without pages.
   */
  async drop(inode: Inode, offset: bigint, length: bigint, leased: boolean): Promise<void> {
    if (!this.mayHold(inode, offset, length)) return;
    const before = this.#filled.get(inode) as Extent;
    const whole = before.from >= offset && before.to <= offset + length;
    if (leased && whole) this.#filled.delete(inode);
    try {
      await this.#kernel.drop(inode, offset, length);
    } catch (error) {
      this.filled(inode, before.from, Number(before.to - before.from));
      throw error;
    }
  }

  /** Pages of a leased range come into the cache with the answer to this request, by a descriptor from before the lease. */
  secondCopy(inode: Inode, offset: bigint, length: number): void {
    let state = this.#revalidating.get(inode);
    if (state === undefined) {
      state = { copies: null, dropping: null };
      this.#revalidating.set(inode, state);
      // Before the pages are there: whoever looks next asks first.
      this.#kernel.forgetAttributes(inode);
    }
    const copy = pagesOf(offset, length);
    if (state.copies !== null) {
      widen(state.copies, copy);
      return;
    }
    state.copies = copy;
    const revalidation = state;
    after(SECOND_COPY_MS, "dropping pages", () => this.#dropCopies(inode, revalidation));
  }

  #dropCopies(inode: Inode, state: Revalidation): void {
    const { copies } = state;
    if (copies === null) return;
    // What comes in from here on is for the next one.
    state.copies = null;
    const drop = this.#kernel.drop(inode, copies.from, copies.to - copies.from);
    const dropping = Promise.all([state.dropping, drop]).then(() => {
      if (state.dropping === dropping) state.dropping = null;
    });
    state.dropping = dropping;
    inBackground("dropping pages", dropping);
  }

  /** Somebody is about to read: what to wait for until none of the pages that came in before this call is left. */
  fresh(inode: Inode): Promise<void> | null {
    const state = this.#revalidating.get(inode);
    if (state === undefined) return null;
    this.#dropCopies(inode, state);
    return state.dropping;
  }

  /** The kernel is to ask before each read(2) of this file. */
  revalidates(inode: Inode): boolean {
    const state = this.#revalidating.get(inode);
    if (state === undefined) return false;
    if (state.copies !== null || state.dropping !== null || this.#kernel.isLeased(inode)) return true;
    this.#revalidating.delete(inode);
    return false;
  }

  /** The file ends at `size` from now on: the kernel drops what lies behind. */
  cut(inode: Inode, size: bigint): void {
    const known = this.#filled.get(inode);
    const end = pageBehind(size);
    if (known === undefined || known.to <= end) return;
    if (known.from >= end) this.#filled.delete(inode);
    else known.to = end;
  }
}

function pagesOf(offset: bigint, length: number): Extent {
  return { from: offset - (offset % PAGE_BYTES), to: pageBehind(offset + BigInt(length)) };
}

function widen(extent: Extent, by: Extent): void {
  if (by.from < extent.from) extent.from = by.from;
  if (by.to > extent.to) extent.to = by.to;
}
