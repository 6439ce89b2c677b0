/** resize: another size for a volume that is not mounted. */
import { statSync, truncateSync } from "node:fs";
import { Command } from "commander";
import { asFailure } from "../../daemon/failure.ts";
import { lockHolder } from "../../daemon/mounts.ts";
import { inUse, openRegionOrExplain } from "../../daemon/run.ts";
import { formatSize } from "../../daemon/sizes.ts";
import { resolveRegion } from "../../daemon/start.ts";
import { type Resized, resize } from "../../namespace/resize.ts";
import { sizeArgument } from "../arguments.ts";
import { print } from "../output.ts";

export function resizeCommand(): Command {
  return new Command("resize")
    .summary("give a volume that is not mounted another size")
    .description(
      "Grow or shrink a volume. A file grows with it; to shrink moves what files have behind the new end, and leaves\n" +
        "the file or device as large as it is. Interrupted at any moment, the volume has its old size or the new one.",
    )
    .argument("<region>", "file or device")
    .option("--size <size>", "the new size (default: all of the region)", sizeArgument)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect resize --size 2G /srv/volume.region
  mapdirect resize /dev/pmem0`,
    )
    .action(run);
}

async function run(given: string, flags: { size?: number }): Promise<void> {
  const path = resolveRegion(given);
  if (lockHolder(path) !== undefined) throw inUse(path);
  const status = statSync(path);
  const grows = status.isFile() && flags.size !== undefined && flags.size > status.size;
  // Sparse, as mkfs makes it. Whatever happens now, the volume in it keeps its size.
  if (grows) truncateSync(path, flags.size);
  let done: Resized;
  const region = openRegionOrExplain(path, { readOnly: false });
  try {
    done = await resize(region, flags.size ?? region.facts.sizeBytes);
  } catch (error) {
    if (grows) truncateSync(path, status.size);
    throw asFailure(error, path, "choose another --size");
  } finally {
    region.close();
  }
  const { beforeBytes, afterBytes, movedBytes } = done;
  if (beforeBytes === afterBytes) print(`${path}: ${formatSize(afterBytes)}, as it was`);
  else {
    const moved = movedBytes === 0 ? "" : `, ${formatSize(movedBytes)} moved`;
    print(`${path}: ${formatSize(beforeBytes)} to ${formatSize(afterBytes)}${moved}`);
  }
  if (afterBytes < beforeBytes && status.isFile())
    print(`the file can be cut with: truncate -s ${afterBytes} ${path}`);
}
