/** prepare: make a range of a file ready to be mapped and stored to. */
import { Command } from "commander";
import { prepare as prepareRange, withFile } from "../../daemon/client.ts";
import { offsetArgument } from "../arguments.ts";

export function prepareCommand(): Command {
  return new Command("prepare")
    .summary("make a range of a file ready to be mapped directly")
    .description(
      "Make a range of a file ready: allocated, zeroed where it was a hole or unwritten, unshared, and durable.\n" +
        "Mapping never does this by itself; a store to what is not ready raises SIGBUS.",
    )
    .argument("<file>", "file on a mapdirect mount; must be writable")
    .option("--offset <bytes>", "where the range begins (default: 0)", offsetArgument)
    .option("--length <bytes>", "how long it is (default: up to the end of the file)", offsetArgument)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect prepare /mnt/file
  mapdirect prepare --offset 1M --length 256M /mnt/file`,
    )
    .action((path: string, { offset = 0n, length = 0n }: { offset?: bigint; length?: bigint }) => {
      withFile(path, (descriptor) => prepareRange(descriptor, offset, length), { mode: "r+" });
    });
}
