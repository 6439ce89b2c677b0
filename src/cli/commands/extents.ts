/** extents: the block map of a file: which bytes of the region are its bytes. */
import { realpathSync } from "node:fs";
import { Command } from "commander";
import { ask, asLeases, readExtents, withFile } from "../../daemon/client.ts";
import { print, table, toJson } from "../output.ts";

export function extentsCommand(): Command {
  return new Command("extents")
    .summary("show where a file's bytes lie in the region")
    .description(
      "Show where a file's bytes lie in the region: runs of written, unwritten (allocated, reading as zeros), shared\n" +
        "or no blocks (holes). The physical offsets hold only as long as a lease pins them.",
    )
    .argument("<file>", "file on a mapdirect mount")
    .option("--json", "print JSON", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect extents /mnt/file
  mapdirect extents --json /mnt/file`,
    )
    .action(extents);
}

function extents(path: string, flags: { json: boolean }): void {
  const file = withFile(path, () => realpathSync(path));
  const { map, leases } = withFile(file, (descriptor) => {
    const found = readExtents(descriptor);
    return { map: found, leases: asLeases(ask(descriptor, "LEASES", found.inode)).map(({ id }) => id) };
  });
  if (flags.json) {
    const items = map.extents.map(({ state, offset, length, physical }) => ({
      state,
      offset,
      length,
      physical,
    }));
    print(toJson({ file, inode: map.inode, size: map.size, extents: items, leases }));
    return;
  }
  const rows = map.extents.map(({ state, offset, length, physical }) => [
    state,
    `${offset}`,
    `${length}`,
    physical === null ? "-" : `${physical}`,
  ]);
  const held = leases.length === 0 ? "no lease" : `under lease ${leases.join(", ")}`;
  print(`${file}: ${map.size} bytes, inode ${map.inode}, ${held}`);
  print(table(["state", "offset", "length", "physical"], rows));
}
