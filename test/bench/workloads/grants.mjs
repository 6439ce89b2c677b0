/**
 * What it costs to make and to end a direct mapping, by the number of its extents, beside an ordinary mapping of the same
 * file. Of mapdirect alone: no peer has anything like it.
 */
import { join } from "node:path";
import { clientFlags, compiled } from "../peers.mjs";
import { run } from "../scope.mjs";
import { GRACE_MS } from "./data.mjs";

const EXTENTS = [1, 16, 256, 4096, 10_000];
const FIGURES = {
  map: "MAP_DIRECT",
  plainMap: "plain mmap",
  unmap: "munmap of the direct one",
  plainUnmap: "plain munmap",
  piecesMap: "as many mmap of memory",
  piecesUnmap: "munmap of those",
};

export const grantKey = (figure, extents) => `grant-${figure}-${extents}`;

export const GRANTS = EXTENTS.map((extents) => ({
  name: `grant-${extents}`,
  group: "grants",
  contestants: ["mapdirect"],
  isWide: extents > 4096,
  rows: Object.entries(FIGURES).map(([figure, title]) => ({
    key: grantKey(figure, extents),
    title: `${title}, ${extents} extent${extents > 1 ? "s" : ""}`,
    unit: "µs",
    better: "less",
    curve: { name: "grants", series: title, x: extents },
  })),
  async runAll(bench, round) {
    const program = await compiled(bench, "load/grant.c", clientFlags);
    const file = join(bench.mapdirect.folder, `grant-${round}`);
    const options = { limitMs: GRACE_MS, signal: bench.signal };
    const values = {};
    // The best of several medians: what else runs on the machine only makes them longer.
    for (let slice = 0; slice < bench.fewSlices; slice += 1) {
      const found = JSON.parse(await run(program, [file, `${extents}`, `${bench.grantSec}`], options));
      if (found.extents !== extents) {
        throw new Error(`a file of ${extents} extents was wanted, and got ${found.extents}`);
      }
      for (const figure of Object.keys(FIGURES)) {
        const key = grantKey(figure, extents);
        values[key] = Math.min(values[key] ?? Number.POSITIVE_INFINITY, found[figure]);
      }
    }
    return { values: { mapdirect: values } };
  },
}));
