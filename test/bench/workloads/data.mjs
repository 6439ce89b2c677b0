/** Reads and writes through the mount, one at a time: what the goals are about. Short slices, by turns. */
import { join } from "node:path";
import { compiled } from "../peers.mjs";
import { run } from "../scope.mjs";

const KIB = 1024;
const MIB = 1024 * KIB;
/** On top of what a workload is meant to take, before it counts as hung. */
export const GRACE_MS = 60_000;

export const dataFile = (peer) => join(peer.folder, "data");

/** `seconds` 0: once through the file. */
async function io(bench, peer, file, direction, order, blockBytes, seconds, fileBytes = bench.fileBytes) {
  const words = [file, direction, order, blockBytes, fileBytes, seconds].map(String);
  const options = { limitMs: seconds * 1000 + GRACE_MS, signal: bench.signal, env: peer.env };
  const done = JSON.parse(await run(await compiled(bench, "load/io.c"), words, options));
  return {
    operations: done.operations,
    operationsPerSec: done.operations / done.seconds,
    megabytesPerSec: done.bytes / done.seconds / 1e6,
  };
}

/** Before the first round: reads and random writes find their file. */
export const prepareData = (bench, peer) => io(bench, peer, dataFile(peer), "write", "sequential", MIB, 0);

const transfer = (key, title, unit, direction, order, blockBytes) => ({
  name: key,
  group: "data",
  slices: "slices",
  rows: [{ key, title, unit }],
  async run(bench, peer) {
    const done = await io(bench, peer, dataFile(peer), direction, order, blockBytes, bench.sliceSec);
    const value = unit === "MB/s" ? done.megabytesPerSec : done.operationsPerSec;
    return { values: { [key]: value }, operations: done.operations };
  },
});

/** The same file over and over: with a direct mapping of it, no system call would be needed. */
const tight = (key, title, direction) => ({
  name: key,
  group: "preload",
  slices: "slices",
  peers: ["mapdirect", "mapdirect-preload-io", "tmpfs"],
  rows: [{ key, title, unit: "operations/s" }],
  async run(bench, peer) {
    const done = await io(
      bench,
      peer,
      dataFile(peer),
      direction,
      "random",
      4 * KIB,
      bench.sliceSec,
      16 * MIB,
    );
    return { values: { [key]: done.operationsPerSec }, operations: done.operations };
  },
});

export const DATA = [
  transfer("randomRead4k", "4 KiB random read", "operations/s", "read", "random", 4 * KIB),
  transfer("randomWrite4k", "4 KiB random write", "operations/s", "write", "random", 4 * KIB),
  transfer("read1m", "1 MiB sequential read", "MB/s", "read", "sequential", MIB),
  transfer("write1m", "1 MiB sequential write", "MB/s", "write", "sequential", MIB),
  {
    name: "writeNew1m",
    group: "data",
    slices: "fewSlices",
    rows: [{ key: "writeNew1m", title: "1 MiB sequential write, new file", unit: "MB/s" }],
    async run(bench, peer, index) {
      const file = join(peer.folder, `new-${index}`);
      const done = await io(bench, peer, file, "write", "sequential", MIB, 0);
      await run("rm", [file], { limitMs: GRACE_MS, signal: bench.signal });
      return { values: { writeNew1m: done.megabytesPerSec }, operations: done.operations };
    },
  },
  tight("tightRead4k", "pread of 4 KiB, tight loop", "read"),
  tight("tightWrite4k", "pwrite of 4 KiB, tight loop", "write"),
];
