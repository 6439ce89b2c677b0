/**
 * Get a mounted /dev/fuse descriptor: by mount(2) as root, through the setuid helper fusermount3 otherwise. Both give
 * the same mount: type fuse.mapdirect, source the region's path.
 *
 * The mount point may lie on a mount that this very thread serves: no synchronous call may have the kernel look it up.
 */
import { spawn } from "node:child_process";
import { realpath, stat } from "node:fs/promises";
import { resolve } from "node:path";
import { Errno } from "../base/errno.ts";
import { FsError } from "../base/errors.ts";
import { addon, type OwnedDescriptor } from "./addon.ts";
import { type MountEntry, readMounts } from "./mountinfo.ts";

export interface FuseMountRequest {
  /** Shown as the source of the mount: the region's path. */
  source: string;
  mountpoint: string;
  /** mount(8) words: flags (ro, nosuid, noatime…) and the kernel's FUSE options (allow_other, max_read=N…). */
  options: readonly string[];
  /** "fuse.SUBTYPE", "fuse.mapdirect" in production. */
  fsType: string;
}

export interface FuseMount {
  /** /dev/fuse, for a channel to take over. */
  readonly device: OwnedDescriptor;
  readonly unprivileged: boolean;
  /** What the kernel lists it as; undefined where that cannot be told (no /proc). */
  readonly entry: MountEntry | undefined;
}

/** <sys/mount.h>: what each word sets and clears. */
const MountFlag = {
  RDONLY: 1,
  NOSUID: 2,
  NODEV: 4,
  NOEXEC: 8,
  SYNCHRONOUS: 16,
  DIRSYNC: 128,
  NOSYMFOLLOW: 256,
  NOATIME: 1024,
  NODIRATIME: 2048,
  RELATIME: 1 << 21,
  STRICTATIME: 1 << 24,
} as const;

const FLAG_WORDS: ReadonlyMap<string, { set: number; clear: number }> = new Map([
  ["ro", { set: MountFlag.RDONLY, clear: 0 }],
  ["rw", { set: 0, clear: MountFlag.RDONLY }],
  ["nosuid", { set: MountFlag.NOSUID, clear: 0 }],
  ["suid", { set: 0, clear: MountFlag.NOSUID }],
  ["nodev", { set: MountFlag.NODEV, clear: 0 }],
  ["dev", { set: 0, clear: MountFlag.NODEV }],
  ["noexec", { set: MountFlag.NOEXEC, clear: 0 }],
  ["exec", { set: 0, clear: MountFlag.NOEXEC }],
  ["sync", { set: MountFlag.SYNCHRONOUS, clear: 0 }],
  ["async", { set: 0, clear: MountFlag.SYNCHRONOUS }],
  ["dirsync", { set: MountFlag.DIRSYNC, clear: 0 }],
  ["nosymfollow", { set: MountFlag.NOSYMFOLLOW, clear: 0 }],
  ["noatime", { set: MountFlag.NOATIME, clear: MountFlag.RELATIME | MountFlag.STRICTATIME }],
  ["atime", { set: 0, clear: MountFlag.NOATIME }],
  ["nodiratime", { set: MountFlag.NODIRATIME, clear: 0 }],
  ["diratime", { set: 0, clear: MountFlag.NODIRATIME }],
  ["relatime", { set: MountFlag.RELATIME, clear: MountFlag.NOATIME | MountFlag.STRICTATIME }],
  ["strictatime", { set: MountFlag.STRICTATIME, clear: MountFlag.NOATIME | MountFlag.RELATIME }],
]);

/** Split mount(8) words into mount(2) flags and the options that go to the file system. */
export function splitMountOptions(options: readonly string[]): { flags: number; rest: string[] } {
  let flags = 0;
  const rest: string[] = [];
  for (const word of options) {
    const flag = FLAG_WORDS.get(word);
    if (flag === undefined) rest.push(word);
    else flags = (flags & ~flag.clear) | flag.set;
  }
  return { flags, rest };
}

export async function openFuseMount(request: FuseMountRequest): Promise<FuseMount> {
  for (const word of request.options) {
    if (/[,\\\0]/.test(word)) throw new FsError("EINVAL", `mount option '${word}': one word each, no commas`);
  }
  const { mountpoint, mode } = await lookUp(resolve(request.mountpoint));
  const before = new Set(listMounts().map(({ id }) => id));
  const asRoot = process.geteuid?.() === 0;
  const device = await (asRoot
    ? mountAsRoot(request, mountpoint, mode)
    : mountThroughHelper(request, mountpoint));
  const entry = listMounts().findLast(
    (each) => each.mountpoint === mountpoint && each.fsType === request.fsType && !before.has(each.id),
  );
  return { device, unprivileged: !asRoot, entry };
}

function listMounts(): MountEntry[] {
  try {
    return readMounts();
  } catch {
    return []; // no /proc
  }
}

/** As it is now; undefined when it is not mounted any more. `onTop`: unmounting its mount point means this one. */
export function findMount(entry: MountEntry): { mountpoint: string; onTop: boolean } | undefined {
  const all = listMounts();
  const now = all.find(({ id, device }) => id === entry.id && device === entry.device);
  if (now === undefined) return undefined;
  const top = all.findLast(({ mountpoint }) => mountpoint === now.mountpoint);
  return { mountpoint: now.mountpoint, onTop: top === now };
}

/** As root by umount2, else through fusermount3. Never blocks the event loop, which the kernel may need meanwhile. */
export async function unmountFuse(mountpoint: string, options: { lazy?: boolean } = {}): Promise<void> {
  const { lazy = false } = options;
  const absolute = resolve(mountpoint);
  if (process.geteuid?.() === 0) {
    try {
      await addon().unmountAsync(absolute, lazy);
    } catch (error) {
      throw explainUnmount(error, absolute);
    }
    return;
  }
  await runHelper(["-u", ...(lazy ? ["-z"] : []), "--", absolute], null);
}

async function lookUp(given: string): Promise<{ mountpoint: string; mode: number }> {
  let mountpoint = given;
  try {
    mountpoint = await realpath(given);
    return { mountpoint, mode: (await stat(mountpoint)).mode };
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === "ENOTCONN") {
      throw new FsError(
        "ENOTCONN",
        `${mountpoint} is still a mount whose daemon died: unmount it first (umount -l ${mountpoint})`,
      );
    }
    if (code === "ENOENT")
      throw new FsError("ENOENT", `mount point ${mountpoint} does not exist: create it first`);
    throw error;
  }
}

async function mountAsRoot(
  request: FuseMountRequest,
  mountpoint: string,
  mode: number,
): Promise<OwnedDescriptor> {
  const { flags, rest } = splitMountOptions(request.options);
  const kernelOptions = [
    `rootmode=${(mode & 0o170000).toString(8)}`,
    `user_id=${process.getuid?.() ?? 0}`,
    `group_id=${process.getgid?.() ?? 0}`,
    ...rest,
  ].join(",");
  try {
    return await addon().mountRoot(request.source, mountpoint, request.fsType, kernelOptions, flags);
  } catch (error) {
    throw explainMount(error, mountpoint, rest);
  }
}

async function mountThroughHelper(request: FuseMountRequest, mountpoint: string): Promise<OwnedDescriptor> {
  const subtype = request.fsType.replace(/^fuse\.?/, "");
  const words = [
    `fsname=${escapeOption(request.source)}`,
    ...(subtype === "" ? [] : [`subtype=${escapeOption(subtype)}`]),
    ...request.options,
  ];
  const [ours, theirs] = addon().socketpair();
  try {
    try {
      await runHelper(["-o", words.join(","), "--", mountpoint], theirs.number);
    } finally {
      // Its end must be closed here too, or a helper that sent nothing would leave us waiting.
      theirs.close();
    }
    return addon().receiveDescriptor(ours);
  } finally {
    ours.close();
  }
}

/** fusermount3 takes a comma or a backslash in a value behind a backslash. */
function escapeOption(value: string): string {
  return value.replace(/[\\,]/g, (character) => `\\${character}`);
}

const HELPER_SOCKET = 3;

/** Run fusermount3 to its end; `socket` becomes its descriptor 3, over which it sends /dev/fuse. */
function runHelper(args: readonly string[], socket: number | null): Promise<void> {
  return new Promise((done, failed) => {
    const child = spawn("fusermount3", args, {
      stdio: ["ignore", "ignore", "pipe", ...(socket === null ? [] : [socket])],
      env: { ...process.env, LC_ALL: "C", ...(socket === null ? {} : { _FUSE_COMMFD: `${HELPER_SOCKET}` }) },
    });
    let complaint = "";
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      complaint += text;
    });
    child.on("error", (error: NodeJS.ErrnoException) => {
      // EACCES, too, says that it is not there: where PATH has a folder that this user may not search (execvp(3)).
      failed(
        error.code === "ENOENT" || error.code === "EACCES"
          ? new FsError(
              "ENOENT",
              "mounting without root needs the helper fusermount3, which is not installed; as root: apt-get install fuse3",
            )
          : error,
      );
    });
    child.on("close", (status, signal) => {
      if (status === 0) {
        done();
        return;
      }
      const how = signal === null ? `status ${status}` : `signal ${signal}`;
      const said = complaint.trim() || "it said nothing";
      failed(new FsError(helperErrno(said), `fusermount3 ended with ${how}: ${said}${helperAdvice(said)}`));
    });
  });
}

function helperErrno(said: string): "EPERM" | "EBUSY" | "EINVAL" | "EACCES" {
  if (/busy/i.test(said)) return "EBUSY";
  if (/invalid|unknown option/i.test(said)) return "EINVAL";
  return /allow_other|allow_root|not permitted/i.test(said) ? "EPERM" : "EACCES";
}

function helperAdvice(said: string): string {
  if (/user_allow_other/.test(said)) return "; add the line user_allow_other to /etc/fuse.conf, as root";
  if (/\/dev\/fuse: Permission denied/.test(said))
    return "; it is open to root alone, where udev makes it 0666: chmod 666 /dev/fuse, as root";
  if (/\/dev\/fuse/.test(said)) return "; load the module: modprobe fuse, as root";
  return "";
}

function explainMount(error: unknown, mountpoint: string, options: readonly string[]): Error {
  if (!(error instanceof Error)) return new Error(String(error));
  switch ((error as NodeJS.ErrnoException).errno) {
    case Errno.EPERM:
      return new FsError(
        "EPERM",
        `mounting on ${mountpoint} needs CAP_SYS_ADMIN, which this root lacks (a container?)`,
      );
    case Errno.EINVAL:
      return new FsError(
        "EINVAL",
        `the kernel refused the mount on ${mountpoint}: check the options ${options.join(",")}`,
      );
    case Errno.ENODEV:
      return new FsError("ENODEV", "this kernel has no FUSE: load the module (modprobe fuse)");
    case Errno.ENOENT:
    case Errno.ENXIO:
      return error.message.includes("/dev/fuse)") || error.message.includes("open /dev/fuse")
        ? new FsError("ENODEV", "/dev/fuse is missing: load the module (modprobe fuse)")
        : error;
    default:
      return error;
  }
}

function explainUnmount(error: unknown, mountpoint: string): Error {
  if (!(error instanceof Error)) return new Error(String(error));
  switch ((error as NodeJS.ErrnoException).errno) {
    case Errno.EBUSY:
      return new FsError(
        "EBUSY",
        `${mountpoint} is in use: end what uses it (fuser -vm ${mountpoint} names it), or unmount lazily`,
      );
    case Errno.EINVAL:
      return new FsError("EINVAL", `${mountpoint} is not a mount point`);
    default:
      return error;
  }
}
