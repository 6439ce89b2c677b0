/** What came with an ioctl, by its declaration. */
import { FsError } from "../../base/errors.ts";
import { viewOf } from "../../layout/struct.ts";
import { WIRE_VERSION } from "../../lease/wire.ts";

/** @throws FsError EINVAL: another version of the wire, or bytes that the declaration does not allow. */
export function decode<S extends { decode(view: DataView, at: number): unknown }>(
  declared: S,
  payload: Uint8Array,
): ReturnType<S["decode"]> {
  try {
    const value = declared.decode(viewOf(payload), 0) as ReturnType<S["decode"]> & { version: number };
    if (value.version !== WIRE_VERSION) {
      throw new FsError("EINVAL", `wire version ${value.version}, this daemon speaks ${WIRE_VERSION}`);
    }
    return value;
  } catch (error) {
    // A stranger's bytes are not our media: what decode calls damage is a wrong argument here.
    throw error instanceof FsError ? error : new FsError("EINVAL", (error as Error).message);
  }
}
