/**
 * ioctls that Linux programs ask any file system for, and their arguments (linux/fs.h). The kernel hands on to a FUSE server
 * those that it does not answer itself, with as many bytes as the number says (_IOC_SIZE), but for the flags of an inode:
 * these come from the kernel itself (fuse_priv_ioctl, fs/fuse/ioctl.c), as 4 bytes though the number says a long.
 */
import { big64, bytes, struct, u32 } from "../layout/struct.ts";

/** The same on x86-64 and aarch64. */
export const LinuxIoctl = {
  FITRIM: 0xc018_5879,
  GETFLAGS: 0x8008_6601,
  SETFLAGS: 0x4008_6602,
  FSGETXATTR: 0x801c_581f,
  FSSETXATTR: 0x401c_5820,
  GETVERSION: 0x8008_7601,
  GETFSLABEL: 0x8100_9431,
  SETFSLABEL: 0x4100_9432,
  /** XFS's and ext4's. It reads its argument, though the number says that it writes it. */
  GOINGDOWN: 0x8004_587d,
} as const;

export const FstrimRange = struct(
  "fstrim_range",
  "FITRIM: which free blocks to discard; in the reply `length` is how many bytes that were.",
  {
    start: big64("first byte of the file system"),
    length: big64("bytes"),
    minLength: big64("bytes: shorter extents are left alone"),
  },
  24,
);

/** What GETFLAGS and SETFLAGS carry. */
export const FLAGS_BYTES = 4;

export const Fsxattr = struct(
  "fsxattr",
  "FSGETXATTR, FSSETXATTR: the flags of an inode in the numbers of XFS, and what only XFS has.",
  {
    xflags: u32("FsXflag"),
    extentSize: u32("extent size hint"),
    extents: u32("extents that the file has; not to be set"),
    project: u32("project id"),
    cowExtentSize: u32("extent size hint of copies"),
    padding: bytes(8, "zero"),
  },
  28,
);

/** FS_XFLAG_*. */
export const FsXflag = { IMMUTABLE: 0x08, APPEND: 0x10, NOATIME: 0x40, NODUMP: 0x80 } as const;

/** FSLABEL_MAX: bytes of a label with its NUL. */
export const FSLABEL_BYTES = 256;

/** XFS_FSOP_GOING_FLAGS_*. */
export const GoingDown = {
  /** What was done is made durable first. */
  DEFAULT: 0,
  /** The log is made durable first. */
  LOGFLUSH: 1,
  /** Nothing is made durable first. */
  NOLOGFLUSH: 2,
} as const;
