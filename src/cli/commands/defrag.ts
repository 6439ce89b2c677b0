/** defrag: bring the blocks of a file together. */
import { Command } from "commander";
import { defrag, type FileMap, readExtents, withOpen } from "../../daemon/client.ts";
import { print } from "../output.ts";
import { showingProgress } from "../progress.ts";

export function defragCommand(): Command {
  return new Command("defrag")
    .summary("bring the blocks of a file together")
    .description(
      "Move the blocks of a file so that it has few extents: at best one for each 2 MiB, which mappings reach by huge\n" +
        "pages. Holes and shared blocks stay as they are. A direct mapping in the way is a conflict, as for any change\n" +
        "of the block map: a seal refuses, a breakable lease is broken.",
    )
    .argument("<file>", "file on a mapdirect mount; must be writable")
    .addHelpText("after", "\nExamples:\n  mapdirect defrag /mnt/database")
    .action((path: string) => {
      withOpen(
        path,
        (descriptor) => {
          const map = readExtents(descriptor);
          const before = countExtents(map);
          // Blocks may lie behind the end of the file.
          const last = map.extents.findLast(({ state }) => state !== "hole");
          showingProgress(() => defrag(descriptor, last === undefined ? 0n : last.offset + last.length));
          const after = countExtents(readExtents(descriptor));
          print(
            after < before
              ? `${path}: ${before} extents, now ${after}`
              : `${path}: ${after} extents, as before`,
          );
        },
        "r+",
      );
    });
}

const countExtents = (map: FileMap): number => map.extents.filter(({ state }) => state !== "hole").length;
