/** stats: what a mount has counted since it began. */
import { Command } from "commander";
import { ask, withOpen } from "../../daemon/client.ts";
import type { Statistics } from "../../session/statistics.ts";
import { print, properties, table, toJson, withUnits } from "../output.ts";

export function statsCommand(): Command {
  return new Command("stats")
    .summary("show what a mount has counted")
    .description(
      "Show what a mount has counted since it began: requests by operation, how long they took, errors, leases, space,\n" +
        "log. A time runs from the arrival of a request to its answer, whatever it waited for.",
    )
    .argument("<mountpoint>", "where a region is mounted")
    .option("--bytes", "print sizes as numbers of bytes", false)
    .option("--json", "print JSON, which has sizes in bytes", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect stats /mnt
  mapdirect stats --json /mnt`,
    )
    .action((path: string, { json, bytes }: { json: boolean; bytes: boolean }) => {
      const found = askStatistics(path);
      print(json ? toJson(found) : inWords(found, bytes));
    });
}

export function askStatistics(path: string): Statistics {
  return withOpen(path, (descriptor) => ask(descriptor, "STATS")) as Statistics;
}

/** What of it is a size, at whatever depth. */
const SIZES = new Set([
  "bytes_read",
  "bytes_written",
  "log_bytes",
  "memory_bytes",
  "resident_bytes",
  "size",
  "free",
  "metadata",
  "quarantined",
]);

function inWords(found: Statistics, bytes: boolean): string {
  const { operations, latency, channel: _, ...rest } = found;
  const rows = Object.entries(operations)
    .sort(([, a], [, b]) => b - a)
    .map(([name, count]) => {
      const times = latency[name];
      if (times === undefined) return [name, `${count}`, "-", "-", "-"];
      return [
        name,
        `${count}`,
        ...[times.p50_us, times.p90_us, times.p99_us].map((micros) => micros.toFixed(0)),
      ];
    });
  const named = rest as unknown as Record<string, unknown>;
  return `${properties(bytes ? named : withUnits(named, SIZES))}\n\n${table(["operation", "count", "p50 us", "p90 us", "p99 us"], rows)}`;
}
