/**
 * Another label or uuid for a volume that is not mounted. All checksums begin with the uuid's, so that all metadata is
 * written anew with it.
 *
 * Invariant: until the superblocks name the new metadata (rewrite.ts), what is there stays as it is. A crash at any moment
 * finds the volume as it was, or with all that was asked for.
 */
import { FsError } from "../base/errors.ts";
import { crc32c } from "../media/checksum.ts";
import { mustBeReadOnly } from "../media/superblock.ts";
import type { Region } from "../region/region.ts";
import { SegmentPool } from "../space/segment-pool.ts";
import { bringBack } from "./recovered.ts";
import { rewrite } from "./rewrite.ts";

export interface Tuning {
  /** At most LABEL_BYTES_MAX. */
  readonly label?: string | undefined;
  /** 16 bytes. */
  readonly uuid?: Uint8Array | undefined;
}

/** @throws FsError ENOSPC (no room for the metadata beside the old), EROFS; CorruptionError */
export async function tune(region: Region, wanted: Tuning): Promise<void> {
  const { state, recovery, allocator } = bringBack(region);
  const { superblock } = recovery;
  const readOnly = mustBeReadOnly(superblock);
  if (readOnly !== null) throw new FsError("EROFS", readOnly);
  const { label = superblock.label, uuid = superblock.uuid } = wanted;
  const geometry = { ...recovery.geometry, seed: crc32c(uuid, 0, uuid.length) };
  const pool = new SegmentPool(allocator, superblock.segmentBytes, superblock.blockBytes);
  const from = { index: recovery.log.index + 1, lsn: recovery.nextLsn + 1 };
  await rewrite(
    region,
    geometry,
    pool,
    state,
    { ...superblock, label, uuid },
    from,
    true,
    () => allocator.isLastFree,
  );
}
