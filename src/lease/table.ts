/**
 * Who has which part of a file mapped directly, and what that forbids.
 *
 * Invariants:
 * - a lease lives exactly as long as the open file description it was granted on (`end` is called from its release);
 * - while a lease lives, no record that changes the block map of its range is written: the namespace floor asks
 *   (MapGuard) before each such change, whatever operation it belongs to;
 * - leases are volatile: nothing of them is on the media.
 */
import { FsError } from "../base/errors.ts";
import type { Inode } from "../namespace/inode.ts";
import type { MapGuard } from "../namespace/store.ts";
import { LeaseFlag, LeaseKind } from "./wire.ts";

/** Who asks, as the kernel names them. */
export interface Holder {
  readonly pid: number;
  readonly uid: number;
  readonly command: string;
}

export interface Lease {
  readonly id: number;
  readonly kind: "seal" | "breakable";
  state: "held";
  readonly inode: Inode;
  /** Blocks of the file. */
  readonly block: number;
  readonly count: number;
  /** As asked for, bytes. */
  readonly offset: bigint;
  readonly length: bigint;
  /** LeaseFlag bits. */
  readonly flags: number;
  readonly holder: Holder;
  /** Bytes that count against the holder's limit: whole blocks. */
  readonly bytes: number;
  readonly grantedAtMs: number;
  /** Pages of the range that were in the page cache before the grant have been written back and dropped. */
  settled: boolean;
}

export interface LeasePolicy {
  /** What a mapping without a wish gets; "off" refuses all. */
  readonly direct: "seal" | "breakable" | "off";
  /** For each user but root. */
  readonly maxLeases: number;
  /** For each user but root, bytes. */
  readonly maxLeasedBytes: number;
}

/** For all users together, root included: bounds the daemon's memory. */
export const MOUNT_LEASES_MAX = 65536;

export interface GrantRequest {
  readonly inode: Inode;
  readonly kind: number;
  readonly flags: number;
  readonly offset: bigint;
  readonly length: bigint;
  readonly block: number;
  readonly count: number;
  readonly blockBytes: number;
  readonly holder: Holder;
}

export class LeaseTable implements MapGuard {
  readonly #policy: LeasePolicy;
  readonly #leases = new Map<number, Lease>();
  readonly #byInode = new Map<Inode, Set<Lease>>();
  #nextId = 1;
  /** How many operations were refused, for the statistics. */
  refusals = 0;
  /**
   * What to do about a conflict before it is answered with ETXTBSY: the session may wait (throw) for a release that is
   * on its way. Returns if the lease is there to stay.
   */
  onConflict: (lease: Lease) => void = () => {};

  constructor(policy: LeasePolicy) {
    this.#policy = policy;
  }

  get size(): number {
    return this.#leases.size;
  }

  get policy(): LeasePolicy {
    return this.#policy;
  }

  all(): IterableIterator<Lease> {
    return this.#leases.values();
  }

  /** Leases on a file, in the order of granting. */
  of(inode: Inode): readonly Lease[] {
    return [...(this.#byInode.get(inode) ?? [])];
  }

  isLeased(inode: Inode, block: number, count: number): boolean {
    return this.#overlapping(inode, block, count, () => true);
  }

  /** Leased, and nothing that was in the page cache before the grant can still be on its way. */
  isSettled(inode: Inode, block: number, count: number): boolean {
    return this.#overlapping(inode, block, count, (lease) => lease.settled);
  }

  #overlapping(inode: Inode, block: number, count: number, matches: (lease: Lease) => boolean): boolean {
    for (const lease of this.#byInode.get(inode) ?? []) {
      if (lease.block < block + count && block < lease.block + lease.count && matches(lease)) return true;
    }
    return false;
  }

  /**
   * Grant, or refuse as semantics R5 says.
   * @throws FsError EOPNOTSUPP (direct=off, breakable, unknown flags), EACCES (a seal for somebody else's file),
   *   EAGAIN with the limit that is exceeded.
   */
  grant(request: GrantRequest): Lease {
    const { inode, holder } = request;
    const policy = this.#policy;
    if (policy.direct === "off") throw new FsError("EOPNOTSUPP", "mounted with direct=off");
    if ((request.flags & ~(LeaseFlag.WHOLE_FILE | LeaseFlag.SYNC | LeaseFlag.PREPARE)) !== 0) {
      throw new FsError("EOPNOTSUPP", `lease flags 0x${request.flags.toString(16)}`);
    }
    const wished =
      request.kind === LeaseKind.DEFAULT
        ? policy.direct === "seal"
          ? LeaseKind.SEAL
          : LeaseKind.BREAKABLE
        : request.kind;
    if (wished !== LeaseKind.SEAL) {
      throw new FsError("EOPNOTSUPP", "this version grants seals only");
    }
    if (holder.uid !== 0 && holder.uid !== inode.uid) {
      throw new FsError("EACCES", "a seal is for the file's owner and root");
    }
    const bytes = request.count * request.blockBytes;
    if (this.#leases.size >= MOUNT_LEASES_MAX) {
      throw new FsError("EAGAIN", `${MOUNT_LEASES_MAX} leases in this mount`);
    }
    if (holder.uid !== 0) {
      let leases = 0;
      let leasedBytes = 0;
      for (const lease of this.#leases.values()) {
        if (lease.holder.uid !== holder.uid) continue;
        leases += 1;
        leasedBytes += lease.bytes;
      }
      if (leases >= policy.maxLeases) throw new FsError("EAGAIN", `max_leases=${policy.maxLeases}`);
      if (leasedBytes + bytes > policy.maxLeasedBytes) {
        throw new FsError("EAGAIN", `max_leased=${policy.maxLeasedBytes}`);
      }
    }
    const lease: Lease = {
      id: this.#nextId,
      kind: "seal",
      state: "held",
      inode,
      block: request.block,
      count: request.count,
      offset: request.offset,
      length: request.length,
      flags: request.flags,
      holder,
      bytes,
      grantedAtMs: Date.now(),
      settled: false,
    };
    this.#nextId += 1;
    this.#leases.set(lease.id, lease);
    const others = this.#byInode.get(inode);
    if (others === undefined) this.#byInode.set(inode, new Set([lease]));
    else others.add(lease);
    return lease;
  }

  end(lease: Lease): void {
    if (!this.#leases.delete(lease.id)) return;
    const others = this.#byInode.get(lease.inode);
    others?.delete(lease);
    if (others?.size === 0) this.#byInode.delete(lease.inode);
  }

  beforeMapChange(inode: Inode, block: number, count: number): void {
    const leases = this.#byInode.get(inode);
    if (leases === undefined) return;
    for (const lease of leases) {
      if (lease.block < block + count && block < lease.block + lease.count) this.#refuse(lease);
    }
  }

  beforeSizeChange(inode: Inode): void {
    const leases = this.#byInode.get(inode);
    if (leases === undefined) return;
    for (const lease of leases) {
      if ((lease.flags & LeaseFlag.WHOLE_FILE) !== 0) this.#refuse(lease);
    }
  }

  #refuse(lease: Lease): never {
    this.onConflict(lease);
    this.refusals += 1;
    throw new FsError(
      "ETXTBSY",
      `lease ${lease.id} of process ${lease.holder.pid} (${lease.holder.command})`,
    );
  }
}
