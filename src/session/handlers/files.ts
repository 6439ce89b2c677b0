/** Opening, closing and syncing files. */
import { putCreateOut, putOpenOut, putPollOut } from "../../fuse/encode.ts";
import {
  CreateIn,
  Fopen,
  Opcode,
  OpenFlag,
  OpenIn,
  OpenInFlag,
  PollEvent,
  PollFlag,
  PollIn,
  ReleaseIn,
} from "../../fuse/kernel.ts";
import type { Request } from "../../fuse/request.ts";
import { LeaseFlag } from "../../lease/wire.ts";
import { noteModification } from "../../namespace/attributes.ts";
import { truncate } from "../../namespace/data.ts";
import { type Inode, S_IFMT, S_IFREG } from "../../namespace/inode.ts";
import { mustNotBeImmutable, mustNotBePinned } from "../../namespace/inode-flags.ts";
import * as names from "../../namespace/names.ts";
import type { Handle } from "../handles.ts";
import type { Session } from "../session.ts";
import { entryOf } from "./entry.ts";
import { creatorOf } from "./names.ts";
import { killing } from "./privileges.ts";

/**
 * Whether reads and writes of a file that is being opened go to us and not through the page cache: those of a file that is
 * leased at this moment (how the others stay coherent says session/page-cache.ts), those on a descriptor that may write,
 * and all with cache=never. Ordinary mappings of such a file are possible from FUSE 7.39 on. Before that, what may be
 * mapped is opened through the cache, and leases that are automatic have to leave it so, because they yield to mappings.
 */
function opensDirect(session: Session, inode: Inode, flags: number): boolean {
  const mode = flags & OpenFlag.ACCMODE;
  if (mode === OpenFlag.WRONLY) return true;
  const { leases } = session.volume;
  if (session.negotiated?.features.DIRECT_IO_ALLOW_MMAP === true)
    return mode !== OpenFlag.RDONLY || session.options.cache === "never" || leases.isAnyOf(inode);
  return leases.of(inode).some(({ flags: lease }) => (lease & LeaseFlag.AUTOMATIC) === 0);
}

/**
 * Pages that are in the cache stay there when the file is opened once more: nobody but this daemon changes files, and it
 * drops what it changes. Dropping them all would also wait for a page fault that waits for a lease.
 */
const openFlags = ({ direct }: Handle): number =>
  Fopen.NOFLUSH | Fopen.KEEP_CACHE | (direct ? Fopen.DIRECT_IO | Fopen.PARALLEL_DIRECT_WRITES : 0);

/** What the kernel's may_open() (fs/namei.c) asks of an inode with flags. @throws FsError EPERM */
function mayOpen(inode: Inode, flags: number): void {
  const writes = (flags & OpenFlag.ACCMODE) !== OpenFlag.RDONLY;
  const truncates = (flags & OpenFlag.TRUNC) !== 0;
  if (writes || truncates) mustNotBeImmutable(inode);
  if (truncates || (writes && (flags & OpenFlag.APPEND) === 0)) mustNotBePinned(inode);
}

export function open(session: Session, request: Request): void {
  const { store } = session.volume;
  const inode = store.inode(request.nodeid);
  const wish = request.body(OpenIn);
  mayOpen(inode, wish.flags);
  if ((wish.flags & OpenFlag.TRUNC) !== 0) {
    session.heldFiles.check(inode);
    session.volume.leases.nonBlocking = (wish.flags & OpenFlag.NONBLOCK) !== 0;
    const kill = (wish.openFlags & OpenInFlag.KILL_SUIDGID) !== 0;
    killing(session, request, inode, kill, (how) => truncate(store, inode, 0n, how));
    session.pageCache.cut(inode, 0n);
  }
  const handle = session.handles.add(inode, wish.flags, opensDirect(session, inode, wish.flags));
  const length = putOpenOut(session.outView, 0, handle.fh, openFlags(handle));
  if (!session.reply(request, length)) close(session, handle.fh);
}

export function create(session: Session, request: Request): void {
  const { store } = session.volume;
  const wish = request.body(CreateIn);
  const parent = store.inode(request.nodeid);
  const name = request.name();
  const mode = (wish.mode & S_IFMT) === 0 ? wish.mode | S_IFREG : wish.mode;
  const inode = names.create(store, parent, name, mode, 0, creatorOf(request, wish.umask), null);
  replyCreated(session, request, inode, wish.flags);
}

export function tmpfile(session: Session, request: Request): void {
  const { store } = session.volume;
  const wish = request.body(CreateIn);
  const mode = S_IFREG | (wish.mode & 0o7777);
  const creator = creatorOf(request, wish.umask);
  const inode = names.createUnnamed(store, store.inode(request.nodeid), mode, creator);
  replyCreated(session, request, inode, wish.flags);
}

function replyCreated(session: Session, request: Request, inode: Inode, flags: number): void {
  const handle = session.handles.add(inode, flags, opensDirect(session, inode, flags));
  inode.lookups += 1;
  const length = putCreateOut(session.outView, 0, entryOf(session, inode), handle.fh, openFlags(handle));
  if (!session.reply(request, length)) {
    inode.lookups -= 1;
    close(session, handle.fh);
  }
}

/** The last reference to the open file description is gone, and with it the lease that was granted on it. */
function close(session: Session, fh: number): void {
  const { leases, store } = session.volume;
  const handle = session.handles.get(fh);
  const { lease } = handle;
  if (lease !== null) {
    session.handles.setLease(handle, null);
    leases.end(lease);
    if (touchAfterLease(session, handle.inode)) session.invalidateAttributes(handle.inode);
  }
  // The program's own: those of the client library come and go with each mapping.
  if (handle.ended.length === 0 && handle.watched === null) session.settleAttributes(handle.inode);
  session.answers.closed(fh);
  session.handles.remove(fh);
  session.snapshots.closed(handle);
  for (const earlier of handle.ended) leases.end(earlier);
  store.reapSoon(handle.inode);
}

/** The holder says that it is done; the release of this handle will prove it. */
export function letGo(session: Session, handle: Handle, changed: boolean): void {
  const { lease } = handle;
  if (lease === null) return;
  session.handles.setLease(handle, null);
  session.volume.leases.letGo(lease);
  handle.ended.push(lease);
  if (changed && touchAfterLease(session, handle.inode)) session.forgetAttributesSoon(handle.inode);
}

/** Stores through a mapping are invisible to us: the file counts as modified when the mapping ends. Whether it does. */
function touchAfterLease(session: Session, inode: Inode): boolean {
  const { store } = session.volume;
  if (store.journal === null || inode.nlink === 0) return false;
  noteModification(store, inode);
  return true;
}

export function release(session: Session, request: Request): void {
  close(session, request.body(ReleaseIn).fh);
  session.reply(request, 0);
}

/** Sent at each close(2) by kernels that do not know FOPEN_NOFLUSH; nothing is held back here that would need it. */
export function flush(session: Session, request: Request): void {
  session.reply(request, 0);
}

export async function fsync(session: Session, request: Request): Promise<void> {
  if (request.opcode !== Opcode.SYNCFS) {
    const inode = session.volume.store.inode(request.nodeid);
    session.settleAttributes(inode);
    await session.volume.directStores.flush(inode);
  }
  await session.volume.store.sync();
  session.reply(request, 0);
}

/** Regular files are always ready, as on every file system, unless the description watches a lease. */
export function poll(session: Session, request: Request): void {
  const { fh, kh, flags, events } = request.body(PollIn);
  const handle = session.handles.get(fh);
  let ready = PollEvent.IN | PollEvent.OUT | PollEvent.RDNORM | PollEvent.WRNORM;
  if (handle.watched !== null) {
    // A watch is for one thing: PRI when the lease is being broken, HUP when it is gone.
    const known = session.volume.leases.has(handle.watched);
    ready = !known ? PollEvent.HUP : handle.watched.state === "held" ? 0 : PollEvent.PRI;
    if ((flags & PollFlag.SCHEDULE_NOTIFY) !== 0) handle.pollHandle = kh;
    session.reply(request, putPollOut(session.outView, 0, ready));
    return;
  }
  session.reply(request, putPollOut(session.outView, 0, events === 0 ? ready : ready & events));
}
