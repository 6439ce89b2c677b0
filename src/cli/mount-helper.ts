/**
 * What mount(8) runs for `mount -t fuse.mapdirect`, for fstab and for systemd: it calls its helpers as
 * `mount.TYPE SOURCE DIRECTORY [-sfnvr] [-o OPTIONS] [-t TYPE]`, and knows their exit codes.
 *
 * Invariants:
 * - exit codes are those of mount(8): 0 mounted, 1 the request was wrong or not allowed, 32 the mount failed;
 * - as with other file systems, root's mount has suid and dev unless nosuid and nodev are given;
 * - an option that is not understood is an error here too: -s, which asks to overlook some, changes nothing.
 */
import { append } from "../base/arrays.ts";
import { asFailure, Failure, usage } from "../daemon/failure.ts";
import { parseMountOptions } from "../daemon/options.ts";
import { remount } from "../daemon/remount.ts";
import { mount } from "./commands/mount.ts";

const MountExit = { DONE: 0, USAGE: 1, FAILED: 32 } as const;
const HELP = "it is called by mount(8): 'mount -t fuse.mapdirect REGION DIRECTORY -o OPTIONS'";

/** What mount(8) adds by itself: who asked, and in a remount what the kernel shows of the mount as it is. */
const OF_MOUNT = /^(user|uhelper|helper|comment|user_id|group_id|rootmode|max_read|blksize|subtype|fd)=|^X-/;

export interface HelperRequest {
  source: string;
  directory: string;
  options: string[];
  remount: boolean;
  /** -f: everything but the mount itself. */
  fake: boolean;
}

/** Pure. @throws Failure: wrong usage. */
export function parseHelperArguments(args: readonly string[]): HelperRequest {
  const paths: string[] = [];
  const options: string[] = [];
  let fake = false;
  for (let index = 0; index < args.length; index += 1) {
    const word = args[index] as string;
    if (word === "-o" || word === "-t") {
      index += 1;
      const value = args[index];
      if (value === undefined) throw usage(word, "its value is missing", HELP);
      if (word === "-o")
        append(
          options,
          value
            .split(",")
            .map((option) => option.trim())
            .filter((option) => option !== ""),
        );
      else if (!/^(fuse\.)?mapdirect$/.test(value)) throw usage(`-t ${value}`, "it is another type", HELP);
    } else if (/^-[sfnvrw]+$/.test(word)) {
      if (word.includes("f")) fake = true;
      if (word.includes("r")) options.push("ro");
    } else if (word.startsWith("-")) throw usage(word, "it is no option of a mount helper", HELP);
    else paths.push(word);
  }
  const [source, directory] = paths;
  if (source === undefined || directory === undefined || paths.length !== 2) {
    throw usage("mount.mapdirect", "it wants a region and a directory", HELP);
  }
  const own = options.filter((option) => option !== "remount" && !OF_MOUNT.test(option));
  return { source, directory, options: own, remount: options.includes("remount"), fake };
}

/** Set the exit code; never throws. */
export async function mountHelper(args: readonly string[]): Promise<void> {
  try {
    const { source, directory, options, remount: again, fake } = parseHelperArguments(args);
    const asRoot = process.geteuid?.() === 0;
    // mount(8) says what is forbidden and not what is allowed: root's 'dev' and 'suid' are the lack of 'nodev' and 'nosuid'.
    const words = asRoot ? ["suid", "dev", ...options] : options;
    const lists = words.length === 0 ? [] : [words.join(",")];
    parseMountOptions(lists, asRoot);
    if (fake) return;
    if (again) await remount(directory, lists);
    else {
      await mount(source, directory, { foreground: false, assumePmem: false, options: lists, debug: false });
    }
    process.exitCode = MountExit.DONE;
  } catch (error) {
    const failure = error instanceof Failure ? error : asFailure(error, "mount.mapdirect");
    process.stderr.write(`mount.mapdirect: ${failure.message}\n`);
    process.exitCode = failure.exitCode === 2 ? MountExit.USAGE : MountExit.FAILED;
  }
}
