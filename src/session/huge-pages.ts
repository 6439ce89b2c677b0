/**
 * Huge pages for a region on tmpfs: who reads or writes a mebibyte there, through the mount or a mapping, deals with one page
 * instead of 256. tmpfs makes small ones unless it was mounted otherwise; the kernel puts them together when it is asked.
 *
 * Invariants:
 * - only what has all of its bytes becomes one page: the region takes no more memory than before, and its holes stay;
 * - a little at a time, on the thread pool, with pauses between: nobody's request waits for it;
 * - where it is not possible, or does not work out, nothing is lost but that.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { NativeRegion } from "../region/addon.ts";

type Gatherer = Pick<NativeRegion, "gather">;

export const HUGE_PAGE_BYTES = 2 * 1024 * 1024;
/** Pages that are looked at, at a time. */
const AT_A_TIME = 8;
/** From one look at the whole region to the next: it may have been filled meanwhile. Between two parts of one look. */
const PACE = { roundMs: 2000, pauseMs: 20 };
/** As often as this the kernel may refuse a page: somebody may have pinned it for a while. */
const REFUSALS_MAX = 3;

export class HugePages {
  readonly #region: Gatherer;
  readonly #sizeBytes: () => number;
  readonly #stop = new AbortController();
  readonly #gathered = new Set<number>();
  readonly #refusals = new Map<number, number>();
  readonly #ended: Promise<void>;

  constructor(
    region: Gatherer,
    sizeBytes: () => number,
    readonly pace = PACE,
  ) {
    this.#region = region;
    this.#sizeBytes = sizeBytes;
    this.#ended = this.#run().catch(() => {
      // It cannot be had here, or the region is being closed.
    });
  }

  /** Bytes in huge pages. */
  get bytes(): number {
    return this.#gathered.size * HUGE_PAGE_BYTES;
  }

  /** Something of these bytes has become a hole: what is stored there next is worth a look again. */
  forget(offset: number, length: number): void {
    const past = Math.ceil((offset + length) / HUGE_PAGE_BYTES);
    for (let page = Math.floor(offset / HUGE_PAGE_BYTES); page < past; page += 1) {
      this.#gathered.delete(page);
      this.#refusals.delete(page);
    }
  }

  /** Resolves when nothing of it is under way any more. */
  close(): Promise<void> {
    this.#stop.abort();
    return this.#ended;
  }

  async #run(): Promise<void> {
    const options = { signal: this.#stop.signal, ref: false };
    for (;;) {
      await sleep(this.pace.roundMs, undefined, options);
      const count = Math.floor(this.#sizeBytes() / HUGE_PAGE_BYTES);
      for (let first = 0; first < count; first += AT_A_TIME) {
        const past = Math.min(first + AT_A_TIME, count);
        if (!this.#isWorthLooking(first, past)) continue;
        await this.#gather(first, past);
        await sleep(this.pace.pauseMs, undefined, options);
      }
    }
  }

  #isWorthLooking(first: number, past: number): boolean {
    for (let page = first; page < past; page += 1) {
      if (!this.#gathered.has(page) && (this.#refusals.get(page) ?? 0) < REFUSALS_MAX) return true;
    }
    return false;
  }

  async #gather(first: number, past: number): Promise<void> {
    const found = await this.#region.gather(first * HUGE_PAGE_BYTES, (past - first) * HUGE_PAGE_BYTES);
    for (const [index, what] of found.entries()) {
      const page = first + index;
      if (what === 1) this.#gathered.add(page);
      else if (what === 2) this.#refusals.set(page, (this.#refusals.get(page) ?? 0) + 1);
    }
  }
}
