/** mkfs: make a file system on a region. */
import { Command } from "commander";
import { formatRegion } from "../../daemon/format.ts";
import { formatSize } from "../../daemon/sizes.ts";
import { labelArgument, sizeArgument } from "../arguments.ts";
import { print } from "../output.ts";

interface MkfsFlags {
  size?: number;
  blockSize?: number;
  label: string;
  force: boolean;
  discard: boolean;
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
    .option(
      "--block-size <size>",
      "allocation unit, a power of two from 4096 (default: that, or what the region's mappings need)",
      sizeArgument,
    )
    .option("--label <text>", "label of the volume, at most 64 bytes", labelArgument, "")
    .option("--force", "overwrite what the region holds", false)
    .option("-K, --no-discard", "leave an existing region the room that it has taken of what it lies on")
    .addHelpText(
      "after",
      `
Examples:
  mapdirect mkfs --size 1G --label scratch /srv/volume.region
  mapdirect mkfs /dev/pmem0
  mapdirect mkfs --force /dev/dax0.0`,
    )
    .action(mkfs);
}

async function mkfs(path: string, flags: MkfsFlags): Promise<void> {
  const { size: sizeBytes, blockSize: blockSizeBytes, label, force, discard } = flags;
  const made = await formatRegion(path, { sizeBytes, blockSizeBytes, label, force, discard });
  print(
    `${made.region}: ${formatSize(made.sizeBytes)}, blocks of ${formatSize(made.blockSizeBytes)}${label === "" ? "" : `, label ${label}`}\n` +
      `mount it with: mapdirect mount ${made.region} MOUNTPOINT`,
  );
}
