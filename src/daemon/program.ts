/**
 * Whether a program can be served by MAPDIRECT=auto, and why not. Looks and runs nothing of it.
 *
 * The preload library replaces functions of libc. So the program has to be one that the dynamic linker of glibc starts, that is
 * allowed to have a library loaded before it, and that calls those functions.
 *
 * Invariants: those of doctor.ts; and a program is said not to be served exactly when a finding is bad.
 */
import { execFileSync } from "node:child_process";
import { accessSync, closeSync, constants, openSync, readSync, realpathSync, statSync } from "node:fs";
import { arch } from "node:os";
import { basename, delimiter, dirname, join } from "node:path";
import { addon } from "../region/addon.ts";
import { bad, type Finding, fair, good } from "./doctor.ts";
import { type Elf, ElfError, readElf } from "./elf.ts";
import { Failure, reason } from "./failure.ts";

export interface ProgramAnswer {
  /** What was looked at in the end: of a script its interpreter. */
  readonly program: string;
  readonly found: string;
  readonly served: boolean;
  readonly findings: readonly Finding[];
}

/** Of those machines that the preload library is built for: EM_…, and glibc's dynamic linker. */
const MACHINES: Readonly<Record<string, { machine: number; linker: string }>> = {
  x64: { machine: 62, linker: "ld-linux-x86-64.so.2" },
  arm64: { machine: 183, linker: "ld-linux-aarch64.so.1" },
};

const MMAPS = ["mmap", "mmap64"];
const USE_LIBRARY =
  "call the C library from it: mapdirect_map(), or from Go by way of cgo (docs/LEASES.md, 'Programs without libc's mmap')";

/** @throws Failure (exit code 1) for what cannot be looked at. */
export function examineProgram(path: string): ProgramAnswer {
  const findings: Finding[] = [];
  let program = follow(path);
  for (let depth = 0; ; depth += 1) {
    const interpreter = interpreterOf(program);
    if (interpreter === null) break;
    if (depth === SCRIPT_DEPTH_MAX)
      throw new Failure(
        program,
        "interpreters of interpreters without end",
        "name the program that is to run",
      );
    // Rights of a script do not count: Linux heeds no setuid bit of one.
    findings.push(
      fair(
        "script",
        `${program} is run by ${interpreter}, which is what maps`,
        "nothing: read on about that",
      ),
    );
    program = follow(interpreter);
  }
  let elf: Elf | null;
  try {
    elf = readElf(program);
  } catch (error) {
    if (!(error instanceof ElfError))
      throw new Failure(program, reason(error), "name a program that you may read");
    return answer(program, "damaged ELF file", [
      bad("program", `damaged: ${error.message}`, "build it anew"),
    ]);
  }
  if (elf === null) {
    const todo = "name an ELF program, or a script that begins with '#!'";
    return answer(program, "no program", [...findings, bad("program", "neither ELF nor a script", todo)]);
  }
  const linking = aboutLinking(elf);
  const calls = linking.verdict === "bad" ? [] : aboutCalls(program, elf);
  return answer(program, describe(elf), [
    ...findings,
    linking,
    ...aboutRights(program),
    ...aboutLanguage(elf),
    ...calls,
  ]);
}

const answer = (program: string, found: string, findings: readonly Finding[]): ProgramAnswer => ({
  program,
  found,
  served: findings.every(({ verdict }) => verdict !== "bad"),
  findings,
});

function describe({ bits, interpreter, notes }: Elf): string {
  const how = interpreter === null ? "linked statically" : `linked dynamically (${interpreter})`;
  return `${notes.has("Go") ? "Go program" : "program"} of ${bits} bits, ${how}`;
}

function follow(path: string): string {
  try {
    const found = realpathSync(path);
    if (statSync(found).isFile()) return found;
  } catch (error) {
    throw new Failure(path, reason(error), "name a program, by its path");
  }
  throw new Failure(path, "it is no file", "name a program, by its path");
}

// ---- scripts

const SCRIPT_DEPTH_MAX = 4; // as Linux
const LINE_BYTES_MAX = 256;

/** Of a script, what runs it; null for anything else. `env NAME` is looked up as env(1) does. */
function interpreterOf(path: string): string | null {
  let line: string;
  try {
    const start = Buffer.alloc(LINE_BYTES_MAX);
    const descriptor = openSync(path, "r");
    const count = readSync(descriptor, start, 0, start.length, 0);
    closeSync(descriptor);
    line = start.toString("latin1", 0, count).split("\n", 1)[0] ?? "";
  } catch (error) {
    throw new Failure(path, reason(error), "name a program that you may read");
  }
  if (!line.startsWith("#!")) return null;
  const [command = "", ...args] = line
    .slice(2)
    .trim()
    .split(/[ \t]+/);
  if (basename(command) !== "env") return command;
  const name = args.find((word) => !word.startsWith("-") && !word.includes("="));
  if (name === undefined) return command;
  return onPath(name) ?? name;
}

function onPath(name: string): string | undefined {
  if (name.includes("/")) return name;
  for (const folder of (process.env.PATH ?? "").split(delimiter)) {
    const file = join(folder, name);
    try {
      accessSync(file, constants.X_OK);
      if (statSync(file).isFile()) return file;
    } catch {
      // Not in this folder.
    }
  }
  return undefined;
}

// ---- findings

function aboutLinking(elf: Elf): Finding {
  const what = "linking";
  const here = MACHINES[arch()];
  if (here === undefined || elf.bits !== 64 || elf.machine !== here.machine) {
    return bad(
      what,
      "not of this machine's 64 bits: the preload library cannot be loaded",
      "build it for them",
    );
  }
  if (elf.interpreter === null) {
    return bad(
      what,
      "linked statically: no dynamic linker starts it, so that no library can be loaded before it",
      "link it dynamically against glibc",
    );
  }
  const linker = basename(elf.interpreter);
  if (linker === here.linker)
    return good(what, `started by the dynamic linker of glibc (${elf.interpreter})`);
  const whose = linker.startsWith("ld-musl") ? "musl" : "another C library than glibc";
  const why = `linked against ${whose} (${elf.interpreter}): the preload library is for glibc`;
  return bad(what, why, "link it against glibc");
}

const CAPABILITIES = "security.capability";

function hasCapabilities(path: string): boolean {
  try {
    return addon().getxattr(path, CAPABILITIES).length > 0;
  } catch {
    return false; // None, or a file system that has no attributes.
  }
}

/** ld.so(8), secure-execution mode: of LD_PRELOAD only names without a slash count, and only files that are setuid themselves. */
function aboutRights(path: string): Finding[] {
  const what = "rights";
  const { mode, uid, gid } = statSync(path);
  const rights = [
    ...((mode & 0o4000) !== 0 ? [`setuid (user ${uid})`] : []),
    // Without the right to execute, the bit meant mandatory locking once.
    ...((mode & 0o2010) === 0o2010 ? [`setgid (group ${gid})`] : []),
    ...(hasCapabilities(path) ? ["file capabilities"] : []),
  ];
  if (rights.length === 0) return [];
  return [
    bad(
      what,
      `it runs with more rights than its caller's: ${rights.join(", ")}; then the dynamic linker ignores LD_PRELOAD`,
      "run a copy without them (cp does not keep them), as a user who does not need them",
    ),
  ];
}

function aboutLanguage({ notes }: Elf): Finding[] {
  if (!notes.has("Go")) return [];
  return [
    bad(
      "language",
      "written in Go: syscall.Mmap and the runtime make their system calls themselves, also in a program that is linked dynamically",
      USE_LIBRARY,
    ),
  ];
}

interface Part {
  readonly name: string;
  readonly elf: Elf;
}

/** Of the libraries that a program is linked with and those of these, no more than are plausible. */
const LIBRARIES_MAX = 1024;

/** Where the dynamic linker finds libraries: name to path, from its own cache. */
function cachedLibraries(): Map<string, string> {
  const found = new Map<string, string>();
  for (const command of ["/sbin/ldconfig", "/usr/sbin/ldconfig"]) {
    try {
      const listed = execFileSync(command, ["-p"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
      for (const [, name = "", path = ""] of listed.matchAll(/^\s*(\S+) \(.*\) => (\/.*)$/gm)) {
        if (!found.has(name)) found.set(name, path);
      }
      return found;
    } catch {
      // Not there.
    }
  }
  return found;
}

/** The program, and the libraries that the dynamic linker would load with it, as far as they are found. Libc is left out. */
function partsOf(program: string, elf: Elf): Part[] {
  const parts: Part[] = [{ name: basename(program), elf }];
  const seen = new Set<string>();
  const cached = cachedLibraries();
  const folderOf = new Map<Part, string>([[parts[0] as Part, dirname(program)]]);
  // Not loaded by the linker, which would run what an audit library of the program's says.
  for (let index = 0; index < parts.length && parts.length < LIBRARIES_MAX; index += 1) {
    const part = parts[index] as Part;
    for (const name of part.elf.needed) {
      if (seen.has(name) || /^(libc|libpthread|ld-linux.*)\.so\.\d+$/.test(name)) continue;
      seen.add(name);
      const origin = folderOf.get(part) as string;
      const folders = part.elf.folders.map((folder) => folder.replace(/\$(ORIGIN|\{ORIGIN\})/g, origin));
      const library = openLibrary(name, [...folders.map((folder) => join(folder, name)), cached.get(name)]);
      if (library === null) continue;
      const made = { name, elf: library.elf };
      folderOf.set(made, dirname(library.path));
      parts.push(made);
    }
  }
  return parts;
}

function openLibrary(
  name: string,
  places: readonly (string | undefined)[],
): { path: string; elf: Elf } | null {
  for (const place of name.includes("/") ? [name] : places) {
    if (place === undefined) continue;
    try {
      const path = realpathSync(place);
      const elf = statSync(path).isFile() ? readElf(path) : null;
      if (elf !== null && elf.bits === 64) return { path, elf };
    } catch {
      // Not there, or not to be read: the next.
    }
  }
  return null;
}

function aboutCalls(program: string, elf: Elf): Finding[] {
  const findings: Finding[] = [];
  const own = MMAPS.filter((name) => elf.exports.has(name));
  if (own.length > 0) {
    findings.push(
      fair(
        "mmap",
        "it has an mmap of its own, which comes before the preload library's (so do programs that are built with a sanitizer)",
        "MAPDIRECT_STATS=stderr tells whether its mappings are direct ones",
      ),
    );
  }
  const parts = partsOf(program, elf);
  const callers = parts.filter(({ elf: { imports } }) => MMAPS.some((name) => imports.has(name)));
  if (callers.length > 0) {
    findings.push(good("mmap", `libc's mmap is called by ${callers.map(({ name }) => name).join(", ")}`));
  } else if (own.length === 0) {
    findings.push(
      fair(
        "mmap",
        "neither it nor a library that it is linked with calls libc's mmap; what it loads later may",
        "MAPDIRECT_STATS=stderr tells whether it maps anything; MAPDIRECT=io is for programs that read and write",
      ),
    );
  }
  const rings = parts.filter(
    ({ name, elf: { imports } }) => /^liburing\b/.test(name) || imports.has("io_uring_queue_init"),
  );
  if (rings.length > 0) {
    findings.push(
      fair(
        "io_uring",
        "it may read and write by io_uring, where MAPDIRECT=io serves nothing",
        "nothing for MAPDIRECT=auto: its mappings are served, and io_uring may use them as buffers",
      ),
    );
  }
  return findings;
}
