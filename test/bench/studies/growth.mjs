/**
 * What grows with the number of files: mounting, recovery, the daemon's memory, each operation, the longest pause while a
 * checkpoint is written; and one directory with all of them.
 */
import { join } from "node:path";
import { compiled } from "../peers.mjs";
import { run } from "../scope.mjs";
import { GRACE_MS } from "../workloads/data.mjs";
import { end, kill, makeRegion, memoryOf, mount, node, statistics } from "./volume.mjs";

const MIB = 1024 * 1024;
/** Of all profiles: rows of sizes that were not measured are left out of the report. */
const SIZES = [100, 300, 1000, 20_000, 100_000, 1_000_000];
const PER_DIRECTORY = 1000;
/** Of metadata, with room for the next checkpoint and the log. */
const BYTES_PER_FILE = 2048;

const PROBES = { create: "create", statCold: "stat, cold", rename: "rename", unlink: "unlink" };
const SPREAD = {
  mountSec: ["mount", "s"],
  recoverySec: ["mount after kill -9", "s"],
  unmountSec: ["unmount", "s"],
  rssMb: ["memory of the daemon (its own, after mounting)", "MB"],
  rssAllMb: ["the same, with pages of the region that it has mapped", "MB"],
  ...Object.fromEntries(Object.entries(PROBES).map(([key, title]) => [key, [title, "µs"]])),
  pauseMedianMs: ["request during a checkpoint, median", "ms"],
  pauseP999Ms: ["request during a checkpoint, 99.9 %", "ms"],
  pauseLongestMs: ["request during a checkpoint, longest", "ms"],
  pauseSliceMs: ["longest slice of the checkpoint", "ms"],
  pauseStallMs: ["the measuring program kept from the processor, longest", "ms"],
  checkpoints: ["checkpoints meanwhile", ""],
};
const BIG = {
  bigMountSec: ["mount", "s"],
  bigRssMb: ["memory of the daemon (its own, after mounting)", "MB"],
  bigReaddir: ["reading all names", "µs a name"],
  ...Object.fromEntries(Object.entries(PROBES).map(([key, title]) => [`big-${key}`, [title, "µs"]])),
};

const sized = (size) => (size >= 1e6 ? `${size / 1e6}M` : size >= 1000 ? `${size / 1000}k` : `${size}`);
const rowsOf = (figures, curve, where) =>
  SIZES.flatMap((size) =>
    Object.entries(figures).map(([key, [title, unit]]) => ({
      key: `${key}-${size}`,
      title: `${title}, ${sized(size)} ${where}`,
      unit,
      better: "less",
      curve: { name: curve, series: title, x: size },
    })),
  );

const regionBytes = (size) => 256 * MIB + size * BYTES_PER_FILE;
const withSize = (values, size) =>
  Object.fromEntries(Object.entries(values).map(([key, value]) => [`${key}-${size}`, value]));

async function probe(bench, folder) {
  const program = await compiled(bench, "load/meta.c");
  const words = [folder, `${bench.studies.operations}`, "names"];
  const rates = JSON.parse(await run(program, words, { limitMs: GRACE_MS, signal: bench.signal }));
  return Object.fromEntries(Object.keys(PROBES).map((key) => [key, 1e6 / rates[key]]));
}

async function pauses(bench, { folder }) {
  const pause = await compiled(bench, "load/pause.c");
  const churn = await compiled(bench, "load/churn.c");
  const seconds = bench.studies.pauseSec;
  const options = { limitMs: seconds * 1000 + GRACE_MS, signal: bench.signal };
  const file = join(folder, "asked");
  await run("dd", ["if=/dev/zero", `of=${file}`, "bs=4096", "count=1", "status=none"], options);
  const before = await statistics(bench, folder);
  const [text] = await Promise.all([
    run(pause, [file, `${seconds}`], options),
    run(churn, [join(folder, "churned"), `${seconds}`], options),
  ]);
  const after = await statistics(bench, folder);
  if (after.checkpoints === before.checkpoints) return {};
  const found = JSON.parse(text);
  return {
    pauseMedianMs: found.median / 1000,
    pauseP999Ms: found.p999 / 1000,
    pauseLongestMs: found.longest / 1000,
    pauseStallMs: found.ownCpuStalls / 1000,
    pauseSliceMs: after.longest_slice_ms,
    checkpoints: after.checkpoints - before.checkpoints,
  };
}

async function spread(bench, size) {
  const region = await makeRegion(bench, `spread-${size}`, regionBytes(size));
  await node(bench, "volume.mjs", region, size, PER_DIRECTORY);
  const first = await mount(bench, region);
  const memory = memoryOf(first.pid);
  const probed = await probe(bench, first.folder);
  // A volume of a few files may write none: then there is nothing to say of pauses.
  const paused = await pauses(bench, first);
  const unmountSec = await end(bench, first);
  const second = await mount(bench, region);
  await probe(bench, second.folder);
  await kill(bench, second);
  const third = await mount(bench, region);
  await end(bench, third);
  const mounted = { mountSec: first.seconds, recoverySec: third.seconds, unmountSec };
  return { ...mounted, rssMb: memory.own, rssAllMb: memory.all, ...probed, ...paused };
}

async function big(bench, size) {
  const region = await makeRegion(bench, `big-${size}`, regionBytes(size));
  await node(bench, "volume.mjs", region, size, 0);
  const mounted = await mount(bench, region);
  const memory = memoryOf(mounted.pid);
  const folder = join(mounted.folder, "big");
  const from = performance.now();
  // -f: as they come, with nothing asked about each.
  const options = { limitMs: GRACE_MS, signal: bench.signal };
  const seen = Number(await run("sh", ["-c", `ls -f "$1" | wc -l`, "sh", folder], options)) - 2;
  if (seen !== size) throw new Error(`${seen} names in a directory of ${size}`);
  const bigReaddir = ((performance.now() - from) * 1000) / size;
  const probed = Object.entries(await probe(bench, folder)).map(([key, value]) => [`big-${key}`, value]);
  await end(bench, mounted);
  return { bigMountSec: mounted.seconds, bigRssMb: memory.own, bigReaddir, ...Object.fromEntries(probed) };
}

const study = (name, figures, where, measure) => ({
  name,
  group: "growth",
  isWide: true,
  rows: rowsOf(figures, name, where),
  async run(bench) {
    const values = {};
    for (const size of bench.studies.files) {
      bench.say(`${name}: ${size}`, { passing: true });
      Object.assign(values, withSize(await measure(bench, size), size));
    }
    return { mapdirect: values };
  },
});

export const GROWTH = [
  study("files", SPREAD, `files, ${PER_DIRECTORY} in a directory`, spread),
  study("directory", BIG, "names in one directory", big),
];
