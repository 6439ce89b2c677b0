/**
 * fio's engines, queue depths and jobs. One start of fio runs all cells of a peer, one after the other: to start it anew
 * for each takes longer than a cell.
 */
import { hasCommand } from "../../../scripts/setup.mjs";
import { Missing } from "../peers.mjs";
import { run } from "../scope.mjs";
import { dataFile, GRACE_MS } from "./data.mjs";

/** What fio adds to each cell, at most. */
const CELL_GRACE_MS = 3000;

const sides = (blocks) => (blocks === "4k" ? ["randread", "randwrite"] : ["read", "write"]);
const unitOf = (blocks) => (blocks === "4k" ? "operations/s" : "MB/s");
const WORDS = { randread: "random read", randwrite: "random write", read: "read", write: "write" };

function cellsOf(blocks, shapes) {
  return shapes.flatMap(([engine, direct, depth, jobs]) =>
    sides(blocks).map((rw) => ({
      ...{ engine, direct, depth, jobs, rw, blocks },
      key: `fio-${engine}-${blocks}-${rw}-${direct ? "direct" : "buffered"}-qd${depth}-j${jobs}`,
      title: `${engine}, ${blocks === "4k" ? "4 KiB" : "1 MiB"} ${WORDS[rw]}, ${direct ? "direct" : "buffered"}, depth ${depth}, ${jobs} job${jobs > 1 ? "s" : ""}`,
      unit: unitOf(blocks),
    })),
  );
}

const ENGINES = [
  ...cellsOf("4k", [
    ["psync", false, 1, 1],
    ["psync", true, 1, 1],
    ["psync", false, 1, 2],
    ["psync", false, 1, 4],
    ["libaio", true, 1, 1],
    ["libaio", true, 16, 1],
    ["io_uring", true, 1, 1],
    ["io_uring", true, 4, 1],
    ["io_uring", true, 16, 1],
    ["io_uring", false, 16, 1],
    ["io_uring", true, 16, 4],
  ]),
  ...cellsOf("1m", [
    ["psync", false, 1, 1],
    ["psync", true, 1, 1],
    ["psync", false, 1, 4],
    ["libaio", true, 4, 1],
    ["io_uring", true, 16, 1],
  ]),
];
const MMAP = cellsOf("4k", [["mmap", false, 1, 1]]);

async function runCells(bench, peer, cells) {
  if (!hasCommand("fio")) throw new Missing("fio is not installed");
  const words = cells.flatMap((cell) => [
    ...[`--name=${cell.key}`, "--stonewall", `--ioengine=${cell.engine}`, `--direct=${cell.direct ? 1 : 0}`],
    ...[
      `--iodepth=${cell.depth}`,
      `--numjobs=${cell.jobs}`,
      "--thread",
      "--group_reporting",
      "--fallocate=none",
    ],
    ...[
      `--filename=${dataFile(peer)}`,
      `--rw=${cell.rw}`,
      `--bs=${cell.blocks}`,
      `--size=${bench.fileBytes}`,
    ],
    ...["--time_based", `--runtime=${bench.fioMs}ms`, "--randrepeat=1", "--allow_file_create=0"],
    // A large buffer from malloc begins 16 bytes past a page; from a file's pages to there, the kernel's copy is several
    // times slower on some processors (docs/PERFORMANCE.md). That is not what is measured here.
    ...["--iomem_align=4096", "--invalidate=0"],
  ]);
  const options = {
    limitMs: cells.length * (bench.fioMs + CELL_GRACE_MS) + GRACE_MS,
    signal: bench.signal,
    env: peer.env,
    // A cell that cannot be (direct=1 where there is none) fails by itself; the others count.
    anyCode: true,
  };
  // --continue_on_error is about I/O errors of a job; a job that cannot begin does not end the others.
  const text = await run("fio", ["--output-format=json", ...words], options);
  const start = text.indexOf("{");
  if (start < 0) throw new Error(`fio: ${text.trim().split("\n").at(-1)}`);
  const values = {};
  let operations = 0;
  for (const job of JSON.parse(text.slice(start)).jobs) {
    const cell = cells.find(({ key }) => key === job.jobname);
    const side = job[cell.rw.endsWith("read") ? "read" : "write"];
    if (job.error !== 0 || side.total_ios === 0) continue;
    values[cell.key] = cell.unit === "MB/s" ? side.bw_bytes / 1e6 : side.iops;
    operations += side.total_ios;
  }
  if (operations === 0) throw new Missing("fio could run none of it");
  return { values, operations };
}

export const FIO = [
  {
    name: "fio",
    group: "fio",
    isWide: true,
    rows: ENGINES.map(({ key, title, unit }) => ({ key, title, unit })),
    run: (bench, peer) => runCells(bench, peer, ENGINES),
  },
  {
    name: "fioMmap",
    group: "preload",
    peers: ["mapdirect", "mapdirect-preload", "libfuse3-c-cached", "tmpfs", "ext4"],
    isWide: true,
    rows: MMAP.map(({ key, title, unit }) => ({ key, title: `fio ${title}`, unit })),
    run: (bench, peer) => runCells(bench, peer, MMAP),
  },
];
