/** SNAPSHOT: the volume as it was at one moment, handed out piece by piece. For root and whoever mounted. */
import { FsError } from "../../base/errors.ts";
import type { Request } from "../../fuse/request.ts";
import { viewOf } from "../../layout/struct.ts";
import * as wire from "../../lease/wire.ts";
import { administratorOnly } from "../control.ts";
import type { Handle } from "../handles.ts";
import type { Session } from "../session.ts";
import { decode } from "./payload.ts";

/** @throws FsError EACCES, EINVAL, EBUSY, ETXTBSY, ECANCELED, EIO: see snapshots.ts. */
export async function snapshot(
  session: Session,
  request: Request,
  handle: Handle,
  payload: Uint8Array,
): Promise<Uint8Array> {
  administratorOnly(session, request);
  const { store } = session.volume;
  const wish = decode(wire.WireSnapshot, payload.subarray(0, wire.WireSnapshot.size));
  if ((wish.flags & ~wire.SnapshotFlag.MAPPED) !== 0) throw new FsError("EINVAL", "flags");
  const out = Buffer.alloc(wire.WIRE_SNAPSHOT_BYTES);
  const view = viewOf(out);
  // As it is when the answer is written: the volume may grow while a beginning waits.
  const header = () => ({
    version: wire.WIRE_VERSION,
    step: wish.step,
    blockSize: store.blockBytes,
    regionBytes: store.superblock.regionBytes,
  });
  switch (wish.step) {
    case wire.SnapshotStep.BEGIN:
      await store.sync();
      session.snapshots.begin(session.volume, handle, (wish.flags & wire.SnapshotFlag.MAPPED) !== 0);
      wire.WireSnapshot.encode(view, 0, { ...header(), leftBytes: session.snapshots.leftBytes });
      return out;
    case wire.SnapshotStep.NEXT: {
      const { runs, pieces, done } = session.snapshots.next(
        handle,
        wire.SNAPSHOT_RUNS_MAX,
        wire.SNAPSHOT_PIECES_MAX,
      );
      const places = [
        ...runs.map(({ start, count }) => ({
          physical: start * store.blockBytes,
          length: count * store.blockBytes,
        })),
        ...pieces.map(({ offset, bytes }) => ({ physical: offset, length: bytes.length })),
      ];
      for (const [index, place] of places.entries())
        wire.WireRun.encode(view, wire.WireSnapshot.size + index * wire.WireRun.size, place);
      const first = wire.WireSnapshot.size + wire.SNAPSHOT_PLACES_BYTES;
      for (const [index, { bytes }] of pieces.entries())
        out.set(bytes, first + index * wire.SNAPSHOT_PIECE_BYTES);
      wire.WireSnapshot.encode(view, 0, {
        ...header(),
        flags: done ? wire.SnapshotFlag.DONE : 0,
        runs: runs.length,
        pieces: pieces.length,
        leftBytes: session.snapshots.leftBytes,
      });
      if (done) session.snapshots.end();
      return out;
    }
    default:
      throw new FsError("EINVAL", `step ${wish.step}`);
  }
}
