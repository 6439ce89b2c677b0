/** Reading what may be unreadable in places. */
import { FsError } from "../base/errors.ts";
import type { Region } from "../region/region.ts";

/** Bytes to read metadata from: a region, or one whose damaged parts are taken from elsewhere (copies.ts). */
export type Media = Pick<Region, "read" | "facts">;

/** Bytes that cannot be read are zeros. */
export function readSome(region: Media, offset: number, length: number): Buffer {
  const data = Buffer.alloc(length);
  const there = Math.min(length, region.facts.sizeBytes - offset);
  if (there <= 0) return data;
  try {
    region.read(offset, data, 0, there);
  } catch (error) {
    if (!(error instanceof FsError)) throw error;
    data.fill(0);
    readAround(region, offset, data, there);
  }
  return data;
}

const SECTOR_BYTES = 512;

/** Around a media error: by sectors. */
function readAround(region: Media, offset: number, data: Buffer, length: number): void {
  for (let at = 0; at < length; at += SECTOR_BYTES) {
    try {
      region.read(offset + at, data, at, Math.min(SECTOR_BYTES, length - at));
    } catch (error) {
      if (!(error instanceof FsError)) throw error;
    }
  }
}
