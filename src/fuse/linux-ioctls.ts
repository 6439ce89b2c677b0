/**
 * ioctls that Linux programs ask any file system for, and their arguments (linux/fs.h). The kernel hands on to a FUSE server
 * those that it does not answer itself, with as many bytes as the number says (_IOC_SIZE), but for the flags of an inode:
 * these come from the kernel itself (fuse_priv_ioctl, fs/fuse/ioctl.c), as 4 bytes though the number says a long.
 */
import { big64, struct } from "../layout/struct.ts";

/** The same on x86-64 and aarch64. */
export const LinuxIoctl = {
  FITRIM: 0xc018_5879,
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
