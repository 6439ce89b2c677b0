/** defrag: bring the blocks of a file together, or of all files below a directory. */
import { lstatSync, opendirSync } from "node:fs";
import { join } from "node:path";
import { Command } from "commander";
import { ask, defrag, type FileMap, readExtents, withFile, withOpen } from "../../daemon/client.ts";
import { asFailure, Failure } from "../../daemon/failure.ts";
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
    .option("-r, --recursive", "all files below a directory, or of a whole mount", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect defrag /mnt/database
  mapdirect defrag -r /mnt`,
    )
    .action((path: string, { recursive }: { recursive: boolean }) => {
      if (recursive && lstatSync(path, { throwIfNoEntry: false })?.isDirectory() === true) defragBelow(path);
      else print(inWords(path, defragFile(path)));
    });
}

/** Extents. */
interface Defragmented {
  readonly before: number;
  readonly after: number;
}

function defragFile(path: string): Defragmented {
  const done = (descriptor: number): Defragmented => {
    const map = readExtents(descriptor);
    // Blocks may lie behind the end of the file.
    const last = map.extents.findLast(({ state }) => state !== "hole");
    showingProgress(() => defrag(descriptor, last === undefined ? 0n : last.offset + last.length));
    return { before: countExtents(map), after: countExtents(readExtents(descriptor)) };
  };
  return withFile(path, done, {
    mode: "r+",
    advice: `'mapdirect defrag -r ${path}' does so for all files below it`,
  });
}

/** One file that cannot be (it is mapped, or not writable) is said, and keeps the others from nothing. */
function defragBelow(top: string): void {
  withOpen(top, (descriptor) => ask(descriptor, "INFO"));
  let files = 0;
  let failed = 0;
  const total = { before: 0, after: 0 };
  const attempt = (path: string, action: () => void): void => {
    try {
      action();
    } catch (error) {
      failed += 1;
      process.stderr.write(`mapdirect: ${asFailure(error, path, "check the path").message}\n`);
    }
  };
  for (const path of filesBelow(top, attempt)) {
    files += 1;
    attempt(path, () => {
      const { before, after } = defragFile(path);
      total.before += before;
      total.after += after;
    });
  }
  const what = `${top}: ${files} ${files === 1 ? "file" : "files"}`;
  print(inWords(what, total));
  if (failed > 0) {
    const why = `${failed} of them could not be defragmented`;
    throw new Failure(what, why, "see above; 'mapdirect leases' names who maps a file");
  }
}

/** Regular files of this file system alone; a hard link twice, of which the second finds nothing to do. */
function* filesBelow(
  top: string,
  attempt: (path: string, action: () => void) => void,
): IterableIterator<string> {
  const { dev } = lstatSync(top);
  const folders = [top];
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    const here = folder;
    const names: string[] = [];
    attempt(here, () => {
      const directory = opendirSync(here);
      try {
        for (let entry = directory.readSync(); entry !== null; entry = directory.readSync())
          names.push(entry.name);
      } finally {
        directory.closeSync();
      }
    });
    for (const name of names) {
      const path = join(here, name);
      // It may be gone by now.
      const status = lstatSync(path, { throwIfNoEntry: false });
      if (status === undefined || status.dev !== dev) continue;
      if (status.isDirectory()) folders.push(path);
      else if (status.isFile()) yield path;
    }
  }
}

const inWords = (what: string, { before, after }: Defragmented): string =>
  after < before ? `${what}: ${before} extents, now ${after}` : `${what}: ${after} extents, as before`;

const countExtents = (map: FileMap): number => map.extents.filter(({ state }) => state !== "hole").length;
