/** mount: start a daemon for a region and return when the mount answers; with --foreground, be that daemon. */
import { closeSync } from "node:fs";
import { resolve } from "node:path";
import { Command, Option } from "commander";
import { firstFew } from "../../base/arrays.ts";
import { askOrphans, withOpen } from "../../daemon/client.ts";
import { LOG_FORMATS, LOG_LEVELS, type LogFormat, type LogLevel } from "../../daemon/log.ts";
import { type LogTarget, parseLogTarget } from "../../daemon/log-target.ts";
import { lockHolder } from "../../daemon/mounts.ts";
import { type MountOptions, parseMountOptions, TRANSPORTS } from "../../daemon/options.ts";
import { Readiness } from "../../daemon/readiness.ts";
import { inUse } from "../../daemon/region.ts";
import { freeMountpoint, openLogFile, resolveRegion, startDaemon } from "../../daemon/start.ts";
import type { OrphanReport } from "../../session/orphan-report.ts";
import { collect } from "../arguments.ts";
import { print } from "../output.ts";
import { showingProgress } from "../progress.ts";

export interface MountFlags {
  foreground: boolean;
  assumePmem: boolean;
  options: string[];
  transport?: string;
  log?: string;
  logFormat?: LogFormat;
  logLevel?: LogLevel;
  metrics?: string;
  debug: boolean;
  readyFd?: number;
  whileFd?: number;
}

/** Processes. */
const NAMED_MAX = 5;

export function mountCommand(): Command {
  return new Command("mount")
    .summary("mount a region")
    .description("Mount a region. Returns when the mount answers; a daemon in the background serves it.")
    .argument("<region>", "file or device with a mapdirect file system; or UUID=… or LABEL=… of a device's")
    .argument("<mountpoint>", "directory")
    .option("-f, --foreground", "serve until unmounted, log to stderr", false)
    .option("--assume-pmem", "declare the region to be persistent memory, for tests", false)
    .option("-o, --options <list>", "mount options, separated by commas", collect, [])
    .addOption(
      new Option("--transport <name>", "kernel; io_uring; or fuse-native, where that is installed").choices([
        ...TRANSPORTS,
      ]),
    )
    .option("--log <file>", "none, syslog, or a file to append to (default: syslog; with -f stderr)")
    .addOption(
      new Option(
        "--log-format <format>",
        "text, json or journal (default: journal under systemd, else text)",
      ).choices([...LOG_FORMATS]),
    )
    .addOption(
      new Option("--log-level <level>", "lowest level to log (default: info)").choices([...LOG_LEVELS]),
    )
    .option("--metrics <address>", "show metrics for Prometheus: 127.0.0.1:PORT, unix:PATH or file:PATH")
    .option("--debug", "log every request", false)
    .addOption(new Option("--ready-fd <number>").argParser(Number).hideHelp())
    .addOption(new Option("--while-fd <number>").argParser(Number).hideHelp())
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
  metrics=ADDRESS        as --metrics
  log=WHERE              as --log: none, syslog, or the absolute path of a file
  assume_pmem            as --assume-pmem
  ro,rescue              what can be read of a damaged volume
  discard                blocks that have become free are given back to what the region lies
                         on; 'fstrim' gives back all of them at once
  discard_delay=SECONDS  when they have been free for so long, or up to twice that (30)
  nouuid                 although a volume of the same uuid is mounted: a copy of it
  transport=io_uring     as --transport io_uring: requests through io_uring (Linux 6.14,
                         where fuse.enable_uring is on)
  transport=fuse-native  as --transport fuse-native: through that npm package, without
                         direct mappings, for whoever mounts alone

Examples:
  mapdirect mount /srv/volume.region /mnt
  mapdirect mount --foreground -o ro,noatime /dev/pmem0 /mnt
  mapdirect mount --assume-pmem -o max_leased=256M /dev/shm/test.region /mnt`,
    )
    .action(mount);
}

/** Also what mount(8) has done, through its helper. @throws Failure. */
export async function mount(regionPath: string, mountpointPath: string, flags: MountFlags): Promise<void> {
  const asRoot = process.geteuid?.() === 0;
  if (flags.metrics !== undefined) flags.options.push(`metrics=${flags.metrics}`);
  if (flags.transport !== undefined) flags.options.push(`transport=${flags.transport}`);
  const options = parseMountOptions(flags.options, asRoot);
  if (flags.assumePmem) options.assumePmem = true;
  if (flags.log !== undefined) options.log = logArgument(flags.log);
  const region = resolveRegion(regionPath);
  const mountpoint = await freeMountpoint(mountpointPath);
  if (lockHolder(region) !== undefined) throw inUse(region);
  if (flags.foreground) await serveHere(region, mountpoint, options, flags);
  else await serveInBackground(region, mountpoint, options, flags);
}

/** Unlike the option, it may be relative to where the command is given. */
function logArgument(text: string): LogTarget {
  return parseLogTarget(text) ?? { kind: "file", path: resolve(text) };
}

async function serveHere(
  region: string,
  mountpoint: string,
  options: MountOptions,
  flags: MountFlags,
): Promise<void> {
  // Loaded by daemons alone.
  const { createLog, LogFile } = await import("../../daemon/logger.ts");
  const { openSyslog } = await import("../../daemon/syslog.ts");
  const { runDaemon } = await import("../../daemon/run.ts");
  const target = options.log;
  const path = target?.kind === "file" ? target.path : null;
  const inBackground = flags.readyFd !== undefined;
  if (path !== null) closeSync(openLogFile(path, mountpoint));
  const file = path === null ? undefined : await LogFile.open(path, inBackground);
  const log = createLog({
    lowest: flags.logLevel ?? (flags.debug ? "debug" : "info"),
    format: flags.logFormat,
    fields: { region, mountpoint },
    write: file === undefined ? undefined : (line) => file.write(line),
    sink: target?.kind === "syslog" ? openSyslog(mountpoint) : target?.kind === "none" ? () => {} : undefined,
  });
  const code = await runDaemon(
    {
      region,
      mountpoint,
      options,
      debug: flags.debug,
      whileFd: flags.whileFd,
      reopenLog: file === undefined ? undefined : () => file.reopen(),
      // Whoever waits in the foreground hears of a failure, wherever the log goes.
      complain: inBackground || target === null ? undefined : complain,
    },
    log,
    new Readiness(flags.readyFd),
  );
  // What is left of timers and descriptors must not keep a daemon alive whose work is done.
  process.exit(code);
}

function complain(text: string): void {
  process.stderr.write(`mapdirect: ${text}\n`);
}

async function serveInBackground(
  region: string,
  mountpoint: string,
  { log }: MountOptions,
  flags: MountFlags,
): Promise<void> {
  const words = [
    ...(flags.assumePmem ? ["--assume-pmem"] : []),
    ...(flags.debug ? ["--debug"] : []),
    ...(flags.logFormat === undefined ? [] : ["--log-format", flags.logFormat]),
    ...(flags.logLevel === undefined ? [] : ["--log-level", flags.logLevel]),
    ...flags.options.flatMap((list) => ["-o", list]),
  ];
  await showingProgress(() => startDaemon({ region, mountpoint, words, log, bound: false }));
  tellOrphans(mountpoint);
}

/** Who mounts after a crash should know at once who still stores into the volume. */
function tellOrphans(mountpoint: string): void {
  let found: OrphanReport[];
  try {
    found = withOpen(mountpoint, askOrphans);
  } catch {
    return; // It is mounted: that was asked for. Through fuse-native there is nobody to ask.
  }
  const who = new Map(found.map(({ pid, command }) => [pid, `${command} (${pid})`]));
  if (who.size === 0) return;
  const named = firstFew([...who.values()], NAMED_MAX);
  print(
    `${mountpoint}: still mapped from before this mount by ${named.join(", ")}; see 'mapdirect leases ${mountpoint}'`,
  );
}
