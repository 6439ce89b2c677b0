/**
 * Open files and directories, by the number that the kernel knows them by.
 *
 * Invariants:
 * - a number is never used twice; each handle counts once in its inode's `opens` from open to release;
 * - `#granted` and `#watching` say of a lease what `lease` and `watched` say of the handles: leases come and go with every
 *   mapping, so who has to be told is found without looking through all open files.
 */
import { randomBytes } from "node:crypto";
import { FsError } from "../base/errors.ts";
import type { Lease } from "../lease/table.ts";
import type { Inode } from "../namespace/inode.ts";
import type { Dump } from "./dumps.ts";

export interface Handle {
  readonly fh: number;
  readonly inode: Inode;
  /** As given to open(2). */
  readonly flags: number;
  /** Opened with FOPEN_DIRECT_IO: read(2) and write(2) do not go through the page cache. */
  readonly direct: boolean;
  /** The lease that was granted on this open file description; it ends with it. */
  readonly lease: Lease | null;
  /** Leases that ended before their open file description did: what they could reach is in quarantine until then. */
  readonly ended: Lease[];
  /** The lease that poll(2) and STATUS on this handle tell of. */
  readonly watched: Lease | null;
  /** Directories: entries from this cookie on were made since it was opened or rewound, and are not reported. */
  end: number;
  /** What the kernel wants to be woken by, while somebody polls this handle. */
  pollHandle: number | null;
  /** Asked for on this handle, and not yet read to its end. */
  dump: Dump | null;
}

interface HandleInside extends Handle {
  lease: Lease | null;
  watched: Lease | null;
}

export class Handles {
  readonly #open = new Map<number, HandleInside>();
  readonly #granted = new Map<Lease, HandleInside>();
  readonly #watching = new Map<Lease, Set<HandleInside>>();
  /** Offered as the source of a clone, by token: who knows it was told by somebody who had the file open. */
  readonly #offered = new Map<string, Handle>();
  readonly #tokens = new Map<number, string>();
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

  /** A token by which another open file can name this one; the same each time. */
  offer(handle: Handle): Uint8Array {
    let token = this.#tokens.get(handle.fh);
    if (token === undefined) {
      token = randomBytes(16).toString("hex");
      this.#tokens.set(handle.fh, token);
      this.#offered.set(token, handle);
    }
    return Buffer.from(token, "hex");
  }

  /** @throws FsError ESTALE: never offered, or closed since */
  offered(token: Uint8Array): Handle {
    const handle = this.#offered.get(Buffer.from(token).toString("hex"));
    if (handle === undefined) throw new FsError("ESTALE", "the source is not open any more");
    return handle;
  }

  add(inode: Inode, flags: number, direct = false): Handle {
    const handle: HandleInside = {
      fh: this.#next,
      inode,
      flags,
      direct,
      lease: null,
      ended: [],
      watched: null,
      pollHandle: null,
      dump: null,
      end: Number.MAX_SAFE_INTEGER,
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
    handle.dump?.close();
    this.#open.delete(fh);
    const token = this.#tokens.get(fh);
    if (token !== undefined) this.#offered.delete(token);
    this.#tokens.delete(fh);
    handle.inode.opens -= 1;
    return handle;
  }
}
