/**
 * The ioctls of src/lease/wire.ts. Whatever comes in is a stranger's: sizes are checked against the declarations, and
 * every field before it is used. Those that may have to wait have a request of their own then; a grant for which there is
 * nothing to be done first is answered at once, because programs measure it.
 */
import { timingSafeEqual } from "node:crypto";
import { FsError } from "../../base/errors.ts";
import { soon } from "../../base/faults.ts";
import { putIoctlOut } from "../../fuse/encode.ts";
import { IoctlIn, OpenFlag } from "../../fuse/kernel.ts";
import type { Request } from "../../fuse/request.ts";
import { type StructValue, viewOf } from "../../layout/struct.ts";
import { Caller } from "../../lease/process.ts";
import { type Lease, remainingMs } from "../../lease/table.ts";
import * as wire from "../../lease/wire.ts";
import { SHARED } from "../../media/group.ts";
import { SUPERBLOCK_UUID_OFFSET } from "../../media/superblock.ts";
import { cloneRange } from "../../namespace/clone.ts";
import { blocksFor, blocksOver, guardPrepare, prepareSome } from "../../namespace/data.ts";
import { defragSome } from "../../namespace/defrag.ts";
import { FILE_BYTES_MAX, type Inode } from "../../namespace/inode.ts";
import { isPinned } from "../../namespace/inode-flags.ts";
import { takeBack } from "../../namespace/sharing.ts";
import type { BlockRange, Store } from "../../namespace/store.ts";
import { administratorOnly, answer } from "../control.ts";
import { Dump } from "../dumps.ts";
import type { Handle } from "../handles.ts";
import type { Session } from "../session.ts";
import { letGo } from "./files.ts";
import { isLinuxIoctl, linuxIoctl } from "./linux-ioctls.ts";
import { decode } from "./payload.ts";
import { killOf, lacksSetIdRight } from "./privileges.ts";
import { snapshot } from "./snapshot.ts";

const knownCommands = new Set<number>(Object.values(wire.Ioctl));

interface Command {
  readonly cmd: number;
  readonly handle: Handle;
  readonly payload: Uint8Array;
}

function commandOf(session: Session, request: Request): Command {
  const { cmd, fh, inSize, outSize } = request.body(IoctlIn);
  const handle = session.handles.get(fh);
  const expectedIn = (cmd >>> 30) & 1 ? (cmd >>> 16) & 0x3fff : 0;
  const expectedOut = (cmd >>> 31) & 1 ? (cmd >>> 16) & 0x3fff : 0;
  if (!knownCommands.has(cmd)) throw new FsError("ENOTTY");
  if (inSize !== expectedIn || outSize < expectedOut) throw new FsError("EINVAL", "ioctl sizes");
  return { cmd, handle, payload: request.data() };
}

function replyIoctl(session: Session, request: Request, reply: Uint8Array | null): void {
  const at = putIoctlOut(session.outView, 0, 0);
  if (reply !== null) session.out.set(reply, at);
  session.reply(request, at + (reply?.length ?? 0));
}

/** Answer what needs not wait for anything. False: nothing has been done, and ioctl() has to do it. */
export function ioctlAtOnce(session: Session, request: Request): boolean {
  if (isLinuxIoctl(request.body(IoctlIn).cmd)) return false;
  const { cmd, handle, payload } = commandOf(session, request);
  let reply: Uint8Array | null = null;
  switch (cmd) {
    case wire.Ioctl.GRANT: {
      const wish = grantWish(session, handle, payload);
      if (!isReady(session, handle.inode, wish)) return false;
      replyGranted(session, request, makeLease(session, request, handle, wish));
      return true;
    }
    case wire.Ioctl.EXTENTS:
      replyExtents(session, request, fileOf(handle), payload);
      return true;
    case wire.Ioctl.REGION:
      reply = region(session);
      break;
    case wire.Ioctl.END:
      end(session, handle, payload);
      break;
    case wire.Ioctl.WATCH:
      watch(session, handle, payload);
      break;
    case wire.Ioctl.STATUS:
      reply = status(session, handle);
      break;
    case wire.Ioctl.OFFER:
      reply = offer(session, handle);
      break;
    default:
      return false;
  }
  replyIoctl(session, request, reply);
  return true;
}

export async function ioctl(session: Session, request: Request, signal: AbortSignal): Promise<void> {
  const asked = request.body(IoctlIn);
  if (isLinuxIoctl(asked.cmd)) {
    replyIoctl(session, request, await linuxIoctl(session, request, asked, signal));
    return;
  }
  const { cmd, handle, payload } = commandOf(session, request);
  let reply: Uint8Array | null = null;
  switch (cmd) {
    case wire.Ioctl.GRANT:
      await grant(session, request, handle, payload, signal);
      return;
    case wire.Ioctl.PREPARE:
      await prepareRange(session, handle, payload, signal);
      break;
    case wire.Ioctl.DEFRAG:
      await defrag(session, handle, payload, signal);
      break;
    case wire.Ioctl.CLONE:
      await clone(session, request, handle, payload, signal);
      break;
    case wire.Ioctl.SNAPSHOT:
      reply = await snapshot(session, request, handle, payload);
      break;
    case wire.Ioctl.CONTROL:
      reply = await control(session, request, handle, payload, signal);
      break;
  }
  replyIoctl(session, request, reply);
}

function fileOf(handle: Handle): Inode {
  if (handle.inode.extents === null) throw new FsError("EOPNOTSUPP", "not a regular file");
  return handle.inode;
}

function region(session: Session): Uint8Array {
  const { store, leases } = session.volume;
  const facts = store.region.facts;
  const path = session.options.mountSource;
  const kinds: Record<string, number> = {
    file: wire.RegionKind.FILE,
    block: wire.RegionKind.BLOCK,
    devdax: wire.RegionKind.DEVDAX,
  };
  const kind = kinds[facts.kind];
  if (kind === undefined || Buffer.byteLength(path) > 4095) {
    throw new FsError("EOPNOTSUPP", "this region cannot be mapped by others");
  }
  const flags =
    (facts.granularity === "cacheline" ? wire.RegionFlag.CACHELINE : 0) |
    (facts.assumed ? wire.RegionFlag.ASSUMED : 0) |
    (facts.mapSync && facts.kind === "file" ? wire.RegionFlag.NEEDS_MAP_SYNC : 0) |
    (store.journal === null ? wire.RegionFlag.READ_ONLY : 0);
  const out = Buffer.alloc(wire.WireRegion.size);
  wire.WireRegion.encode(viewOf(out), 0, {
    version: wire.WIRE_VERSION,
    kind,
    flags,
    blockSize: store.blockBytes,
    regionBytes: store.superblock.regionBytes,
    mapAlignment: facts.mapAlignmentBytes,
    uuid: store.superblock.uuid,
    superblockUuidOffset: SUPERBLOCK_UUID_OFFSET,
    device: facts.device,
    inode: facts.inode,
    defaultKind: leases.policy.direct === "breakable" ? wire.LeaseKind.BREAKABLE : wire.LeaseKind.SEAL,
    pathBytes: Buffer.byteLength(path),
    path,
    breakTimeMs: Math.min(leases.policy.breakTimeSeconds * 1000, 0xffff_ffff),
    socketBytes: Buffer.byteLength(session.options.directSocket),
    socket: session.options.directSocket,
  });
  return out;
}

type MapRequest = StructValue<typeof wire.WireMap>;

/** First byte behind the file's last block: the larger of its size and its last extent. */
function mapEnd(session: Session, inode: Inode): bigint {
  const { store } = session.volume;
  const blocks = Math.max(inode.extents?.end ?? 0, blocksFor(store, inode.size));
  return BigInt(blocks) << store.blockShift;
}

/** Answer with the pieces of the file's map in [offset, to), as many as fit, behind a header that says what they are. */
function replyMap(
  session: Session,
  request: Request,
  inode: Inode,
  offset: bigint,
  to: bigint,
  extentsMax: number,
  rest: Partial<MapRequest>,
): void {
  const { store } = session.volume;
  const limit = mapEnd(session, inode);
  const end = to < limit ? to : limit;
  const view = session.outView;
  const at = putIoctlOut(view, 0, 0);
  const extentsAt = at + wire.WireMap.size;
  const map = inode.extents;
  let count = 0;
  let block = Number(offset >> store.blockShift);
  const endBlock = blocksFor(store, end);
  while (map !== null && block < endBlock && count < extentsMax) {
    const piece = map.at(block, endBlock - block);
    let state: number = piece.state;
    if (piece.state === SHARED) {
      // As it is now: the others may be gone.
      const { references, count: same } = store.state.references.at(piece.physical, piece.count);
      piece.count = same;
      if (references < 2) state = wire.ExtentState.WRITTEN;
    }
    wire.WireExtent.encode(view, extentsAt + count * wire.WireExtent.size, {
      offset: BigInt(block) << store.blockShift,
      physical: piece.state === 0 ? 0 : piece.physical * store.blockBytes,
      length: BigInt(piece.count) << store.blockShift,
      state,
    });
    count += 1;
    block += piece.count;
  }
  wire.WireMap.encode(view, at, {
    version: wire.WIRE_VERSION,
    ...rest,
    count,
    offset,
    length: end > offset ? end - offset : 0n,
    generation: inode.mapLsn,
    nextOffset: block < endBlock ? BigInt(block) << store.blockShift : 0n,
    fileBytes: inode.size,
    inode: inode.ino,
    mapBytes: limit,
  });
  // What lies behind the last extent need not be sent.
  session.reply(request, extentsAt + count * wire.WireExtent.size);
}

/** Offset and length of a range in the file, checked against overflow. Length 0 means up to the end of the file's map. */
function checkRange(offset: bigint, length: bigint): void {
  if (offset > FILE_BYTES_MAX || length > FILE_BYTES_MAX || offset + length > FILE_BYTES_MAX) {
    throw new FsError("EINVAL", "range beyond the largest file");
  }
}

function replyExtents(session: Session, request: Request, inode: Inode, payload: Uint8Array): void {
  const { store } = session.volume;
  const wish = decode(wire.WireMap, payload);
  checkRange(wish.offset, wish.length);
  const from = (wish.offset >> store.blockShift) << store.blockShift;
  replyMap(session, request, inode, from, wish.offset + wish.length, wire.WIRE_EXTENTS_MAX, {});
}

/** What is asked for, and may be. */
function grantWish(session: Session, handle: Handle, payload: Uint8Array): MapRequest {
  const { store } = session.volume;
  fileOf(handle);
  const wish = decode(wire.WireMap, payload);
  checkRange(wish.offset, wish.length);
  if (store.journal === null) throw new FsError("EOPNOTSUPP", "mounted read-only");
  if (session.isDown) throw new FsError("EIO", "the file system was shut down");
  if ((handle.flags & OpenFlag.ACCMODE) !== OpenFlag.RDWR)
    throw new FsError("EACCES", "not open for reading and writing");
  refusePinned(handle.inode);
  if (wish.length === 0n || (wish.offset & store.blockMask) !== 0n) {
    throw new FsError("EINVAL", `offset and length: whole blocks of ${store.blockBytes} bytes, at least one`);
  }
  if (wish.kind > wire.LeaseKind.BREAKABLE) throw new FsError("EINVAL", "lease kind");
  if ((wish.flags & wire.LeaseFlag.SYNC) !== 0 && store.region.facts.granularity !== "cacheline") {
    throw new FsError("EOPNOTSUPP", "MAP_SYNC: a CPU flush does not make stores to this region durable");
  }
  return wish;
}

/** The blocks of the file that a wish is about. */
const rangeOf = (store: Store, { offset, length }: MapRequest): BlockRange =>
  blocksOver(store, offset, length);

/** Nothing has to be prepared, written back, dropped or made durable before the range may be leased. */
function isReady(session: Session, inode: Inode, wish: MapRequest): boolean {
  const { store } = session.volume;
  const { block, count } = rangeOf(store, wish);
  const prepares = (wish.flags & wire.LeaseFlag.PREPARE) !== 0;
  if (prepares ? inode.extents?.isWritten(block, count) !== true : anyShared(inode, block, count))
    return false;
  if (session.snapshots.copying(inode, block, count) !== null) return false;
  return (
    !session.pageCache.mayHold(inode, wish.offset, wish.length) &&
    inode.mapLsn <= (store.journal?.durableLsn ?? -1)
  );
}

async function grant(
  session: Session,
  request: Request,
  handle: Handle,
  payload: Uint8Array,
  signal: AbortSignal,
): Promise<void> {
  const { store } = session.volume;
  const inode = handle.inode;
  const wish = grantWish(session, handle, payload);
  if ((wish.flags & wire.LeaseFlag.PREPARE) !== 0) {
    await prepareBlocks(session, inode, wish.offset, wish.offset + wish.length, signal);
  }
  const { block, count } = rangeOf(store, wish);
  refuseTail(session, inode, block, count);
  if (anyShared(inode, block, count)) {
    // What was shared once is the file's own again when the others' end is durable.
    for (let at = block; at < block + count; ) {
      const first = at;
      await store.sync();
      at = await session.retry(() => takeBack(store, inode, first, block + count - first), signal);
    }
  }
  // What ordinary mappings have changed is written back first, while that may still allocate.
  await session.pageCache.drop(inode, wish.offset, wish.length, false);
  // From the grant on, a CPU flush alone must make data durable: what locates the blocks has to be durable first.
  // Only this file's own map counts, or a busy neighbour could hold the grant up for ever.
  while (inode.mapLsn > store.writable().durableLsn) {
    await store.sync();
    if (signal.aborted) throw new FsError("EINTR");
  }
  // What is stored through the mapping can no longer be kept from a snapshot that is being taken.
  await session.snapshots.copied(inode, block, count, signal);
  // Storing into shared blocks would change other files.
  if (anyShared(inode, block, count))
    throw new FsError("EPERM", "blocks are shared: prepare the range first");
  const lease = makeLease(session, request, handle, wish);
  // No page of the range may stay in the page cache, whatever came meanwhile; new ones are refused from now on, because
  // the lease is in the table.
  await session.pageCache.drop(inode, wish.offset, wish.length, true);
  replyGranted(session, request, lease);
}

/** With nothing awaited between the last look at the range and this. */
function makeLease(session: Session, request: Request, handle: Handle, wish: MapRequest): Lease {
  const { store, leases } = session.volume;
  const { inode } = handle;
  const { block, count } = rangeOf(store, wish);
  refuseTail(session, inode, block, count);
  session.heldFiles.check(inode);
  refusePinned(inode);
  // Of two requests at a time one gets it.
  if (handle.lease !== null) throw new FsError("EBUSY", "this open file has a lease already");
  const holder = new Caller(request.pid, request.uid);
  const lease = leases.grant({
    inode,
    kind: wish.kind,
    flags: wish.flags,
    offset: wish.offset,
    length: wish.length,
    block,
    count,
    blockBytes: store.blockBytes,
    holder,
  });
  // When the holder has its answer: it waits for no more than it has to.
  soon("looking up a process", () => holder.facts());
  session.handles.setLease(handle, lease);
  session.volume.directStores.note(inode, block, count);
  return lease;
}

function replyGranted(session: Session, request: Request, lease: Lease): void {
  lease.settled = true;
  const end = lease.offset + lease.length;
  replyMap(session, request, lease.inode, lease.offset, end, wire.WIRE_GRANT_EXTENTS_MAX, {
    kind: lease.kind === "seal" ? wire.LeaseKind.SEAL : wire.LeaseKind.BREAKABLE,
    flags: lease.flags,
    leaseId: lease.id,
    token: lease.token,
  });
}

/** Nobody can look at a store into a page. @throws FsError EACCES, as mmap(2) says for a file that only grows */
function refusePinned(inode: Inode): void {
  if (isPinned(inode)) throw new FsError("EACCES", "the file is immutable or append-only");
}

/** While the volume is being made smaller, no lease gets where blocks are about to move. @throws FsError EAGAIN */
function refuseTail(session: Session, inode: Inode, block: number, count: number): void {
  const { end, blockCount } = session.volume.store.allocator;
  if (end === blockCount) return;
  const map = inode.extents;
  for (let piece = map?.next(block) ?? null; piece !== null && piece.block < block + count; ) {
    if (piece.physical + Math.min(piece.count, block + count - piece.block) > end)
      throw new FsError(
        "EAGAIN",
        "the volume is being made smaller, and blocks of this range are about to move",
      );
    piece = map?.next(piece.block + piece.count) ?? null;
  }
}

function anyShared(inode: Inode, block: number, count: number): boolean {
  const map = inode.extents;
  for (let piece = map?.next(block) ?? null; piece !== null && piece.block < block + count; ) {
    if (piece.state === SHARED) return true;
    piece = map?.next(piece.block + piece.count) ?? null;
  }
  return false;
}

function end(session: Session, handle: Handle, payload: Uint8Array): void {
  const wish = decode(wire.WireLease, payload);
  const changed = (wish.flags & wire.EndFlag.UNCHANGED) === 0;
  if (handle.lease !== null && handle.lease.id === wish.leaseId) {
    letGo(session, handle, changed);
    return;
  }
  // Who watches a lease has shown its token and stands in for its holder: its process has unmapped everything.
  if (handle.watched === null || handle.watched.id !== wish.leaseId) {
    throw new FsError(
      "EINVAL",
      `lease ${wish.leaseId} was neither granted nor is it watched on this open file`,
    );
  }
  const granted = session.handles.granted(handle.watched);
  if (granted !== undefined) letGo(session, granted, changed);
}

/**
 * From now on poll(2) on this handle tells of the lease. Better not the lease's own, which has to end with its mapping: that
 * is for who may not open the file again.
 */
function watch(session: Session, handle: Handle, payload: Uint8Array): void {
  const wish = decode(wire.WireLease, payload);
  const lease = session.volume.leases.byId(wish.leaseId);
  if (
    lease.inode !== handle.inode ||
    (handle.flags & OpenFlag.ACCMODE) !== OpenFlag.RDWR ||
    (handle.lease !== null && handle.lease !== lease)
  ) {
    throw new FsError("EACCES", "a watch needs a descriptor of the same file, open for reading and writing");
  }
  // The number of a lease can be guessed, and whoever may write the file could end it by a watch.
  if (handle.lease !== lease && !timingSafeEqual(lease.token, wish.token)) {
    throw new FsError("EACCES", "a watch needs the token that was handed out with the lease");
  }
  session.handles.setWatched(handle, lease);
}

function status(session: Session, handle: Handle): Uint8Array {
  const lease = handle.watched ?? handle.lease;
  if (lease === null) throw new FsError("EINVAL", "no lease is granted or watched on this open file");
  const states = {
    held: wire.LeaseState.HELD,
    breaking: wire.LeaseState.BREAKING,
    revoked: wire.LeaseState.REVOKED,
    ended: wire.LeaseState.GONE,
  };
  const reasons = {
    conflict: wire.BreakReason.CONFLICT,
    administrator: wire.BreakReason.ADMINISTRATOR,
    unmount: wire.BreakReason.UNMOUNT,
  };
  const { break: broken } = lease;
  const out = Buffer.alloc(wire.WireStatus.size);
  wire.WireStatus.encode(viewOf(out), 0, {
    version: wire.WIRE_VERSION,
    state: session.volume.leases.has(lease) ? states[lease.state] : wire.LeaseState.GONE,
    reason: broken === null ? wire.BreakReason.NONE : reasons[broken.reason],
    leaseId: lease.id,
    offset: broken?.offset ?? 0n,
    length: broken?.length ?? 0n,
    remainingMs: remainingMs(lease),
  });
  return out;
}

/** A range whose blocks are to change: that needs what a write needs. */
function rangeToChange(
  handle: Handle,
  payload: Uint8Array,
): { inode: Inode; wish: StructValue<typeof wire.WireRange> } {
  const inode = fileOf(handle);
  const wish = decode(wire.WireRange, payload);
  if (wish.flags !== 0) throw new FsError("EINVAL", "flags");
  if ((handle.flags & OpenFlag.ACCMODE) === OpenFlag.RDONLY)
    throw new FsError("EBADF", "not open for writing");
  checkRange(wish.offset, wish.length);
  return { inode, wish };
}

async function prepareRange(
  session: Session,
  handle: Handle,
  payload: Uint8Array,
  signal: AbortSignal,
): Promise<void> {
  const { inode, wish } = rangeToChange(handle, payload);
  const to = wish.length === 0n ? inode.size : wish.offset + wish.length;
  if (to < wish.offset) throw new FsError("EINVAL", "offset beyond the end of the file");
  await prepareBlocks(session, inode, wish.offset, to, signal);
  await session.volume.store.sync();
}

/** Bytes zeroed before others get a turn. */
const PREPARE_SLICE_BYTES = 8 * 1024 * 1024;

/** Blocks of the range that have to be allocated before it can be mapped: holes, and what is shared. */
function lackingBlocks(inode: Inode, block: number, end: number): number {
  let lacking = end - block;
  const map = inode.extents;
  for (let piece = map?.next(block) ?? null; piece !== null && piece.block < end; ) {
    if (piece.state !== SHARED) lacking -= Math.min(piece.count, end - piece.block);
    piece = map?.next(piece.block + piece.count) ?? null;
  }
  return lacking;
}

async function prepareBlocks(
  session: Session,
  inode: Inode,
  from: bigint,
  to: bigint,
  signal: AbortSignal,
): Promise<void> {
  const { store } = session.volume;
  const end = blocksFor(store, to);
  const slice = Math.max(1, PREPARE_SLICE_BYTES / store.blockBytes);
  const begin = Number(from >> store.blockShift);
  const lacking = lackingBlocks(inode, begin, end);
  // All or nothing, as fallocate(2): not everything that is left, and then an error.
  if (lacking > store.allocator.freeBlocks + store.pendingBlocks) {
    throw new FsError("ENOSPC", `${lacking} blocks wanted, ${store.allocator.freeBlocks} free`);
  }
  await session.retry(() => guardPrepare(store, inode, begin, end - begin), signal);
  const lsnBefore = inode.mapLsn;
  try {
    for (let block = begin; block < end; ) {
      const first = block;
      const some = (): number => {
        session.heldFiles.check(inode);
        return prepareSome(store, inode, first, end - first, slice);
      };
      block = await session.retry(some, signal);
      if (block < end) await new Promise((resolve) => setImmediate(resolve));
      if (signal.aborted) throw new FsError("EINTR");
    }
  } finally {
    // Blocks and ctime are others than the kernel knows, also where it ends half way.
    if (inode.mapLsn !== lsnBefore) session.forgetAttributes(inode);
  }
}

/** A lease is in the way of a stretch, or is broken for it, as of any change of the block map. */
async function defrag(
  session: Session,
  handle: Handle,
  payload: Uint8Array,
  signal: AbortSignal,
): Promise<void> {
  const { inode, wish } = rangeToChange(handle, payload);
  const { store } = session.volume;
  const end = wish.length === 0n ? (inode.extents?.end ?? 0) : blocksFor(store, wish.offset + wish.length);
  for (let block = Number(wish.offset >> store.blockShift); block < end; ) {
    const first = block;
    const some = (): number => {
      session.heldFiles.check(inode);
      return defragSome(store, inode, first, end);
    };
    block = await session.retry(some, signal);
    if (block < end) await new Promise((resolve) => setImmediate(resolve));
    if (signal.aborted) throw new FsError("EINTR");
  }
}

function offer(session: Session, handle: Handle): Uint8Array {
  fileOf(handle);
  if ((handle.flags & OpenFlag.ACCMODE) === OpenFlag.WRONLY)
    throw new FsError("EBADF", "not open for reading");
  const out = Buffer.alloc(wire.WireClone.size);
  wire.WireClone.encode(viewOf(out), 0, {
    version: wire.WIRE_VERSION,
    token: session.handles.offer(handle),
  });
  return out;
}

/** FICLONERANGE, whose own ioctl the kernel does not hand on to FUSE. This open file is the target. */
async function clone(
  session: Session,
  request: Request,
  handle: Handle,
  payload: Uint8Array,
  signal: AbortSignal,
): Promise<void> {
  const { store } = session.volume;
  const target = fileOf(handle);
  const wish = decode(wire.WireClone, payload);
  if (wish.flags !== 0) throw new FsError("EINVAL", "flags");
  const writable = (handle.flags & OpenFlag.ACCMODE) !== OpenFlag.RDONLY;
  if (!writable || (handle.flags & OpenFlag.APPEND) !== 0) {
    throw new FsError("EBADF", "the target is not open for writing, or for appending alone");
  }
  const source = session.handles.offered(wish.token).inode;
  checkRange(wish.sourceOffset, wish.length);
  checkRange(wish.offset, wish.length);
  if (wish.sourceOffset > source.size) throw new FsError("EINVAL", "behind the end of the source");
  const length = wish.length === 0n ? source.size - wish.sourceOffset : wish.length;
  // What ordinary mappings have changed goes to the blocks first.
  await session.invalidate(source, wish.sourceOffset, length);
  await session.invalidate(target, wish.offset, length);
  const killPrivileges = killOf(request, target, lacksSetIdRight(request, target));
  const sizeBefore = target.size;
  let done = 0n;
  let release: (() => void) | null = null;
  let told: (() => void) | null = null;
  const some = (): void => {
    if (release === null) for (const inode of [source, target]) session.heldFiles.check(inode);
    const rest = {
      source,
      sourceOffset: wish.sourceOffset + done,
      target,
      targetOffset: wish.offset + done,
      length: length - done,
      killPrivileges,
    };
    done += BigInt(cloneRange(store, rest));
    if (done < length) release ??= session.heldFiles.hold(source, target);
    if (target.size > sizeBefore) told ??= session.heldFiles.grown(target);
  };
  try {
    while (done < length) {
      await session.retry(some, signal);
      if (done < length) await new Promise((resolve) => setImmediate(resolve));
    }
  } finally {
    // Before the kernel is told: that waits for those whose pages are locked, and they wait for this.
    (release as (() => void) | null)?.();
    await changedUnasked(session, target, wish.offset, done, sizeBefore);
    (told as (() => void) | null)?.();
  }
}

/**
 * An ioctl has changed what the kernel keeps of a file: its pages of a range, its attributes, and perhaps its size. Also
 * where the ioctl has failed half way.
 */
async function changedUnasked(
  session: Session,
  inode: Inode,
  offset: bigint,
  length: bigint,
  sizeBefore: bigint,
): Promise<void> {
  if (inode.size > sizeBefore) await session.tellSize(inode);
  if (length > 0n) await session.invalidate(inode, offset, length);
  session.invalidateAttributes(inode);
}

async function control(
  session: Session,
  request: Request,
  handle: Handle,
  payload: Uint8Array,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const wish = decode(wire.WireControl, payload);
  if (wish.question === wire.Question.DUMP) return dump(session, request, handle, wish);
  const asker = { fh: handle.fh, uid: request.uid };
  const { token, bytes } =
    wish.token === 0
      ? session.answers.keep(
          asker,
          await answer(session, request, handle, wish.question, wish.argument, signal),
        )
      : { token: wish.token, bytes: session.answers.get(asker, wish.token) };
  if (wish.offset > bytes.length) throw new FsError("EINVAL", "offset behind the answer");
  const slice = bytes.subarray(wish.offset, wish.offset + wire.WIRE_CONTROL_TEXT);
  if (wish.offset + slice.length === bytes.length) session.answers.drop(token);
  return controlReply(wish, token, slice, bytes.length);
}

type ControlRequest = StructValue<typeof wire.WireControl>;

function controlReply(wish: ControlRequest, token: number, slice: Uint8Array, total: number): Uint8Array {
  const out = Buffer.alloc(wire.WireControl.size);
  wire.WireControl.encode(viewOf(out), 0, {
    version: wire.WIRE_VERSION,
    question: wish.question,
    token,
    count: slice.length,
    offset: wish.offset,
    total,
    argument: wish.argument,
    text: slice,
  });
  return out;
}

/** Too long to be kept like other answers: it is made as it is read, and belongs to the open file. */
function dump(session: Session, request: Request, handle: Handle, wish: ControlRequest): Uint8Array {
  administratorOnly(session, request);
  if (wish.offset === 0) {
    handle.dump?.close();
    handle.dump = null;
    handle.dump = new Dump(session.volume.store);
  }
  if (handle.dump === null) throw new FsError("ESTALE", "no dump is under way on this open file");
  const { bytes, more } = handle.dump.next(wish.offset, wire.WIRE_CONTROL_TEXT);
  if (!more) {
    handle.dump.close();
    handle.dump = null;
  }
  const end = wish.offset + bytes.length;
  return controlReply(wish, 1, bytes, more ? end + 1 : end);
}
