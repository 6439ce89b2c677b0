/** superblock: keep the superblock of a volume elsewhere, and put it back. */
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { Command } from "commander";
import { FsError } from "../../base/errors.ts";
import { asFailure, Failure, reason } from "../../daemon/failure.ts";
import { lockHolder } from "../../daemon/mounts.ts";
import { inUse, openRegionOrExplain, refuseMapped } from "../../daemon/region.ts";
import { resolveRegion } from "../../daemon/start.ts";
import { Superblock } from "../../media/format.ts";
import { formatUuid } from "../../media/mkfs.ts";
import {
  encodeSuperblock,
  judgeCopy,
  readSuperblock,
  type SuperblockValue,
  writeSuperblock,
} from "../../media/superblock.ts";
import { openRegion } from "../../region/open.ts";
import type { Region } from "../../region/region.ts";
import { print } from "../output.ts";

export function superblockCommand(): Command {
  const command = new Command("superblock")
    .summary("keep a volume's superblock in a file, and put it back")
    .description("Keep the superblock of a volume in a file elsewhere, or put one back that was kept.")
    .addHelpText(
      "after",
      `
Examples:
  mapdirect superblock save /dev/pmem0 /root/pmem0.superblock
  mapdirect superblock restore /dev/pmem0 /root/pmem0.superblock`,
    );
  command
    .command("save")
    .summary("write the superblock to a file")
    .description(
      "Write the superblock of a volume, mounted or not, to a file that does not exist. It tells uuid, label, sizes, and\n" +
        "where metadata was then.",
    )
    .argument("<region>", "file or device")
    .argument("<file>", "the file to make")
    .addHelpText(
      "after",
      `
Examples:
  mapdirect superblock save /dev/pmem0 /root/pmem0.superblock`,
    )
    .action(save);
  command
    .command("restore")
    .summary("write both copies from a file")
    .description(
      "Write both copies of the superblock from a file that 'save' made. It may be older than the volume:\n" +
        "'mapdirect fsck --repair' finds the newest metadata, whatever the superblock says.",
    )
    .argument("<region>", "file or device")
    .argument("<file>", "as 'save' made it")
    .option("--force", "although the region has a superblock, or another volume's", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect superblock restore /dev/pmem0 /root/pmem0.superblock
  mapdirect fsck /dev/pmem0`,
    )
    .action(restore);
  return command;
}

function save(given: string, file: string): void {
  const path = resolveRegion(given);
  let value: SuperblockValue;
  try {
    const region = openRegion(path, { readOnly: true, lock: false });
    try {
      ({ value } = readSuperblock(region));
    } finally {
      region.close();
    }
  } catch (error) {
    throw asFailure(error, path, "see 'mapdirect superblock save --help'");
  }
  try {
    writeFileSync(file, encodeSuperblock(value), { flag: "wx", mode: 0o600, flush: true });
  } catch (error) {
    throw new Failure(file, reason(error), "name a file that does not exist");
  }
  print(`${file}: the superblock of ${path}, uuid ${formatUuid(value.uuid)}`);
}

async function restore(given: string, file: string, { force }: { force: boolean }): Promise<void> {
  const value = kept(file);
  const path = resolveRegion(given);
  if (lockHolder(path) !== undefined) throw inUse(path);
  const region = openRegionOrExplain(path, { readOnly: false });
  try {
    await refuseMapped(region);
    if (value.regionBytes > region.facts.sizeBytes) {
      const why = `it is of a volume of ${value.regionBytes} bytes, and the region has ${region.facts.sizeBytes}`;
      throw new Failure(file, why, "name the region that it was saved from");
    }
    const present = presentIn(region);
    if (present !== null && !force) {
      throw new Failure(
        path,
        `it has a superblock, of uuid ${formatUuid(present.uuid)}`,
        "use --force to overwrite it; see 'mapdirect fsck' first",
      );
    }
    await writeSuperblock(region, value);
  } catch (error) {
    throw asFailure(error, path, "see 'mapdirect superblock restore --help'");
  } finally {
    region.close();
  }
  print(
    `${path}: the superblock is that of ${file}\n` +
      `it may be older than the volume: 'mapdirect fsck ${path}' looks for newer metadata`,
  );
}

function kept(file: string): SuperblockValue {
  let data: Buffer;
  try {
    if (statSync(file).size !== Superblock.size) throw new Failure(file, "it holds no superblock", SAVED);
    data = readFileSync(file);
  } catch (error) {
    if (error instanceof Failure) throw error;
    throw new Failure(file, reason(error), SAVED);
  }
  const verdict = judgeCopy(data, 0);
  if (verdict.kind !== "valid") throw new Failure(file, "it holds no whole superblock", SAVED);
  return verdict.value;
}

const SAVED = "name a file that 'mapdirect superblock save' made";

function presentIn(region: Region): SuperblockValue | null {
  try {
    return readSuperblock(region).value;
  } catch (error) {
    if (error instanceof FsError && error.code === "EIO") throw error;
    return null;
  }
}
