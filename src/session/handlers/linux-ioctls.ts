/** ioctls that are not ours but Linux's: what fstrim(8), chattr(1) and others ask every file system for. */
import { open } from "node:fs/promises";
import { FsError } from "../../base/errors.ts";
import { IoctlIn } from "../../fuse/kernel.ts";
import {
  FLAGS_BYTES,
  FSLABEL_BYTES,
  FstrimRange,
  FsXflag,
  Fsxattr,
  GoingDown,
  LinuxIoctl,
} from "../../fuse/linux-ioctls.ts";
import type { Request } from "../../fuse/request.ts";
import { type StructValue, viewOf } from "../../layout/struct.ts";
import { CAP_FOWNER, CAP_LINUX_IMMUTABLE, CAP_SYS_ADMIN } from "../../lease/process.ts";
import { LABEL_BYTES_MAX } from "../../media/format.ts";
import type { Inode } from "../../namespace/inode.ts";
import { INODE_FLAGS, InodeFlag, setInodeFlags } from "../../namespace/inode-flags.ts";
import type { Session } from "../session.ts";
import { mayAsRoot } from "./privileges.ts";

interface Asked {
  readonly cmd: number;
  readonly fh: number;
  readonly inSize: number;
  readonly outSize: number;
}

interface LinuxCommand {
  /** Bytes that come with it, and that the caller takes at least. */
  readonly inBytes: number;
  readonly outBytes: number;
  run(session: Session, request: Request, inode: Inode, signal: AbortSignal): Promise<Uint8Array | null>;
}

const reading = (outBytes: number, run: LinuxCommand["run"]): LinuxCommand => ({ inBytes: 0, outBytes, run });
const setting = (inBytes: number, run: LinuxCommand["run"]): LinuxCommand => ({ inBytes, outBytes: 0, run });

const commands: ReadonlyMap<number, LinuxCommand> = new Map<number, LinuxCommand>([
  [LinuxIoctl.FITRIM, { inBytes: FstrimRange.size, outBytes: FstrimRange.size, run: trim }],
  [LinuxIoctl.GETFLAGS, reading(FLAGS_BYTES, getFlags)],
  [LinuxIoctl.SETFLAGS, setting(FLAGS_BYTES, setFlags)],
  [LinuxIoctl.FSGETXATTR, reading(Fsxattr.size, getXflags)],
  [LinuxIoctl.FSSETXATTR, setting(Fsxattr.size, setXflags)],
  [LinuxIoctl.GETVERSION, reading(4, getVersion)],
  [LinuxIoctl.GETFSLABEL, reading(FSLABEL_BYTES, getLabel)],
  [LinuxIoctl.SETFSLABEL, setting(FSLABEL_BYTES, setLabel)],
  [LinuxIoctl.GOINGDOWN, { inBytes: 0, outBytes: 0, run: goDown }],
]);

export const isLinuxIoctl = (cmd: number): boolean => commands.has(cmd);

/** @throws FsError EINVAL (sizes that are not the command's), and what the command says */
export async function linuxIoctl(
  session: Session,
  request: Request,
  { cmd, fh, inSize, outSize }: Asked,
  signal: AbortSignal,
): Promise<Uint8Array | null> {
  const command = commands.get(cmd);
  if (command === undefined) throw new FsError("ENOTTY");
  const { inode } = session.handles.get(fh);
  if (inSize < command.inBytes || outSize < command.outBytes) throw new FsError("EINVAL", "ioctl sizes");
  return await command.run(session, request, inode, signal);
}

/** As the kernel's own file systems do. The uid that the kernel tells is that of the user namespace that mounted. */
function administratorOnly(session: Session, request: Request): void {
  // Whoever mounted as an ordinary user has the region: what they could do to that they may do here.
  const isOwner = request.uid === session.options.uid && request.uid !== 0;
  if (!isOwner && !mayAsRoot(request, CAP_SYS_ADMIN))
    throw new FsError("EPERM", "for root and whoever mounted");
}

/** @throws FsError EPERM, EROFS, EOPNOTSUPP, EINVAL, EBUSY (a snapshot is being taken), EINTR, EIO */
async function trim(
  session: Session,
  request: Request,
  _inode: Inode,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const { store } = session.volume;
  const { discards, blockBytes } = store;
  administratorOnly(session, request);
  store.writable();
  if (!discards.arePossible) throw new FsError("EOPNOTSUPP", "nothing lies below that could use free blocks");
  const range: StructValue<typeof FstrimRange> = FstrimRange.decode(viewOf(request.data()), 0);
  const bytes = BigInt(store.allocator.blockCount) * BigInt(blockBytes);
  if (range.start >= bytes || range.minLength > bytes || range.length < BigInt(blockBytes))
    throw new FsError("EINVAL", "outside the volume, or less than a block");
  // What was freed before the call is free for certain.
  await store.sync();
  const left = bytes - range.start;
  const end = range.start + (range.length < left ? range.length : left);
  const blocks = await discards.trim(
    {
      start: Math.ceil(Number(range.start) / blockBytes),
      end: Math.floor(Number(end) / blockBytes),
      least: Math.max(1, Math.ceil(Number(range.minLength) / blockBytes)),
    },
    async () => {
      await new Promise((resolve) => setImmediate(resolve));
      if (signal.aborted) throw new FsError("EINTR");
    },
  );
  const reply = new Uint8Array(FstrimRange.size);
  FstrimRange.encode(viewOf(reply), 0, { ...range, length: BigInt(blocks) * BigInt(blockBytes) });
  return reply;
}

function word(value: number): Uint8Array {
  const reply = new Uint8Array(4);
  viewOf(reply).setUint32(0, value, true);
  return reply;
}

async function getFlags(_session: Session, _request: Request, inode: Inode): Promise<Uint8Array> {
  return word(inode.flags & INODE_FLAGS);
}

async function setFlags(
  session: Session,
  request: Request,
  inode: Inode,
  signal: AbortSignal,
): Promise<null> {
  await changeFlags(session, request, inode, viewOf(request.data()).getUint32(0, true), signal);
  return null;
}

/** Each flag by the number that XFS gave it. */
const XFLAGS = Object.entries(FsXflag).map(
  ([name, xflag]) => ({ xflag, flag: InodeFlag[name as keyof typeof FsXflag] }) as const,
);

async function getXflags(_session: Session, _request: Request, inode: Inode): Promise<Uint8Array> {
  const reply = new Uint8Array(Fsxattr.size);
  let xflags = 0;
  for (const { xflag, flag } of XFLAGS) if ((inode.flags & flag) !== 0) xflags |= xflag;
  Fsxattr.encode(viewOf(reply), 0, { xflags, extents: inode.extents?.length ?? 0 });
  return reply;
}

async function setXflags(
  session: Session,
  request: Request,
  inode: Inode,
  signal: AbortSignal,
): Promise<null> {
  const { xflags, extentSize, project, cowExtentSize } = Fsxattr.decode(viewOf(request.data()), 0);
  let flags = 0;
  let left = xflags;
  for (const { xflag, flag } of XFLAGS) {
    if ((xflags & xflag) === 0) continue;
    flags |= flag;
    left &= ~xflag;
  }
  if (left !== 0 || extentSize !== 0 || project !== 0 || cowExtentSize !== 0)
    throw new FsError("EOPNOTSUPP", "only flags that chattr(1) knows as a, A, d and i");
  await changeFlags(session, request, inode, flags, signal);
  return null;
}

/**
 * From Linux 5.13 on the kernel has asked who may; before that it leaves it to us (fuse_fileattr_set, fs/fuse/ioctl.c).
 * @throws FsError EPERM, EROFS, EOPNOTSUPP, ETXTBSY (the file is mapped directly), EINTR
 */
async function changeFlags(
  session: Session,
  request: Request,
  inode: Inode,
  flags: number,
  signal: AbortSignal,
): Promise<void> {
  const { store } = session.volume;
  store.writable();
  if (request.uid !== inode.uid && !mayAsRoot(request, CAP_FOWNER))
    throw new FsError("EPERM", "for the owner of the file");
  const privileged = InodeFlag.IMMUTABLE | InodeFlag.APPEND;
  if (((flags ^ inode.flags) & privileged) !== 0 && !mayAsRoot(request, CAP_LINUX_IMMUTABLE))
    throw new FsError("EPERM", "CAP_LINUX_IMMUTABLE is needed");
  const pins = inode.extents !== null && (flags & privileged & ~inode.flags) !== 0;
  if (pins) {
    await session.retry(() => mayPin(session, inode), signal);
    // What ordinary mappings have changed is written while it may be; what they change later is not.
    await session.invalidate(inode, 0n, 0n);
  }
  await session.retry(() => {
    if (pins) mayPin(session, inode);
    setInodeFlags(store, inode, flags);
  }, signal);
  // ctime has changed without the kernel's knowledge.
  session.forgetAttributes(inode);
}

/**
 * Nobody may store into the file's blocks any more: a lease is in the way, or is broken, as for any change of where they are.
 * @throws FsError ETXTBSY; Wait
 */
function mayPin(session: Session, inode: Inode): void {
  const { store } = session.volume;
  const end = inode.extents?.end ?? 0;
  if (end > 0) store.guard.beforeMapChange(inode, [{ block: 0, count: end }]);
  for (const { physical, count } of inode.extents ?? []) {
    if (store.quarantine.isClaimed(physical, count))
      throw new FsError("ETXTBSY", "a process that lost its lease can still store into the file");
  }
}

/** As ext4: an int, though the number says a long. */
async function getVersion(_session: Session, _request: Request, inode: Inode): Promise<Uint8Array> {
  return word(inode.generation);
}

async function getLabel(session: Session): Promise<Uint8Array> {
  const reply = new Uint8Array(FSLABEL_BYTES);
  new TextEncoder().encodeInto(session.volume.store.superblock.label, reply.subarray(0, LABEL_BYTES_MAX));
  return reply;
}

/** @throws FsError EPERM, EROFS, EINVAL (too long, or no UTF-8), EIO */
async function setLabel(session: Session, request: Request): Promise<null> {
  administratorOnly(session, request);
  const bytes = request.data();
  const end = bytes.indexOf(0);
  if (end < 0 || end > LABEL_BYTES_MAX) throw new FsError("EINVAL", `at most ${LABEL_BYTES_MAX} bytes`);
  let label: string;
  try {
    label = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes.subarray(0, end));
  } catch {
    throw new FsError("EINVAL", "a label is UTF-8");
  }
  await session.volume.store.relabel(label);
  return null;
}

/**
 * Nothing is written to the region any more: what is there is what a crash would leave, and everybody gets EIO until the
 * unmount. @throws FsError EPERM, EROFS, EINVAL, EFAULT, EOPNOTSUPP
 */
async function goDown(session: Session, request: Request): Promise<null> {
  administratorOnly(session, request);
  const { store } = session.volume;
  const how = await argumentOf(request);
  if (how !== GoingDown.DEFAULT && how !== GoingDown.LOGFLUSH && how !== GoingDown.NOLOGFLUSH)
    throw new FsError("EINVAL", `shutdown flags ${how}`);
  if (session.isDown) return null;
  if (how !== GoingDown.NOLOGFLUSH) await store.sync();
  session.shutDown();
  return null;
}

/**
 * The number that the argument points to. The kernel copies none for an ioctl whose number says that it writes (_IOR): it is read from the
 * caller's memory. Not on this thread: that memory may be a mapping of a file that we have to serve first.
 */
async function argumentOf(request: Request): Promise<number> {
  const { arg } = request.body(IoctlIn);
  const bytes = Buffer.alloc(4);
  const memory = await open(`/proc/${request.pid}/mem`).catch((error: unknown) => {
    throw new FsError("EOPNOTSUPP", `the caller's memory cannot be read: ${error}`);
  });
  try {
    await memory.read(bytes, 0, bytes.length, Number(arg));
  } catch {
    throw new FsError("EFAULT", "the argument of the ioctl");
  } finally {
    await memory.close();
  }
  return bytes.readUInt32LE();
}
