/**
 * A set of small numbers, as bits with summaries above them: one bit on a level says that a word of 32 bits below it is not
 * zero. The next member from a place on is found in a few steps, however many there are.
 *
 * Invariants (check()):
 * - a bit of level n + 1 is set exactly if the word of level n that it stands for is not zero;
 * - the last level is one word.
 */
import { invariant } from "../base/errors.ts";

export class BitTree {
  readonly size: number;
  readonly #levels: Uint32Array[] = [];

  /** The empty set of numbers in [0, size). */
  constructor(size: number) {
    this.size = size;
    let words = size;
    do {
      words = Math.max(1, Math.ceil(words / 32));
      this.#levels.push(new Uint32Array(words));
    } while (words > 1);
  }

  has(value: number): boolean {
    return (((this.#levels[0] as Uint32Array)[value >>> 5] as number) & (1 << (value & 31))) !== 0;
  }

  add(value: number): void {
    let at = value;
    for (const words of this.#levels) {
      const before = words[at >>> 5] as number;
      words[at >>> 5] = before | (1 << (at & 31));
      if (before !== 0) return;
      at >>>= 5;
    }
  }

  delete(value: number): void {
    let at = value;
    for (const words of this.#levels) {
      const left = (words[at >>> 5] as number) & ~(1 << (at & 31));
      words[at >>> 5] = left;
      if (left !== 0) return;
      at >>>= 5;
    }
  }

  /** The smallest member that is `from` or larger; -1 if there is none. */
  next(from: number): number {
    if (from >= this.size) return -1;
    let at = from;
    // Up, until a word has a member behind the place; then down to its first one.
    for (let level = 0; level < this.#levels.length; level += 1) {
      const words = this.#levels[level] as Uint32Array;
      if (at >>> 5 >= words.length) return -1;
      const word = (words[at >>> 5] as number) & (-1 << (at & 31));
      if (word !== 0) {
        at = (at & ~31) + lowest(word);
        for (let below = level - 1; below >= 0; below -= 1) {
          at = at * 32 + lowest((this.#levels[below] as Uint32Array)[at] as number);
        }
        return at;
      }
      at = (at >>> 5) + 1;
    }
    return -1;
  }

  check(): void {
    for (let level = 0; level + 1 < this.#levels.length; level += 1) {
      const words = this.#levels[level] as Uint32Array;
      const above = this.#levels[level + 1] as Uint32Array;
      for (let at = 0; at < words.length; at += 1) {
        const summed = ((above[at >>> 5] as number) & (1 << (at & 31))) !== 0;
        invariant(summed === (words[at] !== 0), () => `word ${at} of level ${level} is summed up wrongly`);
      }
    }
  }
}

/** Number of the lowest bit that is set. */
function lowest(word: number): number {
  return 31 - Math.clz32(word & -word);
}
