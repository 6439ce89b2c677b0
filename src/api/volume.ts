/** Making and mounting volumes from a program. The daemon is a process of its own, as with `mapdirect mount`. */
import { type Formatted, formatRegion } from "../daemon/format.ts";
import { lockHolder } from "../daemon/mounts.ts";
import { parseMountOptions } from "../daemon/options.ts";
import { inUse } from "../daemon/region.ts";
import { freeMountpoint, resolveRegion, startDaemon } from "../daemon/start.ts";
import { unmountAndWait } from "../daemon/stop.ts";

export interface MkfsOptions {
  /** Size of a file that does not exist yet; 1 GiB. With `force` an existing file grows to it. */
  readonly sizeBytes?: number;
  /** Allocation unit: a power of two from 4096; by default that, or what the region's mappings need. */
  readonly blockSizeBytes?: number;
  /** At most 64 bytes. */
  readonly label?: string;
  /** Overwrite what the region holds. */
  readonly force?: boolean;
  /** Give back what an existing region has taken of what it lies on. Default true. */
  readonly discard?: boolean;
}

/**
 * Make a file system on a region: a file, which is created if it does not exist, or a device.
 * @throws Error whose message says what, why, and what to do.
 */
export function mkfs(region: string, options: MkfsOptions = {}): Promise<Formatted> {
  const { sizeBytes, blockSizeBytes, label = "", force = false, discard } = options;
  return formatRegion(region, { sizeBytes, blockSizeBytes, label, force, discard });
}

export interface MountOptions {
  /** Options of `mapdirect mount -o`, such as ["noatime", "break_time=5"]. */
  readonly options?: readonly string[];
  /** Declare the region to be persistent memory, for tests. */
  readonly assumePmem?: boolean;
  /** Leave the mount there when this process ends. Default false: the daemon unmounts then, however the process ends. */
  readonly detached?: boolean;
}

/** A region that is mounted. */
export class Mount {
  /** Absolute paths. */
  readonly region: string;
  readonly path: string;
  /** Of the daemon. */
  readonly pid: number;

  /** @internal */
  constructor(region: string, path: string, pid: number) {
    this.region = region;
    this.path = path;
    this.pid = pid;
  }

  /**
   * Unmount, and wait until the daemon has closed the volume.
   * @param options lazy: detach at once what is in use, breaking its leases; the end is not waited for.
   * @throws Error (it is in use, and by whom)
   */
  async unmount({ lazy = false }: { lazy?: boolean } = {}): Promise<void> {
    await unmountAndWait(this.path, { lazy });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.unmount();
  }
}

/** Mount a region on a directory. @throws Error whose message says what, why, and what to do. */
export async function mount(region: string, mountpoint: string, wish: MountOptions = {}): Promise<Mount> {
  const { options = [], assumePmem = false, detached = false } = wish;
  const { log } = parseMountOptions(options, process.geteuid?.() === 0);
  const source = resolveRegion(region);
  const path = await freeMountpoint(mountpoint);
  if (lockHolder(source) !== undefined) throw inUse(source);
  const words = [...options.flatMap((option) => ["-o", option]), ...(assumePmem ? ["--assume-pmem"] : [])];
  const pid = await startDaemon({ region: source, mountpoint: path, words, log, bound: !detached });
  return new Mount(source, path, pid);
}
