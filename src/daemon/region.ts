/** Opening the region of a command or a daemon, and what to say when that fails. */
import { Errno } from "../base/errno.ts";
import { findMappers } from "../lease/ghosts.ts";
import { processOfThread } from "../lease/process.ts";
import type { MappedRegion } from "../region/native-region.ts";
import { openRegion } from "../region/open.ts";
import { asFailure, errnoOf, Failure } from "./failure.ts";
import { mountOfRegion } from "./mounts.ts";

/** The region of a daemon, or why it cannot be had, in terms of what the user can do about it. */
export function openRegionOrExplain(
  path: string,
  options: { readOnly: boolean; assumePmem?: boolean },
): MappedRegion {
  try {
    return openRegion(path, options);
  } catch (error) {
    if (errnoOf(error) === Errno.EBUSY) throw inUse(path);
    throw asFailure(error, path, "see 'mapdirect info REGION'");
  }
}

/** Blocks are the mount's matter; here only who maps any of it is. */
const BLOCK_BYTES = 4096;

/**
 * Before anything but a mount writes: stores of a process that maps files from before would reach what is there afterwards.
 * @throws Failure with their pids
 */
export async function refuseMapped(region: MappedRegion): Promise<void> {
  const { mappers } = await findMappers(region, BLOCK_BYTES);
  if (mappers.length === 0) return;
  const who = mappers.map(({ pid }) => `${pid} ${processOfThread(pid).command}`.trimEnd()).join(", ");
  throw new Failure(
    region.facts.path,
    `files in it are still mapped from an earlier mount, by ${mappers.length === 1 ? "process" : "processes"} ${who}`,
    "end these first",
  );
}

export function inUse(region: string): Failure {
  const mount = mountOfRegion(region);
  return mount === undefined
    ? new Failure(region, "the region is in use by another process", `see 'fuser -v ${region}' for which`)
    : new Failure(
        region,
        `the region is mounted already, on ${mount.mountpoint}`,
        `unmount it first: 'mapdirect unmount ${mount.mountpoint}'`,
      );
}
