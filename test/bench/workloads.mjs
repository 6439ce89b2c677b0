/**
 * What is measured. `run(bench, peer, index)` → { values: { metric: value }, operations, p99Ns? }; of values, more is better.
 *
 * The data file is written before the first round, outside the measurement: reads and random writes find it there.
 */
import { join } from "node:path";
import { run } from "./scope.mjs";

const KIB = 1024;
const MIB = 1024 * KIB;
/** On top of what the workload is meant to take, before it counts as hung. */
const GRACE_MS = 60_000;

/** One job, one request at a time. seconds: 0 means once through the file. */
async function io(bench, { file, direction, order, blockBytes, seconds }) {
  const limitMs = seconds * 1000 + GRACE_MS;
  const options = { limitMs, signal: bench.signal };
  if (!bench.hasFio) {
    const words = [file, direction, order, blockBytes, bench.fileBytes, seconds].map(String);
    const done = JSON.parse(await run(join(bench.folder, "io"), words, options));
    const { operations, bytes } = done;
    return { operations, operationsPerSec: operations / done.seconds, bytesPerSec: bytes / done.seconds };
  }
  const rw = order === "random" ? `rand${direction}` : direction;
  const text = await run(
    "fio",
    [
      // A large buffer from malloc begins 16 bytes past a page; from a file's pages to there, the kernel's copy is several
      // times slower on some processors (docs/PERFORMANCE.md). That is not what is measured here.
      "--iomem_align=4096",
      ...["--name=bench", "--ioengine=psync", "--direct=0", "--numjobs=1", "--thread", "--fallocate=none"],
      ...[`--filename=${file}`, `--rw=${rw}`, `--bs=${blockBytes}`, `--size=${bench.fileBytes}`],
      ...(seconds > 0 ? ["--time_based", `--runtime=${seconds}`] : []),
      ...["--randrepeat=1", "--group_reporting", "--output-format=json"],
    ],
    options,
  );
  // Warnings may stand before the JSON.
  const [job] = JSON.parse(text.slice(text.indexOf("{"))).jobs;
  if (job.error !== 0) throw new Error(`fio: error ${job.error} on ${file}`);
  const side = job[direction];
  return {
    operations: side.total_ios,
    operationsPerSec: side.iops,
    bytesPerSec: side.bw_bytes,
    p99Ns: side.clat_ns.percentile?.["99.000000"],
  };
}

export const dataFile = (peer) => join(peer.folder, "data");

export async function prepare(bench, peer) {
  await io(bench, {
    file: dataFile(peer),
    direction: "write",
    order: "sequential",
    blockBytes: MIB,
    seconds: 0,
  });
}

const transfer = (name, key, title, unit, direction, order, blockBytes) => ({
  name,
  title,
  rows: [{ key, title, unit }],
  async run(bench, peer) {
    const file = dataFile(peer);
    const done = await io(bench, { file, direction, order, blockBytes, seconds: bench.seconds });
    const value = unit === "MB/s" ? done.bytesPerSec / 1e6 : done.operationsPerSec;
    return { values: { [key]: value }, operations: done.operations, p99Ns: done.p99Ns };
  },
});

export const WORKLOADS = [
  transfer("random-read-4k", "randomRead4k", "4 KiB random read", "operations/s", "read", "random", 4 * KIB),
  transfer(
    "random-write-4k",
    "randomWrite4k",
    "4 KiB random write",
    "operations/s",
    "write",
    "random",
    4 * KIB,
  ),
  transfer("read-1m", "read1m", "1 MiB sequential read", "MB/s", "read", "sequential", MIB),
  transfer("write-1m", "write1m", "1 MiB sequential write", "MB/s", "write", "sequential", MIB),
  {
    name: "write-new-1m",
    title: "1 MiB sequential write, new file",
    rows: [{ key: "writeNew1m", title: "1 MiB sequential write, new file", unit: "MB/s" }],
    async run(bench, peer, index) {
      const file = join(peer.folder, `new-${index}`);
      const request = { file, direction: "write", order: "sequential", blockBytes: MIB, seconds: 0 };
      const done = await io(bench, request);
      await run("rm", [file], { limitMs: GRACE_MS, signal: bench.signal });
      return { values: { writeNew1m: done.bytesPerSec / 1e6 }, operations: done.operations };
    },
  },
  {
    name: "metadata",
    title: "create, stat, rename, unlink together",
    rows: [
      { key: "create", title: "create", unit: "operations/s" },
      { key: "stat", title: "stat (past the kernel's cache)", unit: "operations/s" },
      { key: "rename", title: "rename", unit: "operations/s" },
      { key: "unlink", title: "unlink", unit: "operations/s" },
    ],
    async run(bench, peer, index) {
      const folder = join(peer.folder, `meta-${index}`);
      const options = { limitMs: GRACE_MS, signal: bench.signal };
      await run("mkdir", [folder], options);
      const text = await run(join(bench.folder, "meta"), [folder, `${bench.metaFiles}`], options);
      await run("rmdir", [folder], options);
      const values = JSON.parse(text);
      return { values, operations: bench.metaFiles * Object.keys(values).length };
    },
  },
];
