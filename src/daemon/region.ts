/** Opening the region of a command or a daemon, and what to say when that fails. */
import { Errno } from "../base/errno.ts";
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
