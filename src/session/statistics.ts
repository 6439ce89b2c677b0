/** What a session has counted, as `mapdirect stats`, the metrics, `top` and the dashboard show it. */
import { readFileSync } from "node:fs";
import { BUCKETS, boundMicros, type Latency, percentileMicros } from "./counting.ts";
import { orphanedMappers } from "./orphan-report.ts";
import type { Session } from "./session.ts";

/** The answer to STATS: keys are stable. Sizes are bytes, times as their names say. */
export interface Statistics {
  readonly uptime_s: number;
  /** Requests since the mount. */
  readonly operations: Readonly<Record<string, number>>;
  readonly errors: number;
  readonly errors_by: Readonly<Record<string, number>>;
  /** Arrival to answer, waiting included. */
  readonly latency: Readonly<Record<string, LatencyReport>>;
  readonly bytes_read: number;
  readonly bytes_written: number;
  /** Requests that wait for a lease, a sync or space. */
  readonly waiting: number;
  readonly open_files: number;
  readonly inodes: number;
  /** Processes that still map files from before this mount. */
  readonly orphaned_processes: number;
  readonly leases: number;
  readonly leases_by: { held: number; breaking: number; revoked: number; ended: number };
  readonly grants: number;
  readonly refusals: number;
  readonly breaks: number;
  readonly revocations: number;
  readonly space: { size: number; free: number; metadata: number; quarantined: number };
  readonly checkpoints: number;
  readonly checkpointing: boolean;
  /** Groups of records. */
  readonly groups: number;
  readonly longest_slice_ms: number;
  readonly log_bytes: number;
  readonly log_segments: number;
  readonly read_only: string | null;
  readonly channel: { requests: number; wakeups: number; pollHits: number } | null;
  /** The daemon's own: not the pages of the region that it has mapped. */
  readonly memory_bytes: number;
  /** With those, and with the programs' text. */
  readonly resident_bytes: number;
}

export interface LatencyReport {
  readonly count: number;
  readonly total_us: number;
  readonly p50_us: number;
  readonly p90_us: number;
  readonly p99_us: number;
  /** Pairs of a bucket's number (src/session/counting.ts) and how many fell into it; those with none are left out. */
  readonly buckets: readonly (readonly [number, number])[];
}

export function statistics(session: Session): Statistics {
  const { volume, counting } = session;
  const { store, leases: table } = volume;
  const by = { held: 0, breaking: 0, revoked: 0, ended: 0 };
  for (const lease of table.all()) by[lease.state] += 1;
  for (const _ of table.lingering()) by.ended += 1;
  const { blockBytes } = store;
  let metadataBlocks = 0;
  for (const run of store.metadataRuns()) if (run.name !== "quarantine") metadataBlocks += run.count;
  return {
    uptime_s: Math.round((Date.now() - session.startedAtMs) / 1000),
    operations: counting.operations(),
    errors: counting.errors,
    errors_by: counting.errorsByName(),
    latency: Object.fromEntries([...counting.latencies()].map((one) => [one.operation, report(one)])),
    bytes_read: counting.bytesRead,
    bytes_written: counting.bytesWritten,
    waiting: session.waiting,
    open_files: session.handles.size,
    inodes: store.state.inodes.size,
    orphaned_processes: orphanedMappers(volume).length,
    leases: table.size,
    leases_by: by,
    ...table.counts,
    space: {
      size: store.superblock.regionBytes,
      free: volume.freeBlocks * blockBytes,
      metadata: metadataBlocks * blockBytes,
      quarantined: store.quarantine.blocks * blockBytes,
    },
    checkpoints: store.counters.checkpoints,
    checkpointing: store.checkpointing,
    groups: store.counters.groups,
    longest_slice_ms: store.counters.longestSliceMs,
    log_bytes: store.journal?.chain.bytesWritten ?? 0,
    log_segments: store.journal?.chain.segments.length ?? 0,
    read_only: store.readOnlyReason ?? store.journal?.failure?.message ?? null,
    channel: session.channelCounters,
    memory_bytes: anonymousBytes(),
    resident_bytes: process.memoryUsage.rss(),
  };
}

/** proc_pid_status(5): the region's pages are of a file, or shared memory. All of what is resident where the kernel does not tell. */
function anonymousBytes(): number {
  try {
    const [, kib] = /^RssAnon:\s*(\d+) kB$/m.exec(readFileSync("/proc/self/status", "latin1")) ?? [];
    if (kib !== undefined) return Number(kib) * 1024;
  } catch {
    // No /proc.
  }
  return process.memoryUsage.rss();
}

function report({ count, totalMicros, counts }: Latency): LatencyReport {
  const micros = (share: number): number => Math.round(percentileMicros(counts, share) * 10) / 10;
  return {
    count,
    total_us: Math.round(totalMicros),
    p50_us: micros(0.5),
    p90_us: micros(0.9),
    p99_us: micros(0.99),
    buckets: [...counts.entries()].filter(([, inside]) => inside > 0),
  };
}

/** The counts of all buckets again, from what a report names of them. */
export function countsOf(report: LatencyReport | undefined): Float64Array {
  const counts = new Float64Array(BUCKETS);
  for (const [bucket, count] of report?.buckets ?? []) counts[bucket] = count;
  return counts;
}

export { boundMicros, percentileMicros };
