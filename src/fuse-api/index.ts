/**
 * `mapdirect/fuse`: file systems in user space, on the kernel's own FUSE protocol. Write an object with a method for each
 * operation ({@link FileSystem}), and {@link mount} it. docs/FUSE.md is the guide.
 *
 * @module mapdirect/fuse
 */
export { Errno, type ErrnoName } from "../base/errno.ts";
export { FsError } from "../base/errors.ts";
export type { Features } from "../fuse/init.ts";
export {
  FallocMode,
  Fopen,
  FUSE_ROOT_ID as ROOT_NODE,
  InitBit,
  type InitFlagName,
  LockType,
  OpenFlag,
  PollEvent,
  RenameFlag,
  Seek,
  XattrFlag,
} from "../fuse/kernel.ts";
export { Mount, type MountOptions, mount, type UnmountOptions } from "./mount.ts";
export type * from "./types.ts";
export type { NameForm } from "./values.ts";
