/** What mapdirect has to reach. */
import { grantKey } from "./workloads/grants.mjs";

const ratio = (title, key, other, least, peer = "mapdirect") => ({
  title: `${title}: ${peer} ÷ ${other}`,
  unit: "×",
  least,
  measure: (results) => results.ratio(peer, other, key),
});
const atMost = (title, key, unit, most) => ({
  title,
  unit,
  most,
  measure: (results) => results.values("mapdirect", key),
});
const grantCost = (direct, plain) => direct - plain;

const LOADS = [
  ["store64", "64 B store + persist"],
  ["copy4k", "4 KiB copy + persist"],
  ["randomLoad", "random loads"],
  ["fill", "sequential fill"],
  ["scan", "sequential loads"],
];
const BLOCKS = [
  ["randomRead4k", "4 KiB random read"],
  ["randomWrite4k", "4 KiB random write"],
];
const STREAMS = [
  ["read1m", "1 MiB sequential read"],
  ["write1m", "1 MiB sequential write"],
];
const NAMES = ["create", "rename", "unlink"];
const NATIVE = ["fuse-native", "fuse-native-tuned"];
const LIBFUSE = ["libfuse3-c", "libfuse3-c-mt"];

export const GOALS = [
  ...["pmem", "page"].flatMap((where) =>
    LOADS.map(([kind, title]) =>
      ratio(
        `${title} (${where === "pmem" ? "declared pmem" : "page-cached"})`,
        `${kind}-${where}-1`,
        "raw-mmap",
        0.98,
      ),
    ),
  ),
  ratio("first touch, 4 KiB pages", "touch4k", "raw-mmap", 0.95),
  ratio("first touch, 2 MiB pages", "touch2m", "raw-mmap", 0.95),
  {
    title: "grant of a mapping of one extent, beyond a plain mmap",
    unit: "µs",
    most: 60,
    measure: (results) =>
      results.combined("mapdirect", [grantKey("map", 1), grantKey("plainMap", 1)], grantCost),
  },
  ratio("pread of 4 KiB, tight loop", "tightRead4k", "tmpfs", 3, "mapdirect-preload-io"),
  ratio("pwrite of 4 KiB, tight loop", "tightWrite4k", "tmpfs", 3, "mapdirect-preload-io"),
  ...BLOCKS.flatMap(([key, title]) => [
    ...LIBFUSE.map((other) => ratio(title, key, other, 0.95)),
    ratio(title, key, "libfuse3-c", 1.2, "mapdirect-io_uring"),
    ...NATIVE.map((other) => ratio(title, key, other, 3)),
  ]),
  ...STREAMS.flatMap(([key, title]) => [
    ...LIBFUSE.map((other) => ratio(title, key, other, 1)),
    ...NATIVE.map((other) => ratio(title, key, other, 10)),
  ]),
  ...NAMES.flatMap((phase) => [
    ratio(phase, `one-${phase}`, "libfuse3-c", 0.7),
    ratio(phase, `one-${phase}`, "fuse-native", 2),
  ]),
  ratio("untar + grep + rm of a source tree", "treeAll", "libfuse3-c", 1),
  atMost("mount of a volume of 1M files", "mountSec-1000000", "s", 3),
  atMost("memory of the daemon, 1M files", "rssAllMb-1000000", "MB", 700),
  atMost("longest pause during a checkpoint of 1M files", "pauseLongestMs-1000000", "ms", 10),
];

/** With what was measured; `reached` is null where nothing was. */
export function judge(results, goals = GOALS) {
  return goals.map(({ title, unit, least, most, measure }) => {
    const measured = measure(results) ?? null;
    const reached =
      measured === null ? null : least === undefined ? measured.median <= most : measured.median >= least;
    return { title, unit, least: least ?? null, most: most ?? null, measured, reached };
  });
}
