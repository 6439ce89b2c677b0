/**
 * Start a daemon for a region, and return when the mount answers.
 *
 * Invariant: when that fails, no daemon and no mount of it is left.
 */
import { spawn } from "node:child_process";
import { closeSync, openSync, realpathSync, statfsSync, statSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { join, resolve } from "node:path";
import type { Readable } from "node:stream";
import { Errno } from "../base/errno.ts";
import { progress } from "../base/progress.ts";
import { packageRoot } from "../region/addon.ts";
import { unmountFuse } from "../region/fusemount.ts";
import { asFailure, errnoOf, Failure, reason, usage } from "./failure.ts";
import { resolveTag } from "./identify.ts";
import { type LogTarget, showLogTarget } from "./log-target.ts";
import { isDeadMount, liesBelow, mountAt, resolveMountpoint } from "./mounts.ts";
import { readReadyLine, takeProgress } from "./readiness.ts";

/** The absolute path of a region that exists; it may be given as UUID=… or LABEL=…, too. */
export function resolveRegion(path: string): string {
  try {
    return realpathSync(resolveTag(path));
  } catch (error) {
    if (error instanceof Failure) throw error;
    const todo =
      errnoOf(error) === Errno.ENOENT
        ? `make one with 'mapdirect mkfs ${path}'`
        : "check the path and its permissions";
    throw new Failure(path, reason(error), todo);
  }
}

/** The absolute path of a directory that can be mounted on; what a crashed daemon left there is cleared away. */
export async function freeMountpoint(path: string): Promise<string> {
  for (let tries = 0; tries < 16; tries += 1) {
    let mountpoint = resolve(path);
    try {
      mountpoint = resolveMountpoint(path);
      if (!statSync(mountpoint).isDirectory()) {
        throw new Failure(path, "it is not a directory", "name a directory to mount on");
      }
      const present = mountAt(mountpoint);
      if (present === undefined) return mountpoint;
      // What stat(2) says may come from the kernel's cache, though the daemon is gone; this never does.
      statfsSync(mountpoint);
      const todo = `unmount it first: 'mapdirect unmount ${path}'`;
      throw new Failure(path, `${present.source} is mounted there already`, todo);
    } catch (error) {
      if (error instanceof Failure) throw error;
      if (isDeadMount(error) && mountAt(mountpoint) !== undefined) {
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

export interface StartRequest {
  /** Absolute paths. */
  readonly region: string;
  readonly mountpoint: string;
  /** More of the command line of `mapdirect mount`. */
  readonly words: readonly string[];
  /** Null: what is usual in the background. */
  readonly log: LogTarget | null;
  /** The daemon unmounts when this process ends. */
  readonly bound: boolean;
}

/** Returns the daemon's pid. @throws Failure. */
export async function startDaemon(request: StartRequest): Promise<number> {
  const { region, mountpoint, bound } = request;
  const target = request.log ?? { kind: "syslog" };
  // Here, so that who asked hears why it cannot be had; the daemon has it as stderr.
  const log = target.kind === "file" ? openLogFile(target.path, mountpoint) : "ignore";
  try {
    const words = [...request.words, "--log", showLogTarget(target)];
    return await start({ region, mountpoint, words, log, bound });
  } finally {
    if (typeof log === "number") closeSync(log);
  }
}

/** Its descriptor. A daemon that logs to its own mount would wait for itself. @throws Failure */
export function openLogFile(path: string, mountpoint: string): number {
  try {
    if (!liesBelow(path, mountpoint)) return openSync(path, "a", 0o600);
  } catch (error) {
    throw new Failure(path, reason(error), "choose another file for the log");
  }
  throw usage(path, "it lies on the mount that it is the log of", "choose another file for the log");
}

async function start(request: {
  region: string;
  mountpoint: string;
  words: readonly string[];
  log: number | "ignore";
  bound: boolean;
}): Promise<number> {
  const { region, mountpoint, words, log, bound } = request;
  const program = join(packageRoot, "dist", "bin", "mapdirect.js");
  const args = ["mount", "--foreground", "--ready-fd", "3", ...(bound ? ["--while-fd", "4"] : []), ...words];
  const child = spawn(process.execPath, [program, ...args, "--", region, mountpoint], {
    detached: true,
    stdio: ["ignore", log, log, "pipe", ...(bound ? ["pipe" as const] : [])],
    // The daemon leaves this directory anyway; the paths above are absolute.
    cwd: "/",
  });
  const pipe = child.stdio[3] as Readable;
  const text = await new Promise<string>((done, failed) => {
    let line = "";
    child.on("error", failed);
    pipe.setEncoding("utf8");
    pipe.on("data", (part: string) => {
      const { steps, rest } = takeProgress(line + part);
      for (const { step, done: so, total } of steps) progress(step, so, total);
      line = rest;
      if (line.includes("\n")) done(line);
    });
    pipe.on("close", () => done(line));
  });
  const pid = readReadyLine(text);
  pipe.destroy();
  child.unref();
  // Its end stays open as long as this process lives, and keeps nothing else alive.
  (child.stdio[4] as { unref?: () => void } | null | undefined)?.unref?.();
  // The daemon has seen the mount answer; now as the one who waits for it does.
  await statfs(mountpoint).catch((error: unknown) => {
    throw new Failure(mountpoint, reason(error), "see the log (docs/OPERATIONS.md, Watching it)");
  });
  return pid;
}
