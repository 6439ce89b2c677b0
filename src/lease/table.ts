/**
 * Who has which part of a file mapped directly, and what that forbids.
 *
 *            grant              conflict               deadline
 *     (none) ─────► held ─────────────────► breaking ───────────► revoked
 *                    │   (breakable lease,      │                    │
 *                    │    or an administrator)  │                    │
 *                    └──────────────────────────┴────────────────────┴──► gone: the holder has let go (says it: ended)
 *
 * Invariants:
 * - a lease lives exactly as long as the open file description it was granted on (`end` is called from its release) or
 *   until its holder ends it: nothing that the holder does or leaves undone makes it longer or shorter;
 * - while a seal is held, no record that changes the block map of its range is written; while a breakable lease is held
 *   or breaking, none is written before it has ended or its deadline has passed. The namespace floor asks (MapGuard)
 *   before each such change, whatever operation it belongs to;
 * - the deadline of a break never moves: more conflicts join it;
 * - from the deadline until the holder has let go, blocks that it could reach are in quarantine when they are freed;
 * - what a user can still reach counts against that user's limits, ended or not: nobody gets more space into quarantine
 *   than max_leased;
 * - leases are volatile: nothing of them is on the media.
 */
import { randomFillSync } from "node:crypto";
import { largest, smallest } from "../base/arrays.ts";
import { FsError } from "../base/errors.ts";
import { after } from "../base/faults.ts";
import { deferred, Wait } from "../base/wait.ts";
import type { Inode } from "../namespace/inode.ts";
import type { BlockRange, MapGuard } from "../namespace/store.ts";
import type { Run } from "../space/allocator.ts";
import { LEASE_FLAGS_KNOWN, LeaseFlag, LeaseKind } from "./wire.ts";

/** Who asks, as the kernel names them. */
export interface Holder {
  readonly pid: number;
  readonly uid: number;
  readonly command: string;
}

/** "ended": its holder says that it has let go, and the kernel has not confirmed it yet. */
export type LeaseState = "held" | "breaking" | "revoked" | "ended";

/** Why a lease is being broken: what the holder is told. Bytes of the file. */
export interface Break {
  readonly reason: "conflict" | "administrator" | "unmount";
  readonly offset: bigint;
  readonly length: bigint;
  readonly deadlineMs: number;
}

export interface Lease {
  readonly id: number;
  readonly kind: "seal" | "breakable";
  state: LeaseState;
  /** While breaking, and after. */
  break: Break | null;
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
  /** Random: whoever shows it acts for the holder. Ids are in the list of leases, and can be guessed. */
  readonly token: Uint8Array;
  /** Blocks of the region that the holder can reach. */
  readonly runs: readonly Run[];
  /** Bytes that count against the holder's limit: whole blocks. */
  readonly bytes: number;
  readonly grantedAtMs: number;
  /** Pages of the range that were in the page cache before the grant have been written back and dropped. */
  settled: boolean;
  /** Resolves when the lease no longer stands in anybody's way: ended, or revoked. */
  readonly yielded: Promise<void>;
}

interface LeaseInside extends Lease {
  yieldNow: () => void;
  timer: NodeJS.Timeout | null;
}

export interface LeasePolicy {
  /** What a mapping without a wish gets; "off" refuses all. */
  readonly direct: "seal" | "breakable" | "off";
  /** How long a lease may take to end when it is broken, seconds. */
  readonly breakTimeSeconds: number;
  /** For each user but root and whoever mounted. */
  readonly maxLeases: number;
  /** For each user but root and whoever mounted, bytes. */
  readonly maxLeasedBytes: number;
  /** Who mounted. */
  readonly administratorUid: number;
}

/** For all users together, root included: bounds the daemon's memory. */
export const MOUNT_LEASES_MAX = 65536;

/**
 * After a break nobody gets a new lease on that file for so long, milliseconds: the operation that waited is run first,
 * and somebody who asks again at once cannot hold it up for ever.
 */
const AFTER_BREAK_MS = 1000;

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

export interface LeaseEvents {
  /** The holder has to be told. */
  onBreak(lease: Lease): void;
  /** It stands in nobody's way any more, but its holder may still reach its blocks: quarantine them. */
  onRevoked(lease: Lease): void;
  /** The holder has let go. */
  onEnded(lease: Lease): void;
  /**
   * A seal is in the way. May throw a Wait if its release is on its way; returns if it is there to stay.
   */
  onRefusal(lease: Lease): void;
}

const TOKEN_BYTES = 16;
/** Random bytes for many tokens at a time: a call for each costs more than the rest of a grant. */
const randomness = { bytes: new Uint8Array(TOKEN_BYTES * 256), at: Number.MAX_SAFE_INTEGER };

function randomToken(): Uint8Array {
  if (randomness.at >= randomness.bytes.length) {
    randomFillSync(randomness.bytes);
    randomness.at = 0;
  }
  randomness.at += TOKEN_BYTES;
  return randomness.bytes.slice(randomness.at - TOKEN_BYTES, randomness.at);
}

const nobody: LeaseEvents = { onBreak() {}, onRevoked() {}, onEnded() {}, onRefusal() {} };

export class LeaseTable implements MapGuard {
  readonly #policy: LeasePolicy;
  readonly #leases = new Map<number, LeaseInside>();
  readonly #byInode = new Map<Inode, Set<LeaseInside>>();
  /** Ended, and not released yet. */
  readonly #lingering = new Set<LeaseInside>();
  /** When a new lease may be granted after a break; weak, because the file may be gone by then. */
  readonly #notBefore = new WeakMap<Inode, number>();
  #nextId = 1;
  events: LeaseEvents = nobody;
  /** The operation under way is an open(2) with O_TRUNC and O_NONBLOCK: it does not wait (semantics R15). */
  nonBlocking = false;
  /** For the statistics. */
  readonly counts = { grants: 0, refusals: 0, breaks: 0, revocations: 0 };

  constructor(policy: LeasePolicy) {
    this.#policy = policy;
  }

  get size(): number {
    return this.#leases.size;
  }

  get policy(): LeasePolicy {
    return this.#policy;
  }

  has(lease: Lease): boolean {
    return this.#leases.has(lease.id);
  }

  all(): IterableIterator<Lease> {
    return this.#leases.values();
  }

  /** Those that stand in nobody's way, but whose holders may still reach their blocks. */
  lingering(): Iterable<Lease> {
    return this.#lingering;
  }

  /** @throws FsError ENOENT */
  byId(id: number): Lease {
    const lease = this.#leases.get(id);
    if (lease === undefined) throw new FsError("ENOENT", `lease ${id}`);
    return lease;
  }

  /** Leases on a file, in the order of granting. */
  of(inode: Inode): readonly Lease[] {
    return [...(this.#byInode.get(inode) ?? [])];
  }

  /** There is a lease on some part of the file. */
  isAnyOf(inode: Inode): boolean {
    return this.#byInode.has(inode);
  }

  isLeased(inode: Inode, block: number, count: number): boolean {
    return this.#some(inode, block, count, (lease) => lease.state !== "revoked");
  }

  /** Leased, and all leases in the way yield to ordinary mappings. */
  isAutomatic(inode: Inode, block: number, count: number): boolean {
    return (
      this.isLeased(inode, block, count) &&
      !this.#some(inode, block, count, ({ state, flags }) => {
        return state !== "revoked" && (flags & LeaseFlag.AUTOMATIC) === 0;
      })
    );
  }

  /** Leased, and nothing that was in the page cache before the grant can still be on its way. */
  isSettled(inode: Inode, block: number, count: number): boolean {
    return this.#some(inode, block, count, (lease) => lease.settled && lease.state !== "revoked");
  }

  #some(inode: Inode, block: number, count: number, matches: (lease: Lease) => boolean): boolean {
    for (const lease of this.#byInode.get(inode) ?? []) {
      if (overlaps(lease, block, count) && matches(lease)) return true;
    }
    return false;
  }

  /**
   * Grant, or refuse as semantics R5 and R16 say. The caller has checked the descriptor and the range.
   * @throws FsError EOPNOTSUPP (direct=off, unknown flags), EACCES (a seal for somebody else's file), EAGAIN (a break
   *   is pending or has just ended; or a limit, which the message names).
   */
  grant(request: GrantRequest): Lease {
    const { inode, holder } = request;
    const policy = this.#policy;
    if (policy.direct === "off") throw new FsError("EOPNOTSUPP", "mounted with direct=off");
    if ((request.flags & ~LEASE_FLAGS_KNOWN) !== 0) {
      throw new FsError("EOPNOTSUPP", `lease flags 0x${request.flags.toString(16)}`);
    }
    const wished =
      request.kind === LeaseKind.DEFAULT
        ? policy.direct
        : request.kind === LeaseKind.SEAL
          ? "seal"
          : "breakable";
    if (wished === "seal" && (request.flags & LeaseFlag.AUTOMATIC) !== 0) {
      throw new FsError("EINVAL", "a lease that yields to ordinary mappings is a breakable one");
    }
    if (wished === "seal" && holder.uid !== 0 && holder.uid !== inode.uid) {
      throw new FsError("EACCES", "a seal is for the file's owner and root");
    }
    if (this.#some(inode, request.block, request.count, (lease) => lease.state === "breaking")) {
      throw new FsError("EAGAIN", "a lease on this range is being broken");
    }
    const notBefore = this.#notBefore.get(inode);
    if (notBefore !== undefined) {
      if (Date.now() < notBefore) throw new FsError("EAGAIN", "a lease on this file has just been broken");
      this.#notBefore.delete(inode);
    }
    const bytes = request.count * request.blockBytes;
    this.#checkLimits(holder, bytes);
    const { promise: yielded, resolve: yieldNow } = deferred();
    const lease: LeaseInside = {
      id: this.#nextId,
      kind: wished,
      state: "held",
      break: null,
      inode,
      block: request.block,
      count: request.count,
      offset: request.offset,
      length: request.length,
      flags: request.flags,
      holder,
      token: randomToken(),
      runs: reachable(inode, request.block, request.count),
      bytes,
      grantedAtMs: Date.now(),
      settled: false,
      yielded,
      yieldNow,
      timer: null,
    };
    this.#nextId += 1;
    this.counts.grants += 1;
    this.#leases.set(lease.id, lease);
    const others = this.#byInode.get(inode);
    if (others === undefined) this.#byInode.set(inode, new Set([lease]));
    else others.add(lease);
    return lease;
  }

  #checkLimits(holder: Holder, bytes: number): void {
    const { maxLeases, maxLeasedBytes, administratorUid } = this.#policy;
    if (this.#leases.size + this.#lingering.size >= MOUNT_LEASES_MAX) {
      throw new FsError("EAGAIN", `${MOUNT_LEASES_MAX} leases in this mount`);
    }
    if (holder.uid === 0 || holder.uid === administratorUid) return;
    let leases = 0;
    let leasedBytes = 0;
    for (const held of [this.#leases.values(), this.#lingering]) {
      for (const lease of held) {
        if (lease.holder.uid !== holder.uid) continue;
        leases += 1;
        leasedBytes += lease.bytes;
      }
    }
    if (leases >= maxLeases) throw new FsError("EAGAIN", `max_leases=${maxLeases}`);
    if (leasedBytes + bytes > maxLeasedBytes) throw new FsError("EAGAIN", `max_leased=${maxLeasedBytes}`);
  }

  /** The open file description is released: nobody has the range mapped any more. */
  end(lease: Lease): void {
    if (this.#remove(lease) || this.#lingering.delete(lease as LeaseInside)) this.events.onEnded(lease);
  }

  /**
   * The holder says that it has unmapped the range. Nothing waits for it any more, but only the release proves it: until
   * then what it could reach stays in quarantine.
   */
  letGo(lease: Lease): void {
    const wasRevoked = lease.state === "revoked";
    if (!this.#remove(lease)) return;
    lease.state = "ended";
    this.#lingering.add(lease as LeaseInside);
    if (!wasRevoked) this.events.onRevoked(lease);
  }

  #remove(lease: Lease): boolean {
    const inside = this.#leases.get(lease.id);
    if (inside === undefined) return false;
    this.#leases.delete(lease.id);
    const others = this.#byInode.get(lease.inode);
    others?.delete(inside);
    if (others?.size === 0) this.#byInode.delete(lease.inode);
    if (inside.timer !== null) clearTimeout(inside.timer);
    if (lease.state === "breaking") this.#notBefore.set(lease.inode, Date.now() + AFTER_BREAK_MS);
    inside.yieldNow();
    return true;
  }

  /** Begin to break a lease, whatever its kind; one that is being broken already keeps its deadline. */
  breakLease(lease: Lease, reason: Break["reason"], offset = lease.offset, length = lease.length): void {
    const inside = this.#leases.get(lease.id);
    if (inside === undefined || inside.state !== "held") return;
    const waitMs = this.#policy.breakTimeSeconds * 1000;
    inside.state = "breaking";
    inside.break = { reason, offset, length, deadlineMs: Date.now() + waitMs };
    this.counts.breaks += 1;
    inside.timer = after(waitMs, "revoking a lease", () => this.#revoke(inside));
    this.events.onBreak(lease);
  }

  /** The deadline has passed. */
  #revoke(lease: LeaseInside): void {
    lease.timer = null;
    lease.state = "revoked";
    this.#notBefore.set(lease.inode, Date.now() + AFTER_BREAK_MS);
    this.counts.revocations += 1;
    try {
      this.events.onRevoked(lease);
    } finally {
      // Whoever waits goes on, and hears what has become of the volume.
      lease.yieldNow();
    }
  }

  beforeMapChange(inode: Inode, changes: readonly BlockRange[]): void {
    this.#yieldTo(inode, changes, (lease) =>
      changes.some(({ block, count }) => overlaps(lease, block, count)),
    );
  }

  beforeSizeChange(inode: Inode): void {
    const all = { block: 0, count: Number.MAX_SAFE_INTEGER };
    this.#yieldTo(inode, [all], (lease) => (lease.flags & LeaseFlag.WHOLE_FILE) !== 0);
  }

  /** Whatever its kind and state: who may still reach a block there would go on storing to where no file is any more. */
  beforeTailMoves(end: number): void {
    for (const held of [this.#leases.values(), this.#lingering]) {
      for (const lease of held) {
        if (!lease.runs.some((run) => run.start + run.count > end)) continue;
        this.events.onRefusal(lease);
        this.counts.refusals += 1;
        const { pid, command } = lease.holder;
        throw new FsError("ETXTBSY", `lease ${lease.id} of process ${pid} (${command}) pins blocks there`);
      }
    }
  }

  /** Returns if nothing is in the way; otherwise refuses (ETXTBSY), or breaks what can be broken and waits for it. */
  #yieldTo(inode: Inode, changes: readonly BlockRange[], matches: (lease: Lease) => boolean): void {
    const leases = this.#byInode.get(inode);
    if (leases === undefined) return;
    const inTheWay = [...leases].filter((lease) => lease.state !== "revoked" && matches(lease));
    if (inTheWay.length === 0) return;
    for (const lease of inTheWay) {
      if (lease.kind === "breakable" || lease.state === "breaking") continue;
      this.events.onRefusal(lease);
      this.counts.refusals += 1;
      throw new FsError(
        "ETXTBSY",
        `lease ${lease.id} of process ${lease.holder.pid} (${lease.holder.command})`,
      );
    }
    // All at once: several holders take no longer than one.
    for (const lease of inTheWay) {
      const parts = changes.filter(({ block, count }) => overlaps(lease, block, count));
      const first = Math.max(
        lease.block,
        smallest(parts, ({ block }) => block),
      );
      const last = Math.min(
        lease.block + lease.count,
        largest(parts, ({ block, count }) => block + count),
      );
      const blockBytes = BigInt(lease.bytes / lease.count);
      this.breakLease(lease, "conflict", BigInt(first) * blockBytes, BigInt(last - first) * blockBytes);
    }
    if (this.nonBlocking) throw new FsError("EAGAIN", "a lease is being broken");
    throw new Wait(
      "leases",
      Promise.all(inTheWay.map((lease) => lease.yielded)).then(() => {}),
    );
  }

  /** The mount ends: no timer may fire any more. */
  close(): void {
    for (const lease of this.#leases.values()) if (lease.timer !== null) clearTimeout(lease.timer);
  }
}

/** How long a lease that is being broken has left, milliseconds; 0 for any other. */
export function remainingMs(lease: Lease): number {
  if (lease.state !== "breaking" || lease.break === null) return 0;
  return Math.max(0, lease.break.deadlineMs - Date.now());
}

function overlaps(lease: Lease, block: number, count: number): boolean {
  return lease.block < block + count && block < lease.block + lease.count;
}

/** How blocks under this lease are to be shown; null when it stands in nobody's way any more. */
export function leaseMark({ state, kind }: Lease): "leased" | "sealed" | "breaking" | null {
  if (state === "breaking") return "breaking";
  if (state !== "held") return null;
  return kind === "seal" ? "sealed" : "leased";
}

/** Blocks of the region behind a range of a file: what a mapping of it reaches. The range's map is pinned from now on. */
export function reachable(inode: Inode, block: number, count: number): Run[] {
  const runs: Run[] = [];
  const end = block + count;
  for (let piece = inode.extents?.next(block) ?? null; piece !== null && piece.block < end; ) {
    const length = Math.min(piece.count, end - piece.block);
    runs.push({ start: piece.physical, count: length });
    piece = inode.extents?.next(piece.block + piece.count) ?? null;
  }
  return runs;
}
