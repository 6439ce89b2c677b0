/**
 * What is measured every round. A workload:
 *
 *   name, group  the group is a chapter of the report
 *   rows         { key, title, unit, better?, curve? }; more is better unless `better` is "less". `curve` makes the row a
 *                point: { name, series, x }
 *   isWide       only in full runs, in the first few rounds
 *   slices       which setting says how often it runs in a round, all peers by turns; the best run counts
 *   peers        names of those that take part; or isPeer(peer). Otherwise all mounts
 *   run(bench, peer, index)     → { values: { key: number }, operations } (for the server's CPU time per operation)
 *   contestants, runAll(bench, round)  instead of these: one program compares them all by itself
 *                               → { values: { peer: { key: number } }, ratios?: { peer: { key: number } } }
 */
import { DATA } from "./data.mjs";
import { DATABASES } from "./databases.mjs";
import { DIRECT } from "./direct.mjs";
import { FIO } from "./fio.mjs";
import { GRANTS } from "./grants.mjs";
import { METADATA } from "./metadata.mjs";
import { TREE } from "./tree.mjs";

export const WORKLOADS = [...DIRECT, ...GRANTS, ...DATA, ...METADATA, ...TREE, ...FIO, ...DATABASES];

/** Whether a mount takes part. */
export function takesPart(workload, peer) {
  if (peer.folder === undefined) return false;
  if (workload.peers !== undefined) return workload.peers.includes(peer.name);
  return workload.isPeer === undefined ? peer.variantOf === undefined : workload.isPeer(peer);
}
