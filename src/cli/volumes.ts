/** A path that a user gives for a volume: a mount, or a region that is not mounted. */
import { realpathSync, statSync } from "node:fs";
import { asFailure } from "../daemon/failure.ts";
import { lockHolder, mountAt, resolveMountpoint, servedMountOf } from "../daemon/mounts.ts";
import { defaultMountOptions, leasePolicy } from "../daemon/options.ts";
import { inUse, openRegionOrExplain } from "../daemon/region.ts";
import { Volume } from "../session/volume.ts";

export interface Whereabouts {
  /** Of the region; or a directory of the mount. Absolute. */
  readonly path: string;
  readonly mounted: boolean;
}

/** @throws Failure */
export function whereIs(path: string): Whereabouts {
  let absolute: string;
  try {
    absolute = resolveMountpoint(path);
    // What is mounted answers for itself; a directory below the mountpoint does as well.
    if (mountAt(absolute) !== undefined || statSync(absolute).isDirectory())
      return { path: absolute, mounted: true };
    absolute = realpathSync(path);
  } catch (error) {
    throw asFailure(error, path, "name a region or a mountpoint");
  }
  const mount = servedMountOf(absolute);
  if (mount !== undefined) return { path: mount.mountpoint, mounted: true };
  if (lockHolder(absolute) !== undefined) throw inUse(absolute);
  return { path: absolute, mounted: false };
}

/** Recover a volume that is not mounted in memory, and write nothing. @throws Failure */
export async function readVolume<T>(path: string, look: (volume: Volume) => T): Promise<T> {
  const region = openRegionOrExplain(path, { readOnly: true });
  try {
    const volume = await Volume.open(region, {
      ...leasePolicy(defaultMountOptions(false), region.facts.sizeBytes, 0),
      readOnly: true,
    });
    try {
      return look(volume);
    } finally {
      await volume.close();
    }
  } catch (error) {
    throw asFailure(error, path, "see 'mapdirect info --help'");
  } finally {
    region.close();
  }
}
