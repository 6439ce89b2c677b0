/** dump: all metadata of a volume as JSON lines. */
import { once } from "node:events";
import { Command } from "commander";
import { asFailure } from "../../daemon/failure.ts";
import { lockHolder } from "../../daemon/mounts.ts";
import { inUse, openRegionOrExplain } from "../../daemon/run.ts";
import { resolveRegion } from "../../daemon/start.ts";
import { dumpLines } from "../../namespace/dump.ts";
import { bringBack } from "../../namespace/recovered.ts";

export function dumpCommand(): Command {
  return new Command("dump")
    .summary("print all metadata of a volume as JSON lines")
    .description(
      "Print the metadata of a volume that is not mounted, as recovery finds it: one JSON object a line, first the\n" +
        "superblock, then each inode, followed by what belongs to it.",
    )
    .argument("<region>", "file or device")
    .addHelpText(
      "after",
      `
Lines have a "type": superblock, inode, entry (of a directory), extent (of a file), target (of a symbolic link),
attribute. Names and values that are not UTF-8 are there as hexadecimal digits (nameHex, valueHex).

Examples:
  mapdirect dump /srv/volume.region
  mapdirect dump /srv/volume.region | jq 'select(.type == "extent" and .state == "shared")'`,
    )
    .action(run);
}

async function run(given: string): Promise<void> {
  const path = resolveRegion(given);
  if (lockHolder(path) !== undefined) throw inUse(path);
  const region = openRegionOrExplain(path, { readOnly: true });
  try {
    const { state, recovery } = bringBack(region);
    for (const line of dumpLines(state, recovery.superblock)) {
      if (!process.stdout.write(line)) await once(process.stdout, "drain");
    }
  } catch (error) {
    throw asFailure(error, path, "see 'mapdirect dump --help'");
  } finally {
    region.close();
  }
}
