/**
 * What the kernel says about mounts and locks: /proc/self/mountinfo and /proc/locks. Reading them asks no file system
 * anything, so it cannot hang on a mount whose daemon does not answer, as stat(2) can. Where a mount has to be asked, it
 * is said.
 */
import { readFileSync, realpathSync, type Stats, statfsSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { largest } from "../base/arrays.ts";
import { type MountEntry, parseMountInfo, readMounts } from "../region/mountinfo.ts";

export const FS_TYPE = "fuse.mapdirect";

export { type MountEntry, parseMountInfo, readMounts };

/** The uppermost mount on exactly this directory, if it is one of ours. */
export function mountAt(mountpoint: string): MountEntry | undefined {
  const top = readMounts().findLast((entry) => entry.mountpoint === mountpoint);
  return top?.fsType === FS_TYPE ? top : undefined;
}

/** The mount of ours that a file lies on. */
export function mountOf(path: string): MountEntry | undefined {
  let absolute: string;
  try {
    absolute = realpathSync(path);
  } catch {
    return undefined;
  }
  const inside = ({ mountpoint }: MountEntry): boolean =>
    absolute === mountpoint || absolute.startsWith(mountpoint === "/" ? "/" : `${mountpoint}/`);
  const all = readMounts().filter(inside);
  const longest = largest(all, ({ mountpoint }) => mountpoint.length);
  const top = all.findLast(({ mountpoint }) => mountpoint.length === longest);
  return top?.fsType === FS_TYPE ? top : undefined;
}

/** Where a region is mounted, in this mount namespace. */
export function mountOfRegion(region: string): MountEntry | undefined {
  return readMounts().findLast((entry) => entry.fsType === FS_TYPE && entry.source === region);
}

/** Absolute, without symbolic links, and without touching what is mounted there (its daemon may be gone). */
export function resolveMountpoint(path: string): string {
  const absolute = resolve(path);
  if (readMounts().some((entry) => entry.mountpoint === absolute)) return absolute;
  const parent = dirname(absolute);
  if (parent === absolute) return absolute;
  const candidate = join(realpathSync(parent), basename(absolute));
  if (readMounts().some((entry) => entry.mountpoint === candidate)) return candidate;
  return realpathSync(candidate);
}

/**
 * Where a region is served. A daemon that died has left its mount in the table, and the region to whoever wants it. Asks
 * the mount where no lock is seen.
 */
export function servedMountOf(region: string): MountEntry | undefined {
  const mount = mountOfRegion(region);
  if (mount === undefined || lockHolder(region) !== undefined) return mount;
  // A daemon in another PID namespace shows no lock.
  try {
    statfsSync(mount.mountpoint);
    return mount;
  } catch (error) {
    return isDeadMount(error) ? undefined : mount;
  }
}

/**
 * Whether this is what a mount answers whose daemon is gone, or going this very moment. ECANCELED: the request was on its way to
 * the daemon's ring (fs/fuse/dev_uring.c, fuse_uring_send_in_task).
 */
export function isDeadMount(error: unknown): boolean {
  return ["ENOTCONN", "ECONNABORTED", "ECANCELED"].includes((error as NodeJS.ErrnoException).code ?? "");
}

/** The mount that a path means: where it is mounted, or the region that is. Undefined if it is neither. */
export function mountNamed(path: string): MountEntry | undefined {
  let at = path;
  try {
    at = resolveMountpoint(path);
  } catch {
    // It is not there: whoever opens it will say so.
  }
  return mountAt(at) ?? servedMountOf(at);
}

/** Whether a file of this name lies below a directory, or would once it is made. @throws where its folder is not there. */
export function liesBelow(path: string, directory: string): boolean {
  let absolute: string;
  try {
    absolute = realpathSync(path);
  } catch {
    absolute = join(realpathSync(dirname(path)), basename(path));
  }
  return absolute.startsWith(directory === "/" ? "/" : `${directory}/`);
}

/** The pid that holds the lock on a region, as a daemon does from its first to its last moment; undefined if none. */
export function lockHolder(region: string, locks = readFileSync("/proc/locks", "utf8")): number | undefined {
  const stat: Stats | undefined = statSync(region, { throwIfNoEntry: false });
  if (stat === undefined) return undefined;
  // dev_t as glibc's gnu_dev_major and gnu_dev_minor take it apart; both fit below 2^31 here.
  const major = Math.floor(stat.dev / 256) % 4096;
  const minor = (stat.dev % 256) + Math.floor(stat.dev / 1_048_576) * 256;
  const hex = (value: number): string => value.toString(16).padStart(2, "0");
  const wanted = `${hex(major)}:${hex(minor)}:${stat.ino}`;
  for (const line of locks.split("\n")) {
    const fields = line.trim().split(/\s+/);
    if (fields[1] === "FLOCK" && fields[5] === wanted) return Number(fields[4]);
  }
  return undefined;
}

/**
 * Whether a process still runs. One that ended and was not yet waited for has given everything back, but only when its
 * last thread is gone: the first thread is a zombie already while others still hold the descriptors.
 */
export function isRunning(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // After the command, which may hold anything: state, ppid, pgrp, … and as the 18th the number of threads.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] !== "Z" || Number(fields[17]) > 1;
  } catch {
    return false;
  }
}
