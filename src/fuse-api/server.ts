/**
 * Serves one /dev/fuse descriptor with the handlers of a file system.
 *
 * Invariants:
 * - every request that wants an answer gets exactly one, whatever its handler does: throws, returns the wrong thing, comes
 *   back late, or never. One that never comes back is answered when its caller is interrupted, or by the kernel when the
 *   connection is cut;
 * - a reply that nobody took (the request was answered for its handler, or the connection is gone) is undone, so that
 *   references and open files that the kernel does not know of are not left;
 * - nothing that a handler does leaves as an exception: it would end the process, and with it other mounts;
 * - no handler runs before INIT was answered, and none but `release`, `forget` and `destroy` after the end;
 * - the connection is cut as soon as no notification is under way. One that is being written keeps the descriptor open, and
 *   may wait for a lock of a caller that waits for us: until it has come back, every request is answered ENOTCONN;
 * - it is cut before the process ends: libuv then waits for its threads, and one of them may be in a call that waits for us.
 */
import { append } from "../base/arrays.ts";
import { Errno, errnoName } from "../base/errno.ts";
import { FsError } from "../base/errors.ts";
import { type Negotiated, negotiate, requestBufferBytes } from "../fuse/init.ts";
import {
  FUSE_MAJOR,
  GetxattrIn,
  type InitFlagName,
  InitIn,
  Opcode,
  REPLY_ERRNO_MAX,
} from "../fuse/kernel.ts";
import { type Notification, notifyPollWakeup } from "../fuse/notify.ts";
import { printRequest } from "../fuse/print.ts";
import { Request as ProtocolRequest } from "../fuse/request.ts";
import { addon, type Channel, type OwnedDescriptor } from "../region/addon.ts";
import { type Desk, type Row, rowOf } from "./operations.ts";
import type { Connection, FileSystem, HandlerFailure, Operation } from "./types.ts";
import { type NameForm, Names, type Ttls } from "./values.ts";

export interface ServerOptions {
  readonly ttls: Ttls;
  readonly names: NameForm;
  /** Wanted of the kernel besides what the handlers imply. */
  readonly features: readonly InitFlagName[];
  readonly transferBytesMax: number;
  readonly interruptGraceMs: number;
  readonly debug: boolean;
  readonly onError: (failure: HandlerFailure) => void;
}

/** After a burst of requests, look for the next one this long before going back to sleep, microseconds. */
const BUSY_POLL_MICROS = 150;
const BATCH = 32;

const CUT = new FsError("ENOTCONN", "the connection is being cut");

/** What a request is to its handler. The signal is made when somebody asks for it: most never do. */
class Call {
  readonly nodeid: number;
  readonly uid: number;
  readonly gid: number;
  readonly pid: number;
  readonly #abort: { controller?: AbortController; aborted: boolean };

  constructor(request: ProtocolRequest, abort: { controller?: AbortController; aborted: boolean }) {
    this.nodeid = request.nodeid;
    this.uid = request.uid;
    this.gid = request.gid;
    this.pid = request.pid;
    this.#abort = abort;
  }

  get signal(): AbortSignal {
    const abort = this.#abort;
    if (abort.controller === undefined) {
      abort.controller = new AbortController();
      if (abort.aborted) abort.controller.abort();
    }
    return abort.controller.signal;
  }
}

/** A request whose handler has not come back. */
interface Pending {
  readonly unique: bigint;
  readonly abort: { controller?: AbortController; aborted: boolean };
  answered: boolean;
  grace?: NodeJS.Timeout;
}

const attached = new Set<Server>();

function endAll(): void {
  for (const server of attached) server.end();
}

export class Server implements Desk {
  readonly fileSystem: FileSystem;
  readonly out: Buffer;
  readonly view: DataView;
  readonly names: Names;
  readonly ttls: Ttls;
  /** Resolves when INIT was answered; rejects when the kernel is too old, `init` threw, or the end came first. */
  readonly ready: Promise<Connection>;
  /** Resolves when the file system is unmounted, or the connection is cut. */
  readonly ended: Promise<void>;
  readonly #options: ServerOptions;
  readonly #buffer: Buffer;
  readonly #request: ProtocolRequest;
  readonly #pending = new Map<bigint, Pending>();
  #channel: Channel | null = null;
  #initialised = false;
  #over = false;
  /** Notifications under way. */
  #notifying = 0;
  #isReady: (connection: Connection) => void = () => {};
  #isNotReady: (error: unknown) => void = () => {};
  #hasEnded: () => void = () => {};

  constructor(fileSystem: FileSystem, options: ServerOptions) {
    this.fileSystem = fileSystem;
    this.#options = options;
    this.names = new Names(options.names);
    this.ttls = options.ttls;
    this.#buffer = Buffer.alloc(requestBufferBytes(options.transferBytesMax));
    this.#request = new ProtocolRequest(this.#buffer);
    // A page for what precedes data; READDIRPLUS and extended attributes are below a transfer and 64 KiB.
    this.out = Buffer.alloc(Math.max(options.transferBytesMax, 65_536) + 4096);
    this.view = new DataView(this.out.buffer, this.out.byteOffset, this.out.byteLength);
    this.ready = new Promise((resolve, reject) => {
      this.#isReady = resolve;
      this.#isNotReady = reject;
    });
    this.ready.catch(() => {});
    this.ended = new Promise((resolve) => {
      this.#hasEnded = resolve;
    });
  }

  attach(device: OwnedDescriptor): void {
    this.#channel = addon().openChannel(
      device,
      this.#buffer,
      { busyPollMicros: BUSY_POLL_MICROS, batch: BATCH },
      (length) => this.#receive(length),
      () => this.end(),
    );
    if (attached.size === 0) process.on("exit", endAll);
    attached.add(this);
  }

  /** Requests whose handlers have not come back. */
  get pending(): number {
    return this.#pending.size;
  }

  /** The end: by unmount, or, if it is called before, by cutting the connection. Callers that wait get ENOTCONN. */
  close(): void {
    if (this.#over) return;
    this.#over = true;
    for (const pending of this.#pending.values()) {
      clearTimeout(pending.grace);
      pending.answered = true;
      abort(pending);
      if (this.#notifying > 0) this.#fail(pending.unique, CUT);
    }
    this.#pending.clear();
    if (this.#notifying === 0) this.#cut();
    this.#isNotReady(new FsError("ENOTCONN", "the file system was unmounted before it was ready"));
    if (this.#initialised) this.quietly("destroy", 0, () => this.fileSystem.destroy?.());
    this.#hasEnded();
  }

  /** The same, whatever is under way. */
  end(): void {
    this.close();
    this.#cut();
  }

  #cut(): void {
    this.#channel?.close();
    this.#channel = null;
    attached.delete(this);
    if (attached.size === 0) process.off("exit", endAll);
  }

  /** Resolves with 0 or the errno that the kernel answered. */
  async notify({ code, payload }: Notification): Promise<number> {
    if (this.#channel === null || this.#over) return Errno.ENOTCONN;
    this.#notifying += 1;
    try {
      return await this.#channel.notify(code, payload);
    } finally {
      this.#notifying -= 1;
      if (this.#over && this.#notifying === 0) this.#cut();
    }
  }

  wakePoll(kernelHandle: number): void {
    const { code, payload } = notifyPollWakeup(kernelHandle);
    // It takes no lock that a caller of ours could hold.
    void this.#channel?.notify(code, payload, true);
  }

  quietly(operation: keyof FileSystem, nodeid: number, run: () => unknown): void {
    const failed = (error: unknown): void => {
      this.#translate(operation, nodeid, error);
    };
    try {
      const result = run();
      if (isThenable(result)) Promise.resolve(result).then(undefined, failed);
    } catch (error) {
      failed(error);
    }
  }

  // ---- requests

  #receive(length: number): void {
    const request = this.#request;
    try {
      request.load(length);
      if (this.#over) throw CUT;
      if (this.#options.debug) process.stderr.write(`${printRequest(request)}\n`);
      this.#dispatch(request);
    } catch (error) {
      // Malformed (FsError), or a mistake of this file: the caller must not hang for either.
      const answer = error instanceof FsError ? error : new FsError("EIO");
      if (!(error instanceof FsError))
        this.#report({ operation: "lookup", nodeid: request.nodeid, error, answer });
      if (request.unique !== 0n && request.row?.reply !== false) this.#fail(request.unique, answer);
    }
  }

  #dispatch(request: ProtocolRequest): void {
    const { fileSystem } = this;
    const { opcode, unique, nodeid } = request;
    switch (opcode) {
      case Opcode.INIT:
        this.#init(request);
        return;
      case Opcode.DESTROY:
        this.#send(unique, 0, 0);
        return;
      case Opcode.INTERRUPT:
        this.#interrupt(request.interrupted);
        return;
      case Opcode.FORGET: {
        const count = request.forgetLookups;
        this.quietly("forget", nodeid, () => fileSystem.forget?.(nodeid, count));
        return;
      }
      case Opcode.BATCH_FORGET:
        request.batchForget((node, count) =>
          this.quietly("forget", node, () => fileSystem.forget?.(node, count)),
        );
        return;
    }
    const row = rowOf(opcode);
    // A directory that can be read with attributes can be read without.
    const operation: Operation | undefined =
      row?.operation === "readdir" && fileSystem.readdir === undefined ? "readdirplus" : row?.operation;
    const handler = operation === undefined ? undefined : fileSystem[operation];
    if (row === undefined || (handler === undefined && row.absent === undefined)) {
      if (request.row?.reply !== false) this.#fail(unique, new FsError("ENOSYS"));
      return;
    }
    this.#call(row, handler as Handler | undefined, request);
  }

  #call(row: Row, handler: Handler | undefined, request: ProtocolRequest): void {
    const size = replyBytesMax(request);
    const pending: Pending = { unique: request.unique, abort: { aborted: false }, answered: false };
    const call = Object.assign(new Call(request, pending.abort), row.decode(request, this));
    let reply: unknown;
    try {
      reply = handler === undefined ? row.absent?.() : handler.call(this.fileSystem, call);
    } catch (error) {
      this.#refuse(row, pending, call, error);
      return;
    }
    if (!isThenable(reply)) {
      this.#answer(row, pending, call, reply, size);
      return;
    }
    this.#pending.set(pending.unique, pending);
    // Whatever a thenable does, a promise settles once.
    Promise.resolve(reply).then(
      (value) => this.#answer(row, pending, call, value, size),
      (error: unknown) => this.#refuse(row, pending, call, error),
    );
  }

  #answer(row: Row, pending: Pending, call: Call, reply: unknown, size: number): void {
    let length: number;
    try {
      length = row.encode(reply as never, this, call as never, size);
    } catch (error) {
      this.#refuse(row, pending, call, error);
      return;
    }
    const refused = (errno: number): void => {
      const error = new Error(`the kernel refused the reply: ${errnoName(errno)}`);
      this.#report({ operation: row.operation, nodeid: call.nodeid, error, answer: new FsError("EIO") });
    };
    const taken = !pending.answered && this.#send(pending.unique, 0, length, refused);
    this.#settle(pending);
    if (!taken) this.#undo(row, call, reply);
  }

  /** What a handler returned is read again here, and may throw. */
  #undo(row: Row, call: Call, reply: unknown): void {
    this.quietly(row.operation, call.nodeid, () => row.undo?.(reply as never, this, call as never));
  }

  #refuse(row: Row, pending: Pending, call: Call, error: unknown): void {
    const answer = this.#translate(row.operation, call.nodeid, error);
    if (!pending.answered) this.#fail(pending.unique, answer);
    this.#settle(pending);
  }

  #settle(pending: Pending): void {
    clearTimeout(pending.grace);
    pending.answered = true;
    this.#pending.delete(pending.unique);
  }

  #interrupt(unique: bigint): void {
    // What is not there was answered, or will be at once.
    const pending = this.#pending.get(unique);
    if (pending === undefined || pending.answered) return;
    abort(pending);
    pending.grace ??= setTimeout(() => {
      if (pending.answered) return;
      this.#fail(unique, new FsError("EINTR"));
      this.#settle(pending);
    }, this.#options.interruptGraceMs);
    pending.grace.unref();
  }

  // ---- INIT

  #init(request: ProtocolRequest): void {
    const { unique } = request;
    let negotiated: Negotiated;
    try {
      negotiated = negotiate(request.body(InitIn), {
        flags: this.#wishes(),
        maxWriteBytes: this.#options.transferBytesMax,
        maxReadaheadBytes: this.#options.transferBytesMax,
        maxBackground: 64,
        congestionThreshold: 48,
      });
    } catch (error) {
      this.#fail(unique, error instanceof FsError ? error : new FsError("EIO"));
      this.#isNotReady(error);
      return;
    }
    if (negotiated.again) {
      this.#sendBytes(unique, negotiated.reply);
      return;
    }
    request.setxattrExtended = negotiated.features.SETXATTR_EXT;
    const connection: Connection = {
      protocol: { major: FUSE_MAJOR, minor: negotiated.minor },
      features: negotiated.features,
      transferBytesMax: negotiated.maxWriteBytes,
    };
    const initialise = async (): Promise<void> => {
      await this.fileSystem.init?.(connection);
    };
    initialise().then(
      () => {
        this.#initialised = true;
        this.#sendBytes(unique, negotiated.reply);
        this.#isReady(connection);
      },
      (error: unknown) => {
        this.#fail(unique, this.#translate("init", 0, error));
        this.#isNotReady(error);
      },
    );
  }

  #wishes(): InitFlagName[] {
    const { fileSystem } = this;
    const wishes: InitFlagName[] = [
      "ASYNC_READ",
      "PARALLEL_DIROPS",
      "HAS_IOCTL_DIR",
      "ASYNC_DIO",
      "SETXATTR_EXT",
    ];
    if (fileSystem.readdirplus !== undefined) wishes.push("DO_READDIRPLUS");
    if (fileSystem.readdirplus !== undefined && fileSystem.readdir !== undefined)
      wishes.push("READDIRPLUS_AUTO");
    if (fileSystem.setlk !== undefined && fileSystem.getlk !== undefined) wishes.push("POSIX_LOCKS");
    append(wishes, this.#options.features);
    return wishes;
  }

  // ---- replies

  /** The errno for what a handler threw. What is not an answer is reported. */
  #translate(operation: keyof FileSystem, nodeid: number, error: unknown): FsError {
    try {
      const answer = asAnswer(error);
      if (answer !== undefined) return answer;
    } catch {
      // An error whose properties throw is no answer.
    }
    const eio = new FsError("EIO");
    this.#report({ operation, nodeid, error, answer: eio });
    return eio;
  }

  #report(failure: HandlerFailure): void {
    const failed = (error: unknown): void => {
      process.stderr.write(`mapdirect/fuse: onError threw ${printed(error)}\n`);
    };
    try {
      const result: unknown = this.#options.onError(failure);
      // An async function, whose rejection would end the process.
      if (isThenable(result)) Promise.resolve(result).then(undefined, failed);
    } catch (error) {
      failed(error);
    }
  }

  #fail(unique: bigint, error: FsError): void {
    this.#send(unique, error.errno, 0);
  }

  #sendBytes(unique: bigint, bytes: Uint8Array): void {
    this.out.set(bytes);
    this.#send(unique, 0, bytes.length);
  }

  /** Answer with out[0, length). False if nobody took it. `refused` hears of a reply that the kernel did not like. */
  #send(unique: bigint, errno: number, length: number, refused?: (errno: number) => void): boolean {
    if (this.#options.debug) {
      process.stderr.write(`  ${unique}: ${errno === 0 ? `${length} bytes` : errnoName(errno)}\n`);
    }
    const failed = this.#channel?.reply(unique, errno, this.out, 0, errno === 0 ? length : 0);
    if (failed === 0) return true;
    // ENOENT: the request is gone. Otherwise the kernel did not like the reply, and the caller still waits.
    if (failed !== undefined && failed !== Errno.ENOENT && failed !== Errno.ENODEV) {
      this.#channel?.reply(unique, Errno.EIO, this.out, 0, 0);
      refused?.(failed);
    }
    return false;
  }
}

type Handler = (this: FileSystem, request: unknown) => unknown;

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return (
    typeof value === "object" && value !== null && typeof (value as { then?: unknown }).then === "function"
  );
}

/** An error for a message, even one that throws when it is looked at. */
export function printed(error: unknown): string {
  try {
    return error instanceof Error ? (error.stack ?? error.message) : String(error);
  } catch {
    return "an error that cannot be printed";
  }
}

function abort(pending: Pending): void {
  pending.abort.aborted = true;
  pending.abort.controller?.abort();
}

/** What the reply may be long; 0 asks for the size of an extended attribute. */
function replyBytesMax(request: ProtocolRequest): number {
  switch (request.opcode) {
    case Opcode.READ:
    case Opcode.READDIR:
    case Opcode.READDIRPLUS:
      return request.ioSize;
    case Opcode.GETXATTR:
    case Opcode.LISTXATTR:
      return request.body(GetxattrIn).size;
    default:
      return 0;
  }
}

/**
 * Errors that are answers: ours, and those that carry an errno, as node:fs throws them (negative there). Node's own codes
 * (-3008 of a name that cannot be resolved) lie above what the kernel takes in a reply: they are no answers.
 */
function asAnswer(error: unknown): FsError | undefined {
  if (!(error instanceof Error)) return undefined;
  const { name, message, errno } = error as { name: unknown; message: unknown; errno?: unknown };
  if (name === "AbortError") return new FsError("EINTR");
  if (typeof errno !== "number" || !Number.isInteger(errno)) return undefined;
  const value = Math.abs(errno);
  if (value === 0 || value > REPLY_ERRNO_MAX) return undefined;
  return error instanceof FsError && errno > 0 ? error : new FsError(value, String(message));
}
