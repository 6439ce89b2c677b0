/**
 * The entries of one directory.
 *
 * Invariants (check()):
 * - a name occurs once; cookies are unique, and that of a new name is higher than all before. A name that comes to stand for
 *   another inode (rename over it, exchange) keeps its own: it was there all the time;
 * - `order`, where built, holds every live entry in the order of cookies, and `dead` removed ones besides. An entry
 *   keeps its place while it lives, so that a reader who remembers a cookie neither skips nor repeats others (POSIX readdir).
 */
import { invariant } from "../base/errors.ts";

/** Cookies 1 and 2 are "." and "..". */
export const FIRST_COOKIE = 3;

export interface Dentry {
  /** Byte string: one character per byte. */
  readonly name: string;
  /** 0 once removed. */
  ino: number;
  readonly cookie: number;
  /** DT_ value. */
  readonly type: number;
}

export class Directory {
  readonly names = new Map<string, Dentry>();
  #order: Dentry[] | null = null;
  #dead = 0;
  nextCookie = FIRST_COOKIE;

  /** Bind the name; the previous entry of that name is gone. Returns it, if there was one. */
  set(name: string, ino: number, type: number, cookie: number): Dentry | undefined {
    const entry: Dentry = { name, ino, cookie, type };
    const known = this.names.get(name);
    if (known?.cookie === cookie) {
      this.names.set(name, entry);
      if (this.#order !== null) this.#order[this.#firstBehind(this.#order, cookie - 1)] = entry;
      return known;
    }
    const previous = this.remove(name);
    this.names.set(name, entry);
    if (this.#order !== null) {
      // Replay may bring cookies out of order; then the order is built anew when somebody reads.
      const last = this.#order[this.#order.length - 1];
      if (last === undefined || last.cookie < cookie) this.#order.push(entry);
      else this.#order = null;
    }
    if (cookie >= this.nextCookie) this.nextCookie = cookie + 1;
    return previous;
  }

  remove(name: string): Dentry | undefined {
    const entry = this.names.get(name);
    if (entry === undefined) return undefined;
    this.names.delete(name);
    const removed = { ...entry };
    entry.ino = 0;
    if (this.#order !== null) {
      this.#dead += 1;
      if (this.#dead > 64 && this.#dead * 2 > this.#order.length) {
        this.#order = this.#order.filter((other) => other.ino !== 0);
        this.#dead = 0;
      }
    }
    return removed;
  }

  #firstBehind(order: readonly Dentry[], cookie: number): number {
    let low = 0;
    let high = order.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((order[middle] as Dentry).cookie <= cookie) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** All live entries. Names are added in the order of their cookies, except by a replay. */
  #inOrder(): Dentry[] {
    const order = [...this.names.values()];
    for (let index = 1; index < order.length; index += 1) {
      if ((order[index - 1] as Dentry).cookie > (order[index] as Dentry).cookie)
        return order.sort((a, b) => a.cookie - b.cookie);
    }
    return order;
  }

  /** Live entries with a cookie above the given one, in order. */
  *after(cookie: number): IterableIterator<Readonly<Dentry>> {
    if (this.#order === null) {
      this.#order = this.#inOrder();
      this.#dead = 0;
    }
    const order = this.#order;
    for (let index = this.#firstBehind(order, cookie); index < order.length; index += 1) {
      const entry = order[index] as Dentry;
      if (entry.ino !== 0) yield entry;
    }
  }

  check(): void {
    const cookies = new Set<number>();
    for (const [name, entry] of this.names) {
      invariant(entry.name === name && entry.ino !== 0, () => `entry ${name} is dead or misnamed`);
      invariant(!cookies.has(entry.cookie), () => `cookie ${entry.cookie} occurs twice`);
      invariant(
        entry.cookie >= FIRST_COOKIE && entry.cookie < this.nextCookie,
        () => `cookie ${entry.cookie}`,
      );
      cookies.add(entry.cookie);
    }
    if (this.#order === null) return;
    const live = this.#order.filter((entry) => entry.ino !== 0);
    invariant(live.length === this.names.size, "the reading order misses entries");
    invariant(this.#order.length - live.length === this.#dead, "removed entries are miscounted");
  }
}
