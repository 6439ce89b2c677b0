/** Answers to the questions of `mapdirect info`, `leases` and others: plain JSON objects with stable keys. */
import { FsError, InvariantError } from "../base/errors.ts";
import { inSlices } from "../base/slices.ts";
import { featureNames } from "../fuse/init.ts";
import type { Request } from "../fuse/request.ts";
import { type Lease, remainingMs } from "../lease/table.ts";
import { Question } from "../lease/wire.ts";
import { ROOT_INO } from "../media/mkfs.ts";
import { pathsOf } from "../namespace/blockmap.ts";
import { checkVolume } from "../namespace/check.ts";
import type { Inode } from "../namespace/inode.ts";
import type { Resized } from "../namespace/resize.ts";
import { type Pace, resizeMounted } from "../namespace/resize-mounted.ts";
import { packageVersion } from "../region/addon.ts";
import { fileName, mapReport, whereReport } from "./blockmap.ts";
import type { Handle } from "./handles.ts";
import { orphanReport } from "./orphan-report.ts";
import type { Session } from "./session.ts";
import { statistics } from "./statistics.ts";

/** Of this daemon, whatever is installed by now. */
const VERSION = packageVersion();

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

/** What a question that was refused says, where a number would not say enough. */
export interface Refusal {
  readonly refused: { readonly code: string; readonly message: string };
}

/**
 * What takes long is done in slices, others being served meanwhile.
 * @throws FsError EACCES (some are for root and whoever mounted), EINVAL (no such question), EINTR.
 */
export async function answer(
  session: Session,
  request: Request,
  handle: Handle,
  question: number,
  argument: number,
  signal: AbortSignal,
): Promise<unknown> {
  const { volume, options } = session;
  switch (question) {
    case Question.INFO:
      return info(session);
    case Question.LEASES:
      return await listLeases(session, request, handle, argument, signal);
    case Question.ORPHANS: {
      const all = request.uid === 0 || request.uid === options.uid;
      return await inSlices(orphanReport(volume, options.mountpoint, all ? null : request.uid), signal);
    }
    case Question.STATS:
      return statistics(session);
    case Question.BREAK:
      administratorOnly(session, request);
      return breakOne(session, argument);
    case Question.CHECK:
      administratorOnly(session, request);
      return check(session);
    case Question.MAP:
      administratorOnly(session, request);
      return await inSlices(mapReport(volume, argument, options.mountpoint), signal);
    case Question.WHERE:
      administratorOnly(session, request);
      return await inSlices(whereReport(volume, argument, options.mountpoint), signal);
    case Question.RESIZE:
      administratorOnly(session, request);
      return resize(session, argument, signal);
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

async function resize(session: Session, bytes: number, signal: AbortSignal): Promise<Resized | Refusal> {
  const pace: Pace = {
    run: (operation) => session.retry(operation, signal),
    pause: async () => {
      await new Promise((resolve) => setImmediate(resolve));
      if (signal.aborted) throw new FsError("EINTR");
    },
  };
  try {
    // What is copied is the volume as large as it was.
    if (session.snapshots.leftBytes > 0)
      throw new FsError("EBUSY", "a snapshot is being taken; wait until it is done");
    return await resizeMounted(session.volume.store, bytes, pace);
  } catch (error) {
    if (!(error instanceof FsError) || error.code === "EINTR") throw error;
    return { refused: { code: error.code, message: error.message } };
  }
}

/** @throws FsError EACCES */
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
      version: VERSION,
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
      log: session.options.log,
      cache: session.options.cache,
    },
    fuse:
      negotiated === null
        ? null
        : {
            transport: session.overRing ? "io_uring" : "kernel",
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

/**
 * Root and whoever mounted see all; others their own, and those on the file that they ask on. `argument`: an inode
 * number, or 0 for every file.
 */
async function listLeases(
  session: Session,
  request: Request,
  handle: Handle,
  argument: number,
  signal: AbortSignal,
): Promise<LeaseReport[]> {
  const all = request.uid === 0 || request.uid === session.options.uid;
  const { leases, store } = session.volume;
  const quarantined = (lease: Lease): number => store.quarantine.heldFor(lease.id) * store.blockBytes;
  // An ended lease is of interest only for what it holds back.
  const lingering = [...leases.lingering()].filter((lease) => quarantined(lease) > 0);
  const found = [...leases.all(), ...lingering].filter(
    (lease) =>
      (argument === 0 || lease.inode.ino === argument) &&
      // Which leases lie on a file that one can open is no secret; who holds the others is. An inode number is no proof.
      (all || (argument !== 0 && lease.inode === handle.inode) || lease.holder.uid === request.uid),
  );
  // Names are looked for in all directories: not for everybody, as often as they like.
  const wanted = new Set(all ? found.map((lease) => lease.inode) : []);
  const report = (paths: ReadonlyMap<Inode, string>): LeaseReport[] =>
    found.map((lease) => ({
      id: lease.id,
      kind: lease.kind,
      state: lease.state,
      pid: lease.holder.pid,
      uid: lease.holder.uid,
      command: lease.holder.command,
      file: fileName(session.options.mountpoint, paths, lease.inode),
      inode: lease.inode.ino,
      offset: Number(lease.offset),
      length: Number(lease.length),
      quarantined: quarantined(lease),
      age_s: Math.round((Date.now() - lease.grantedAtMs) / 100) / 10,
    }));
  return report(await inSlices(pathsOf(store.state, ROOT_INO, wanted), signal));
}
