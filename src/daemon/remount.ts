/**
 * Change a mount in place: what the kernel enforces by itself (ro, rw, suid, dev, exec). Everything else belongs to
 * the daemon, which has it from its command line for as long as it lives.
 *
 * Invariant: a remount does all that was asked or nothing; what it cannot change is named.
 */
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { isDeepStrictEqual } from "node:util";
import { Failure, reason } from "./failure.ts";
import { FS_TYPE, lockHolder, mountAt, resolveMountpoint } from "./mounts.ts";
import { defaultMountOptions, type MountOptions, parseMountOptions } from "./options.ts";

/** By what an option is called: two that differ need a mount of their own. */
const OF_THE_DAEMON: readonly [keyof MountOptions, string][] = [
  ["allowOther", "allow_other"],
  ["atime", "the updates of access times"],
  ["noDirectoryAtime", "nodiratime"],
  ["direct", "direct="],
  ["breakTimeSeconds", "break_time="],
  ["maxLeases", "max_leases="],
  ["maxLeasedBytes", "max_leased="],
  ["directGroup", "direct_group="],
  ["assumePmem", "assume_pmem"],
  ["rescue", "rescue"],
  ["discard", "discard"],
  ["discardDelaySeconds", "discard_delay="],
  ["cache", "cache="],
  ["metrics", "metrics="],
  ["transport", "transport="],
  ["log", "log="],
];

/** @throws Failure. */
export async function remount(path: string, lists: readonly string[]): Promise<void> {
  const mountpoint = resolveMountpoint(path);
  const mounted = mountAt(mountpoint);
  if (mounted === undefined) {
    throw new Failure(path, "no mapdirect file system is mounted there", "mount it without 'remount'");
  }
  const present = optionsOfDaemon(mounted.source);
  const asRoot = process.geteuid?.() === 0;
  // mount(8) says what is forbidden and not what is allowed: 'dev' reaches nobody, it is the lack of 'nodev'.
  const base = { ...structuredClone(present), restrictions: new Set<string>() };
  const wanted = parseMountOptions(lists, asRoot, base);
  const todo = "unmount it, and mount it with the new options";
  for (const [key, name] of OF_THE_DAEMON) {
    if (!isDeepStrictEqual(wanted[key], present[key]))
      throw new Failure(path, `a remount cannot change ${name}`, todo);
  }
  for (const word of ["sync", "dirsync"]) {
    if (wanted.restrictions.has(word) !== present.restrictions.has(word))
      throw new Failure(path, `a remount cannot change ${word}`, todo);
  }
  if (present.readOnly && !wanted.readOnly) {
    throw new Failure(path, "its daemon has opened the region for reading alone", todo);
  }
  await byKernel(mounted.source, mountpoint, kernelWords(wanted));
}

/** What the daemon was started with. */
function optionsOfDaemon(region: string): MountOptions {
  const daemon = lockHolder(region);
  if (daemon === undefined)
    throw new Failure(region, "no daemon serves it", "unmount it, and mount it again");
  let words: string[];
  try {
    words = readFileSync(`/proc/${daemon}/cmdline`, "utf8").split("\0");
  } catch (error) {
    throw new Failure(`/proc/${daemon}/cmdline`, reason(error), "remount as the user who mounted it");
  }
  const lists = words.filter((_, index) => index > 0 && words[index - 1] === "-o");
  const options = parseMountOptions(lists, true, defaultMountOptions(true));
  if (words.includes("--assume-pmem")) options.assumePmem = true;
  return options;
}

function kernelWords(options: MountOptions): string[] {
  const either = (word: string): string => (options.restrictions.has(`no${word}`) ? `no${word}` : word);
  const words = [options.readOnly ? "ro" : "rw", either("suid"), either("dev"), either("exec")];
  words.push(options.restrictions.has("sync") ? "sync" : "async");
  if (options.restrictions.has("dirsync")) words.push("dirsync");
  // Named, or the kernel would fall back to relatime.
  words.push(options.atime, options.noDirectoryAtime ? "nodiratime" : "diratime");
  return words;
}

/** By mount(8) itself: -i keeps it from asking its helper, which is us. */
function byKernel(source: string, mountpoint: string, words: readonly string[]): Promise<void> {
  const args = ["-i", "-t", FS_TYPE, "-o", ["remount", ...words].join(","), source, mountpoint];
  return new Promise((done, failed) => {
    execFile("mount", args, { env: { ...process.env, LC_ALL: "C" } }, (error, _, stderr) => {
      if (error === null) return done();
      const busy = /busy/.test(stderr);
      failed(
        new Failure(
          mountpoint,
          busy ? "files are open for writing or mapped directly" : stderr.trim() || error.message,
          busy ? `see 'mapdirect leases ${mountpoint}' and 'fuser -vm ${mountpoint}'` : "see dmesg",
        ),
      );
    });
  });
}
