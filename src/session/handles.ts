/**
 * Open files and directories, by the number that the kernel knows them by.
 *
 * Invariants:
 * - a number is never used twice; each handle counts once in its inode's `opens` from open to release;
 * - `#granted` and `#watching` say of a lease what `lease` and `watched` say of the handles: leases come and go with every
 *   mapping, so who has to be told is found without looking through all open files.
 */
import { FsError } from "../base/errors.ts";
import type { Lease } from "../lease/table.ts";
import type { Inode } from "../namespace/inode.ts";

export interface Handle {
  readonly fh: number;
  readonly inode: Inode;
  /** As given to open(2). */
  readonly flags: number;
  /** The lease that was granted on this open file description; it ends with it. */
  readonly lease: Lease | null;
  /** Leases that ended before their open file description did: what they could reach is in quarantine until then. */
  readonly ended: Lease[];
  /** The lease that poll(2) and STATUS on this handle tell of. */
  readonly watched: Lease | null;
  /** What the kernel wants to be woken by, while somebody polls this handle. */
  pollHandle: number | null;
}

interface HandleInside extends Handle {
  lease: Lease | null;
  watched: Lease | null;
}

export class Handles {
  readonly #open = new Map<number, HandleInside>();
  readonly #granted = new Map<Lease, HandleInside>();
  readonly #watching = new Map<Lease, Set<HandleInside>>();
  #next = 1;

  get size(): number {
    return this.#open.size;
  }

  /** The handle that the lease was granted on. */
  granted(lease: Lease): Handle | undefined {
    return this.#granted.get(lease);
  }

  watching(lease: Lease): Iterable<Handle> {
    return this.#watching.get(lease) ?? [];
  }

  /** The lease was granted on this handle (which had none), or, with null, is no longer. */
  setLease(handle: Handle, lease: Lease | null): void {
    const inside = this.#inside(handle.fh);
    if (inside.lease !== null) this.#granted.delete(inside.lease);
    inside.lease = lease;
    if (lease !== null) this.#granted.set(lease, inside);
  }

  /** poll(2) on this handle tells of that lease from now on. */
  setWatched(handle: Handle, lease: Lease | null): void {
    const inside = this.#inside(handle.fh);
    if (inside.watched !== null) {
      const others = this.#watching.get(inside.watched);
      others?.delete(inside);
      if (others?.size === 0) this.#watching.delete(inside.watched);
    }
    inside.watched = lease;
    if (lease === null) return;
    const others = this.#watching.get(lease);
    if (others === undefined) this.#watching.set(lease, new Set([inside]));
    else others.add(inside);
  }

  add(inode: Inode, flags: number): Handle {
    const handle: HandleInside = {
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
    return this.#inside(fh);
  }

  #inside(fh: number): HandleInside {
    const handle = this.#open.get(fh);
    if (handle === undefined) throw new FsError("EBADF", `file handle ${fh}`);
    return handle;
  }

  remove(fh: number): Handle {
    const handle = this.#inside(fh);
    this.setWatched(handle, null);
    this.#open.delete(fh);
    handle.inode.opens -= 1;
    return handle;
  }
}
