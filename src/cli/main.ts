/**
 * The command line: one program, one file for each command.
 *
 * Invariants:
 * - exit code 0: done; 1: tried and failed; 2: the request was wrong and nothing was tried; fsck alone has those of fsck(8);
 * - errors go to stderr as one line, `mapdirect: <what>: <why>; <what to do>`, and nothing else does;
 * - with --json, stdout is one JSON document, whose keys stay.
 */
import { Command, CommanderError } from "commander";
import pc from "picocolors";
import { similar } from "../base/similar.ts";
import { asFailure, type Failure, usage } from "../daemon/failure.ts";
import { packageVersion } from "../region/addon.ts";
import { coloursFor, hasColours } from "./colours.ts";
import { FsckExit } from "./exit-codes.ts";

const BOLD = pc.createColors(true);

/** In the order of the help. Each is loaded when it is wanted: most of what a start takes is loading. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  mkfs: async () => (await import("./commands/mkfs.ts")).mkfsCommand(),
  mount: async () => (await import("./commands/mount.ts")).mountCommand(),
  unmount: async () => (await import("./commands/unmount.ts")).unmountCommand(),
  info: async () => (await import("./commands/info.ts")).infoCommand(),
  doctor: async () => (await import("./commands/doctor.ts")).doctorCommand(),
  extents: async () => (await import("./commands/extents.ts")).extentsCommand(),
  leases: async () => (await import("./commands/leases.ts")).leasesCommand(),
  prepare: async () => (await import("./commands/prepare.ts")).prepareCommand(),
  clone: async () => (await import("./commands/clone.ts")).cloneCommand(),
  fsck: async () => (await import("./commands/fsck.ts")).fsckCommand(),
  tune: async () => (await import("./commands/tune.ts")).tuneCommand(),
  probe: async () => (await import("./commands/probe.ts")).probeCommand(),
  superblock: async () => (await import("./commands/superblock.ts")).superblockCommand(),
  check: async () => (await import("./commands/check.ts")).checkCommand(),
  resize: async () => (await import("./commands/resize.ts")).resizeCommand(),
  dump: async () => (await import("./commands/dump.ts")).dumpCommand(),
  defrag: async () => (await import("./commands/defrag.ts")).defragCommand(),
  snapshot: async () => (await import("./commands/snapshot.ts")).snapshotCommand(),
  stats: async () => (await import("./commands/stats.ts")).statsCommand(),
  map: async () => (await import("./commands/map.ts")).mapCommand(),
  dashboard: async () => (await import("./commands/dashboard.ts")).dashboardCommand(),
  top: async () => (await import("./commands/top.ts")).topCommand(),
  completion: async () => (await import("./commands/completion.ts")).completionCommand(),
};

/** With all commands, or with the one that `only` names, if there is one of that name. */
export async function createProgram(only?: string): Promise<Command> {
  const program = new Command("mapdirect")
    .description("A file system whose files can be mapped with MAP_DIRECT.")
    .version(packageVersion())
    .helpCommand("help [command...]", "show the help of a command")
    .addHelpText(
      "after",
      `
Examples:
  mapdirect mkfs --size 1G /srv/volume.region
  mapdirect mount /srv/volume.region /mnt
  mapdirect extents /mnt/file
  mapdirect unmount /mnt`,
    );
  const wanted = only !== undefined && Object.hasOwn(COMMANDS, only) ? COMMANDS[only] : undefined;
  // What is completed are the others.
  const load = wanted === undefined || only === "completion" ? Object.values(COMMANDS) : [wanted];
  const commands = await Promise.all(load.map((one) => one()));
  for (const command of commands) program.addCommand(command);
  settle(program, []);
  return program;
}

/** What all commands have in common, those below others as well. @param path names from the program down, without it. */
function settle(command: Command, path: readonly string[]): void {
  command.exitOverride().showHelpAfterError(false).allowExcessArguments(false);
  // Commander takes it out again where there are no colours.
  command.configureHelp({ styleTitle: (title) => BOLD.bold(title) });
  command.configureOutput({ getOutHasColors: () => hasColours(process.stdout) });
  command.configureOutput({ outputError: (text, write) => write(asOneLine(text, path)) });
  for (const below of command.commands) settle(below, [...path, below.name()]);
}

/** `help leases break` is `leases break --help`. @throws Failure: wrong usage, for a name that no command has. */
function helpArguments(program: Command, names: readonly string[]): string[] {
  let command = program;
  for (const [index, name] of names.entries()) {
    const below = command.commands.find((one) => one.name() === name || one.aliases().includes(name));
    if (below === undefined) throw unknownCommand(command, names.slice(0, index), name);
    command = below;
  }
  return [...names, "--help"];
}

function unknownCommand(command: Command, path: readonly string[], name: string): Failure {
  const known = command.commands.map((one) => one.name());
  const close = similar(name, known);
  const why = `unknown command '${name}'${close === undefined ? "" : ` (Did you mean ${close}?)`}`;
  return usage(path.join(" ") || "usage", why, `see '${["mapdirect", ...path].join(" ")} --help'`);
}

function errorPrefix(): string {
  const colours = coloursFor(process.stderr);
  return colours.bold(colours.red("mapdirect:"));
}

/** Commander's `error: why` in the form that all our errors have. */
function asOneLine(text: string, path: readonly string[]): string {
  const why = text
    .trim()
    .replace(/^error: /, "")
    .replaceAll("\n", " ");
  const what = path.length === 0 ? "usage" : path.join(" ");
  return `${errorPrefix()} ${what}: ${why}; see '${["mapdirect", ...path].join(" ")} --help'\n`;
}

/** Run one command and set the exit code; never throws. */
export async function main(args: readonly string[]): Promise<void> {
  // `mapdirect leases | head` ends the pipe early: no failure of ours.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(0);
    throw error;
  });
  const program = await createProgram(args[0]);
  try {
    if (args.length === 0) {
      process.stderr.write("mapdirect: usage: no command was given; see 'mapdirect --help'\n");
      process.exitCode = 2;
      return;
    }
    const [first, ...names] = args;
    const asked = first === "help" && !names.some((name) => name.startsWith("-"));
    await program.parseAsync(asked ? helpArguments(program, names) : args, { from: "user" });
  } catch (error) {
    if (error instanceof CommanderError) {
      // Help and version were printed, and asked for; everything else that commander refuses is wrong usage.
      process.exitCode = error.exitCode === 0 ? 0 : exitCodeOf(args, 2);
      return;
    }
    const failure = asFailure(error, args[0] ?? "usage");
    process.stderr.write(`${errorPrefix()} ${failure.message}\n`);
    if (process.env.MAPDIRECT_DEBUG && error instanceof Error) process.stderr.write(`${error.stack}\n`);
    process.exitCode = exitCodeOf(args, failure.exitCode);
  }
}

function exitCodeOf(args: readonly string[], code: 1 | 2): number {
  if (args[0] !== "fsck") return code;
  return code === 1 ? FsckExit.FAILED : FsckExit.USAGE;
}
