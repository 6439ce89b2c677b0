/**
 * Sizes as people type them: a whole number of bytes, or one with K, M, G or T for powers of 1024. Nothing else is
 * accepted: a size that is guessed wrong makes a file system of the wrong size.
 */
const UNITS = ["", "K", "M", "G", "T", "P"] as const;

/** Bytes, or undefined when the text is no size or exceeds 2^53 - 1. */
export function parseSize(text: string): number | undefined {
  const match = /^(0|[1-9][0-9]*)([KMGT]?)$/.exec(text);
  if (match === null) return undefined;
  const bytes = Number(match[1]) * 1024 ** UNITS.indexOf(match[2] as "" | "K" | "M" | "G" | "T");
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** Bytes as a bigint for offsets up to 2^63 - 1, or undefined. */
export function parseOffset(text: string): bigint | undefined {
  const match = /^(0|[1-9][0-9]*)([KMGT]?)$/.exec(text);
  if (match === null) return undefined;
  const bytes = BigInt(match[1] ?? "0") << BigInt(10 * UNITS.indexOf(match[2] as "" | "K" | "M" | "G" | "T"));
  return bytes < 2n ** 63n ? bytes : undefined;
}

/** A count of bytes for reading: exact below 10 KiB, else three significant digits. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 10_240 || (unit > 0 && value >= 1024)) {
    if (unit === UNITS.length - 1) break;
    value /= 1024;
    unit += 1;
  }
  if (unit === 0) return `${bytes} B`;
  const digits = value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}iB`;
}

/** A whole number in decimal, at most `max`, or undefined. */
export function parseCount(text: string, max: number): number | undefined {
  if (!/^(0|[1-9][0-9]*)$/.test(text)) return undefined;
  const value = Number(text);
  return value <= max ? value : undefined;
}
