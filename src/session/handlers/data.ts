/** READ, WRITE, FALLOCATE, LSEEK, COPY_FILE_RANGE: the path that carries the data. */

import { FsError } from "../../base/errors.ts";
import { putCopyFileRangeOut, putLseekOut, putWriteOut } from "../../fuse/encode.ts";
import {
  CopyFileRangeIn,
  FallocateIn,
  LseekIn,
  Opcode,
  OpenFlag,
  ReadFlag,
  Seek,
  WriteFlag,
} from "../../fuse/kernel.ts";
import type { Request } from "../../fuse/request.ts";
import { noteAccess } from "../../namespace/attributes.ts";
import { copyRange } from "../../namespace/clone.ts";
import * as data from "../../namespace/data.ts";
import type { Fallocation } from "../../namespace/fallocate.ts";
import * as fallocating from "../../namespace/fallocate.ts";
import type { Inode } from "../../namespace/inode.ts";
import { isAppendOnly } from "../../namespace/inode-flags.ts";
import type { Handle } from "../handles.ts";
import type { Session } from "../session.ts";
import { killing, killOf, lacksSetIdRight } from "./privileges.ts";

export function read(session: Session, request: Request): void {
  const { store, leases } = session.volume;
  const handle = session.handles.get(request.ioHandle);
  const inode = handle.inode;
  const offset = request.ioOffset;
  const size = request.ioSize;
  if ((request.ioFlags & ReadFlag.LOCKOWNER) === 0) {
    if (leases.size > 0) noteSecondCopy(session, request, handle, offset, size);
    session.pageCache.filled(inode, offset, size);
  }
  const { count, total } = data.locate(store, inode, offset, size, session.pieces);
  if ((request.ioOpenFlags & OpenFlag.NOATIME) === 0) noteAccess(store, inode, session.options.atime);
  session.replyRegion(request, count, total);
}

/** How long a change of many extents keeps the event loop, milliseconds. */
const SLICE_MS = 2;
const NEVER = new AbortController().signal;

/** What a fault has to have; the kernel reads more than that only ahead. */
const PAGE_BYTES = 4096;

/**
 * read(2) on a file that is open for direct I/O names the lock owner; a fill of the page cache does not (fuse_send_read
 * against fuse_read_folio, fs/fuse/file.c). In a leased range such a page is a second copy, which goes stale: it is dropped
 * again. It is for an ordinary mapping, for sendfile(2) or splice(2), or for read(2) on a descriptor from before the lease. A
 * mapping that could write the page back over what the holder stores is refused (the fault raises SIGBUS). Of a lease that
 * a program does not know of there must be no second copy for any time: it is broken.
 */
function noteSecondCopy(
  session: Session,
  request: Request,
  handle: Handle,
  offset: bigint,
  size: number,
): void {
  const { store, leases } = session.volume;
  const inode: Inode = handle.inode;
  const { block, count } = data.blocksOver(store, offset, BigInt(size));
  if (!leases.isLeased(inode, block, count)) return;
  const mayWriteBack = (handle.flags & OpenFlag.ACCMODE) !== OpenFlag.RDONLY;
  if (leases.isAutomatic(inode, block, count)) {
    // Reading ahead occupies one of the few requests that the kernel sends in the background, the release of other
    // leases among them: it must not wait. After EIO the kernel asks once more, for the page that it needs.
    if (size > PAGE_BYTES) throw new FsError("EIO", "reading ahead in a range that is mapped directly");
    leases.beforeMapChange(inode, [{ block, count }]);
  }
  if (handle.direct && mayWriteBack && !session.waitsInRead(request)) {
    throw new FsError("EIO", "an ordinary writable mapping of a range that is mapped directly");
  }
  session.pageCache.secondCopy(inode, offset, size);
}

export function write(session: Session, request: Request): void {
  const { store, leases } = session.volume;
  const handle = session.handles.get(request.ioHandle);
  const { inode } = handle;
  const flags = request.ioFlags;
  const isWriteBack = (flags & WriteFlag.CACHE) !== 0;
  // O_APPEND can be switched off in an open file (fcntl(2)); the kernel asks nobody.
  if (!isWriteBack && (request.ioOpenFlags & OpenFlag.APPEND) === 0 && isAppendOnly(inode))
    throw new FsError("EPERM", `inode ${inode.ino} is append-only`);
  if (isWriteBack && leases.size > 0) {
    // Write-back of a page that an ordinary mapping dirtied in the moment between a fill and its end (see above): the
    // whole page would go over what the holder has stored since. msync(2) there says EIO. Nor does write-back wait for
    // a lease: meanwhile the kernel could drop no page of any file.
    const { block, count } = data.blocksOver(store, request.ioOffset, BigInt(request.ioSize));
    const inPlace = inode.extents?.isWritten(block, count) === true;
    if (leases.isSettled(inode, block, count) || (leases.isLeased(inode, block, count) && !inPlace)) {
      throw new FsError("EIO", "write-back of an ordinary mapping over a range that is mapped directly");
    }
  }
  const { bytes, dataAt, ioSize } = request;
  if (!isWriteBack) session.heldFiles.check(inode);
  const ioOffset = offsetOf(session, request, inode);
  // Of write-back the pages are known since they were filled, and cannot be dropped before it is answered.
  const past = handle.direct || (request.ioOpenFlags & OpenFlag.DIRECT) !== 0;
  if (!past && !isWriteBack) noteWrittenThrough(session, inode, ioOffset, ioSize);
  const written = killing(session, request, inode, (flags & WriteFlag.KILL_SUIDGID) !== 0, (kill) =>
    data.write(store, inode, ioOffset, bytes, dataAt, ioSize, kill),
  );
  session.counting.bytesWritten += written;
  // The kernel leaves O_SYNC and O_DSYNC to us for what does not go through the page cache.
  const sync = (request.ioOpenFlags & OpenFlag.DSYNC) !== 0 && store.region.facts.granularity === "page";
  // It has dropped the pages that the bytes go to, but before it sent them: some may have come back since.
  const stale = past && !isWriteBack && session.pageCache.mayHold(inode, ioOffset, BigInt(ioSize));
  if (sync || stale) {
    const own = request.clone();
    const dropped = stale ? session.pageCache.drop(inode, ioOffset, BigInt(ioSize), false) : undefined;
    const done = Promise.all([sync ? store.sync() : undefined, dropped]);
    session.replyAfter(own, done, () => putWriteOut(session.outView, 0, written));
    return;
  }
  session.reply(request, putWriteOut(session.outView, 0, written));
}

/** An append goes where the kernel takes the end of the file to be; after a clone that may be where it was. */
function offsetOf(session: Session, request: Request, inode: Inode): bigint {
  const appends = (request.ioOpenFlags & OpenFlag.APPEND) !== 0 && (request.ioFlags & WriteFlag.CACHE) === 0;
  const isLate = appends && (session.hasWaited || session.heldFiles.isUntold(inode));
  return isLate && inode.size > request.ioOffset ? inode.size : request.ioOffset;
}

/** write(2) through the page cache leaves there what it wrote. */
function noteWrittenThrough(session: Session, inode: Inode, offset: bigint, size: number): void {
  const { store, leases } = session.volume;
  session.pageCache.filled(inode, offset, size);
  if (leases.size === 0) return;
  const { block, count } = data.blocksOver(store, offset, BigInt(size));
  if (leases.isLeased(inode, block, count)) session.pageCache.secondCopy(inode, offset, size);
}

function beginFallocate(
  session: Session,
  request: Request,
): { handle: Handle; fallocation: Fallocation; blocks: number } {
  const { store } = session.volume;
  const { fh, mode, offset, length } = request.body(FallocateIn);
  const handle = session.handles.get(fh);
  const { inode } = handle;
  // fallocate(2) strips setuid and setgid as write(2) does, unless the caller is privileged.
  const kill = killOf(request, inode, lacksSetIdRight(request, inode));
  const fallocation = fallocating.beginFallocate(store, inode, mode, offset, length, kill);
  return { handle, fallocation, blocks: data.blocksOver(store, offset, length).count };
}

/** Blocks of a range that is allocated, or made a hole, in one turn. */
const AT_ONCE_BLOCKS = 512;

/** What is small is done at once; false: it may take long. */
export function fallocateAtOnce(session: Session, request: Request): boolean {
  const { handle, fallocation, blocks } = beginFallocate(session, request);
  if (blocks > AT_ONCE_BLOCKS) return false;
  const { inode } = handle;
  const { mode } = inode;
  session.heldFiles.check(inode);
  try {
    while (!fallocation.step());
  } finally {
    fallocation.abandon();
  }
  if (inode.mode !== mode) session.forgetAttributes(inode);
  replyAllocated(session, request, handle);
  return true;
}

export async function fallocate(session: Session, request: Request, signal: AbortSignal): Promise<void> {
  const { handle, fallocation } = beginFallocate(session, request);
  const { inode } = handle;
  const { mode } = inode;
  let release: (() => void) | null = null;
  const some = (): boolean => {
    if (release === null) session.heldFiles.check(inode);
    const from = performance.now();
    do {
      if (fallocation.step()) return true;
      release ??= session.heldFiles.hold(inode);
    } while (performance.now() - from < SLICE_MS);
    return false;
  };
  try {
    while (!(await session.retry(some, fallocation.hasRecords ? NEVER : signal)))
      await new Promise((resolve) => setImmediate(resolve));
  } finally {
    fallocation.abandon();
    (release as (() => void) | null)?.();
  }
  if (inode.mode !== mode) session.forgetAttributes(inode);
  replyAllocated(session, request, handle);
}

/** At the latest now it is durable, if the file was opened so. */
function replyAllocated(session: Session, request: Request, { flags }: Handle): void {
  const { store } = session.volume;
  if ((flags & OpenFlag.DSYNC) !== 0 && store.region.facts.granularity === "page")
    session.replyAfter(request.isCopy ? request : request.clone(), store.sync(), () => 0);
  else session.reply(request, 0);
}

/** What a 32-bit reply can say, in whole pages, as read(2) and write(2) have it (MAX_RW_COUNT, include/linux/fs.h). */
const COPY_BYTES_MAX = 0x7fff_f000n;

/** The kernel has written back what is dirty in either range, and drops the target's pages afterwards. */
export function copyFileRange(session: Session, request: Request): void {
  const { store } = session.volume;
  const wish = request.body(CopyFileRangeIn);
  const { inode: source, flags: sourceFlags } = session.handles.get(wish.fhIn);
  const { inode: target, flags } = session.handles.get(wish.fhOut);
  if (wish.flags !== 0n) throw new FsError("EINVAL", `copy_file_range flags ${wish.flags}`);
  session.heldFiles.check(source);
  session.heldFiles.check(target);
  const range = {
    ...{ source, sourceOffset: wish.offIn, target, targetOffset: wish.offOut },
    length: wish.len < COPY_BYTES_MAX ? wish.len : COPY_BYTES_MAX,
  };
  const copied = killing(session, request, target, lacksSetIdRight(request, target), (killPrivileges) =>
    copyRange(store, { ...range, killPrivileges }),
  );
  if ((sourceFlags & OpenFlag.NOATIME) === 0) noteAccess(store, source, session.options.atime);
  const { opcode } = request;
  const encode = (): number =>
    opcode === Opcode.COPY_FILE_RANGE_64
      ? putCopyFileRangeOut(session.outView, 0, BigInt(copied))
      : putWriteOut(session.outView, 0, copied);
  if ((flags & OpenFlag.DSYNC) !== 0 && store.region.facts.granularity === "page") {
    session.replyAfter(request.clone(), store.sync(), encode);
    return;
  }
  session.reply(request, encode());
}

export function lseek(session: Session, request: Request): void {
  const { store } = session.volume;
  const wish = request.body(LseekIn);
  const inode = session.handles.get(wish.fh).inode;
  if (wish.whence !== Seek.DATA && wish.whence !== Seek.HOLE) throw new FsError("EINVAL");
  const found =
    wish.whence === Seek.DATA
      ? data.seekData(store, inode, wish.offset)
      : data.seekHole(store, inode, wish.offset);
  session.reply(request, putLseekOut(session.outView, 0, found));
}
