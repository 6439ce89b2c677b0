/**
 * What it costs to make and to end a direct mapping, by the number of its extents, beside an ordinary mapping of the same
 * file. One curve, of mapdirect alone: no peer has anything like it.
 */
import { join } from "node:path";
import { root } from "../../scripts/setup.mjs";
import { compile } from "./peers.mjs";
import { run } from "./scope.mjs";
import { ratios, summary } from "./statistics.mjs";

const EXTENTS = [1, 16, 256, 4096];
const FIGURES = ["map", "unmap", "plainMap", "plainUnmap"];
/** On top of what the measurement is meant to take, before it counts as hung. */
const GRACE_MS = 60_000;

/** Microseconds, one entry for each number of extents. */
export async function measureGrants(bench, peer, rounds, say) {
  const program = join(bench.folder, "grant");
  const library = join(root, "dist/lib");
  const flags = [`-I${join(root, "dist/include")}`, `-L${library}`, "-lmapdirect", `-Wl,-rpath,${library}`];
  await compile(bench, "load/grant.c", program, flags);
  const seen = EXTENTS.map(() => []);
  for (let round = 0; round < rounds; round += 1) {
    for (const [at, extents] of EXTENTS.entries()) {
      say(`round ${round + 1}/${rounds}: grants of ${extents} extents`, { passing: true });
      const words = [join(peer.folder, "grant"), `${extents}`, `${bench.seconds / 2}`];
      const limitMs = bench.seconds * 1000 + GRACE_MS;
      const measured = JSON.parse(await run(program, words, { limitMs, signal: bench.signal }));
      if (measured.extents !== extents) {
        throw new Error(`a file of ${extents} extents was wanted, and got ${measured.extents}`);
      }
      seen[at].push(measured);
    }
  }
  return EXTENTS.map((extents, at) => {
    const values = (key) => seen[at].map((measured) => measured[key]);
    const figures = Object.fromEntries(FIGURES.map((key) => [key, summary(values(key))]));
    return { extents, ...figures, ratio: ratios(values("map"), values("plainMap")) };
  });
}
