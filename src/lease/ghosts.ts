/**
 * Who maps the region without a lease of ours: programs that outlived the daemon which granted them one (semantics R23).
 *
 * The kernel knows: /proc/PID/maps names the mapped file and the offset in it, which is the offset in the region. What
 * they can reach is quarantined before the first allocation, and until they are gone.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { RESERVED_BYTES } from "../media/format.ts";
import type { Run } from "../space/allocator.ts";

export interface Mapper {
  readonly pid: number;
  /** Blocks of the region, unordered, possibly overlapping. */
  readonly runs: readonly Run[];
}

export interface MapperScan {
  readonly mappers: readonly Mapper[];
  /** Processes whose maps we may not read: those of other users, if we are not root. */
  readonly unreadable: number;
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

/** The mappings of one process that reach the region; exported for its test. */
export function runsIn(maps: string, device: string, inode: string, blockBytes: number): Run[] {
  const runs: Run[] = [];
  for (const [, start, end, offset, mappedDevice, mappedInode] of maps.matchAll(LINE)) {
    if (mappedDevice !== device || mappedInode !== inode) continue;
    const from = Number.parseInt(offset as string, 16);
    // No file lies there: a tool of ours that maps the whole region, not a client.
    if (from < RESERVED_BYTES) continue;
    const bytes = Number(BigInt(`0x${end}`) - BigInt(`0x${start}`));
    const first = Math.floor(from / blockBytes);
    runs.push({ start: first, count: Math.ceil((from + bytes) / blockBytes) - first });
  }
  return runs;
}

/** @param path the region, as the daemon opened it. Never touches a mount of ours. */
export function findMappers(path: string, blockBytes: number): MapperScan {
  const status = statSync(path, { bigint: true });
  const device = deviceOf(status.dev);
  const inode = `${status.ino}`;
  const mappers: Mapper[] = [];
  let unreadable = 0;
  for (const name of readdirSync("/proc")) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    let maps: string;
    try {
      maps = readFileSync(`/proc/${pid}/maps`, "latin1");
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === "EACCES" || code === "EPERM") unreadable += 1;
      continue; // or it has ended meanwhile
    }
    const runs = runsIn(maps, device, inode, blockBytes);
    if (runs.length > 0) mappers.push({ pid, runs });
  }
  return { mappers, unreadable };
}
