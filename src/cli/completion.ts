/**
 * Completion for shells, written from the tree of commands: what --help tells, the shell offers.
 *
 * Invariant: nothing of the file system is looked at to complete a word but names of files and the list of mounts, so
 * that a mount that does not answer holds up no shell.
 */
import type { Argument, Command, Option } from "commander";
import { mountOptionNames } from "../daemon/options.ts";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

/** What a word can be. */
type Kind = "file" | "mountpoint" | "mount-options" | "none" | readonly string[];

interface Entry {
  /** Names from the program down: "leases break". */
  readonly path: string;
  readonly names: readonly string[];
  readonly summary: string;
  readonly options: readonly { flags: readonly string[]; takes: Kind | null; about: string }[];
  readonly words: readonly Kind[];
}

function entriesOf(command: Command, above: readonly string[]): Entry[] {
  const options = command.options.filter((option) => !option.hidden);
  const here: Entry = {
    path: above.join(" "),
    names: [command.name(), ...command.aliases()],
    summary: command.summary() || firstSentence(command.description()),
    options: [
      ...options.map((option) => ({
        flags: [option.short, option.long].filter((flag) => flag != null),
        takes: option.required || option.optional ? kindOfOption(option) : null,
        about: firstSentence(option.description),
      })),
      { flags: ["-h", "--help"], takes: null, about: "show help" },
    ],
    words: command.registeredArguments.map(kindOfArgument),
  };
  return [here, ...command.commands.flatMap((sub) => entriesOf(sub, [...above, sub.name()]))];
}

function kindOfOption(option: Option): Kind {
  if (option.argChoices !== undefined) return option.argChoices;
  if (option.long === "--options") return "mount-options";
  if (/<file>/.test(option.flags)) return "file";
  return /<mountpoint>/.test(option.flags) ? "mountpoint" : "none";
}

function kindOfArgument(argument: Argument): Kind {
  if (argument.argChoices !== undefined) return argument.argChoices;
  if (argument.name() === "mountpoint") return "mountpoint";
  return argument.name() === "id" ? "none" : "file";
}

const firstSentence = (text: string): string => (text.split(/\n|\. |; /)[0] ?? "").replace(/\.$/, "");
const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;
const HEAD = (shell: Shell): string =>
  `# Completion of mapdirect for ${shell}, written by 'mapdirect completion ${shell}'.`;
/** From the kernel's table: asks no file system anything. */
const MOUNTS = "awk '$3 == \"fuse.mapdirect\" { print $2 }' /proc/self/mounts 2>/dev/null";

export function completionFor(shell: Shell, program: Command): string {
  const entries = entriesOf(program, []);
  if (shell === "bash") return bash(entries);
  return shell === "zsh" ? zsh(entries) : fish(entries);
}

function childrenOf(entries: readonly Entry[], path: string): Entry[] {
  const depth = path === "" ? 1 : path.split(" ").length + 1;
  return entries.filter(
    (entry) =>
      entry.path !== "" &&
      entry.path.split(" ").length === depth &&
      entry.path.startsWith(path === "" ? "" : `${path} `),
  );
}

function bash(entries: readonly Entry[]): string {
  const reply = (kind: Kind): string => {
    if (kind === "file") return "_mapdirect_files";
    if (kind === "mountpoint") return "_mapdirect_mounts";
    if (kind === "mount-options") return "_mapdirect_options";
    return kind === "none" ? ":" : `COMPREPLY=($(compgen -W ${quoted(kind.join(" "))} -- "$cur"))`;
  };
  const lines = [HEAD("bash")];
  lines.push(
    '_mapdirect_files() { compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur")); }',
    `_mapdirect_mounts() { compopt -o filenames; COMPREPLY=($(compgen -W "$(${MOUNTS})" -- "$cur") $(compgen -d -- "$cur")); }`,
    "_mapdirect_options() {",
    "  compopt -o nospace",
    `  local last=\${cur##*,} before=""`,
    `  [[ $cur == *,* ]] && before=\${cur%,*},`,
    `  COMPREPLY=($(compgen -P "$before" -W ${quoted(mountOptionNames().join(" "))} -- "$last"))`,
    "}",
    "_mapdirect() {",
    `  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD - 1]} path= word index places=0`,
    "  COMPREPLY=()",
    "  for ((index = 1; index < COMP_CWORD; index++)); do",
    `    word=\${COMP_WORDS[index]}`,
    '    case "$path/$word" in',
    "      */-*) ;;",
  );
  for (const entry of entries.filter(({ path }) => path !== "")) {
    const parent = entry.path.split(" ").slice(0, -1).join(" ");
    const patterns = entry.names.map((name) => quoted(`${parent}/${name}`)).join("|");
    lines.push(`      ${patterns}) path=${quoted(entry.path)} places=0 ;;`);
  }
  lines.push("      *) ((places++)) ;;", "    esac", "  done", '  case "$path $prev" in');
  for (const { path, options } of entries) {
    for (const { flags, takes } of options) {
      if (takes === null) continue;
      lines.push(
        `    ${flags.map((flag) => quoted(`${path} ${flag}`)).join("|")}) ${reply(takes)}; return ;;`,
      );
    }
  }
  lines.push("  esac", '  case "$path" in');
  for (const { path, options, words } of entries) {
    const flags = options.flatMap((option) => option.flags).join(" ");
    lines.push(
      `    ${quoted(path)})`,
      `      if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W ${quoted(flags)} -- "$cur")); return; fi`,
    );
    const subs = childrenOf(entries, path).flatMap(({ names }) => names);
    if (words.length > 0) {
      lines.push("      case $places in");
      words.forEach((kind, place) => {
        lines.push(`        ${place}) ${reply(kind)} ;;`);
      });
      lines.push("      esac");
    }
    if (subs.length > 0) lines.push(`      COMPREPLY+=($(compgen -W ${quoted(subs.join(" "))} -- "$cur"))`);
    lines.push("      ;;");
  }
  lines.push("  esac", "}", "complete -F _mapdirect mapdirect");
  return lines.join("\n");
}

function zsh(entries: readonly Entry[]): string {
  const action = (kind: Kind): string => {
    if (kind === "file") return "_files";
    if (kind === "mountpoint") return "_mapdirect_mounts";
    if (kind === "mount-options") return `_values -s , option ${mountOptionNames().join(" ")}`;
    return kind === "none" ? "" : `(${kind.join(" ")})`;
  };
  /** In a description, brackets and colons would end it. */
  const about = (text: string): string => text.replaceAll(/[[\]]/g, "").replaceAll(":", "\\:");
  const spec = ({ flags, takes, about: text }: Entry["options"][number]): string[] =>
    flags.map((flag) => quoted(`${flag}[${about(text)}]${takes === null ? "" : `:value:${action(takes)}`}`));
  const body = (path: string, indent: string): string[] => {
    const entry = entries.find((one) => one.path === path) as Entry;
    const subs = childrenOf(entries, path);
    const words = entry.words.map((kind, place) => quoted(`${place + 1}:word:${action(kind)}`));
    const plain = [
      `${indent}_arguments -s ${[...entry.options.flatMap(spec), ...words].join(` \\\n${indent}  `)}`,
    ];
    if (subs.length === 0) return plain;
    const described = subs.flatMap(({ names, summary }) =>
      names.map((name) => quoted(`${name}:${about(summary)}`)),
    );
    return [
      `${indent}if (( CURRENT == 2 )); then`,
      `${indent}  local -a commands=(${described.join(" ")})`,
      `${indent}  _describe command commands`,
      ...(entry.words.length > 0 ? plain.map((line) => `  ${line}`) : []),
      `${indent}  return`,
      `${indent}fi`,
      `${indent}case $words[2] in`,
      ...subs.flatMap((sub) => [
        `${indent}  ${sub.names.join("|")})`,
        `${indent}    shift words; (( CURRENT-- ))`,
        ...body(sub.path, `${indent}    `),
        `${indent}    ;;`,
      ]),
      ...(entry.words.length > 0
        ? [`${indent}  *)`, ...plain.map((line) => `    ${line}`), `${indent}    ;;`]
        : []),
      `${indent}esac`,
    ];
  };
  return [
    "#compdef mapdirect",
    HEAD("zsh"),
    "_mapdirect_mounts() {",
    `  local -a mounts=(\${(f)"$(${MOUNTS})"})`,
    "  compadd -a mounts",
    "  _files -/",
    "}",
    "_mapdirect() {",
    ...body("", "  "),
    "}",
    'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _mapdirect "$@"; else compdef _mapdirect mapdirect; fi',
  ].join("\n");
}

function fish(entries: readonly Entry[]): string {
  const lines = [HEAD("fish"), "complete -c mapdirect -f"];
  for (const { path, names, summary, options, words } of entries) {
    const parts = path.split(" ");
    const seen =
      path === ""
        ? "__fish_use_subcommand"
        : parts.map((part) => `__fish_seen_subcommand_from ${part}`).join("; and ");
    if (path !== "") {
      const parent = parts
        .slice(0, -1)
        .map((part) => `__fish_seen_subcommand_from ${part}`)
        .join("; and ");
      for (const name of names)
        lines.push(
          `complete -c mapdirect -n ${quoted(parent || "__fish_use_subcommand")} -a ${name} -d ${quoted(summary)}`,
        );
    }
    for (const { flags, takes, about } of options) {
      const named = flags
        .map((flag) => (flag.startsWith("--") ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`))
        .join(" ");
      const value =
        takes === null
          ? ""
          : takes === "file"
            ? " -r -F"
            : takes === "mountpoint"
              ? ` -r -a ${quoted(`(${MOUNTS.replaceAll("'", '"').replaceAll('"fuse.mapdirect"', '\\"fuse.mapdirect\\"').replaceAll("$3", "\\$3").replaceAll("$2", "\\$2")})`)}`
              : takes === "mount-options"
                ? ` -r -a ${quoted(`(__fish_append , ${mountOptionNames().join(" ")})`)}`
                : takes === "none"
                  ? " -r"
                  : ` -r -a ${quoted(takes.join(" "))}`;
      lines.push(`complete -c mapdirect -n ${quoted(seen)} ${named}${value} -d ${quoted(about)}`);
    }
    for (const kind of words) {
      if (Array.isArray(kind))
        lines.push(`complete -c mapdirect -n ${quoted(seen)} -a ${quoted(kind.join(" "))}`);
      else if (kind === "file" || kind === "mountpoint")
        lines.push(`complete -c mapdirect -n ${quoted(seen)} -F`);
    }
  }
  return lines.join("\n");
}
