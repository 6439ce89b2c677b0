/**
 * What is measured once in a run, of mapdirect (and where it makes sense of one other), on volumes of its own. A study:
 *
 *   name, group, rows  as a workload has them
 *   isWide             not in a quick run
 *   run(bench)         → { peer: { key: number } }; `bench.scope` closes when it ends
 */
import { AGEING } from "./ageing.mjs";
import { EXTENTS } from "./extents.mjs";
import { GROWTH } from "./growth.mjs";
import { LOG } from "./log.mjs";

export const STUDIES = [...LOG, ...EXTENTS, ...GROWTH, ...AGEING];
