/**
 * What the package gives to programs that import it.
 *
 * @module mapdirect
 */
export type { ExtentReport, FileMap, StateName } from "../daemon/client.ts";
export type { Formatted } from "../daemon/format.ts";
export {
  type BreakNotice,
  DirectFile,
  DirectMapping,
  type LeaseWish,
  type Location,
  type MapOptions,
  type MappingEvents,
  mapDirect,
  open,
} from "./mapping.ts";
export { type MkfsOptions, Mount, type MountOptions, mkfs, mount } from "./volume.ts";
