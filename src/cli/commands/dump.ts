/** dump: all metadata of a volume as JSON lines. */
import { once } from "node:events";
import { Command } from "commander";
import { dumpOf } from "../../daemon/client.ts";
import { asFailure } from "../../daemon/failure.ts";
import { lockHolder, mountNamed } from "../../daemon/mounts.ts";
import { inUse, openRegionOrExplain } from "../../daemon/region.ts";
import { resolveRegion } from "../../daemon/start.ts";
import { rescue } from "../../fsck/fsck.ts";
import { dumpLines } from "../../namespace/dump.ts";

export function dumpCommand(): Command {
  return new Command("dump")
    .summary("print all metadata of a volume as JSON lines")
    .description(
      "Print the metadata of a volume: one JSON object a line, first the superblock, then each inode, followed by what\n" +
        "belongs to it. Of one that is not mounted as recovery finds it; of a mounted one as of the moment when it was\n" +
        "asked for, whatever changes meanwhile (times may be newer). That is for administrators: root, and whoever mounted.\n" +
        "Of a damaged volume what can be read; then the exit code is 1.",
    )
    .argument("<region>", "file or device, or where it is mounted")
    .addHelpText(
      "after",
      `
Lines have a "type": superblock, inode, entry (of a directory), extent (of a file), target (of a symbolic link),
attribute. Names and values that are not UTF-8 are there as hexadecimal digits (nameHex, valueHex).

Examples:
  mapdirect dump /srv/volume.region
  mapdirect dump /mnt
  mapdirect dump /srv/volume.region | jq 'select(.type == "extent" and .state == "shared")'`,
    )
    .action(run);
}

async function run(given: string): Promise<void> {
  const mounted = mountNamed(given);
  if (mounted !== undefined) {
    for await (const text of dumpOf(mounted.mountpoint)) await write(text);
    return;
  }
  const path = resolveRegion(given);
  if (lockHolder(path) !== undefined) throw inUse(path);
  const region = openRegionOrExplain(path, { readOnly: true });
  try {
    const { state, recovery } = rescue(region);
    if (recovery.label === "rescue") {
      process.stderr.write(`mapdirect: ${path}: ${recovery.warnings[0]}\n`);
      process.exitCode = 1;
    }
    for (const line of dumpLines(state, recovery.superblock)) await write(line);
  } catch (error) {
    throw asFailure(error, path, "see 'mapdirect dump --help'");
  } finally {
    region.close();
  }
}

async function write(text: string | Buffer): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, "drain");
}
