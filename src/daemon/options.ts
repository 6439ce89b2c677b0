/**
 * The -o options of a mount, parsed. Pure: no system call, so that every combination can be tested.
 *
 * Invariants:
 * - an option that is not understood is an error that names it: nothing is ever ignored, except what only mount(8) and
 *   fstab care about (defaults, noauto, nofail, x-…);
 * - as with mount(8), the last of two contradicting options wins.
 */
import { similar } from "../base/similar.ts";
import type { LeasePolicy } from "../lease/table.ts";
import type { AtimeMode } from "../namespace/attributes.ts";
import type { CacheMode } from "../session/page-cache.ts";
import { type Failure, usage } from "./failure.ts";
import { LOG_WANTS, type LogTarget, parseLogTarget } from "./log-target.ts";
import { METRICS_WANTS, type MetricsAddress, parseMetricsAddress } from "./metrics-address.ts";
import { parseCount, parseSize } from "./sizes.ts";

export interface MountOptions {
  readOnly: boolean;
  /** What the kernel enforces by itself: nosuid, nodev, noexec; and sync and dirsync, which it leaves to the daemon. */
  restrictions: Set<string>;
  allowOther: boolean;
  atime: AtimeMode;
  noDirectoryAtime: boolean;
  /** Whether files that nobody maps directly are read through the page cache. */
  cache: CacheMode;
  direct: LeasePolicy["direct"];
  breakTimeSeconds: number;
  maxLeases: number;
  /** null: a share of the region. */
  maxLeasedBytes: number | null;
  /** Name or number of the group whose members may map without access to the region; null for none. */
  directGroup: string | null;
  assumePmem: boolean;
  /** What can be read of a damaged volume. */
  rescue: boolean;
  /** What has been free for `discardDelaySeconds` is told to what the region lies on. */
  discard: boolean;
  discardDelaySeconds: number;
  /** Although a volume with the same uuid is mounted. */
  sameUuidToo: boolean;
  /** Where metrics are shown; null for nowhere. */
  metrics: MetricsAddress | null;
  transport: Transport;
  /** Where the log goes; null: syslog for a daemon in the background, stderr for one in the foreground. */
  log: LogTarget | null;
}

/**
 * How requests come from the kernel: through /dev/fuse, through io_uring (Linux 6.14), or through the optional package
 * fuse-native.
 */
export const TRANSPORTS = ["kernel", "io_uring", "fuse-native"] as const;
export type Transport = (typeof TRANSPORTS)[number];

const HELP = "see 'mapdirect mount --help'";

/** What mount(8), systemd and fstab use among themselves. */
const IGNORED = new Set([
  "defaults",
  "auto",
  "noauto",
  "nofail",
  "_netdev",
  "user",
  "nouser",
  "users",
  "owner",
]);

type Setter = (options: MountOptions) => void;

const restrict = (word: string): Setter => {
  return (options) => {
    options.restrictions.add(word);
  };
};
const permit = (word: string): Setter => {
  return (options) => {
    options.restrictions.delete(word);
  };
};
const atime = (mode: AtimeMode): Setter => {
  return (options) => {
    options.atime = mode;
  };
};

const PLAIN: Record<string, Setter> = {
  ro: (options) => {
    options.readOnly = true;
  },
  rw: (options) => {
    options.readOnly = false;
  },
  suid: permit("nosuid"),
  nosuid: restrict("nosuid"),
  dev: permit("nodev"),
  nodev: restrict("nodev"),
  exec: permit("noexec"),
  noexec: restrict("noexec"),
  async: permit("sync"),
  sync: restrict("sync"),
  dirsync: restrict("dirsync"),
  atime: atime("relatime"),
  noatime: atime("noatime"),
  relatime: atime("relatime"),
  norelatime: atime("strictatime"),
  strictatime: atime("strictatime"),
  nostrictatime: atime("relatime"),
  diratime: (options) => {
    options.noDirectoryAtime = false;
  },
  nodiratime: (options) => {
    options.noDirectoryAtime = true;
  },
  allow_other: (options) => {
    options.allowOther = true;
  },
  // The kernel checks permissions in every mount: there is no way to turn that off.
  default_permissions: () => {},
  assume_pmem: (options) => {
    options.assumePmem = true;
  },
  rescue: (options) => {
    options.rescue = true;
  },
  nouuid: (options) => {
    options.sameUuidToo = true;
  },
  discard: (options) => {
    options.discard = true;
  },
  nodiscard: (options) => {
    options.discard = false;
  },
};

const VALUED: Record<string, { wants: string; set: (options: MountOptions, value: string) => boolean }> = {
  cache: {
    wants: "auto or never",
    set: (options, value) => {
      if (value !== "auto" && value !== "never") return false;
      options.cache = value;
      return true;
    },
  },
  direct: {
    wants: "seal, breakable or off",
    set: (options, value) => {
      if (value !== "seal" && value !== "breakable" && value !== "off") return false;
      options.direct = value;
      return true;
    },
  },
  transport: {
    wants: "kernel, io_uring or fuse-native",
    set: (options, value) => {
      const known = TRANSPORTS.find((one) => one === value);
      if (known === undefined) return false;
      options.transport = known;
      return true;
    },
  },
  direct_group: {
    wants: "the name or the number of a group",
    set: (options, value) => {
      // As useradd(8) has it; and nothing that getent could take for an option.
      if (!/^(\d{1,10}|[A-Za-z_][A-Za-z0-9_.-]*\$?)$/.test(value) || Number(value) > 0xffff_fffe)
        return false;
      options.directGroup = value;
      return true;
    },
  },
  break_time: {
    wants: "whole seconds, at most 86400",
    set: (options, value) => {
      const seconds = parseCount(value, 86_400);
      if (seconds === undefined) return false;
      options.breakTimeSeconds = seconds;
      return true;
    },
  },
  discard_delay: {
    wants: "whole seconds, from 1 to 86400",
    set: (options, value) => {
      const seconds = parseCount(value, 86_400);
      if (seconds === undefined || seconds === 0) return false;
      options.discardDelaySeconds = seconds;
      return true;
    },
  },
  max_leases: {
    wants: "a whole number, at most 1048576",
    set: (options, value) => {
      const count = parseCount(value, 1_048_576);
      if (count === undefined) return false;
      options.maxLeases = count;
      return true;
    },
  },
  metrics: {
    wants: METRICS_WANTS,
    set: (options, value) => {
      const address = parseMetricsAddress(value);
      if (address === undefined) return false;
      options.metrics = address;
      return true;
    },
  },
  log: {
    wants: LOG_WANTS,
    set: (options, value) => {
      const target = parseLogTarget(value);
      if (target === undefined) return false;
      options.log = target;
      return true;
    },
  },
  max_leased: {
    wants: "a size such as 4096, 256M or 1G",
    set: (options, value) => {
      const bytes = parseSize(value);
      if (bytes === undefined) return false;
      options.maxLeasedBytes = bytes;
      return true;
    },
  },
};

/** What may follow -o; names that want a value end in "=". */
export function mountOptionNames(): string[] {
  return [...Object.keys(PLAIN), ...Object.keys(VALUED).map((name) => `${name}=`)];
}

/** Before any -o: root shares the mount with everybody, an ordinary user's mount is private. */
export function defaultMountOptions(asRoot: boolean): MountOptions {
  return {
    readOnly: false,
    restrictions: new Set(["nosuid", "nodev"]),
    allowOther: asRoot,
    atime: "relatime",
    noDirectoryAtime: false,
    cache: "never",
    direct: "seal",
    breakTimeSeconds: 45,
    maxLeases: 1024,
    maxLeasedBytes: null,
    directGroup: null,
    assumePmem: false,
    rescue: false,
    discard: false,
    discardDelaySeconds: 30,
    sameUuidToo: false,
    metrics: null,
    transport: "kernel",
    log: null,
  };
}

/** Parse comma-separated lists of options, in the order given; what they do not name stays as in `options`. */
export function parseMountOptions(
  lists: readonly string[],
  asRoot: boolean,
  options: MountOptions = defaultMountOptions(asRoot),
): MountOptions {
  const given = wordsOf(lists);
  for (const item of given) {
    if (item === "") throw usage("mount option", "an empty one was given", HELP);
    if (IGNORED.has(item) || item.startsWith("x-")) continue;
    const cut = item.indexOf("=");
    const name = cut < 0 ? item : item.slice(0, cut);
    const plain = Object.hasOwn(PLAIN, name) ? PLAIN[name] : undefined;
    const valued = Object.hasOwn(VALUED, name) ? VALUED[name] : undefined;
    if (cut < 0 && plain !== undefined) plain(options);
    else if (cut >= 0 && plain !== undefined)
      throw usage(`mount option '${item}'`, `${name} takes no value`, HELP);
    else if (valued === undefined) throw unknown(item, name);
    else if (cut < 0) throw usage(`mount option '${name}'`, `it needs a value: ${valued.wants}`, HELP);
    else if (!valued.set(options, item.slice(cut + 1))) {
      throw usage(`mount option '${item}'`, `${name} wants ${valued.wants}`, HELP);
    }
  }
  if (options.rescue && !options.readOnly) {
    throw usage("mount option 'rescue'", "what is rescued can only be read", "give -o ro,rescue");
  }
  if (!asRoot) refuseForUser(given, options);
  if (options.transport === "fuse-native") restrictToFuseNative(given, options);
  return options;
}

/** A blank after a comma is a slip of the hand, and part of no option. */
function wordsOf(lists: readonly string[]): string[] {
  return lists.flatMap((list) => list.split(",")).map((item) => item.trim());
}

function unknown(item: string, name: string): Failure {
  const close = similar(name, [...Object.keys(PLAIN), ...Object.keys(VALUED)]);
  return usage(
    `mount option '${item}'`,
    `it is unknown${close === undefined ? "" : ` (Did you mean ${close}?)`}`,
    HELP,
  );
}

/** fusermount3 would take them and mount without: what cannot be had is refused, and not ignored. */
function refuseForUser(given: readonly string[], options: MountOptions): void {
  for (const word of ["suid", "dev"]) {
    if (given.includes(word) && !options.restrictions.has(`no${word}`))
      throw usage(`mount option '${word}'`, "only root may mount with it", "leave it out, or mount as root");
  }
}

/** fuse-native has no ioctl, so that nobody can ask for a direct mapping, and does not say who calls. */
function restrictToFuseNative(given: readonly string[], options: MountOptions): void {
  const needless = given.find((item) => /^(direct|direct_group)=/.test(item) && item !== "direct=off");
  if (needless !== undefined) {
    throw usage(`mount option '${needless}'`, "transport=fuse-native has no direct mappings", HELP);
  }
  if (given.includes("allow_other")) {
    const why = "transport=fuse-native does not say which user calls, so that only whoever mounts may use it";
    throw usage("mount option 'allow_other'", why, HELP);
  }
  options.direct = "off";
  options.allowOther = false;
}

/** What a user may hold under lease if max_leased= does not say, as a share of the region. */
const MAX_LEASED_SHARE = 0.5;

export function leasePolicy(
  options: MountOptions,
  regionBytes: number,
  administratorUid: number,
): LeasePolicy {
  return {
    direct: options.direct,
    breakTimeSeconds: options.breakTimeSeconds,
    maxLeases: options.maxLeases,
    maxLeasedBytes: options.maxLeasedBytes ?? Math.floor(regionBytes * MAX_LEASED_SHARE),
    administratorUid,
  };
}

/** The words for the mount itself, as openFuseMount takes them. */
export function mountWords(options: MountOptions, asRoot: boolean): string[] {
  const words = [options.readOnly ? "ro" : "rw", ...options.restrictions];
  if (options.atime === "noatime") words.push("noatime");
  // fusermount3 has no such word. Access times are the daemon's work anyway: the flag only shows in findmnt.
  if (options.atime === "strictatime" && asRoot) words.push("strictatime");
  if (options.noDirectoryAtime) words.push("nodiratime");
  if (options.allowOther) words.push("allow_other");
  words.push("default_permissions");
  return words;
}
