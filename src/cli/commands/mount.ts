/**
 * mount: start a daemon for a region and return when the mount answers; with --foreground, be that daemon.
 *
 * Invariant: when the command fails, no daemon and no mount of it is left.
 */
import { spawn } from "node:child_process";
import { closeSync, openSync, realpathSync, statSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { resolve } from "node:path";
import type { Readable } from "node:stream";
import { fileURLToPath } from "node:url";
import { Command, Option } from "commander";
import { Errno } from "../../base/errno.ts";
import { asFailure, errnoOf, Failure, reason } from "../../daemon/failure.ts";
import { createLog } from "../../daemon/log.ts";
import { lockHolder, mountAt, resolveMountpoint } from "../../daemon/mounts.ts";
import { type MountOptions, parseMountOptions } from "../../daemon/options.ts";
import { Readiness, readReadyLine } from "../../daemon/readiness.ts";
import { inUse, runDaemon } from "../../daemon/run.ts";
import { unmountFuse } from "../../region/fusemount.ts";
import { collect } from "../arguments.ts";

interface MountFlags {
  foreground: boolean;
  assumePmem: boolean;
  options: string[];
  log?: string;
  debug: boolean;
  readyFd?: number;
}

export function mountCommand(): Command {
  return new Command("mount")
    .summary("mount a region")
    .description("Mount a region. Returns when the mount answers; a daemon in the background serves it.")
    .argument("<region>", "file or device with a mapdirect file system")
    .argument("<mountpoint>", "directory")
    .option("-f, --foreground", "serve until unmounted, log to stderr", false)
    .option("--assume-pmem", "declare the region to be persistent memory, for tests", false)
    .option("-o, --options <list>", "mount options, separated by commas", collect, [])
    .option("--log <file>", "append the log of the background daemon to a file")
    .option("--debug", "log every request", false)
    .addOption(new Option("--ready-fd <number>").argParser(Number).hideHelp())
    .addHelpText(
      "after",
      `
Options for -o:
  ro, rw, noatime, relatime, strictatime, nodiratime, sync, dirsync, noexec
  nosuid, nodev          on by default; suid and dev turn them off (root)
  allow_other            other users may use the mount; on by default for root
  direct=seal            conflicting operations fail with ETXTBSY (default)
  direct=breakable       they break the lease, wait for at most break_time, and succeed
  direct=off             no direct mappings
  direct_group=GROUP     its members may map without access to the region itself: they
                         can then write all of it
  break_time=SECONDS     how long a lease that is being broken lasts (45)
  max_leases=N           leases that a user may hold (1024); root and whoever mounts: any
  max_leased=SIZE        bytes that a user may hold under lease (half of the region)
  assume_pmem            as --assume-pmem

Examples:
  mapdirect mount /srv/volume.region /mnt
  mapdirect mount --foreground -o ro,noatime /dev/pmem0 /mnt
  mapdirect mount --assume-pmem -o max_leased=256M /dev/shm/test.region /mnt`,
    )
    .action(mount);
}

async function mount(regionPath: string, mountpointPath: string, flags: MountFlags): Promise<void> {
  const asRoot = process.geteuid?.() === 0;
  const options = parseMountOptions(flags.options, asRoot);
  if (flags.assumePmem) options.assumePmem = true;
  const region = resolveRegion(regionPath);
  const mountpoint = await freeMountpoint(mountpointPath);
  if (lockHolder(region) !== undefined) throw inUse(region);
  if (flags.foreground) await serveHere(region, mountpoint, options, flags);
  else await serveInBackground(region, mountpoint, flags);
}

function resolveRegion(path: string): string {
  try {
    return realpathSync(path);
  } catch (error) {
    const todo =
      errnoOf(error) === Errno.ENOENT
        ? `make one with 'mapdirect mkfs ${path}'`
        : "check the path and its permissions";
    throw new Failure(path, reason(error), todo);
  }
}

/** The absolute path of a directory that can be mounted on; what a crashed daemon left there is cleared away. */
async function freeMountpoint(path: string): Promise<string> {
  for (let tries = 0; tries < 16; tries += 1) {
    let mountpoint = resolve(path);
    try {
      mountpoint = resolveMountpoint(path);
      if (!statSync(mountpoint).isDirectory()) {
        throw new Failure(path, "it is not a directory", "name a directory to mount on");
      }
      const present = mountAt(mountpoint);
      if (present === undefined) return mountpoint;
      const todo = `unmount it first: 'mapdirect unmount ${path}'`;
      throw new Failure(path, `${present.source} is mounted there already`, todo);
    } catch (error) {
      if (error instanceof Failure) throw error;
      if (isDead(error) && mountAt(mountpoint) !== undefined) {
        await unmountFuse(mountpoint, { lazy: true }).catch((again: unknown) => {
          throw asFailure(again, path, `the daemon there is gone: 'umount -l ${mountpoint}'`);
        });
        continue;
      }
      const todo = errnoOf(error) === Errno.ENOENT ? `create it with 'mkdir ${path}'` : "check the path";
      throw new Failure(path, reason(error), todo);
    }
  }
  throw new Failure(path, "dead mounts keep coming back there", "see 'findmnt' and unmount them");
}

/** What a mount answers whose daemon is gone, or going this very moment. */
function isDead(error: unknown): boolean {
  return ["ENOTCONN", "ECONNABORTED"].includes((error as NodeJS.ErrnoException).code ?? "");
}

async function serveHere(
  region: string,
  mountpoint: string,
  options: MountOptions,
  flags: MountFlags,
): Promise<void> {
  const log = createLog(flags.debug ? "debug" : "info");
  const code = await runDaemon(
    { region, mountpoint, options, debug: flags.debug },
    log,
    new Readiness(flags.readyFd),
  );
  // What is left of timers and descriptors must not keep a daemon alive whose work is done.
  process.exit(code);
}

async function serveInBackground(region: string, mountpoint: string, flags: MountFlags): Promise<void> {
  const log = openLog(flags.log);
  const program = fileURLToPath(new URL("../../bin/mapdirect.js", import.meta.url));
  const args = [
    ...["mount", "--foreground", "--ready-fd", "3"],
    ...(flags.assumePmem ? ["--assume-pmem"] : []),
    ...(flags.debug ? ["--debug"] : []),
    ...flags.options.flatMap((list) => ["-o", list]),
    ...["--", region, mountpoint],
  ];
  const child = spawn(process.execPath, [...process.execArgv, program, ...args], {
    detached: true,
    stdio: ["ignore", log, log, "pipe"],
    // The daemon leaves this directory anyway; the paths above are absolute.
    cwd: "/",
  });
  if (typeof log === "number") closeSync(log);
  const pipe = child.stdio[3] as Readable;
  const text = await new Promise<string>((done, failed) => {
    let line = "";
    child.on("error", failed);
    pipe.setEncoding("utf8");
    pipe.on("data", (part: string) => {
      line += part;
      if (line.includes("\n")) done(line);
    });
    pipe.on("close", () => done(line));
  });
  readReadyLine(text);
  pipe.destroy();
  child.unref();
  // The daemon has seen the mount answer; now as the one who waits for it does.
  await statfs(mountpoint).catch((error: unknown) => {
    throw new Failure(mountpoint, reason(error), "see the log (--log FILE)");
  });
}

function openLog(file: string | undefined): number | "ignore" {
  if (file === undefined) return "ignore";
  try {
    return openSync(file, "a", 0o600);
  } catch (error) {
    throw new Failure(file, reason(error), "choose another --log file");
  }
}
