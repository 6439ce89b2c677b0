/**
 * Notifications: what the daemon tells the kernel unasked. Each builder makes a payload of its own, because the channel
 * writes it later, on another thread.
 *
 * What the kernel does with them (fs/fuse/dev.c, fs/fuse/dir.c) decides when they may be sent:
 * - INVAL_INODE takes the page locks of the range and waits for reads and writes of it that are under way; so does STORE;
 * - INVAL_ENTRY and DELETE take the directory's inode lock, which the kernel holds while a LOOKUP, CREATE or UNLINK in it
 *   waits for us: written from the thread that answers requests they deadlock;
 * - all answer ENOENT when the kernel knows no such node or name, which is success.
 */
import { invariant } from "../base/errors.ts";
import {
  InvalEntryFlag,
  NotifyCode,
  NotifyDeleteOut,
  NotifyInvalEntryOut,
  NotifyInvalInodeOut,
  NotifyPollWakeupOut,
  NotifyStoreOut,
} from "./kernel.ts";

export interface Notification {
  /** NotifyCode. */
  readonly code: number;
  readonly payload: Uint8Array;
}

/**
 * Drop the cached attributes of a node, and its cached data from byte `offset` on for `length` bytes (0: to the end).
 * A negative offset leaves the data alone.
 */
export function notifyInvalInode(nodeid: number, offset: bigint, length: bigint): Notification {
  const payload = new Uint8Array(NotifyInvalInodeOut.size);
  NotifyInvalInodeOut.encode(new DataView(payload.buffer), 0, { ino: nodeid, off: offset, len: length });
  return { code: NotifyCode.INVAL_INODE, payload };
}

/**
 * Put bytes into the page cache. What else it does is what it is for here: a file that the kernel takes for shorter becomes
 * as long as they reach, at once and for every descriptor (fuse_notify_store, fs/fuse/dev.c). Attributes that the kernel is
 * told to forget are asked for by stat(2), but not by an append.
 */
export function notifyStore(nodeid: number, offset: bigint, bytes: Uint8Array): Notification {
  const payload = new Uint8Array(NotifyStoreOut.size + bytes.length);
  NotifyStoreOut.encode(new DataView(payload.buffer), 0, { nodeid, offset, size: bytes.length });
  payload.set(bytes, NotifyStoreOut.size);
  return { code: NotifyCode.STORE, payload };
}

/** Drop a cached name. `expireOnly` (needs HAS_EXPIRE_ONLY): look it up again, but keep mounts and open files on it. */
export function notifyInvalEntry(parent: number, name: string, expireOnly = false): Notification {
  const payload = withName(NotifyInvalEntryOut.size, name);
  NotifyInvalEntryOut.encode(new DataView(payload.buffer), 0, {
    parent,
    namelen: name.length,
    flags: expireOnly ? InvalEntryFlag.EXPIRE_ONLY : 0,
  });
  return { code: NotifyCode.INVAL_ENTRY, payload };
}

/** Tell that a name is gone, if it still stands for `child`: watchers (inotify) see it as a deletion. */
export function notifyDelete(parent: number, child: number, name: string): Notification {
  const payload = withName(NotifyDeleteOut.size, name);
  NotifyDeleteOut.encode(new DataView(payload.buffer), 0, { parent, child, namelen: name.length });
  return { code: NotifyCode.DELETE, payload };
}

/** Wake whoever polls the file with this kernel handle (PollIn.kh): the kernel asks again with POLL. */
export function notifyPollWakeup(kernelHandle: number): Notification {
  const payload = new Uint8Array(NotifyPollWakeupOut.size);
  NotifyPollWakeupOut.encode(new DataView(payload.buffer), 0, { kh: kernelHandle });
  return { code: NotifyCode.POLL, payload };
}

/** Zeros of `size` bytes, the name in latin1 and the NUL that the kernel insists on. */
function withName(size: number, name: string): Uint8Array {
  invariant(name.length > 0, "a notification about an empty name");
  const payload = Buffer.alloc(size + name.length + 1);
  payload.write(name, size, name.length, "latin1");
  // A view of the pool's memory would have an offset; Buffer.alloc never takes from the pool.
  return new Uint8Array(payload.buffer, 0, payload.length);
}
