/** End a mount, and return when its daemon has closed the volume. */
import { readdirSync, readlinkSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { firstFew } from "../base/arrays.ts";
import { Errno } from "../base/errno.ts";
import { processOfThread } from "../lease/process.ts";
import { VolumeState } from "../media/format.ts";
import type { SuperblockValue } from "../media/superblock.ts";
import { unmountFuse } from "../region/fusemount.ts";
import { ask, asLeases, withOpen } from "./client.ts";
import { asFailure, errnoOf, Failure } from "./failure.ts";
import { newestSuperblock } from "./identify.ts";
import { isRunning, lockHolder, mountAt, resolveMountpoint } from "./mounts.ts";

const POLL_MS = 10;

/** As many of each kind are named. */
const NAMED_MAX = 5;

/** Who maps files there directly, which fuser(1) does not know, and who has files or directories open. */
function users(mountpoint: string): string {
  const said = [holders(mountpoint), openedBy(mountpoint)].flatMap((all) => firstFew(all, NAMED_MAX));
  return said.length === 0 ? "" : `: ${said.join(", ")}`;
}

function holders(mountpoint: string): string[] {
  try {
    const leases = withOpen(mountpoint, (descriptor) => asLeases(ask(descriptor, "LEASES")));
    return leases.map(({ pid, command, file }) => `${command} (${pid}) maps ${file}`);
  } catch {
    return []; // the reason that matters is the other one
  }
}

/** One line for each process. Reads what the kernel says of them, and nothing on the mount, which may not answer. */
function openedBy(mountpoint: string): string[] {
  const found: string[] = [];
  for (const pid of readdirSync("/proc")) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    const use = useOf(pid, mountpoint);
    if (use !== undefined) found.push(`${processOfThread(Number(pid)).command} (${pid}) ${use}`);
  }
  return found;
}

/** What keeps the mount from being unmounted by one process; undefined if nothing does, or it cannot be looked at. */
function useOf(pid: string, mountpoint: string): string | undefined {
  const within = (link: string): string | undefined => {
    try {
      const path = readlinkSync(`/proc/${pid}/${link}`);
      return path === mountpoint || path.startsWith(`${mountpoint}/`) ? path : undefined;
    } catch {
      return undefined;
    }
  };
  const cwd = within("cwd") ?? within("root");
  if (cwd !== undefined) return `works in ${cwd}`;
  const program = within("exe");
  if (program !== undefined) return `runs ${program}`;
  try {
    for (const descriptor of readdirSync(`/proc/${pid}/fd`)) {
      const path = within(`fd/${descriptor}`);
      if (path !== undefined) return `has ${path} open`;
    }
    for (const region of readdirSync(`/proc/${pid}/map_files`)) {
      const path = within(`map_files/${region}`);
      if (path !== undefined) return `maps ${path}`;
    }
  } catch {
    // It has ended, or is somebody else's.
  }
  return undefined;
}

/** Who maps files directly is told to let go before the mount is out of sight. */
function breakAll(mountpoint: string): void {
  try {
    withOpen(mountpoint, (descriptor) => ask(descriptor, "BREAK", 0));
  } catch {
    // A dead mount has no leases, and only its administrator may break them: unmounting itself says what is wrong.
  }
}

/** The superblock of a region that nobody has open; null if it cannot be read, or is being written again. */
function closedSuperblock(region: string): SuperblockValue | null {
  try {
    const found = newestSuperblock(region);
    return lockHolder(region) === undefined ? found : null;
  } catch {
    return null; // unlinked or renamed meanwhile, or not ours to read
  }
}

/** The daemon has ended, and has not said on the media that it closed the volume. @throws Failure */
function checkClosed(path: string, region: string): void {
  const superblock = closedSuperblock(region);
  if (superblock === null || superblock.state === VolumeState.CLEAN || superblock.tailLsn !== 0) return;
  throw new Failure(
    path,
    "it is unmounted, but its volume could not be closed cleanly: the next mount recovers what was synced",
    "see the daemon's log",
  );
}

/**
 * @param flags lazy: detach at once, breaking leases; its end is not waited for.
 * @throws Failure
 */
export async function unmountAndWait(path: string, flags: { lazy: boolean }): Promise<void> {
  let mountpoint: string;
  try {
    mountpoint = resolveMountpoint(path);
  } catch (error) {
    throw asFailure(error, path, "see 'findmnt -t fuse.mapdirect' for what is mounted");
  }
  const mount = mountAt(mountpoint);
  if (mount === undefined) {
    throw new Failure(path, "no mapdirect file system is mounted there", "see 'findmnt -t fuse.mapdirect'");
  }
  const daemon = lockHolder(mount.source);
  if (flags.lazy) breakAll(mountpoint);
  try {
    await unmountFuse(mountpoint, { lazy: flags.lazy });
  } catch (error) {
    if (errnoOf(error) === Errno.EBUSY) {
      throw new Failure(
        path,
        `it is in use${users(mountpoint)}`,
        `see 'fuser -vm ${path}' for who uses it, or use --lazy`,
      );
    }
    throw asFailure(error, path, "unmount it as root, or as the user who mounted it");
  }
  if (flags.lazy) return;
  // The same region may be mounted again by somebody else at once: wait for this daemon, not for the lock.
  while (daemon !== undefined && lockHolder(mount.source) === daemon) await sleep(POLL_MS);
  while (daemon !== undefined && isRunning(daemon)) await sleep(POLL_MS);
  const readOnly = mount.options.split(",").includes("ro");
  if (daemon !== undefined && !readOnly) checkClosed(path, mount.source);
}
