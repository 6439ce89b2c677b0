/** Second copies of metadata that is whole itself: what is wrong with them costs nothing today. */
import { isWholeCopy } from "../media/copies.ts";
import { readCopyTable } from "../media/copy-table.ts";
import { SegmentRole } from "../media/format.ts";
import type { Recovery } from "../media/recovery.ts";
import type { Region } from "../region/region.ts";
import type { Problems } from "./problem.ts";

/**
 * Of a volume that was unmounted cleanly: then all copies that are listed are there. In another, some were lent to what
 * could not do without a segment, and a power cut may have torn others.
 */
export function checkCopies(region: Region, recovery: Recovery, problems: Problems): void {
  if (recovery.label !== "clean") return;
  const { geometry, superblock, checkpoint, log } = recovery;
  for (const [role, chain, incarnation] of [
    [SegmentRole.CHECKPOINT, checkpoint, superblock.checkpointIncarnation],
    [SegmentRole.LOG, log, superblock.logIncarnation],
  ] as const) {
    const table = readCopyTable(region, role, geometry.seed);
    const name = role === SegmentRole.LOG ? "log" : "checkpoint";
    if (table === "damaged") {
      problems.add(
        "copy",
        `table of the copies of the ${name}`,
        "to be whole",
        "damage",
        "they are made anew",
      );
      continue;
    }
    // Written by a version that makes no copies.
    if (table === null || table.incarnation !== incarnation) continue;
    const firstIndex = chain.index + 1 - chain.segments.length;
    for (const [offset, segment] of chain.segments.entries()) {
      const index = firstIndex + offset;
      const copy = table.copies[index - table.firstIndex] ?? 0;
      if (copy === 0 || isWholeCopy(region, geometry, copy, { role, index, incarnation, segment })) continue;
      const place = `copy at byte ${copy} of the ${name}'s segment ${index}`;
      problems.add("copy", place, "what the segment holds", "damage", "it is made anew");
    }
  }
}
