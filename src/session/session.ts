/**
 * A mounted volume: takes requests from the channel, runs the handler of each, and answers.
 *
 * Invariants:
 * - one thread, one request at a time: a handler runs from beginning to end before the next begins, unless it says that
 *   it waits. A Wait is thrown before anything has changed, and the request is run again from the start later;
 * - every request that wants an answer gets exactly one, whatever its handler does; an expected error (FsError) is an
 *   errno, damage (CorruptionError) is EIO and a line in the log, and so is anything else, which is our own bug: it ends
 *   its request and no other (base/faults.ts);
 * - a request that waits can be interrupted (EINTR), and never holds up another;
 * - nothing here calls into the own mount.
 */
import { Errno, errnoName } from "../base/errno.ts";
import { CorruptionError, FsError, invariant, MediaError } from "../base/errors.ts";
import { after, fault, guarded, inBackground } from "../base/faults.ts";
import { type Deferred, deferred, settledOrAborted, Wait } from "../base/wait.ts";
import { type Negotiated, requestBufferBytes } from "../fuse/init.ts";
import { Opcode } from "../fuse/kernel.ts";
import { notifyInvalInode, notifyPollWakeup, notifyStore } from "../fuse/notify.ts";
import { opcodeName } from "../fuse/opcodes.ts";
import { printReply, printRequest } from "../fuse/print.ts";
import { Request } from "../fuse/request.ts";
import { holderIsGone, isReading } from "../lease/process.ts";
import type { Lease } from "../lease/table.ts";
import type { AtimeMode } from "../namespace/attributes.ts";
import * as data from "../namespace/data.ts";
import type { Inode } from "../namespace/inode.ts";
import {
  addon,
  type Channel,
  type KernelChannel,
  type NativeRegion,
  type NativeRing,
  type OwnedDescriptor,
} from "../region/addon.ts";
import type { NativeBacked, Region } from "../region/region.ts";
import { Answers } from "./answers.ts";
import { Counting } from "./counting.ts";
import { type Handler, handlers } from "./dispatch.ts";
import { type Handle, Handles } from "./handles.ts";
import { HeldFiles } from "./held-files.ts";
import { type CacheMode, PageCache } from "./page-cache.ts";
import { Snapshots } from "./snapshots.ts";
import type { Volume } from "./volume.ts";

export interface SessionOptions {
  /** Who mounted; may list all leases like root. */
  readonly uid: number;
  /** Takes each request and reply in words; null: nobody wants them. */
  readonly debug: ((text: string) => void) | null;
  /** A line for whoever runs the daemon. */
  readonly warn: (text: string) => void;
  /** The region's path, for clients. */
  readonly mountSource: string;
  readonly mountpoint: string;
  /** Where members of direct_group= get a descriptor of the region; "" for nowhere. */
  readonly directSocket: string;
  /** Where the log goes, for people. */
  readonly log?: string;
  readonly atime: AtimeMode;
  readonly noDirectoryAtime: boolean;
  /** What is durable when its call returns: changes of names (dirsync), or all changes (sync); null: what was synced. */
  readonly synchronous: "names" | "all" | null;
  readonly cache: CacheMode;
  /** For FUSE over io_uring; null: everything comes through /dev/fuse. */
  readonly ring: NativeRing | null;
}

/** Largest WRITE and READ, bytes; the kernel's default limit of 256 pages (fs.fuse.max_pages_limit). */
export const TRANSFER_BYTES_MAX = 1024 * 1024;
/** After a burst of requests, look for the next one this long before going back to sleep, microseconds. */
const BUSY_POLL_MICROS = 150;
const BATCH = 32;
/** A conflict with a lease whose holder is dead waits for the kernel's release: so often, and so long in between. */
const RELEASE_TRIES = 40;
const RELEASE_WAIT_MS = 5;
/** How often we look whether a caller has come to wait. */
const READING_TRIES = 10;
/** How long the times of a file that was stored to through a mapping may be shown as they were, milliseconds. */
const STALE_MS = 2;
/** Media errors in the log: at most so many in so long, milliseconds. */
const MEDIA_LOG_MAX = 10;
const MEDIA_LOG_MS = 10_000;

export class Session {
  readonly volume: Volume;
  readonly options: SessionOptions;
  readonly handles = new Handles();
  readonly answers = new Answers();
  readonly snapshots = new Snapshots();
  readonly heldFiles = new HeldFiles();
  readonly pageCache: PageCache;
  /** Replies are built here; a handler fills it and answers before it returns. */
  readonly out: Buffer;
  readonly outView: DataView;
  readonly pieces = new Float64Array(1024);
  readonly ended: Promise<void>;
  readonly startedAtMs = Date.now();
  /** Set by INIT. */
  negotiated: Negotiated | null = null;
  /** Requests come through io_uring. */
  overRing = false;
  /** shutDown() was called. */
  isDown = false;
  #channel: Channel | null = null;
  #resolveEnded: () => void = () => {};
  readonly #request: Request;
  readonly #buffer: Buffer;
  /** Of the entries of the ring. */
  readonly #entries: Request[] = [];
  #kernel: KernelChannel | null = null;
  readonly #native: NativeRegion;
  /** Requests that wait, by id; FUSE_INTERRUPT aborts them, and so does the end of the session. */
  readonly #waiting = new Map<bigint, AbortController>();
  /** Of these, by inode, those for which the kernel may have locked pages; `gone` when there are none left. */
  readonly #lockingPages = new Map<number, { count: number; readonly gone: Deferred }>();
  /** Whose attributes the kernel has to forget soon. */
  readonly #stale = new Set<Inode>();
  /** How often the request being run has been run before. */
  #attempt = 0;
  #answered = false;
  /** It will be, by a promise that is under way. */
  #later = false;
  #mediaErrors = { sinceMs: 0, count: 0 };
  readonly counting = new Counting();

  constructor(volume: Volume, options: SessionOptions) {
    this.volume = volume;
    this.options = options;
    this.#buffer = Buffer.alloc(requestBufferBytes(TRANSFER_BYTES_MAX));
    this.#request = new Request(this.#buffer);
    this.out = Buffer.alloc(TRANSFER_BYTES_MAX + 4096);
    this.outView = new DataView(this.out.buffer, this.out.byteOffset, this.out.byteLength);
    this.pageCache = new PageCache({
      drop: (inode, offset, length) => this.invalidate(inode, offset, length),
      forgetAttributes: (inode) => this.forgetAttributes(inode),
      isLeased: (inode) => volume.leases.isAnyOf(inode),
    });
    const { region } = volume.store;
    // READ replies go out straight from the mapped region: one in JavaScript's memory is for tests without a mount.
    invariant(isNativeBacked(region), "a session serves a mapped region");
    this.#native = region.native as NativeRegion;
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    const { events } = volume.leases;
    const tellWatchers = (lease: Lease): void => {
      for (const handle of this.handles.watching(lease)) this.wake(handle);
    };
    volume.leases.events = {
      onBreak: tellWatchers,
      onRevoked: (lease) => {
        events.onRevoked(lease);
        tellWatchers(lease);
      },
      onEnded: (lease) => {
        events.onEnded(lease);
        tellWatchers(lease);
      },
      onRefusal: (lease) => this.#awaitRelease(lease),
    };
  }

  #awaitRelease(lease: Lease): void {
    // A release reaches us through the same queue as everything else. One turn lets what is queued come in; a holder
    // that is dead needs no more than its release, which the kernel is about to send.
    if (this.#attempt === 0) throw new Wait("release", new Promise((resolve) => setImmediate(resolve)));
    if (this.#attempt < RELEASE_TRIES && holderIsGone(lease.holder.pid)) {
      throw new Wait("release", new Promise((resolve) => setTimeout(resolve, RELEASE_WAIT_MS)));
    }
  }

  /** Whoever asks waits in a call that reads the file, and not in the fault of a mapping. @throws Wait */
  waitsInRead(request: Request): boolean {
    const is = isReading(request.pid, request.nodeid);
    // It is on its way to wait for us.
    if (is === null && this.#attempt < READING_TRIES)
      throw new Wait("a thread", new Promise((resolve) => setTimeout(resolve, 1)));
    return is === true;
  }

  /** Whoever polls this handle has something to see. */
  wake(handle: Handle): void {
    if (handle.pollHandle === null) return;
    const { code, payload } = notifyPollWakeup(handle.pollHandle);
    // The kernel asks anew after each wake-up.
    handle.pollHandle = null;
    // It takes no lock that a caller of ours could hold.
    this.#notifySoon(code, payload);
  }

  /** Nobody waits for it: the kernel is told as soon as it can be. */
  #notifySoon(code: number, payload: Uint8Array): void {
    if (this.#channel !== null) inBackground("a notification", this.#channel.notify(code, payload, true));
  }

  /** Serve the /dev/fuse descriptor until the file system is unmounted. */
  attach(device: OwnedDescriptor | number): void {
    this.#kernel = this.attachTo((buffer, onRequest, onEnd) =>
      addon().openChannel(
        device,
        buffer,
        { busyPollMicros: BUSY_POLL_MICROS, batch: BATCH },
        onRequest,
        onEnd,
      ),
    );
  }

  /**
   * INIT was answered with OVER_IO_URING. Until the kernel has its entries it holds back whoever calls; if it does not take
   * them, everything goes on through /dev/fuse.
   */
  beginRing(): void {
    const { ring } = this.options;
    if (ring === null || this.#kernel === null) return;
    const refused = this.#kernel.useRing(ring);
    if (refused === 0) this.overRing = true;
    else this.options.warn(`the kernel does not take the ring: ${errnoName(refused)}; going on without`);
  }

  /** The request in an entry of the ring. */
  #requestIn(entry: number): Request {
    let request = this.#entries[entry];
    if (request === undefined) {
      request = new Request((this.#kernel as KernelChannel).entry(entry));
      request.setxattrExtended = this.#request.setxattrExtended;
      this.#entries[entry] = request;
    }
    return request;
  }

  /** Serve what comes by another way: each request lies in the buffer while `onRequest` runs, as from /dev/fuse. */
  attachTo<C extends Channel>(
    open: (buffer: Buffer, onRequest: (length: number, entry?: number) => unknown, onEnd: () => void) => C,
  ): C {
    const channel = open(
      this.#buffer,
      (length, entry) => this.#receive(length, entry),
      () => this.#resolveEnded(),
    );
    this.#channel = channel;
    return channel;
  }

  async close(): Promise<void> {
    this.#channel?.close();
    this.#channel = null;
    for (const waiting of this.#waiting.values()) waiting.abort();
    this.snapshots.end();
    this.#resolveEnded();
  }

  /** Nothing reaches the region any more, and whoever asks for a file gets EIO: as after a crash, but for the mount. */
  shutDown(): void {
    this.isDown = true;
    // At the unmount neither.
    this.volume.store.distrust(new Error("the file system was shut down"));
  }

  get channelCounters(): Channel["counters"] | null {
    return this.#channel?.counters ?? null;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  /** Returns whether somebody waits for what promises are to bring. */
  #receive(length: number, entry: number | undefined): boolean {
    const request = entry === undefined ? this.#request : this.#requestIn(entry);
    this.#answered = false;
    this.#later = false;
    try {
      return this.#take(request, length);
    } catch (error) {
      this.#unexpected(request, error);
      return this.#later;
    }
  }

  #take(request: Request, length: number): boolean {
    request.receivedMs = performance.now();
    try {
      request.load(length);
    } catch (error) {
      if (!(error instanceof FsError)) throw error;
      // Without an id there is nobody to answer.
      if (request.unique !== 0n && request.row?.reply !== false) {
        this.#send(request, error.errno, this.out, 0, 0);
      }
      return false;
    }
    this.options.debug?.(printRequest(request));
    this.counting.received(request.opcode);
    if (request.opcode === Opcode.INTERRUPT) {
      this.#interrupt(request);
      return true;
    }
    this.#run(request, 0);
    return this.#later || !(this.#answered || request.row?.reply === false);
  }

  #run(request: Request, attempt: number): void {
    const handler: Handler | undefined = handlers[request.opcode];
    if (handler === undefined) {
      this.#fail(request, new FsError("ENOSYS"));
      return;
    }
    if (this.isDown && !whileDown.has(request.opcode)) {
      this.#fail(request, new FsError("EIO", "the file system was shut down"));
      return;
    }
    this.#enter(attempt);
    this.#answered = false;
    try {
      if (changesData.has(request.opcode)) this.#roomForOldBytes();
      if (handler.waits && handler.atOnce?.(this, request) !== true) {
        // It goes on after this turn of the event loop: it needs a request of its own.
        const own = request.isCopy ? request : request.clone();
        handler.run(this, own, this.#wait(own)).then(
          () => this.#waiting.delete(own.unique),
          guarded("a request that waited", (error: unknown) => {
            this.#waiting.delete(own.unique);
            // Whatever was answered meanwhile was another one.
            this.#answered = false;
            this.#failed(own, attempt, error);
          }),
        );
        return;
      }
      if (!handler.waits) handler.run(this, request);
      if (!this.#answered && request.row?.reply !== false) {
        throw new Error(`${opcodeName(request.opcode)} was not answered`);
      }
    } catch (error) {
      this.#failed(request, attempt, error);
    }
  }

  #failed(request: Request, attempt: number, error: unknown): void {
    if (error instanceof Wait) this.#park(request, attempt, error);
    else if (error instanceof FsError) this.#fail(request, error);
    else if (error instanceof CorruptionError) {
      this.#fail(request, new MediaError(error.message));
    } else this.#unexpected(request, error);
  }

  /** Our own bug: whoever asked hears of it, everybody else goes on. */
  #unexpected(request: Request, error: unknown): void {
    fault(`${opcodeName(request.opcode)} of inode ${request.nodeid}`, error);
    if (this.#answered || request.row?.reply === false || request.unique === 0n) return;
    this.counting.failed(Errno.EIO);
    this.#send(request, Errno.EIO, this.out, 0, 0);
  }

  /**
   * For a handler that answers later: run an operation to its end, waiting as it asks, counting how often it has been
   * tried like any other request. @throws FsError EINTR when the caller was interrupted meanwhile.
   */
  async retry<T>(operation: () => T, signal: AbortSignal): Promise<T> {
    for (let attempt = 0; ; attempt += 1) {
      // Other requests have been run since the last attempt.
      this.#enter(attempt);
      try {
        this.#roomForOldBytes();
        return operation();
      } catch (error) {
        if (!(error instanceof Wait)) throw error;
        await settledOrAborted(error.until, signal);
      }
      if (signal.aborted) throw new FsError("EINTR");
    }
  }

  /** What an operation is judged by besides its arguments; the last request's must not linger. */
  #enter(attempt: number): void {
    this.#attempt = attempt;
    this.volume.leases.nonBlocking = false;
  }

  /** The request that is being run has waited before. */
  get hasWaited(): boolean {
    return this.#attempt > 0;
  }

  /** What is stored now is set aside for a snapshot that is being taken: not without bounds. */
  #roomForOldBytes(): void {
    const { full } = this.snapshots;
    if (full !== null) throw new Wait("snapshot", full);
  }

  #wait(request: Request): AbortSignal {
    const waiting = new AbortController();
    this.#waiting.set(request.unique, waiting);
    return waiting.signal;
  }

  /** Keep the request until what it waits for has happened, or it is interrupted; then run it again. */
  #park(request: Request, attempt: number, wait: Wait): void {
    const own = request.isCopy ? request : request.clone();
    const signal = this.#wait(own);
    const release = this.#holdPages(own);
    const goOn = (): void => {
      this.#waiting.delete(own.unique);
      if (this.#channel !== null) {
        if (signal.aborted) this.#fail(own, new FsError("EINTR"));
        else this.#run(own, attempt + 1);
      }
      // Afterwards: it may wait once more.
      release?.();
    };
    inBackground("a request that waited", settledOrAborted(wait.until, signal).then(goOn));
  }

  /** A request that waits may have pages locked: a fill of the cache, and a write(2) through it of less than a page. */
  #holdPages({ opcode, nodeid }: Request): (() => void) | undefined {
    if (opcode !== Opcode.WRITE && opcode !== Opcode.READ) return undefined;
    let holding = this.#lockingPages.get(nodeid);
    if (holding === undefined) {
      holding = { count: 0, gone: deferred() };
      this.#lockingPages.set(nodeid, holding);
    }
    const held = holding;
    held.count += 1;
    return () => {
      held.count -= 1;
      if (held.count > 0) return;
      this.#lockingPages.delete(nodeid);
      held.gone.resolve();
    };
  }

  #interrupt(request: Request): void {
    // Whatever is not waiting has been answered, or will be at once.
    this.#waiting.get(request.interrupted)?.abort();
  }

  #fail(request: Request, error: FsError): void {
    if (request.row?.reply === false) return;
    this.counting.failed(error.errno);
    if (error instanceof MediaError) this.#tellOfMedia(request, error.message);
    this.options.debug?.(`  ${error.message}`);
    this.#send(request, error.errno, this.out, 0, 0);
  }

  /** A program may try again thousands of times a second: the log has some of it, and how much more there was. */
  #tellOfMedia(request: Request, why: string): void {
    const now = Date.now();
    if (now - this.#mediaErrors.sinceMs >= MEDIA_LOG_MS) this.#mediaErrors = { sinceMs: now, count: 0 };
    this.#mediaErrors.count += 1;
    if (this.#mediaErrors.count > MEDIA_LOG_MAX) return;
    const last =
      this.#mediaErrors.count === MEDIA_LOG_MAX ? "; more like this are not shown for a while" : "";
    this.options.warn(`${opcodeName(request.opcode)} of inode ${request.nodeid}: ${why}${last}`);
  }

  /** Answer with out[0, length). Returns false if the caller is gone (nobody took the reply). */
  reply(request: Request, length: number): boolean {
    if (this.#mustBeDurable(request.opcode)) {
      const reply = Uint8Array.prototype.slice.call(this.out, 0, length);
      this.replyAfter(request.clone(), this.volume.store.sync(), () => {
        this.out.set(reply);
        return length;
      });
      return true;
    }
    return this.#send(request, 0, this.out, 0, length);
  }

  /** The mount is synchronous, and something was done that a power cut could take back. The kernel leaves that to the server. */
  #mustBeDurable(opcode: number): boolean {
    const { synchronous } = this.options;
    if (synchronous === null) return false;
    if (!changesNames.has(opcode) && !(synchronous === "all" && changesMetadata.has(opcode))) return false;
    const { journal } = this.volume.store;
    return journal !== null && journal.durableLsn < journal.lastLsn;
  }

  replyBytes(request: Request, bytes: Uint8Array): boolean {
    return this.#send(request, 0, bytes, 0, bytes.length);
  }

  /** Answer when `until` has resolved, with what `encode` then puts into `out`. The request must be its own copy. */
  replyAfter(request: Request, until: Promise<unknown>, encode: () => number): void {
    this.#answered = true;
    this.#later = true;
    until.then(
      guarded("an answer that waited", () => {
        let length: number;
        try {
          length = encode();
        } catch (error) {
          this.#answered = false;
          this.#failed(request, 0, error);
          return;
        }
        this.#send(request, 0, this.out, 0, length);
      }),
      guarded("an answer that waited", (error: unknown) =>
        this.#fail(request, error instanceof FsError ? error : new FsError("EIO", String(error))),
      ),
    );
  }

  /** Answer a READ with `count` pieces of the region (see locate() in namespace/data.ts), `total` bytes in all. */
  replyRegion(request: Request, count: number, total: number): void {
    this.#answered = true;
    this.options.debug?.(`  ${total} bytes`);
    const failed = this.#channel?.replyRegion(request.unique, this.#native, this.pieces, count);
    this.counting.answered(request.opcode, performance.now() - request.receivedMs);
    if (failed === 0) this.counting.bytesRead += total;
    if (failed === Errno.EIO)
      this.#tellOfMedia(
        request,
        `EIO: ${total} bytes could not be read, the first at byte ${this.pieces[0]} of the region`,
      );
  }

  #send(request: Request, error: number, payload: Uint8Array, start: number, length: number): boolean {
    this.#answered = true;
    this.options.debug?.(printReply(request, error, payload, start, length));
    if (this.#channel === null) return false;
    const failed = this.#channel.reply(request.unique, error, payload, start, length);
    this.counting.answered(request.opcode, performance.now() - request.receivedMs);
    if (failed === 0) return true;
    // ENOENT: the request was aborted. Anything else means that the reply is malformed: our bug, but the caller must
    // not hang for it.
    if (failed !== Errno.ENOENT && failed !== Errno.ENODEV) {
      this.options.warn(`the kernel refused the reply to ${opcodeName(request.opcode)} (errno ${failed})`);
      if (error !== Errno.EIO) this.#channel.reply(request.unique, Errno.EIO, payload, 0, 0);
    }
    return false;
  }

  /**
   * Attributes that a request has changed, and its reply does not tell of: the caller's next stat(2) sees them. At once: of
   * an inode that a request is about, this is never the last reference, and the kernel then takes no lock for it.
   */
  forgetAttributes(inode: Inode): void {
    const { code, payload } = notifyInvalInode(inode.ino, -1n, 0n);
    this.#notifySoon(code, payload);
  }

  /**
   * The same, a moment later. Whoever maps a file again and again does not pay for it each time; a program that unmaps and
   * looks at once may still see the times from before.
   */
  forgetAttributesSoon(inode: Inode): void {
    if (this.#stale.size === 0) after(STALE_MS, "telling the kernel of new times", () => this.#forgetStale());
    this.#stale.add(inode);
  }

  #forgetStale(): void {
    for (const inode of this.#stale) this.invalidateAttributes(inode);
    this.#stale.clear();
  }

  /** The file is closed or synced: what forgetAttributesSoon() has put off is due now. */
  settleAttributes(inode: Inode): void {
    if (this.#stale.size > 0 && this.#stale.delete(inode)) this.invalidateAttributes(inode);
  }

  /** Tell the kernel that attributes changed behind its back. */
  invalidateAttributes(inode: Inode): void {
    // A negative offset leaves the data alone (fuse_reverse_inval_inode, fs/fuse/inode.c).
    inBackground("a notification", this.invalidate(inode, -1n, 0n));
  }

  /** The file has become longer without the kernel: it must know before the next append, which it places itself. */
  async tellSize(inode: Inode): Promise<void> {
    await this.#pagesUnlocked(inode);
    if (inode.size === 0n) return;
    const last = inode.size - 1n;
    const byte = Buffer.alloc(1);
    data.read(this.volume.store, inode, last, byte, 0, 1);
    const { code, payload } = notifyStore(inode.ino, last, byte);
    await this.#channel?.notify(code, payload);
    // Of the page it has what it needs no more.
    await this.invalidate(inode, last, 1n);
  }

  /** The kernel waits for locked pages, and whatever else is to be dropped would wait with it, whoever's file it is. */
  async #pagesUnlocked(inode: Inode): Promise<void> {
    for (let held = this.#lockingPages.get(inode.ino); held !== undefined; ) {
      await held.gone.promise;
      held = this.#lockingPages.get(inode.ino);
    }
  }

  /** Drop pages [offset, offset + length) of the file from the page cache, writing back dirty ones first. */
  async invalidate(inode: Inode, offset: bigint, length: bigint): Promise<void> {
    if (offset >= 0n) await this.#pagesUnlocked(inode);
    const { code, payload } = notifyInvalInode(inode.ino, offset, length);
    await this.#channel?.notify(code, payload);
  }
}

/** What is served after shutDown(): the end of what is open, the size, and ioctls, which change nothing then. */
const whileDown: ReadonlySet<number> = new Set([
  Opcode.FORGET,
  Opcode.BATCH_FORGET,
  Opcode.FLUSH,
  Opcode.RELEASE,
  Opcode.RELEASEDIR,
  Opcode.STATFS,
  Opcode.IOCTL,
  Opcode.DESTROY,
]);

/** What has to be durable with -o dirsync, and what besides with -o sync. Of a write the kernel says so itself. */
const changesNames: ReadonlySet<number> = new Set([
  Opcode.CREATE,
  Opcode.MKNOD,
  Opcode.MKDIR,
  Opcode.SYMLINK,
  Opcode.LINK,
  Opcode.UNLINK,
  Opcode.RMDIR,
  Opcode.RENAME,
  Opcode.RENAME2,
]);
const changesMetadata: ReadonlySet<number> = new Set([
  Opcode.OPEN,
  Opcode.TMPFILE,
  Opcode.SETATTR,
  Opcode.SETXATTR,
  Opcode.REMOVEXATTR,
  Opcode.FALLOCATE,
  Opcode.COPY_FILE_RANGE,
  Opcode.COPY_FILE_RANGE_64,
  Opcode.IOCTL,
]);

/** Requests that store more than a few records. */
const changesData: ReadonlySet<number> = new Set([
  Opcode.WRITE,
  Opcode.FALLOCATE,
  Opcode.COPY_FILE_RANGE,
  Opcode.COPY_FILE_RANGE_64,
  Opcode.SETATTR,
]);

function isNativeBacked(region: Region): region is Region & NativeBacked {
  return "native" in region;
}
