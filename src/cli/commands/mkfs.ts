/** mkfs: make a file system on a region, and create the region if it is a file that does not exist. */
import { execFile } from "node:child_process";
import { closeSync, existsSync, fsyncSync, ftruncateSync, openSync, rmSync, statSync } from "node:fs";
import { resolve } from "node:path";
import { promisify } from "node:util";
import { Command } from "commander";
import { asFailure, Failure, reason } from "../../daemon/failure.ts";
import { lockHolder, readMounts } from "../../daemon/mounts.ts";
import { inUse, openRegionOrExplain } from "../../daemon/run.ts";
import { formatSize } from "../../daemon/sizes.ts";
import { identifyContent, makeFileSystem } from "../../media/mkfs.ts";
import { createRegionFile } from "../../region/create.ts";
import { sizeArgument } from "../arguments.ts";
import { print } from "../output.ts";

const DEFAULT_SIZE_BYTES = 1024 ** 3;

interface MkfsFlags {
  size?: number;
  blockSize: number;
  label: string;
  force: boolean;
}

export function mkfsCommand(): Command {
  return new Command("mkfs")
    .summary("make a file system on a region")
    .description(
      "Make a file system on a region: a file, a block device or a DAX character device.\n" +
        "A file that does not exist is created, sparse and readable by its owner alone.",
    )
    .argument("<region>", "file or device")
    .option(
      "--size <size>",
      "size of a new file (default: 1G); with --force an existing file grows to it",
      sizeArgument,
    )
    .option("--block-size <size>", "allocation unit, a power of two from 4096", sizeArgument, 4096)
    .option("--label <text>", "label of the volume, at most 64 bytes", "")
    .option("--force", "overwrite what the region holds", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect mkfs --size 1G --label scratch /srv/volume.region
  mapdirect mkfs /dev/pmem0
  mapdirect mkfs --block-size 2M --force /dev/dax0.0`,
    )
    .action(mkfs);
}

async function mkfs(path: string, flags: MkfsFlags): Promise<void> {
  const file = resolve(path);
  const created = !existsSync(file);
  if (created) create(file, flags.size ?? DEFAULT_SIZE_BYTES);
  else await checkExisting(file, flags);
  try {
    await format(file, flags);
  } catch (error) {
    if (created) rmSync(file, { force: true });
    throw asFailure(error, path, "see 'mapdirect mkfs --help'");
  }
}

function create(file: string, sizeBytes: number): void {
  try {
    createRegionFile(file, sizeBytes);
  } catch (error) {
    throw asFailure(error, file, "choose another place or --size");
  }
}

async function checkExisting(file: string, flags: MkfsFlags): Promise<void> {
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
  if (flags.size === undefined) return;
  if (!stat.isFile()) throw new Failure(file, "a device has the size it has", "leave out --size");
  if (flags.size < stat.size) {
    throw new Failure(
      file,
      `it has ${stat.size} bytes, and is never cut shorter`,
      "delete it first, or leave out --size",
    );
  }
  if (flags.size === stat.size) return;
  if (!flags.force)
    throw new Failure(file, "it exists already", "use --force to let it grow, or leave out --size");
  grow(file, flags.size);
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

async function format(file: string, flags: MkfsFlags): Promise<void> {
  const region = openRegionOrExplain(file, { readOnly: false });
  try {
    if (!flags.force) {
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
    await makeFileSystem(region, {
      label: flags.label,
      blockSizeBytes: flags.blockSize,
      uid: process.getuid?.() ?? 0,
      gid: process.getgid?.() ?? 0,
    });
    const label = flags.label === "" ? "" : `, label ${flags.label}`;
    print(
      `${file}: ${formatSize(region.facts.sizeBytes)}, blocks of ${formatSize(flags.blockSize)}${label}\n` +
        `mount it with: mapdirect mount ${file} MOUNTPOINT`,
    );
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
