/**
 * Open files and directories, by the number that the kernel knows them by.
 *
 * Invariants: a number is never used twice; each handle counts once in its inode's `opens` from open to release.
 */
import { FsError } from "../base/errors.ts";
import type { Lease } from "../lease/table.ts";
import type { Inode } from "../namespace/inode.ts";

export const O_ACCMODE = 0o3;
export const O_RDONLY = 0;
export const O_RDWR = 2;
export const O_TRUNC = 0o1000;
export const O_APPEND = 0o2000;
export const O_NONBLOCK = 0o4000;
export const O_DSYNC = 0o10000;

export interface Handle {
  readonly fh: number;
  readonly inode: Inode;
  /** As given to open(2). */
  readonly flags: number;
  /** The lease that was granted on this open file description; it ends with it. */
  lease: Lease | null;
  /** Leases that ended before their open file description did: what they could reach is in quarantine until then. */
  readonly ended: Lease[];
  /** The lease that poll(2) and STATUS on this handle tell of. */
  watched: Lease | null;
  /** What the kernel wants to be woken by, while somebody polls this handle. */
  pollHandle: number | null;
}

export class Handles {
  readonly #open = new Map<number, Handle>();
  #next = 1;

  get size(): number {
    return this.#open.size;
  }

  /** The handle that the lease was granted on. */
  granted(lease: Lease): Handle | undefined {
    for (const handle of this.#open.values()) if (handle.lease === lease) return handle;
    return undefined;
  }

  *watching(lease: Lease): IterableIterator<Handle> {
    for (const handle of this.#open.values()) if (handle.watched === lease) yield handle;
  }

  add(inode: Inode, flags: number): Handle {
    const handle: Handle = {
      fh: this.#next,
      inode,
      flags,
      lease: null,
      ended: [],
      watched: null,
      pollHandle: null,
    };
    this.#next += 1;
    inode.opens += 1;
    this.#open.set(handle.fh, handle);
    return handle;
  }

  /** @throws FsError EBADF */
  get(fh: number): Handle {
    const handle = this.#open.get(fh);
    if (handle === undefined) throw new FsError("EBADF", `file handle ${fh}`);
    return handle;
  }

  remove(fh: number): Handle {
    const handle = this.get(fh);
    this.#open.delete(fh);
    handle.inode.opens -= 1;
    return handle;
  }
}
