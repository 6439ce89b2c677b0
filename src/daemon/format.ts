/** Make a file system on a region, and create the region if it is a file that does not exist. */
import { execFile } from "node:child_process";
import { closeSync, existsSync, fsyncSync, ftruncateSync, openSync, rmSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { promisify } from "node:util";
import { BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, LABEL_BYTES_MAX, REGION_BYTES_MIN } from "../media/format.ts";
import { identifyContent, makeFileSystem } from "../media/mkfs.ts";
import { createRegionFile } from "../region/create.ts";
import { asFailure, Failure, reason, usage } from "./failure.ts";
import { lockHolder, readMounts } from "./mounts.ts";
import { inUse, openRegionOrExplain, refuseMapped } from "./region.ts";
import { formatSize } from "./sizes.ts";

export const DEFAULT_SIZE_BYTES = 1024 ** 3;

export interface FormatRequest {
  /** Of a new file; an existing one grows to it, with `force`. */
  readonly sizeBytes?: number | undefined;
  /** What the region's mappings need, or 4096, if left out. */
  readonly blockSizeBytes?: number | undefined;
  readonly label: string;
  /** Overwrite what the region holds. */
  readonly force: boolean;
  /** Give back what an existing region has taken of what it lies on. Default true. */
  readonly discard?: boolean | undefined;
}

export interface Formatted {
  /** Absolute. */
  readonly region: string;
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
}

/** @throws Failure, which says what to do. */
export async function formatRegion(path: string, request: FormatRequest): Promise<Formatted> {
  checkRequest(request);
  const file = resolve(path);
  const created = !existsSync(file);
  if (created) create(file, request.sizeBytes ?? DEFAULT_SIZE_BYTES);
  else await checkExisting(file, request);
  try {
    // A file that was just created has no blocks to give back.
    return await format(file, { ...request, discard: !created && request.discard !== false });
  } catch (error) {
    if (created) rmSync(file, { force: true });
    throw asFailure(error, path, "see 'mapdirect mkfs --help'");
  }
}

/** What is wrong whatever the region is. @throws Failure: wrong usage. */
function checkRequest({ label, blockSizeBytes: block, sizeBytes }: FormatRequest): void {
  const help = "see 'mapdirect mkfs --help'";
  if (block !== undefined) {
    const powerOfTwo = Number.isInteger(Math.log2(block));
    if (!powerOfTwo || block < BLOCK_BYTES_MIN || block > BLOCK_BYTES_MAX) {
      const wants = `a power of two from ${BLOCK_BYTES_MIN} to ${BLOCK_BYTES_MAX} is needed`;
      throw usage(`--block-size ${block}`, wants, help);
    }
  }
  if (sizeBytes !== undefined && sizeBytes < REGION_BYTES_MIN) {
    throw usage(`--size ${sizeBytes}`, `a region has at least ${formatSize(REGION_BYTES_MIN)}`, help);
  }
  if (Buffer.byteLength(label) > LABEL_BYTES_MAX) {
    throw usage("--label", `it has more than ${LABEL_BYTES_MAX} bytes`, help);
  }
}

function create(file: string, sizeBytes: number): void {
  try {
    createRegionFile(file, sizeBytes);
  } catch (error) {
    throw asFailure(error, file, "choose another place or --size");
  }
}

async function checkExisting(file: string, request: FormatRequest): Promise<void> {
  const stat = statSync(file);
  if (lockHolder(file) !== undefined) throw inUse(file);
  if (stat.isBlockDevice()) {
    // Two file systems on one device destroy each other: not even --force.
    const device = `${Math.floor(stat.rdev / 256) % 4096}:${(stat.rdev % 256) + Math.floor(stat.rdev / 1_048_576) * 256}`;
    const mount = readMounts().find((entry) => entry.device === device);
    if (mount !== undefined) {
      throw new Failure(file, `it is mounted on ${mount.mountpoint} as ${mount.fsType}`, "unmount it first");
    }
  }
  if (stat.isFile() && Math.max(stat.size, request.sizeBytes ?? 0) < REGION_BYTES_MIN) {
    throw new Failure(
      file,
      `it is a file of ${stat.size} bytes, too small for a region`,
      `name a file that does not exist, or one of at least ${formatSize(REGION_BYTES_MIN)}`,
    );
  }
  if (request.sizeBytes === undefined) return;
  if (!stat.isFile()) throw new Failure(file, "a device has the size it has", "leave out --size");
  if (request.sizeBytes < stat.size) {
    throw new Failure(
      file,
      `it has ${stat.size} bytes, and is never cut shorter`,
      "delete it first, or leave out --size",
    );
  }
  if (request.sizeBytes === stat.size) return;
  if (!request.force)
    throw new Failure(file, "it exists already", "use --force to let it grow, or leave out --size");
  grow(file, request.sizeBytes);
}

function grow(file: string, sizeBytes: number): void {
  try {
    const descriptor = openSync(file, "r+");
    try {
      ftruncateSync(descriptor, sizeBytes);
      fsyncSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
  } catch (error) {
    throw new Failure(file, `growing it: ${reason(error)}`, "choose another --size");
  }
}

async function format(file: string, request: FormatRequest): Promise<Formatted> {
  const region = openRegionOrExplain(file, { readOnly: false });
  try {
    await refuseMapped(region);
    if (!request.force) {
      // blkid knows more formats; ours knows our own and works without it.
      const content = identifyContent(region) ?? (await identifyWithBlkid(file));
      if (content !== null) {
        throw new Failure(
          file,
          `it holds a ${content}`,
          "use --force to overwrite it, which loses everything in it",
        );
      }
    }
    const blockSizeBytes = await makeFileSystem(region, {
      label: request.label,
      blockSizeBytes: request.blockSizeBytes,
      discard: request.discard === true,
      uid: process.getuid?.() ?? 0,
      gid: process.getgid?.() ?? 0,
    });
    return { region: file, sizeBytes: region.facts.sizeBytes, blockSizeBytes };
  } finally {
    region.close();
  }
}

/** What libblkid finds, in words; null if nothing, or if blkid is not there. */
async function identifyWithBlkid(file: string): Promise<string | null> {
  try {
    const path = `${process.env.PATH ?? ""}:/usr/sbin:/sbin`;
    const { stdout } = await promisify(execFile)("blkid", ["-p", "-o", "export", file], {
      env: { ...process.env, PATH: path },
    });
    const found = new Map(stdout.split("\n").map((line) => line.split("=", 2) as [string, string]));
    const type = found.get("TYPE");
    if (type !== undefined) return `${type} file system or volume`;
    const table = found.get("PTTYPE");
    return table === undefined ? null : `${table} partition table`;
  } catch {
    return null;
  }
}
