/** A volume that a command was given: by its region, or by where it is mounted. */
import { realpathSync, statSync } from "node:fs";
import { asFailure, Failure } from "../daemon/failure.ts";
import { lockHolder, mountAt, mountOfRegion, resolveMountpoint } from "../daemon/mounts.ts";
import { inUse } from "../daemon/run.ts";

export interface Located {
  /** Absolute path. */
  readonly region: string;
  /** Absolute path of its mount; null if it is not mounted. */
  readonly mountpoint: string | null;
}

/** @throws Failure: there is neither, or a region that is in use without a mount that could be asked. */
export function locate(path: string): Located {
  let absolute: string;
  try {
    absolute = resolveMountpoint(path);
    const mount = mountAt(absolute);
    if (mount !== undefined) return { region: mount.source, mountpoint: absolute };
    if (statSync(absolute).isDirectory()) {
      throw new Failure(
        path,
        "no volume is mounted there",
        "see 'findmnt -t fuse.mapdirect' for those there are",
      );
    }
    absolute = realpathSync(path);
  } catch (error) {
    throw asFailure(error, path, "name a region or a mountpoint");
  }
  const mount = mountOfRegion(absolute);
  if (mount !== undefined) return { region: absolute, mountpoint: mount.mountpoint };
  if (lockHolder(absolute) !== undefined) throw inUse(absolute);
  return { region: absolute, mountpoint: null };
}
