/** Whether a region has held a volume whose superblocks are gone, or anything at all. */
import { CorruptionError, FsError } from "../base/errors.ts";
import { viewOf } from "../layout/struct.ts";
import type { Region } from "../region/region.ts";
import {
  COPY_ROLE,
  COUNTER_MAX,
  RESERVED_BYTES,
  SEGMENT_BYTES_MAX,
  SEGMENT_BYTES_MIN,
  SEGMENT_MAGIC,
  SegmentHeader,
  SegmentRole,
} from "./format.ts";

/** Segments may lie at any multiple of their size, and only in small volumes is that less than the largest. */
const DENSE_BYTES = 1024 * 1024 * 1024;
/** Of what lies behind: a look at each place of a large device takes minutes. */
const PLACES_MAX = 65_536;

/** Byte offset of what must be a metadata segment of some volume; null if none is found. */
export function findTrace(region: Region): number | null {
  const { sizeBytes } = region.facts;
  const header = Buffer.alloc(SegmentHeader.size);
  let places = 0;
  for (let at = RESERVED_BYTES; at + SEGMENT_BYTES_MIN <= sizeBytes; ) {
    if (looksLikeSegment(region, at, header)) return at;
    if (at < DENSE_BYTES) at += SEGMENT_BYTES_MIN;
    else {
      at += SEGMENT_BYTES_MAX;
      places += 1;
      if (places > PLACES_MAX) return null;
    }
  }
  return null;
}

/** Its checksum begins with the uuid, which nobody knows here; but it says itself where it lies. */
function looksLikeSegment(region: Region, at: number, header: Buffer): boolean {
  try {
    region.read(at, header, 0, header.length);
    const view = viewOf(header);
    if (view.getUint32(0, true) !== SEGMENT_MAGIC) return false;
    const { self, role, incarnation } = SegmentHeader.decode(view, 0);
    return (
      self === at &&
      role >= SegmentRole.LOG &&
      role <= COPY_ROLE * 2 &&
      incarnation > 0 &&
      incarnation < COUNTER_MAX
    );
  } catch (error) {
    if (error instanceof CorruptionError || error instanceof FsError) return false;
    throw error;
  }
}

/** Its beginning is zero, and it has held no volume. */
export function isBlank(region: Region): boolean {
  const beginning = Buffer.alloc(Math.min(RESERVED_BYTES, region.facts.sizeBytes));
  try {
    region.read(0, beginning, 0, beginning.length);
  } catch (error) {
    if (error instanceof FsError) return false;
    throw error;
  }
  return beginning.every((byte) => byte === 0) && findTrace(region) === null;
}
