/**
 * Mounting a file system that is served by this process.
 *
 * Invariants:
 * - `mount` returns when the kernel and the handlers have agreed; when it fails, nothing is left mounted;
 * - `unmount` ends, whatever handlers do: after a grace time the connection is cut;
 * - one unmount at a time asks the kernel, and only while this mount is what its mount point shows: another one that lies
 *   beneath or on top is nobody's to take here.
 */
import { resolve } from "node:path";
import { Errno } from "../base/errno.ts";
import { FsError } from "../base/errors.ts";
import type { InitFlagName } from "../fuse/kernel.ts";
import { notifyDelete, notifyInvalEntry, notifyInvalInode } from "../fuse/notify.ts";
import { type FuseMount, findMount, openFuseMount, unmountFuse } from "../region/fusemount.ts";
import { printed, Server } from "./server.ts";
import type { Connection, FileSystem, HandlerFailure } from "./types.ts";
import { integer, type NameForm, shown, ttlOf } from "./values.ts";

export interface MountOptions {
  /** The type that findmnt shows is `fuse.` and this; "mapdirect-fuse" if left out. Letters, digits, dots, `-`, `_`. */
  readonly type?: string;
  /** Shown as the source; the type if left out. */
  readonly source?: string;
  readonly readOnly?: boolean;
  /** Let other users in. Root may; others need `user_allow_other` in /etc/fuse.conf. False if left out. */
  readonly allowOther?: boolean;
  /** The kernel checks mode, uid and gid of files (true). With false it is up to the handlers, `access` among them. */
  readonly defaultPermissions?: boolean;
  /** More words of mount(8), such as "noatime", or "suid" and "dev", which are off otherwise. */
  readonly options?: readonly string[];
  /** How long the kernel relies on names and attributes where the reply does not say, milliseconds; 1000. */
  readonly entryTtlMs?: number;
  readonly attributesTtlMs?: number;
  /** "utf8", or "bytes" for names with one character per byte. With "utf8" a name that is not UTF-8 is EILSEQ. */
  readonly names?: NameForm;
  /** Features to ask the kernel for besides what the handlers imply: "WRITEBACK_CACHE", "CACHE_SYMLINKS"… */
  readonly features?: readonly InitFlagName[];
  /** Most bytes in one read or write: 4096 to 1 MiB, which it is if left out. */
  readonly transferBytesMax?: number;
  /** How long a handler has to come back when its caller was interrupted, milliseconds; 1000. Then the answer is EINTR. */
  readonly interruptGraceMs?: number;
  /** Print each request on standard error. */
  readonly debug?: boolean;
  /** A handler threw something that is no answer, or returned something of the wrong form. By default a line on standard error. */
  readonly onError?: (failure: HandlerFailure) => void;
}

export interface UnmountOptions {
  /** Detach it even if it is in use, and cut the connection: whoever uses it gets ENOTCONN. */
  readonly force?: boolean;
  /** How long handlers may take to let the kernel finish (write-back…), milliseconds; 5000. Then the connection is cut. */
  readonly graceMs?: number;
}

/** A file system that is mounted. Keeps the process alive until it is unmounted. */
export class Mount {
  /** Absolute. */
  readonly path: string;
  readonly connection: Connection;
  /** Resolves when it is unmounted, by whomever. */
  readonly ended: Promise<void>;
  readonly #server: Server;
  readonly #entry: FuseMount["entry"];
  #live = true;
  #unmounting: Promise<void> | undefined;

  /** @internal */
  constructor(path: string, connection: Connection, server: Server, entry: FuseMount["entry"]) {
    this.#entry = entry;
    this.path = path;
    this.connection = connection;
    this.#server = server;
    this.ended = server.ended;
    void this.ended.then(() => {
      this.#live = false;
    });
  }

  /** Requests whose handlers have not come back. */
  get pending(): number {
    return this.#server.pending;
  }

  /**
   * Unmount. Returns at once if that has happened; calls at the same time share one unmount.
   * @throws FsError EBUSY: it is in use, and `force` was not given; or another mount lies on top of it. TypeError: graceMs
   */
  async unmount({ force = false, graceMs = 5000 }: UnmountOptions = {}): Promise<void> {
    integer(graceMs, "graceMs", 0, 0x7fff_ffff);
    if (force) {
      // One that waits for handlers ends when the connection is cut.
      while (this.#unmounting !== undefined) {
        this.#server.close();
        await this.#unmounting.catch(() => {});
      }
    }
    this.#unmounting ??= (force ? this.#detach() : this.#unmount(graceMs)).finally(() => {
      this.#unmounting = undefined;
    });
    await this.#unmounting;
  }

  async #detach(): Promise<void> {
    try {
      await this.#ask({ lazy: true });
    } finally {
      this.#server.close();
    }
  }

  async #unmount(graceMs: number): Promise<void> {
    const cut = setTimeout(() => this.#server.close(), graceMs);
    try {
      // The kernel ends the connection when it has let go of the last inode.
      if (await this.#ask({ lazy: false })) await this.ended;
    } finally {
      clearTimeout(cut);
    }
  }

  /** Have the kernel unmount it. False if it is not mounted any more. */
  async #ask(options: { lazy: boolean }): Promise<boolean> {
    const place = this.#place();
    if (place === undefined) return false;
    if (!place.onTop) throw new FsError("EBUSY", `another file system is mounted on top of ${this.path}`);
    try {
      await unmountFuse(place.mountpoint, options);
    } catch (error) {
      if (this.#entry !== undefined && this.#place() === undefined) return false; // by somebody else, meanwhile
      throw error;
    }
    return true;
  }

  #place(): ReturnType<typeof findMount> {
    if (this.#entry !== undefined) return findMount(this.#entry);
    return this.#live ? { mountpoint: this.path, onTop: true } : undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.unmount({ force: true });
  }

  /**
   * The node has changed without the kernel's doing: it drops its attributes, and its cached data from `offset` on for
   * `length` bytes (0: all from there on). `offset` -1: attributes only. Waits for reads and writes of the range that
   * are under way, so a handler of such must not await it.
   * @returns false if the kernel knew no such node
   */
  invalidateNode(nodeid: number, offset = 0, length = 0): Promise<boolean> {
    integer(nodeid, "nodeid", 1);
    integer(offset, "offset", -1);
    integer(length, "length");
    return this.#notify(notifyInvalInode(nodeid, BigInt(offset), BigInt(length)));
  }

  /**
   * The name in that directory may mean something else now. Takes the directory's lock, so a handler of a request about
   * names in it must not await it.
   * @returns false if the kernel knew no such name
   */
  invalidateEntry(parent: number, name: string): Promise<boolean> {
    return this.#notify(notifyInvalEntry(integer(parent, "parent", 1), this.#server.names.entryName(name)));
  }

  /** The same, and `child` has been removed under that name: inotify tells so. */
  notifyDelete(parent: number, child: number, name: string): Promise<boolean> {
    const bytes = this.#server.names.entryName(name);
    return this.#notify(notifyDelete(integer(parent, "parent", 1), integer(child, "child", 1), bytes));
  }

  async #notify(notification: ReturnType<typeof notifyInvalInode>): Promise<boolean> {
    const errno = await this.#server.notify(notification);
    if (errno === 0) return true;
    if (errno === Errno.ENOENT) return false;
    if (errno === Errno.ENODEV || errno === Errno.ENOTCONN)
      throw new FsError("ENOTCONN", "the file system is not mounted any more");
    throw new FsError(errno, "the kernel refused the notification");
  }
}

const TRANSFER_BYTES_MAX = 1024 * 1024;

function onStandardError({ operation, nodeid, error }: HandlerFailure): void {
  process.stderr.write(`mapdirect/fuse: ${operation} of node ${nodeid}: ${printed(error)}\n`);
}

/**
 * Mount a file system on a directory, and serve it from this process. As root by mount(2), otherwise through fusermount3.
 *
 * Programs that use it wait for this process: it must not use its own mount by synchronous calls (fs.readFileSync), nor
 * be busy for long.
 *
 * @throws TypeError: an option or the file system is not what it should be; FsError: it cannot be mounted there, and why;
 *   what `init` threw
 */
export async function mount(
  fileSystem: FileSystem,
  mountpoint: string,
  options: MountOptions = {},
): Promise<Mount> {
  for (const needed of ["lookup", "getattr"] as const) {
    if (typeof fileSystem?.[needed] !== "function") throw new TypeError(`the file system has no ${needed}()`);
  }
  const { type = "mapdirect-fuse", names = "utf8", transferBytesMax = TRANSFER_BYTES_MAX } = options;
  const { entryTtlMs = 1000, attributesTtlMs = 1000, interruptGraceMs = 1000 } = options;
  if (!/^[A-Za-z0-9._-]+$/.test(type)) throw new TypeError(`type: ${shown(type)}`);
  if (names !== "utf8" && names !== "bytes") throw new TypeError(`names: expected utf8 or bytes`);
  integer(transferBytesMax, "transferBytesMax", 4096, TRANSFER_BYTES_MAX);
  integer(interruptGraceMs, "interruptGraceMs", 0, 0x7fff_ffff);
  ttlOf(entryTtlMs, "entryTtlMs");
  ttlOf(attributesTtlMs, "attributesTtlMs");
  const path = resolve(mountpoint);
  const given = new Set(options.options ?? []);
  const words = [options.readOnly === true ? "ro" : "rw", ...given];
  for (const word of ["suid", "dev"]) if (!given.has(word)) words.push(`no${word}`);
  if (options.allowOther === true) words.push("allow_other");
  if (options.defaultPermissions !== false) words.push("default_permissions");

  const server = new Server(fileSystem, {
    ttls: { entryTtlMs, attributesTtlMs },
    names,
    features: options.features ?? [],
    transferBytesMax,
    interruptGraceMs,
    debug: options.debug === true,
    onError: options.onError ?? onStandardError,
  });
  const { device, entry } = await openFuseMount({
    source: options.source ?? type,
    mountpoint: path,
    options: words,
    fsType: `fuse.${type}`,
  });
  try {
    server.attach(device);
    return new Mount(path, await server.ready, server, entry);
  } catch (error) {
    device.close();
    const place = entry === undefined ? { mountpoint: path, onTop: true } : findMount(entry);
    if (place?.onTop) await unmountFuse(place.mountpoint, { lazy: true }).catch(() => {});
    server.close();
    throw error;
  }
}
