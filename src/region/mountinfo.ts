/** The mounts of this mount namespace, as /proc/self/mountinfo has them. Reading it asks no file system anything. */
import { readFileSync } from "node:fs";

export interface MountEntry {
  /** Unique among the mounts that exist now. */
  id: number;
  /** st_dev, as major:minor. */
  device: string;
  mountpoint: string;
  options: string;
  fsType: string;
  source: string;
}

/** Space, tab, newline and backslash are octal escapes in mountinfo. */
const decodeEscapes = (text: string): string =>
  text.includes("\\")
    ? text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
    : text;

export function parseMountInfo(text: string): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of text.split("\n")) {
    const fields = line.split(" ");
    const dash = fields.indexOf("-", 6);
    if (dash < 0) continue;
    entries.push({
      id: Number(fields[0]),
      device: fields[2] ?? "",
      mountpoint: decodeEscapes(fields[4] ?? ""),
      options: fields[5] ?? "",
      fsType: fields[dash + 1] ?? "",
      source: decodeEscapes(fields[dash + 2] ?? ""),
    });
  }
  return entries;
}

export function readMounts(): MountEntry[] {
  return parseMountInfo(readFileSync("/proc/self/mountinfo", "utf8"));
}
