/** stats: what a mount has counted since it began. */
import { Command } from "commander";
import { ask, withOpen } from "../../daemon/client.ts";
import type { Statistics } from "../../session/statistics.ts";
import { print, properties, table, toJson } from "../output.ts";

export function statsCommand(): Command {
  return new Command("stats")
    .summary("show what a mount has counted")
    .description(
      "Show what a mount has counted since it began: requests by operation, how long they took, errors, leases, space,\n" +
        "log. A time runs from the arrival of a request to its answer, whatever it waited for.",
    )
    .argument("<mountpoint>", "where a region is mounted")
    .option("--json", "print JSON", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect stats /mnt
  mapdirect stats --json /mnt`,
    )
    .action((path: string, { json }: { json: boolean }) => {
      const found = askStatistics(path);
      print(json ? toJson(found) : inWords(found));
    });
}

export function askStatistics(path: string): Statistics {
  return withOpen(path, (descriptor) => ask(descriptor, "STATS")) as Statistics;
}

function inWords(found: Statistics): string {
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
  return `${properties(rest as unknown as Record<string, unknown>)}\n\n${table(["operation", "count", "p50 us", "p90 us", "p99 us"], rows)}`;
}
