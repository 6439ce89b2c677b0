/** info: what a volume is made of, and what its region can do. */
import { Command } from "commander";
import { ask, withOpen } from "../../daemon/client.ts";
import { Failure } from "../../daemon/failure.ts";
import { mountAt } from "../../daemon/mounts.ts";
import { print, properties, toJson, withUnits } from "../output.ts";
import { readVolume, whereIs } from "../volumes.ts";

export function infoCommand(): Command {
  return new Command("info")
    .summary("show a volume and what its region can do")
    .description(
      "Show a volume: geometry, uuid, label, usage; kind and persistence granularity of its region; and, when it is\n" +
        "mounted, the features of FUSE in use, each fallback with its reason.",
    )
    .argument("<path>", "a region, or where it is mounted")
    .option("--bytes", "print sizes as numbers of bytes", false)
    .option("--json", "print JSON, which has sizes in bytes", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect info /srv/volume.region
  mapdirect info --json /mnt`,
    )
    .action(info);
}

async function info(path: string, flags: { json: boolean; bytes: boolean }): Promise<void> {
  const answer = await find(path);
  print(flags.json ? toJson(answer) : properties(flags.bytes ? answer : withUnits(answer, SIZES)));
}

/** What of it is a size, at whatever depth. */
const SIZES = new Set([
  "block_size",
  "segment_size",
  "size",
  "used",
  "free",
  "free_below",
  "metadata",
  "metadata_reserve",
  "metadata_reserve_needed",
  "quarantined",
  "map_alignment",
  "max_leased",
  "bytes",
  "max_write",
]);

async function find(path: string): Promise<Record<string, unknown>> {
  const found = whereIs(path);
  if (found.mounted) return askMount(found.path);
  return await readVolume(found.path, (volume) => ({ mountpoint: null, ...volume.summary() }));
}

function askMount(path: string): Record<string, unknown> {
  const answer = withOpen(path, (descriptor) => ask(descriptor, "INFO"));
  if (typeof answer !== "object" || answer === null) {
    throw new Failure("daemon", "its answer is no object", "update mapdirect");
  }
  return { mountpoint: mountAt(path)?.mountpoint ?? path, ...answer };
}
