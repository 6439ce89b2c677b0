/** Wall-clock time with sub-microsecond steps that never goes back by less than a clock adjustment. */

let baseMs = Date.now();
let basePerformance = performance.now();

export interface Timestamp {
  /** Whole seconds since 1970; negative before. */
  readonly sec: number;
  /** Nanoseconds in [0, 10^9). */
  readonly nsec: number;
}

export function now(): Timestamp {
  const wall = Date.now();
  let ms = baseMs + (performance.now() - basePerformance);
  // Follow the system's clock when it was set; within 5 ms the finer counter counts.
  if (Math.abs(ms - wall) > 5) {
    baseMs = wall;
    basePerformance = performance.now();
    ms = wall;
  }
  const sec = Math.floor(ms / 1000);
  return { sec, nsec: Math.floor((ms - sec * 1000) * 1e6) };
}

/** The last second that a Date knows of, from 1970 on. */
const DATE_SECONDS_MAX = 8_640_000_000_000n;

/** ISO 8601; of a time that a Date does not reach, its seconds as date(1) takes them: @SECONDS. */
export function dateInWords(seconds: bigint): string {
  if (seconds > DATE_SECONDS_MAX || seconds < -DATE_SECONDS_MAX) return `@${seconds}`;
  return new Date(Number(seconds) * 1000).toISOString();
}
