/** fsck: check a volume that is not mounted, and repair it. */
import { Command } from "commander";
import { asFailure, Failure, usage } from "../../daemon/failure.ts";
import { lockHolder } from "../../daemon/mounts.ts";
import { inUse, openRegionOrExplain, refuseMapped } from "../../daemon/region.ts";
import { resolveRegion } from "../../daemon/start.ts";
import { takeBack, UndoFile, undoPathFor } from "../../daemon/undo-file.ts";
import { type FsckReport, fsck } from "../../fsck/fsck.ts";
import { lossInWords } from "../../fsck/loss.ts";
import { formatUuid } from "../../media/mkfs.ts";
import { FsckExit } from "../exit-codes.ts";
import { print, toJson } from "../output.ts";
import { showingProgress } from "../progress.ts";

interface FsckFlags {
  repair: boolean;
  dryRun: boolean;
  yes: boolean;
  keep?: string;
  undo?: string;
  json: boolean;
}

export function fsckCommand(): Command {
  return new Command("fsck")
    .summary("check a volume that is not mounted, and repair it")
    .description(
      "Check everything: superblocks, checkpoint and log, names and link counts, and that every block belongs to one\n" +
        "file, or to several that share it. Without --repair nothing is written.\n" +
        "A repair keeps what can be kept: what has lost its name goes to lost+found, what several files claim becomes\n" +
        "shared. Interrupted at any moment, it has changed nothing.\n" +
        "One that loses something says how much, and wants --yes. What it overwrites is kept in a sparse file first, which\n" +
        "--undo puts back, as long as the volume was not mounted since.",
    )
    .argument("<region>", "file or device")
    .option("--repair", "write what was made to fit", false)
    .option("--dry-run", "with --repair: say what it would do, and write nothing", false)
    .option("--yes", "with --repair: also if that loses something", false)
    .option("--keep <file>", "where such a repair keeps what it overwrites (default: REGION.before-repair)")
    .option("--undo <file>", "take a repair back: put back what it has kept there")
    .option("--json", "print JSON", false)
    .addHelpText(
      "after",
      `
Exit codes, as fsck(8): 0 nothing is wrong, 1 it was and is repaired, 4 something is wrong, 8 could not look,
16 the request was wrong.

Examples:
  mapdirect fsck /srv/volume.region
  mapdirect fsck --repair --dry-run /srv/volume.region
  mapdirect fsck --repair --yes /dev/pmem0`,
    )
    .action(run);
}

async function run(path: string, flags: FsckFlags): Promise<void> {
  if (flags.dryRun && !flags.repair) {
    throw usage("--dry-run", "it says what a repair would do", "give --repair as well, or neither");
  }
  if (flags.undo !== undefined) {
    if (flags.repair) throw usage("--undo", "it takes a repair back", "give it without --repair");
    await undoRepair(resolveRegion(path), flags.undo);
    print(`${path}: it is as before the repair`);
    return;
  }
  for (const name of ["yes", "keep"] as const) {
    if (flags[name] && !flags.repair)
      throw usage(`--${name}`, "it goes with a repair", "give --repair as well");
  }
  const { report, kept } = await examine(resolveRegion(path), flags);
  const { superblock, problems, ...rest } = report;
  if (flags.json) {
    print(
      toJson({
        region: path,
        uuid: superblock === null ? null : formatUuid(superblock.uuid),
        label: superblock?.label ?? null,
        ...rest,
        kept,
        problems,
      }),
    );
  } else print(inWords(path, report, kept, flags));
  process.exitCode =
    report.problemCount === 0 ? FsckExit.CLEAN : report.repaired ? FsckExit.CORRECTED : FsckExit.UNCORRECTED;
}

interface Examined {
  readonly report: FsckReport;
  /** The file that keeps what the repair has overwritten. */
  readonly kept: string | null;
}

async function undoRepair(path: string, file: string): Promise<void> {
  if (lockHolder(path) !== undefined) throw inUse(path);
  const region = openRegionOrExplain(path, { readOnly: false });
  try {
    await refuseMapped(region);
    await takeBack(file, region);
  } catch (error) {
    throw asFailure(error, file, "see 'mapdirect fsck --help'");
  } finally {
    region.close();
  }
}

async function examine(path: string, flags: FsckFlags): Promise<Examined> {
  if (lockHolder(path) !== undefined) {
    const { what, why, todo } = inUse(path);
    throw new Failure(what, why, `${todo}, or use 'mapdirect check MOUNTPOINT'`);
  }
  const repair = flags.repair && !flags.dryRun;
  const region = openRegionOrExplain(path, { readOnly: !repair });
  let undo: UndoFile | null = null;
  try {
    if (repair) await refuseMapped(region);
    const report = await showingProgress(() =>
      fsck(region, {
        repair,
        mayLose: () => flags.yes,
        undo: () => {
          const { sizeBytes, kind } = region.facts;
          undo = new UndoFile(flags.keep ?? undoPathFor(path, kind === "file"), sizeBytes);
          return undo;
        },
      }),
    );
    return { report, kept: (undo as UndoFile | null)?.path ?? null };
  } catch (error) {
    throw asFailure(error, path, "see 'mapdirect fsck --help'");
  } finally {
    region.close();
  }
}

function inWords(path: string, report: FsckReport, kept: string | null, flags: FsckFlags): string {
  const lines = report.problems.map(({ place, expected, found, repair }) => {
    const what = `${place}: expected ${expected}, found ${found}`;
    if (repair === null) return `${what}; nothing can be done`;
    return flags.repair ? `${what}; ${repair}` : what;
  });
  const { problemCount, problems, refusal, repaired, repairable, loss, superblock } = report;
  if (problemCount > problems.length) lines.push(`… and ${problemCount - problems.length} more`);
  for (const warning of report.warnings) lines.push(`warning: ${warning}`);
  if (lines.length > 0) lines.push("");
  if (refusal !== null) lines.push(`A mount ${repaired ? "was" : "is"} refused: ${refusal}`);
  if (problemCount === 0) {
    const used = report.usedBlocks * (superblock?.blockBytes ?? 0);
    lines.push(`${path}: nothing is wrong: ${report.inodes} inodes, ${used} bytes in use`);
    return lines.join("\n");
  }
  if (loss !== null && repairable) lines.push(lossInWords(loss, repaired ? "were lost" : "would be lost"));
  if (kept !== null) lines.push(`What the repair has overwritten is kept in ${kept}`);
  const count = `${problemCount} ${problemCount === 1 ? "problem" : "problems"}`;
  if (repaired) lines.push(`${path}: ${count}, repaired`);
  else if (!repairable) lines.push(`${path}: ${count}, beyond repair`);
  else if (flags.dryRun) lines.push(`${path}: ${count}; nothing was written`);
  else if (flags.repair) {
    lines.push(
      `${path}: ${count}; nothing was written: 'mapdirect fsck --repair --yes ${path}' repairs all the same`,
    );
  } else lines.push(`${path}: ${count}; 'mapdirect fsck --repair ${path}' repairs what it can`);
  return lines.join("\n");
}
