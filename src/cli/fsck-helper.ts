/**
 * What fsck(8) and systemd-fsck run for a line of fstab: `fsck.TYPE [-aAnpyfVC…] REGION`.
 *
 * Invariants:
 * - exit codes are those of fsck(8), as 'mapdirect fsck' has them;
 * - nothing is repaired at boot that a person has not asked for (-y): a volume that was not unmounted needs no repair, its
 *   mount recovers it, and a repair of a damaged one may lose files.
 */
import { FsckExit } from "./exit-codes.ts";
import { main } from "./main.ts";

const HELP = "it is called by fsck(8): 'fsck -t mapdirect REGION'";

/** The command line of 'mapdirect fsck' for it; undefined where nothing is to be done. @throws Error: wrong usage. */
export function fsckArguments(args: readonly string[]): string[] {
  const regions: string[] = [];
  let repair = false;
  for (let index = 0; index < args.length; index += 1) {
    const word = args[index] as string;
    if (word === "-C") {
      // Progress for a file descriptor that may follow: there is none.
      if (/^\d+$/.test(args[index + 1] ?? "")) index += 1;
    } else if (/^-[apnyfvVTC\d]+$/.test(word)) repair = word.includes("y") || repair;
    else if (word.startsWith("-")) throw new Error(`${word}: it is no option of fsck.mapdirect`);
    else regions.push(word);
  }
  const [region] = regions;
  if (region === undefined || regions.length !== 1) throw new Error("fsck.mapdirect: it wants one region");
  return ["fsck", ...(repair ? ["--repair", "--yes"] : []), region];
}

/** Set the exit code; never throws. */
export async function fsckHelper(args: readonly string[]): Promise<void> {
  let words: string[];
  try {
    words = fsckArguments(args);
  } catch (error) {
    process.stderr.write(`fsck.mapdirect: ${(error as Error).message}; ${HELP}\n`);
    process.exitCode = FsckExit.USAGE;
    return;
  }
  await main(words);
}
