/** resize: another size for a volume, mounted or not. */
import { statSync, truncateSync } from "node:fs";
import { Command } from "commander";
import { resizeMount, withOpen } from "../../daemon/client.ts";
import { asFailure } from "../../daemon/failure.ts";
import { lockHolder, mountNamed } from "../../daemon/mounts.ts";
import { inUse, openRegionOrExplain, refuseMapped } from "../../daemon/region.ts";
import { formatSize } from "../../daemon/sizes.ts";
import { resolveRegion } from "../../daemon/start.ts";
import { largestNamedBytes } from "../../media/superblock.ts";
import { type Resized, resize } from "../../namespace/resize.ts";
import type { Region } from "../../region/region.ts";
import { sizeArgument } from "../arguments.ts";
import { print } from "../output.ts";
import { showingProgress } from "../progress.ts";

export function resizeCommand(): Command {
  return new Command("resize")
    .summary("give a volume another size, mounted or not")
    .description(
      "Grow or shrink a volume. A file grows with it; to shrink moves what files have behind the new end, and leaves\n" +
        "the file or device as large as it is. A mounted volume stays in use meanwhile; blocks that a direct mapping pins\n" +
        "do not move. Interrupted at any moment, the volume has its old size or the new one.",
    )
    .argument("<region>", "file or device, or where it is mounted")
    .option("--size <size>", "the new size (default: all of the region)", sizeArgument)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect resize --size 2G /srv/volume.region
  mapdirect resize --size 2G /mnt
  mapdirect resize /dev/pmem0`,
    )
    .action(run);
}

async function run(given: string, flags: { size?: number }): Promise<void> {
  const mounted = mountNamed(given);
  const path = mounted?.source ?? resolveRegion(given);
  const done =
    mounted === undefined
      ? await resizeRegion(path, flags.size)
      : withOpen(mounted.mountpoint, (descriptor) => resizeMount(descriptor, flags.size ?? 0));
  const { beforeBytes, afterBytes, movedBytes } = done;
  if (beforeBytes === afterBytes) print(`${given}: ${formatSize(afterBytes)}, as it was`);
  else {
    const moved = movedBytes === 0 ? "" : `, ${formatSize(movedBytes)} moved`;
    print(`${given}: ${formatSize(beforeBytes)} to ${formatSize(afterBytes)}${moved}`);
  }
  if (afterBytes < beforeBytes && statSync(path, { throwIfNoEntry: false })?.isFile() === true)
    print(`the file can be cut with: truncate -s ${afterBytes} ${path}`);
}

/** @param change what changes the volume in the region (tests put something else in its place) */
export async function resizeRegion(
  path: string,
  size: number | undefined,
  change: (region: Region, bytes: number) => Promise<Resized> = resize,
): Promise<Resized> {
  if (lockHolder(path) !== undefined) throw inUse(path);
  const status = statSync(path);
  const grows = status.isFile() && size !== undefined && size > status.size;
  // Sparse, as mkfs makes it.
  if (grows) truncateSync(path, size);
  const region = openRegionOrExplain(path, { readOnly: false });
  try {
    await refuseMapped(region);
    return await showingProgress(() => change(region, size ?? region.facts.sizeBytes));
  } catch (error) {
    // A superblock may name the new size already: then the volume needs it, whichever of them counts.
    if (grows && largestNamedBytes(region) <= status.size) truncateSync(path, status.size);
    throw asFailure(error, path, "choose another --size");
  } finally {
    region.close();
  }
}
