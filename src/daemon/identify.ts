/**
 * Which volume lies on a region, from its superblock alone: without the lock, and so also while it is mounted; and where
 * the volume of a uuid or label is.
 *
 * Invariant: only superblocks that are whole are believed.
 */
import { closeSync, constants, openSync, readdirSync, readSync, realpathSync, statSync } from "node:fs";
import { FORMAT_VERSION, SUPERBLOCK_OFFSETS, Superblock } from "../media/format.ts";
import { formatUuid } from "../media/mkfs.ts";
import { judgeCopy, type SuperblockValue } from "../media/superblock.ts";
import { openRegion } from "../region/open.ts";
import { Failure, usage } from "./failure.ts";
import { FS_TYPE, readMounts } from "./mounts.ts";

export interface Identity {
  readonly uuid: string;
  readonly label: string;
  readonly version: number;
  readonly blockBytes: number;
  readonly sizeBytes: number;
}

/** Null if there is no volume that this program knows. @throws where the region cannot be read. */
export function identify(path: string): Identity | null {
  const superblock = newestSuperblock(path);
  if (superblock === null) return null;
  const { uuid, label, blockBytes, regionBytes } = superblock;
  return { uuid: formatUuid(uuid), label, version: FORMAT_VERSION, blockBytes, sizeBytes: regionBytes };
}

/** The copy that counts; null if none is whole. @throws where the region cannot be read. */
export function newestSuperblock(path: string): SuperblockValue | null {
  let best: SuperblockValue | null = null;
  for (const [index, data] of superblocksOf(path).entries()) {
    if (data.length < Superblock.size) continue;
    const verdict = judgeCopy(data, SUPERBLOCK_OFFSETS[index] as number);
    if (verdict.kind !== "valid") continue;
    if (best === null || verdict.value.sequence > best.sequence) best = verdict.value;
  }
  return best;
}

function superblocksOf(path: string): Buffer[] {
  const status = statSync(path);
  if (status.isFile() || status.isBlockDevice()) {
    // Not the whole of it mapped: it may be any disk of this machine.
    const descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      return SUPERBLOCK_OFFSETS.map((offset) => {
        const data = Buffer.alloc(Superblock.size);
        return data.subarray(0, readSync(descriptor, data, 0, data.length, offset));
      });
    } finally {
      closeSync(descriptor);
    }
  }
  // A character device can only be mapped.
  const region = openRegion(path, { readOnly: true, lock: false });
  try {
    return SUPERBLOCK_OFFSETS.map((offset) => {
      const data = Buffer.alloc(Superblock.size);
      region.read(offset, data, 0, data.length);
      return data;
    });
  } finally {
    region.close();
  }
}

const TAG = /^(UUID|LABEL)=(.+)$/;

/** The device that `UUID=…` or `LABEL=…` names; the path itself for anything else. @throws Failure unless it is exactly one. */
export function resolveTag(path: string): string {
  const [, tag, given] = TAG.exec(path) ?? [];
  if (tag === undefined || given === undefined || statSync(path, { throwIfNoEntry: false }) !== undefined)
    return path;
  const value = given.replace(/^"(.*)"$/, "$1");
  const found = devices().filter((device) => {
    const volume = tryIdentify(device);
    if (volume === null) return false;
    return tag === "UUID" ? volume.uuid === value.toLowerCase() : volume.label === value;
  });
  const [first, second] = found;
  if (first === undefined) {
    const todo = "see 'mapdirect probe' for those there are; a region in a file is named by its path";
    throw new Failure(path, "no device has such a volume", todo);
  }
  if (second !== undefined)
    throw usage(path, `several devices have it: ${found.join(", ")}`, "name one of them");
  return first;
}

function tryIdentify(path: string): Identity | null {
  try {
    return identify(path);
  } catch {
    return null; // Not ours to read, no medium in it, or gone by now.
  }
}

/** Every block and DAX device of this machine that no other device is made of. */
export function devices(): string[] {
  const named = (folder: string): string[] => {
    try {
      return readdirSync(folder);
    } catch {
      return [];
    }
  };
  // Drives for media: to look there takes seconds.
  const block = named("/sys/class/block").filter((name) => !/^(fd|sr)\d+$/.test(name));
  const free = block.filter((name) => named(`/sys/class/block/${name}/holders`).length === 0);
  const paths = [...free.map((name) => name.replaceAll("!", "/")), ...named("/sys/bus/dax/devices")];
  return paths
    .map((name) => `/dev/${name}`)
    .filter((path) => statSync(path, { throwIfNoEntry: false }) !== undefined);
}

/** All volumes on devices; what this user may not read is left out. */
export function volumesOnDevices(): { readonly path: string; readonly volume: Identity }[] {
  return devices().flatMap((path) => {
    const volume = tryIdentify(path);
    return volume === null ? [] : [{ path, volume }];
  });
}

/**
 * Two mounted volumes of one uuid are a copy and its original, and who names one of them by it gets either.
 * @throws Failure if another region with this uuid is mounted here
 */
export function refuseTwin(region: string, uuid: string): void {
  for (const { fsType, source, mountpoint } of readMounts()) {
    if (fsType !== FS_TYPE || isSame(source, region) || tryIdentify(source)?.uuid !== uuid) continue;
    throw new Failure(
      region,
      `a volume with the same uuid is mounted already, on ${mountpoint} (${source})`,
      `give this one a uuid of its own with 'mapdirect tune --uuid random ${region}', or mount it with -o nouuid`,
    );
  }
}

function isSame(one: string, other: string): boolean {
  try {
    return realpathSync(one) === realpathSync(other);
  } catch {
    return one === other;
  }
}
