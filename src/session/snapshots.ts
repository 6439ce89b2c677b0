/**
 * Copies of a mounted volume as it was at one moment (space/copy-before-write.ts), one at a time.
 *
 * Invariants:
 * - the copy is bound to the open file description that began it: however its process ends, the daemon is rid of it;
 * - what direct mappings store, nobody can set aside. A copy does not begin while somebody can store so, unless the caller
 *   takes these ranges as they come; and while it goes on, a grant waits until its range is copied.
 */
import { FsError } from "../base/errors.ts";
import { settledOrAborted } from "../base/wait.ts";
import { reachable } from "../lease/table.ts";
import type { Inode } from "../namespace/inode.ts";
import { CopyBeforeWrite, type Portion } from "../space/copy-before-write.ts";
import type { Handle } from "./handles.ts";
import type { Volume } from "./volume.ts";

/**
 * A grant waits so long for its blocks to be copied, milliseconds. Not longer: the client library does nothing else
 * meanwhile, and the program cannot fork.
 */
const GRANT_WAIT_MS = 2000;

export class Snapshots {
  #copy: CopyBeforeWrite | null = null;
  #handle: Handle | null = null;

  /** What writers wait for when too much has been set aside; null if they may go on. */
  get full(): Promise<void> | null {
    return this.#copy === null ? null : this.#copy.full;
  }

  get leftBytes(): number {
    return this.#copy?.leftBytes ?? 0;
  }

  /** @throws FsError EBUSY (another one is under way), ETXTBSY (direct mappings), EIO */
  begin(volume: Volume, handle: Handle, mappedToo: boolean): void {
    if (this.#copy !== null) throw new FsError("EBUSY", "another snapshot is being taken");
    const { store, leases } = volume;
    if (!mappedToo && (leases.size > 0 || store.quarantine.claims > 0)) {
      throw new FsError("ETXTBSY", "files are mapped directly");
    }
    const { region, blockBytes, allocator, pool, quarantine } = store;
    const except = [...pool.runs(), ...quarantine.heldRuns(), ...store.pendingRuns()];
    this.#copy = new CopyBeforeWrite({ region, blockBytes, allocator, except });
    this.#handle = handle;
  }

  /** @throws FsError EINVAL (none was begun here), ECANCELED (given up), EIO */
  next(handle: Handle, runsMax: number, piecesMax: number): Portion {
    if (this.#copy === null || this.#handle !== handle)
      throw new FsError("EINVAL", "no snapshot was begun on this open file");
    return this.#copy.advance(runsMax, piecesMax);
  }

  /** Null if all of these blocks are copied; else what to wait for before asking again. */
  copying(inode: Inode, block: number, count: number): Promise<void> | null {
    return this.#copy === null ? null : this.#copy.copying(reachable(inode, block, count));
  }

  /**
   * Blocks of a file are about to be mapped directly: returns at once, or when they are copied. What the file gets from
   * then on the daemon has stored to, and so set aside.
   * @throws FsError EAGAIN: that takes too long for a program that waits, EINTR
   */
  async copied(inode: Inode, block: number, count: number, signal: AbortSignal): Promise<void> {
    const until = AbortSignal.any([signal, AbortSignal.timeout(GRANT_WAIT_MS)]);
    for (;;) {
      const copying = this.copying(inode, block, count);
      if (copying === null) return;
      if (signal.aborted) throw new FsError("EINTR");
      if (until.aborted) throw new FsError("EAGAIN", "a snapshot of these blocks is being taken");
      await settledOrAborted(copying, until);
    }
  }

  /** An open file description is gone. */
  closed(handle: Handle): void {
    if (handle === this.#handle) this.end();
  }

  end(): void {
    this.#copy?.end();
    this.#copy = null;
    this.#handle = null;
  }
}
