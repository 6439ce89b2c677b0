/** Answers to the questions of `mapdirect info`, `leases` and others: plain JSON objects with stable keys. */
import { FsError, InvariantError } from "../base/errors.ts";
import { featureNames } from "../fuse/init.ts";
import { opcodeName } from "../fuse/opcodes.ts";
import type { Request } from "../fuse/request.ts";
import { type Lease, remainingMs } from "../lease/table.ts";
import { Question } from "../lease/wire.ts";
import { ROOT_INO } from "../media/mkfs.ts";
import { checkVolume } from "../namespace/check.ts";
import type { Inode } from "../namespace/inode.ts";
import type { Session } from "./session.ts";

/** One lease, as `mapdirect leases --json` shows it. */
export interface LeaseReport {
  readonly id: number;
  readonly kind: "seal" | "breakable";
  readonly state: string;
  readonly pid: number;
  readonly uid: number;
  readonly command: string;
  readonly file: string;
  readonly inode: number;
  readonly offset: number;
  readonly length: number;
  /** Bytes that its holder keeps from being used again. */
  readonly quarantined: number;
  readonly age_s: number;
}

/** @throws FsError EACCES (leases of all are for root and whoever mounted), EINVAL (no such question). */
export function answer(session: Session, request: Request, question: number, argument: number): unknown {
  switch (question) {
    case Question.INFO:
      return info(session);
    case Question.LEASES:
      return listLeases(session, request, argument);
    case Question.STATS:
      return statistics(session);
    case Question.BREAK:
      administratorOnly(session, request);
      return breakOne(session, argument);
    case Question.CHECK:
      administratorOnly(session, request);
      return check(session);
    default:
      throw new FsError("EINVAL", `question ${question}`);
  }
}

/** A mistake of ours, once it is known, must not get onto the media: from then on nothing is written. */
function check(session: Session): { consistent: boolean; inodes: number; problem: string | null } {
  const { store } = session.volume;
  let problem: string | null = null;
  try {
    checkVolume(store);
  } catch (error) {
    if (!(error instanceof InvariantError)) throw error;
    problem = error.message;
    if (store.journal !== null) store.journal.failure ??= error;
  }
  return { consistent: problem === null, inodes: store.state.inodes.size, problem };
}

export function administratorOnly(session: Session, request: Request): void {
  if (request.uid !== 0 && request.uid !== session.options.uid) {
    throw new FsError("EACCES", "for root and whoever mounted");
  }
}

function info(session: Session): unknown {
  const negotiated = session.negotiated;
  const { options } = session.volume;
  return {
    ...session.volume.summary(),
    mount: {
      mountpoint: session.options.mountpoint,
      source: session.options.mountSource,
      pid: process.pid,
      uptime_s: Math.round((Date.now() - session.startedAtMs) / 1000),
      uid: session.options.uid,
      direct: options.direct,
      direct_socket: session.options.directSocket,
      break_time_s: options.breakTimeSeconds,
      max_leases: options.maxLeases,
      max_leased: options.maxLeasedBytes,
      leases: session.volume.leases.size,
      atime: session.options.atime,
    },
    fuse:
      negotiated === null
        ? null
        : {
            minor: negotiated.minor,
            kernel_minor: negotiated.kernelMinor,
            features: featureNames(negotiated.features),
            refused: negotiated.refused,
            max_write: negotiated.maxWriteBytes,
          },
  };
}

/** Any lease, seals too; all of them for 0. It ends when its holder lets go, at the latest at the deadline. */
function breakOne(session: Session, id: number): unknown {
  const { leases } = session.volume;
  if (id === 0) {
    const all = [...leases.all()];
    for (const lease of all) leases.breakLease(lease, "unmount");
    return { broken: all.length };
  }
  const lease = leases.byId(id);
  leases.breakLease(lease, "administrator");
  return { id, state: lease.state, remaining_ms: remainingMs(lease) };
}

/** Root and whoever mounted see all; others their own. `argument`: an inode number, or 0 for every file. */
function listLeases(session: Session, request: Request, argument: number): LeaseReport[] {
  const all = request.uid === 0 || request.uid === session.options.uid;
  const { leases, store } = session.volume;
  const quarantined = (lease: Lease): number => store.quarantine.heldFor(lease.id) * store.blockBytes;
  // An ended lease is of interest only for what it holds back.
  const lingering = [...leases.lingering()].filter((lease) => quarantined(lease) > 0);
  const found = [...leases.all(), ...lingering].filter(
    (lease) =>
      (argument === 0 || lease.inode.ino === argument) &&
      // Which leases lie on a file that one can open is no secret; who holds the others is.
      (all || argument !== 0 || lease.holder.uid === request.uid),
  );
  // Names are looked for in all directories: not for everybody, as often as they like.
  const paths = all ? pathsOf(session, new Set(found.map((lease) => lease.inode))) : new Map<Inode, string>();
  return found.map((lease) => ({
    id: lease.id,
    kind: lease.kind,
    state: lease.state,
    pid: lease.holder.pid,
    uid: lease.holder.uid,
    command: lease.holder.command,
    file: paths.get(lease.inode) ?? `inode ${lease.inode.ino}${lease.inode.nlink === 0 ? " (deleted)" : ""}`,
    inode: lease.inode.ino,
    offset: Number(lease.offset),
    length: Number(lease.length),
    quarantined: quarantined(lease),
    age_s: Math.round((Date.now() - lease.grantedAtMs) / 100) / 10,
  }));
}

/** One path for each inode that has a name. Inodes do not know their names, so this looks through all directories. */
function pathsOf(session: Session, wanted: ReadonlySet<Inode>): Map<Inode, string> {
  const found = new Map<Inode, string>();
  if (wanted.size === 0) return found;
  const { state } = session.volume.store;
  const parts = new Map<number, { parent: number; name: string }>();
  for (const inode of state.inodes.values()) {
    if (inode.directory === null) continue;
    for (const entry of inode.directory.names.values()) {
      const child = state.inodes.get(entry.ino);
      if (child === undefined) continue;
      if (child.directory !== null || wanted.has(child)) {
        parts.set(child.ino, { parent: inode.ino, name: entry.name });
      }
    }
  }
  for (const inode of wanted) {
    let path = "";
    let at = inode.ino;
    while (at !== ROOT_INO) {
      const part = parts.get(at);
      if (part === undefined) break;
      path = `/${Buffer.from(part.name, "latin1").toString("utf8")}${path}`;
      at = part.parent;
    }
    if (at === ROOT_INO) found.set(inode, `${session.options.mountpoint.replace(/\/$/, "")}${path}`);
  }
  return found;
}

function statistics(session: Session): unknown {
  const { store, leases: table } = session.volume;
  const operations: Record<string, number> = {};
  for (const [opcode, count] of session.counts.entries()) {
    if (count !== undefined) operations[opcodeName(opcode).toLowerCase()] = count;
  }
  return {
    operations,
    errors: session.errors,
    waiting: session.waiting,
    open_files: session.handles.size,
    leases: table.size,
    ...table.counts,
    checkpoints: store.counters.checkpoints,
    groups: store.counters.groups,
    longest_slice_ms: store.counters.longestSliceMs,
    log_bytes: store.journal?.chain.bytesWritten ?? 0,
    channel: session.channelCounters,
    memory_bytes: process.memoryUsage().rss,
  };
}
