/** ioctls that are not ours but Linux's: what fstrim(8) and others ask every file system for. */
import { FsError } from "../../base/errors.ts";
import { FstrimRange, LinuxIoctl } from "../../fuse/linux-ioctls.ts";
import type { Request } from "../../fuse/request.ts";
import { type StructValue, viewOf } from "../../layout/struct.ts";
import { CAP_SYS_ADMIN, hasCapability } from "../../lease/process.ts";
import type { Session } from "../session.ts";

interface LinuxCommand {
  /** Bytes that come with it, and that the caller takes at least. */
  readonly inBytes: number;
  readonly outBytes: number;
  run(session: Session, request: Request, signal: AbortSignal): Promise<Uint8Array | null>;
}

const commands: ReadonlyMap<number, LinuxCommand> = new Map<number, LinuxCommand>([
  [LinuxIoctl.FITRIM, { inBytes: FstrimRange.size, outBytes: FstrimRange.size, run: trim }],
]);

export const isLinuxIoctl = (cmd: number): boolean => commands.has(cmd);

/** @throws FsError EINVAL (sizes that are not the command's), and what the command says */
export async function linuxIoctl(
  session: Session,
  request: Request,
  { cmd, inSize, outSize }: { cmd: number; inSize: number; outSize: number },
  signal: AbortSignal,
): Promise<Uint8Array | null> {
  const command = commands.get(cmd);
  if (command === undefined) throw new FsError("ENOTTY");
  if (inSize !== command.inBytes || outSize < command.outBytes) throw new FsError("EINVAL", "ioctl sizes");
  return await command.run(session, request, signal);
}

/** As the kernel's own file systems do. The uid that the kernel tells is that of the user namespace that mounted. */
function administratorOnly(session: Session, request: Request): void {
  const { uid, pid } = request;
  // Whoever mounted as an ordinary user has the region: what they could do to that they may do here.
  const isOwner = uid === session.options.uid && uid !== 0;
  if (!isOwner && (uid !== 0 || hasCapability(pid, CAP_SYS_ADMIN) === false))
    throw new FsError("EPERM", "for root and whoever mounted");
}

/** @throws FsError EPERM, EROFS, EOPNOTSUPP, EINVAL, EBUSY (a snapshot is being taken), EINTR, EIO */
async function trim(session: Session, request: Request, signal: AbortSignal): Promise<Uint8Array> {
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
