/**
 * The life of a daemon: open the region, recover the volume, mount, serve, and put everything away in reverse order.
 *
 * Invariants:
 * - the region's lock is held from before the first read to after the last write: a second daemon never sees a volume
 *   that is still being written;
 * - readiness is told only after the mount has answered a request;
 * - however the mount ends (umount, fusermount3 -u, a signal, an abort of the connection), the volume is closed with a
 *   checkpoint, and the exit code is 0 exactly when that worked;
 * - the daemon never makes a blocking call on its own mount: it would wait for itself.
 */
import { statfs } from "node:fs/promises";
import { Socket } from "node:net";
import { firstFew } from "../base/arrays.ts";
import { Errno } from "../base/errno.ts";
import { fault, guarded, inBackground } from "../base/faults.ts";
import { listenToProgress } from "../base/progress.ts";
import { loadFuseNative, type NativeRing } from "../region/addon.ts";
import { openFuseRing } from "../region/fuse-ring.ts";
import { type FuseMount, openFuseMount, unmountFuse } from "../region/fusemount.ts";
import { FuseNativeChannel } from "../session/fuse-native.ts";
import { HugePages } from "../session/huge-pages.ts";
import { Session, TRANSFER_BYTES_MAX } from "../session/session.ts";
import { statistics } from "../session/statistics.ts";
import { Volume } from "../session/volume.ts";
import { Door } from "./door.ts";
import { asFailure, errnoOf, Failure, reason } from "./failure.ts";
import { Faults } from "./faults.ts";
import { identify, refuseTwin } from "./identify.ts";
import type { Log } from "./log.ts";
import { showLogTarget } from "./log-target.ts";
import type { Metrics } from "./metrics.ts";
import { FS_TYPE, mountAt } from "./mounts.ts";
import { leasePolicy, type MountOptions, mountWords } from "./options.ts";
import type { Readiness } from "./readiness.ts";
import { openRegionOrExplain } from "./region.ts";

export interface DaemonRequest {
  /** Absolute paths. */
  region: string;
  mountpoint: string;
  options: MountOptions;
  debug: boolean;
  /** Says why there is no mount to whoever does not see the log. */
  complain?: ((text: string) => void) | undefined;
  /** Begins the log's file anew, if it is one: what whoever rotates it asks for with SIGHUP. */
  reopenLog?: (() => Promise<void>) | undefined;
  /** A descriptor at whose end the daemon unmounts, as at SIGTERM: the other end is in the process that it serves. */
  whileFd?: number | undefined;
}

/** How long users of a mount that was asked to end by a signal have until the connection is cut. */
const LAZY_GRACE_MS = 2_000;

export async function runDaemon(request: DaemonRequest, log: Log, readiness: Readiness): Promise<number> {
  // A working directory would keep another file system from being unmounted.
  process.chdir("/");
  const faults = new Faults(log);
  // From the beginning: it would end a daemon that still recovers.
  process.on("SIGHUP", () => hangUp(request, log));
  try {
    return await serve(request, log, readiness, faults);
  } catch (error) {
    const failure = asFailure(error, request.region);
    readiness.failed(failure);
    log.error(failure.message);
    request.complain?.(failure.message);
    if (failure !== error && error instanceof Error) log.debug(error.stack ?? "");
    return failure.exitCode;
  }
}

async function serve(
  request: DaemonRequest,
  log: Log,
  readiness: Readiness,
  faults: Faults,
): Promise<number> {
  const { options, mountpoint } = request;
  const region = openRegionOrExplain(request.region, options);
  try {
    if (!options.sameUuidToo) {
      const uuid = identify(request.region)?.uuid;
      if (uuid !== undefined) refuseTwin(request.region, uuid);
    }
    listenToProgress((step, done, total) => readiness.progress(step, done, total));
    const volume = await Volume.open(region, {
      readOnly: options.readOnly,
      rescue: options.rescue,
      discardAfterSeconds: options.discard ? options.discardDelaySeconds : null,
      tell: (text) => log.warn(text),
      ...leasePolicy(options, region.facts.sizeBytes, process.getuid?.() ?? 0),
    });
    listenToProgress(null);
    for (const warning of volume.orphanWarnings) log.warn(warning);
    if (options.rescue) for (const warning of firstFew(volume.store.recovery.warnings, 10)) log.warn(warning);
    let served = false;
    let door: Door | undefined;
    let metrics: Metrics | undefined;
    let session: Session | undefined;
    let pages: HugePages | undefined;
    try {
      if (options.metrics !== null) {
        // Loaded only where it is wanted: it takes as long as all the rest of a start.
        const { Metrics: Opened } = await import("./metrics.ts");
        const look = () => (session === undefined ? null : statistics(session));
        metrics = await Opened.open(options.metrics, mountpoint, look, log);
      }
      if (options.directGroup !== null && !options.readOnly) {
        door = await Door.open(region, options.directGroup, log);
      } else Door.clear(region);
      const ring = options.transport === "io_uring" ? openRingOrExplain() : null;
      const mount = options.transport === "fuse-native" ? null : await mountVolume(request);
      session = new Session(volume, {
        uid: process.getuid?.() ?? 0,
        debug: request.debug ? (text) => log.debug(text) : null,
        warn: (text) => log.warn(text),
        mountSource: request.region,
        mountpoint,
        directSocket: door?.path ?? "",
        log: options.log === null ? "stderr" : showLogTarget(options.log),
        atime: options.atime,
        noDirectoryAtime: options.noDirectoryAtime,
        synchronous: options.restrictions.has("sync")
          ? "all"
          : options.restrictions.has("dirsync")
            ? "names"
            : null,
        // fuse-native does not say how a file is to be opened.
        cache: options.transport === "fuse-native" ? "never" : options.cache,
        ring,
      });
      if (mount === null) await mountThroughFuseNative(request, session, log);
      else session.attach(mount.device);
      const mountId = mountAt(mountpoint)?.id;
      const answered = statfs(mountpoint).then(() => true);
      const ended = session.ended.then(() => false);
      if (!(await Promise.race([answered, ended]))) {
        throw new Failure(mountpoint, "the kernel ended the connection at once", "see dmesg, and --debug");
      }
      answered.catch(() => {});
      if (metrics !== undefined) log.info(`metrics are at ${metrics.address}`);
      if (!options.readOnly) {
        const gathered = new HugePages(region.native, () => region.facts.sizeBytes);
        volume.store.discards.onDiscard = (offset, length) => gathered.forget(offset, length);
        pages = gathered;
      }
      faults.serve(volume);
      log.info(`${request.region} is mounted on ${mountpoint}, pid ${process.pid}`);
      readiness.ready();
      const breakLeases = guarded("breaking all leases", () => {
        for (const lease of [...volume.leases.all()]) volume.leases.breakLease(lease, "unmount");
      });
      const signals = unmountOnSignals(mountpoint, session.ended, log, breakLeases);
      if (request.whileFd !== undefined) unmountAtEndOf(request.whileFd);
      await Promise.race([session.ended, signals.cut]);
      signals.ignore();
      await session.close();
      await removeLeftover(mountpoint, mountId, log);
      served = true;
    } finally {
      // None of these keeps the volume from being closed.
      guarded("closing the door", () => door?.close())();
      await metrics?.close().catch((error: unknown) => fault("closing the metrics", error));
      await pages?.close();
      await volume.close();
      faults.serve(null);
      if (served) log.info(`${request.region} is unmounted, its volume closed`);
    }
  } finally {
    region.close();
  }
  return 0;
}

function unmountAtEndOf(descriptor: number): void {
  const pipe = new Socket({ fd: descriptor, readable: true, writable: false });
  pipe.on("error", () => {});
  pipe.on("close", () => process.kill(process.pid, "SIGTERM"));
  pipe.resume();
  pipe.unref();
}

function openRingOrExplain(): NativeRing {
  try {
    return openFuseRing(TRANSFER_BYTES_MAX);
  } catch (error) {
    throw new Failure("transport=io_uring", reason(error), "or mount without that option");
  }
}

function mountVolume(request: DaemonRequest): Promise<FuseMount> {
  const asRoot = process.geteuid?.() === 0;
  return openFuseMount({
    source: request.region,
    mountpoint: request.mountpoint,
    options: mountWords(request.options, asRoot),
    fsType: FS_TYPE,
  }).catch((error: unknown) => {
    throw asFailure(error, request.mountpoint, "see 'mapdirect mount --help'");
  });
}

async function mountThroughFuseNative(request: DaemonRequest, session: Session, log: Log): Promise<void> {
  const { mountpoint, options } = request;
  let native: ReturnType<typeof loadFuseNative>;
  try {
    native = loadFuseNative();
  } catch (error) {
    throw new Failure(
      "transport=fuse-native",
      reason(error),
      "mount without that option, or install the package with 'npm install fuse-native'",
    );
  }
  if (/[,\\]/.test(request.region)) {
    throw new Failure(request.region, "fuse-native takes no comma or backslash in it", "rename the region");
  }
  const words = mountWords(options, process.geteuid?.() === 0);
  const [, subtype] = FS_TYPE.split(".");
  const channel = session.attachTo(
    (buffer, onRequest, onEnd) => new FuseNativeChannel(buffer, onRequest, onEnd),
  );
  await channel
    .mount(native, {
      mountpoint,
      options: [`fsname=${request.region}`, `subtype=${subtype}`, ...words],
      isMounted: () => mountAt(mountpoint) !== undefined,
    })
    .catch((error: unknown) => {
      throw asFailure(error, mountpoint, "see 'mapdirect mount --help'");
    });
  log.warn(`${mountpoint} is served through fuse-native, without direct mappings; see docs/OPERATIONS.md`);
}

/**
 * The first SIGTERM or SIGINT unmounts. If the mount is in use it is detached from the tree at once; who still has
 * files open gets a moment, then the connection is cut (`cut` resolves), and they get ENOTCONN.
 */
function unmountOnSignals(
  mountpoint: string,
  ended: Promise<void>,
  log: Log,
  breakLeases: () => void,
): { cut: Promise<void>; ignore: () => void } {
  let cutNow: () => void = () => {};
  const cut = new Promise<void>((resolve) => {
    cutNow = resolve;
  });
  let asked = false;
  const onSignal = (signal: NodeJS.Signals): void => {
    log.info(`${signal}: unmounting ${mountpoint}${asked ? " without waiting for its users" : ""}`);
    if (asked) {
      cutNow();
      return;
    }
    asked = true;
    unmountFuse(mountpoint).catch(async (error: unknown) => {
      if (errnoOf(error) === Errno.EBUSY) {
        breakLeases();
        log.warn(`${mountpoint} is in use: detached; its users have ${LAZY_GRACE_MS} ms`);
        await unmountFuse(mountpoint, { lazy: true }).catch((again: unknown) => log.warn(String(again)));
      } else {
        log.warn(`unmounting ${mountpoint}: ${error instanceof Error ? error.message : error}`);
      }
      const grace = setTimeout(cutNow, LAZY_GRACE_MS);
      inBackground(
        "the end of the mount",
        ended.then(() => clearTimeout(grace)),
      );
    });
  };
  process.on("SIGTERM", onSignal);
  process.on("SIGINT", onSignal);
  return {
    cut,
    // From here on the checkpoint is being written: let nothing end the process before it is whole.
    ignore: () => {
      process.removeListener("SIGTERM", onSignal).removeListener("SIGINT", onSignal);
      process.on("SIGTERM", () => log.info("SIGTERM: the volume is being closed already"));
      process.on("SIGINT", () => log.info("SIGINT: the volume is being closed already"));
    },
  };
}

/** A terminal that goes away is no reason to take the files away from others; and a log that is rotated begins anew. */
function hangUp({ reopenLog }: DaemonRequest, log: Log): void {
  if (reopenLog === undefined) {
    log.info("SIGHUP: ignored");
    return;
  }
  inBackground(
    "opening the log anew",
    reopenLog().then(
      () => log.info("SIGHUP: the log goes on in a new file"),
      (error: unknown) => log.error(`SIGHUP: the log stays in its old file: ${reason(error)}`),
    ),
  );
}

/** After an abort of the connection (/sys/fs/fuse/connections) the mount is still in the tree, and dead. */
async function removeLeftover(mountpoint: string, mountId: number | undefined, log: Log): Promise<void> {
  const left = mountAt(mountpoint);
  if (left === undefined || left.id !== mountId) return;
  await unmountFuse(mountpoint, { lazy: true }).catch((error: unknown) =>
    log.warn(`unmounting ${mountpoint}: ${error instanceof Error ? error.message : error}`),
  );
}
