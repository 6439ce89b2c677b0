/** Loads and stores through a direct mapping, beside an ordinary mapping of the same bytes of the region. */
import { join } from "node:path";
import { clientFlags, compiled, stage } from "../peers.mjs";
import { run } from "../scope.mjs";
import { GRACE_MS } from "./data.mjs";

const KINDS = [
  ["store64", "64 B store + persist", "operations/CPU s", 1],
  ["copy4k", "4 KiB copy + persist", "operations/CPU s", 1],
  ["randomLoad", "random loads of 8 B", "loads/CPU s", 1],
  ["fill", "sequential fill", "MB/CPU s", 1e6],
  ["scan", "sequential loads", "MB/CPU s", 1e6],
];
const WHERE = {
  page: "page-cached region",
  pmem: "region declared pmem",
};
const CONTESTANTS = ["mapdirect", "raw-mmap"];

/** The peer's own mount, or one that is declared persistent memory. */
const mountOf = (bench, where) => (where === "page" ? bench.mapdirect : stage(bench, where));

async function measure(bench, where, words, limitMs) {
  const { folder, region } = await mountOf(bench, where);
  const program = await compiled(bench, "load/direct.c", [...clientFlags, "-lpthread"]);
  const options = { limitMs: limitMs + GRACE_MS, signal: bench.signal };
  const file = join(folder, "mapped");
  // Made by a program of its own: nothing of ours opens files of a mount.
  if (!bench.mapped.has(where)) {
    await run(
      "dd",
      [
        "if=/dev/zero",
        `of=${file}`,
        "bs=1M",
        `count=${where === "huge" ? bench.hugeMib : bench.mappedMib}`,
        "status=none",
      ],
      options,
    );
    bench.mapped.add(where);
  }
  return JSON.parse(await run(program, [file, region, ...words.map(String)], options));
}

/** Of both sides, and the ratio that the program formed of neighbouring slices. */
function both(entries) {
  const values = { mapdirect: {}, "raw-mmap": {} };
  const ratios = {};
  for (const [key, { direct, raw, ratio }, divisor] of entries) {
    values.mapdirect[key] = direct / divisor;
    values["raw-mmap"][key] = raw / divisor;
    ratios[key] = ratio;
  }
  return { values, ratios: { "raw-mmap": ratios } };
}

const loadsAndStores = (where, processes) => ({
  name: `direct-${where}-${processes}`,
  group: "direct mapping",
  contestants: CONTESTANTS,
  isWide: processes > 2,
  rows: KINDS.map(([kind, title, unit]) => ({
    key: `${kind}-${where}-${processes}`,
    title: `${title}, ${WHERE[where]}, ${processes} process${processes > 1 ? "es" : ""}`,
    unit,
  })),
  async runAll(bench) {
    const limitMs = bench.directSlices * 2 * KINDS.length * bench.directSliceMs * processes;
    const words = [processes, bench.directSlices, bench.directSliceMs];
    const found = await measure(bench, where, words, limitMs);
    return both(KINDS.map(([kind, , , divisor]) => [`${kind}-${where}-${processes}`, found[kind], divisor]));
  },
});

const touch = (key, title, where, stepBytes) => ({
  name: key,
  group: "direct mapping",
  contestants: CONTESTANTS,
  rows: [{ key, title, unit: "touches/CPU s" }],
  async runAll(bench) {
    const found = await measure(bench, where, ["touch", stepBytes, bench.directSlices], 10_000);
    return { ...both([[key, found.touch, 1]]), details: { hugeKib: found.hugeKib } };
  },
});

export const DIRECT = [
  ...["page", "pmem"].flatMap((where) => [1, 2, 3, 4].map((processes) => loadsAndStores(where, processes))),
  touch("touch4k", "first touch, 4 KiB pages", "page", 4096),
  touch("touch2m", "first touch, 2 MiB pages", "huge", 2 * 1024 * 1024),
];
