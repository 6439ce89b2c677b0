/**
 * Who maps the region without a lease of ours: programs that outlived the daemon which granted them one (semantics R23).
 *
 * The kernel knows: /proc/PID/maps names the mapped file and the offset in it, which is the offset in the region. What
 * they can reach is quarantined before the first allocation, and until they are gone.
 */
import { readFileSync } from "node:fs";
import { RESERVED_BYTES } from "../media/format.ts";
import type { Region, RegionFacts } from "../region/region.ts";
import type { Run } from "../space/allocator.ts";

export interface Mapper {
  readonly pid: number;
  /** Blocks of the region, unordered, possibly overlapping. */
  readonly runs: readonly Run[];
}

/** A process whose mappings cannot be read, and which may open the region: it may map anything. */
export interface HiddenMapper {
  readonly pid: number;
  /** Errno. */
  readonly failure: number;
}

export interface MapperScan {
  readonly mappers: readonly Mapper[];
  readonly hidden: readonly HiddenMapper[];
  /** Nobody has begun a process meanwhile that may have been missed. */
  readonly settled: boolean;
}

/** The device as /proc/PID/maps writes it: major and minor in hexadecimal (Linux's dev_t as in makedev(3)). */
export function deviceOf(dev: bigint): string {
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & 0xfffff000n);
  const minor = (dev & 0xffn) | ((dev >> 12n) & 0xffffff00n);
  const hex = (value: bigint): string => value.toString(16).padStart(2, "0");
  return `${hex(major)}:${hex(minor)}`;
}

/** start-end perms offset device inode … (proc_pid_maps(5)); shared mappings alone */
const LINE = /^([0-9a-f]+)-([0-9a-f]+) \S{3}s ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+)/gm;

/** The mappings of one process that reach the region, by lines of its maps; of these alone, if given. */
export function runsIn(
  maps: string,
  blockBytes: number,
  only?: { readonly device: string; readonly inode: string },
): Run[] {
  const runs: Run[] = [];
  for (const [, start, end, offset, device, inode] of maps.matchAll(LINE)) {
    if (only !== undefined && (device !== only.device || inode !== only.inode)) continue;
    const from = Number.parseInt(offset as string, 16);
    // No file lies there: a tool of ours that maps the whole region, not a client.
    if (from < RESERVED_BYTES) continue;
    const bytes = Number(BigInt(`0x${end}`) - BigInt(`0x${start}`));
    const first = Math.floor(from / blockBytes);
    runs.push({ start: first, count: Math.ceil((from + bytes) / blockBytes) - first });
  }
  return runs;
}

/** Passes at most until two in a row agree. */
const PASSES_MAX = 8;

/**
 * Who maps the region, as it is open here: its name may be another file's by now. Off the event loop, and without waiting
 * for a process that waits for us.
 */
export async function findMappers(
  region: Region,
  blockBytes: number,
  proc = "/proc",
  patienceMs?: number,
): Promise<MapperScan> {
  let before = await onePass(region, blockBytes, proc, patienceMs);
  for (let pass = 1; pass < PASSES_MAX; pass += 1) {
    // A process that is forked while the list of all is read may be missed once, where numbers begin anew.
    const now = await onePass(region, blockBytes, proc, patienceMs);
    if (before.settled && now.settled && pidsOf(before) === pidsOf(now)) return now;
    before = now;
  }
  return { ...before, settled: false };
}

const pidsOf = ({ mappers, hidden }: MapperScan): string =>
  [...mappers, ...hidden]
    .map(({ pid }) => pid)
    .sort((one, other) => one - other)
    .join();

async function onePass(
  region: Region,
  blockBytes: number,
  proc: string,
  patienceMs: number | undefined,
): Promise<MapperScan> {
  if (region.findMappings === undefined) return { mappers: [], hidden: [], settled: true };
  const { processes, settled } = await region.findMappings(proc, patienceMs);
  const mappers: Mapper[] = [];
  const hidden: HiddenMapper[] = [];
  for (const { pid, failure, lines } of processes) {
    if (failure !== 0) {
      if (mayOpen(proc, pid, region.facts.access)) hidden.push({ pid, failure });
      continue;
    }
    const runs = runsIn(lines, blockBytes);
    if (runs.length > 0) mappers.push({ pid, runs });
  }
  return { mappers, hidden, settled };
}

/**
 * By the region's owner, group and mode. Root may open everything, and counts where it owns the region: else no ordinary
 * user's daemon could ever use a block again.
 */
function mayOpen(proc: string, pid: number, access: RegionFacts["access"]): boolean {
  // Init maps no files of others, and where it has more rights than we have it would count until the machine stops.
  if (pid === 1) return false;
  let status: string;
  try {
    status = readFileSync(`${proc}/${pid}/status`, "latin1");
  } catch (error) {
    return (
      (error as NodeJS.ErrnoException).code !== "ENOENT" && (error as NodeJS.ErrnoException).code !== "ESRCH"
    );
  }
  const numbers = (name: string): number[] =>
    (new RegExp(`^${name}:\\s*(.*)$`, "m").exec(status)?.[1] ?? "").split(/\s+/).filter(Boolean).map(Number);
  const uids = numbers("Uid");
  if ((access.mode & 0o002) !== 0 || uids.includes(access.uid)) return true;
  return (access.mode & 0o020) !== 0 && [...numbers("Gid"), ...numbers("Groups")].includes(access.gid);
}
