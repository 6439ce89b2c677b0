/** snapshot: a copy of a volume as it was at one moment. */
import { Command } from "commander";
import { Failure } from "../../daemon/failure.ts";
import { mountAt } from "../../daemon/mounts.ts";
import { formatSize } from "../../daemon/sizes.ts";
import { takeSnapshot } from "../../daemon/snapshot.ts";
import { print } from "../output.ts";
import { showingProgress } from "../progress.ts";
import { whereIs } from "../volumes.ts";

export function snapshotCommand(): Command {
  return new Command("snapshot")
    .summary("copy a volume as it is at this moment, also while it is in use")
    .description(
      "Copy a volume into a new file that can be mounted by itself. Of a mounted one the copy has everything as it was\n" +
        "when the command began, whatever is changed meanwhile: the daemon keeps the old bytes of what is stored to until\n" +
        "they are copied. Free space takes none in the copy. For administrators: root, and whoever mounted.",
    )
    .argument("<volume>", "a region, or where it is mounted")
    .argument("<file>", "file to make; it must not exist")
    .option(
      "--mapped",
      "also while files are mapped directly: of these, what is stored meanwhile may be in the copy or not",
      false,
    )
    .addHelpText(
      "after",
      `
The copy has the uuid of the volume. To mount both at a time, give it one of its own ('mapdirect tune --uuid random').

Examples:
  mapdirect snapshot /mnt /backup/monday.region
  mapdirect snapshot /srv/volume.region /backup/monday.region`,
    )
    .action(run);
}

async function run(volume: string, target: string, flags: { mapped: boolean }): Promise<void> {
  const { path, mounted } = whereIs(volume);
  if (mounted && mountAt(path) === undefined) {
    const todo = "see 'findmnt -t fuse.mapdirect' for those there are";
    throw new Failure(volume, "no volume is mounted there", todo);
  }
  const interrupt = new AbortController();
  const stop = (): void => interrupt.abort();
  process.once("SIGINT", stop).once("SIGTERM", stop);
  const { sizeBytes, copiedBytes } = await showingProgress(() =>
    takeSnapshot({
      region: path,
      mountpoint: mounted ? path : null,
      target,
      mappedToo: flags.mapped,
      signal: interrupt.signal,
    }),
  );
  print(`${target}: ${formatSize(sizeBytes)}, of which ${formatSize(copiedBytes)} were copied`);
}
