/**
 * Files that a long change is under way on, slice by slice: a clone, or an allocation of very many runs.
 *
 * Invariants:
 * - from its first slice to its last no other request changes what such a file contains, or maps a part of it directly: a
 *   clone is of one moment, an allocation whole or absent, and neither meets a lease half way. Nobody is held before the
 *   first slice: until then the change may itself wait for a lease;
 * - who is held waits as for a lease (base/wait.ts), with nothing changed yet;
 * - an append to a file whose new size the kernel has not been told of goes behind the end that the file has.
 */
import { type Deferred, deferred, Wait } from "../base/wait.ts";
import type { Inode } from "../namespace/inode.ts";

export class HeldFiles {
  readonly #held = new Map<Inode, { count: number; readonly over: Deferred }>();
  /** Whose size the kernel may not know, and in how many clones. */
  readonly #untold = new Map<Inode, number>();

  /** Until the function that is returned is called. */
  hold(...files: readonly Inode[]): () => void {
    for (const inode of files) {
      const known = this.#held.get(inode);
      if (known === undefined) this.#held.set(inode, { count: 1, over: deferred() });
      else known.count += 1;
    }
    return () => {
      for (const inode of files) this.#release(inode);
    };
  }

  #release(inode: Inode): void {
    const known = this.#held.get(inode);
    if (known === undefined) return;
    known.count -= 1;
    if (known.count > 0) return;
    this.#held.delete(inode);
    known.over.resolve();
  }

  /** Before its contents or its map change, or a part of it is leased. @throws Wait while a long change goes on */
  check(inode: Inode): void {
    const known = this.#held.get(inode);
    if (known !== undefined) throw new Wait("a long change", known.over.promise);
  }

  /** The target has become longer; until the function that is returned is called the kernel may think otherwise. */
  grown(target: Inode): () => void {
    this.#untold.set(target, (this.#untold.get(target) ?? 0) + 1);
    return () => {
      const left = (this.#untold.get(target) ?? 0) - 1;
      if (left > 0) this.#untold.set(target, left);
      else this.#untold.delete(target);
    };
  }

  /** The kernel may take the file to be shorter than it is. */
  isUntold(inode: Inode): boolean {
    return this.#untold.has(inode);
  }
}
