/** INIT, DESTROY, STATFS. */
import { putStatfs } from "../../fuse/encode.ts";
import { negotiate } from "../../fuse/init.ts";
import { InitIn } from "../../fuse/kernel.ts";
import type { Request } from "../../fuse/request.ts";
import { NAME_BYTES_MAX } from "../../namespace/inode.ts";
import { type Session, TRANSFER_BYTES_MAX } from "../session.ts";

export function init(session: Session, request: Request): void {
  const negotiated = negotiate(request.body(InitIn), {
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
      "EXPLICIT_INVAL_DATA",
      "HANDLE_KILLPRIV_V2",
      "DONT_MASK",
      "POSIX_ACL",
      "SETXATTR_EXT",
      "DIRECT_IO_ALLOW_MMAP",
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
