/** tune: another label or uuid for a volume that is not mounted. */
import { Command, InvalidArgumentError } from "commander";
import { asFailure, usage } from "../../daemon/failure.ts";
import { identify } from "../../daemon/identify.ts";
import { lockHolder } from "../../daemon/mounts.ts";
import { inUse, openRegionOrExplain, refuseMapped } from "../../daemon/region.ts";
import { resolveRegion } from "../../daemon/start.ts";
import { parseUuid, randomUuid } from "../../media/mkfs.ts";
import { tune } from "../../namespace/tune.ts";
import { labelArgument } from "../arguments.ts";
import { print } from "../output.ts";
import { showingProgress } from "../progress.ts";

export function tuneCommand(): Command {
  return new Command("tune")
    .summary("give a volume that is not mounted another label or uuid")
    .description(
      "Change the label or the uuid of a volume that is not mounted. A copy of a volume, a snapshot too, has the uuid of\n" +
        "its original: with one of its own both can be mounted at a time. Interrupted at any moment, nothing has changed.",
    )
    .argument("<region>", "file or device")
    .option("--label <text>", "the new label, at most 64 bytes; '' for none", labelArgument)
    .option("--uuid <uuid>", "the new uuid, or 'random' for a fresh one", uuidArgument)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect tune --label archive /srv/volume.region
  mapdirect tune --uuid random /backup/monday.region`,
    )
    .action(run);
}

function uuidArgument(text: string): Uint8Array {
  const uuid = text === "random" ? randomUuid() : parseUuid(text);
  if (uuid === undefined)
    throw new InvalidArgumentError("A uuid is 32 hexadecimal digits with hyphens, or 'random'.");
  return uuid;
}

async function run(given: string, flags: { label?: string; uuid?: Uint8Array }): Promise<void> {
  const { label, uuid } = flags;
  if (label === undefined && uuid === undefined)
    throw usage("tune", "nothing to change was given", "give --label, --uuid or both");
  const path = resolveRegion(given);
  if (lockHolder(path) !== undefined) throw inUse(path);
  const region = openRegionOrExplain(path, { readOnly: false });
  try {
    await refuseMapped(region);
    await showingProgress(() => tune(region, { label, uuid }));
  } catch (error) {
    throw asFailure(error, path, "see 'mapdirect tune --help'");
  } finally {
    region.close();
  }
  const now = identify(path);
  print(`${given}: uuid ${now?.uuid}${now?.label === "" ? ", no label" : `, label ${now?.label}`}`);
}
