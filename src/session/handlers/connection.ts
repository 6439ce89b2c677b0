/** INIT, DESTROY, STATFS. */
import { putStatfs } from "../../fuse/encode.ts";
import { negotiate } from "../../fuse/init.ts";
import { InitIn } from "../../fuse/kernel.ts";
import type { Request } from "../../fuse/request.ts";
import { NAME_BYTES_MAX } from "../../namespace/inode.ts";
import { type Session, TRANSFER_BYTES_MAX } from "../session.ts";

/** The minor version from which on a file that is open for direct I/O can have ordinary shared mappings. */
const MINOR_DIRECT_IO_MMAP = 39;

export function init(session: Session, request: Request): void {
  const offer = request.body(InitIn);
  const negotiated = negotiate(offer, {
    flags: [
      "ASYNC_READ",
      "ATOMIC_O_TRUNC",
      "EXPORT_SUPPORT",
      "HAS_IOCTL_DIR",
      "DO_READDIRPLUS",
      "READDIRPLUS_AUTO",
      "ASYNC_DIO",
      "PARALLEL_DIROPS",
      "CACHE_SYMLINKS",
      // Where read(2) goes through the page cache, a change of mtime has the kernel drop its pages: see PageCache.
      session.options.cache === "auto" || offer.minor < MINOR_DIRECT_IO_MMAP
        ? "AUTO_INVAL_DATA"
        : "EXPLICIT_INVAL_DATA",
      "HANDLE_KILLPRIV_V2",
      "DONT_MASK",
      "POSIX_ACL",
      "SETXATTR_EXT",
      "DIRECT_IO_ALLOW_MMAP",
      ...(session.options.ring === null ? [] : (["OVER_IO_URING"] as const)),
    ],
    maxWriteBytes: TRANSFER_BYTES_MAX,
    maxReadaheadBytes: TRANSFER_BYTES_MAX,
    // RELEASE is a background request: were they throttled, a release could come in after a request made later.
    maxBackground: 0xffff,
    congestionThreshold: 0xc000,
  });
  if (!negotiated.again) {
    session.negotiated = negotiated;
    request.setxattrExtended = negotiated.features.SETXATTR_EXT;
  }
  session.replyBytes(request, negotiated.reply);
  if (negotiated.features.OVER_IO_URING) session.beginRing();
}

export function destroy(session: Session, request: Request): void {
  session.reply(request, 0);
}

/** An inode and its name take about this much of the log and the checkpoint, bytes. */
const BYTES_PER_INODE = 512;

export function statfs(session: Session, request: Request): void {
  const { store } = session.volume;
  const free = session.volume.freeBlocks;
  const freeInodes = Math.floor((free * store.blockBytes) / BYTES_PER_INODE);
  const length = putStatfs(session.outView, 0, {
    blocks: store.allocator.blockCount,
    bfree: free,
    bavail: free,
    files: store.state.inodes.size + freeInodes,
    ffree: freeInodes,
    bsize: store.blockBytes,
    namelen: NAME_BYTES_MAX,
    frsize: store.blockBytes,
  });
  session.reply(request, length);
}
