/** What happened between two looks at the statistics of a mount. */
import { countsOf, percentileMicros, type Statistics } from "../session/statistics.ts";

export interface OperationRate {
  readonly operation: string;
  readonly perSecond: number;
  /** Of those in between; of all since the mount if there were none. */
  readonly micros: { readonly p50: number; readonly p90: number; readonly p99: number };
}

export interface Rates {
  readonly requests: number;
  readonly errors: number;
  readonly readBytes: number;
  readonly writtenBytes: number;
  readonly logBytes: number;
  readonly operations: readonly OperationRate[];
}

const sum = (values: Readonly<Record<string, number>>): number =>
  Object.values(values).reduce((total, value) => total + value, 0);

/** Per second. A daemon that was started anew in between begins at nothing. */
export function ratesBetween(earlier: Statistics | null, later: Statistics, seconds: number): Rates {
  const before = earlier !== null && earlier.uptime_s <= later.uptime_s ? earlier : null;
  const rate = (of: (statistics: Statistics) => number): number =>
    before === null ? 0 : Math.round(Math.max(0, of(later) - of(before)) / seconds);
  const operations = Object.keys(later.operations).map((operation): OperationRate => {
    const all = countsOf(later.latency[operation]);
    const old = countsOf(before?.latency[operation]);
    const fresh = all.map((count, bucket) => count - (old[bucket] as number));
    const counts = before !== null && fresh.some((count) => count > 0) ? fresh : all;
    const micros = (share: number): number => percentileMicros(counts, share);
    return {
      operation,
      perSecond: rate(({ operations: count }) => count[operation] ?? 0),
      micros: { p50: micros(0.5), p90: micros(0.9), p99: micros(0.99) },
    };
  });
  operations.sort(
    (a, b) =>
      b.perSecond - a.perSecond ||
      (later.operations[b.operation] ?? 0) - (later.operations[a.operation] ?? 0),
  );
  return {
    requests: rate((statistics) => sum(statistics.operations)),
    errors: rate(({ errors }) => errors),
    readBytes: rate(({ bytes_read }) => bytes_read),
    writtenBytes: rate(({ bytes_written }) => bytes_written),
    logBytes: rate(({ log_bytes }) => log_bytes),
    operations,
  };
}
