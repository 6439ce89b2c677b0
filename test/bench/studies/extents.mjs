/** Reads and writes of a file, by the number of its extents. */
import { join } from "node:path";
import { compiled } from "../peers.mjs";
import { run } from "../scope.mjs";
import { GRACE_MS } from "../workloads/data.mjs";
import { makeRegion, mount, node } from "./volume.mjs";

const COUNTS = [1, 16, 256, 4096, 10_000];
const BLOCK = 4096;

const ROWS = COUNTS.flatMap((extents) =>
  [
    ["read", "4 KiB random read"],
    ["write", "4 KiB random write"],
  ].map(([direction, title]) => ({
    key: `extents-${direction}-${extents}`,
    title: `${title}, file of ${extents} extent${extents > 1 ? "s" : ""}`,
    unit: "µs",
    better: "less",
    curve: { name: "extents", series: title, x: extents },
  })),
);

export const EXTENTS = [
  {
    name: "extents",
    group: "growth",
    rows: ROWS,
    async run(bench) {
      const region = await makeRegion(bench, "extents", 256 * 1024 * 1024);
      const { folder } = await mount(bench, region);
      const program = await compiled(bench, "load/io.c");
      const options = { limitMs: GRACE_MS, signal: bench.signal };
      const values = {};
      for (const extents of COUNTS)
        await node(bench, "scatter.mjs", join(folder, `file-${extents}`), extents);
      const seen = new Map();
      // By turns, so that what disturbs the machine disturbs all.
      for (let turn = 0; turn < bench.slices * bench.rounds; turn += 1) {
        for (const extents of COUNTS) {
          for (const direction of ["read", "write"]) {
            const file = join(folder, `file-${extents}`);
            const words = [file, direction, "random", BLOCK, extents * BLOCK, bench.sliceSec / 2].map(String);
            const { operations, seconds } = JSON.parse(await run(program, words, options));
            const key = `extents-${direction}-${extents}`;
            seen.set(key, [...(seen.get(key) ?? []), (seconds * 1e6) / operations]);
          }
        }
      }
      for (const [key, found] of seen)
        values[key] = found.sort((a, b) => a - b)[Math.floor(found.length / 2)];
      return { mapdirect: values };
    },
  },
];
