/**
 * Questions to a mounted volume: ioctls on any open file of the mount, as src/lease/wire.ts declares them.
 *
 * Invariant: these calls block until the daemon answers, so they are for processes other than the daemon.
 */
import { closeSync, constants, fstatSync, openSync } from "node:fs";
import { Errno, type ErrnoName } from "../base/errno.ts";
import { FsError } from "../base/errors.ts";
import { progress } from "../base/progress.ts";
import { type StructValue, viewOf } from "../layout/struct.ts";
import {
  ExtentState,
  Ioctl,
  Question,
  WIRE_EXTENTS_MAX,
  WIRE_MAP_BYTES,
  WIRE_VERSION,
  WireClone,
  WireControl,
  WireExtent,
  WireMap,
  WireRange,
} from "../lease/wire.ts";
import type { Resized } from "../namespace/resize.ts";
import { addon } from "../region/addon.ts";
import type { LeaseReport, Refusal } from "../session/control.ts";
import type { OrphanReport } from "../session/orphan-report.ts";
import { asFailure, errnoOf, Failure, reason } from "./failure.ts";
import { mountOf } from "./mounts.ts";

export type QuestionName = keyof typeof Question;

/** Open for one request, close again. */
export function withOpen<T>(path: string, use: (descriptor: number) => T, mode: "r" | "r+" = "r"): T {
  const descriptor = openOrExplain(path, mode);
  try {
    return use(descriptor);
  } catch (error) {
    throw explain(error, path);
  } finally {
    closeSync(descriptor);
  }
}

/** As withOpen, for what is done to regular files alone. `advice` says what is there for a directory, if anything is. */
export function withFile<T>(
  path: string,
  use: (descriptor: number) => T,
  { mode = "r", advice = "name a file" }: { mode?: "r" | "r+"; advice?: string } = {},
): T {
  // For reading first: what is not regular cannot always be opened otherwise, and would be refused for another reason.
  return withOpen(path, (descriptor) => {
    const status = fstatSync(descriptor);
    if (status.isFile()) return mode === "r" ? use(descriptor) : withOpen(path, use, mode);
    // What lies elsewhere is told so: that is the reason, and not what kind of file it is.
    if (mountOf(path) === undefined) throw elsewhere(path);
    throw new Failure(path, status.isDirectory() ? "it is a directory" : "it is no regular file", advice);
  });
}

function openOrExplain(path: string, mode: "r" | "r+"): number {
  try {
    // Not to wait at a fifo for its other end.
    return openSync(path, (mode === "r" ? constants.O_RDONLY : constants.O_RDWR) | constants.O_NONBLOCK);
  } catch (error) {
    throw new Failure(path, reason(error), advice(errnoOf(error)));
  }
}

function explain(error: unknown, path: string): Failure {
  const errno = errnoOf(error);
  // What other file systems say to an ioctl that they do not know.
  if (errno === Errno.ENOTTY || errno === Errno.ENOSYS) {
    const mount = mountOf(path);
    if (mount !== undefined) {
      return new Failure(
        path,
        "its mount is served through fuse-native, which has no ioctl: no direct mappings, and no questions",
        `mount ${mount.source} without transport=fuse-native`,
      );
    }
    return elsewhere(path);
  }
  return asFailure(error, path, advice(errno));
}

function elsewhere(path: string): Failure {
  const todo = "see 'findmnt -t fuse.mapdirect' for those there are";
  return new Failure(path, "it is not on a mapdirect mount", todo);
}

function advice(errno: number): string {
  switch (errno) {
    case Errno.ENOENT:
      return "check the path";
    case Errno.EACCES:
    case Errno.EPERM:
      return "ask as root, or as the user who owns it";
    case Errno.EINTR:
      return "it was interrupted";
    case Errno.ENOTCONN:
    case Errno.ECONNABORTED:
      return "mount the region again with 'mapdirect mount REGION MOUNTPOINT'";
    case Errno.ETXTBSY:
      return "see 'mapdirect leases MOUNTPOINT' for who maps it";
    case Errno.ENOSPC:
      return "delete something, or use a larger region";
    default:
      return "see 'mapdirect info MOUNTPOINT'";
  }
}

/** Ask the daemon; the answer is JSON in as many slices as it takes. */
export function ask(descriptor: number, question: QuestionName, argument = 0): unknown {
  const text = Buffer.concat([...slices(descriptor, question, argument)]).toString("utf8");
  return text === "" ? null : (JSON.parse(text) as unknown);
}

function* slices(descriptor: number, question: QuestionName, argument: number): IterableIterator<Buffer> {
  const buffer = new Uint8Array(WireControl.size);
  const view = viewOf(buffer);
  let token = 0;
  let offset = 0;
  let total = 0;
  do {
    WireControl.encode(view, 0, {
      version: WIRE_VERSION,
      question: Question[question],
      token,
      offset,
      argument,
    });
    addon().ioctl(descriptor, Ioctl.CONTROL, buffer);
    const reply = WireControl.decode(view, 0);
    if (reply.count === 0 && offset < reply.total)
      throw new Failure("daemon", "its answer was cut short", "ask again");
    yield Buffer.from(reply.text.subarray(0, reply.count));
    token = reply.token;
    total = reply.total;
    offset += reply.count;
  } while (offset < total);
}

/** All metadata of a mounted volume, JSON lines in pieces. @throws Failure */
export async function* dumpOf(path: string): AsyncIterableIterator<Buffer> {
  const descriptor = openOrExplain(path, "r");
  try {
    yield* slices(descriptor, "DUMP", 0);
  } catch (error) {
    throw explain(error, path);
  } finally {
    closeSync(descriptor);
  }
}

/** Give the mounted volume another size, 0 for all of its region. Blocks until it is done. @throws FsError, Failure */
export function resizeMount(descriptor: number, bytes: number): Resized {
  const answer = ask(descriptor, "RESIZE", bytes) as Resized | Refusal;
  if (!("refused" in answer)) return answer;
  const { code, message } = answer.refused;
  throw new FsError(code as ErrnoName, message.slice(`${code}: `.length));
}

export type StateName = "hole" | "unwritten" | "written" | "shared";
const STATE_NAMES: Record<number, StateName> = {
  [ExtentState.HOLE]: "hole",
  [ExtentState.UNWRITTEN]: "unwritten",
  [ExtentState.WRITTEN]: "written",
  [ExtentState.SHARED]: "shared",
};

export interface ExtentReport {
  state: StateName;
  offset: bigint;
  length: bigint;
  /** Byte offset in the region; null for a hole. */
  physical: bigint | null;
}

export interface FileMap {
  inode: number;
  size: bigint;
  extents: ExtentReport[];
}

/** The whole block map of a file. The generation tells whether it changed between two pages; then it is read again. */
export function readExtents(descriptor: number): FileMap {
  for (;;) {
    const map = tryReadExtents(descriptor);
    if (map !== undefined) return map;
  }
}

function tryReadExtents(descriptor: number): FileMap | undefined {
  const buffer = new Uint8Array(WIRE_MAP_BYTES);
  const view = viewOf(buffer);
  const extents: ExtentReport[] = [];
  let first: StructValue<typeof WireMap> | undefined;
  let offset = 0n;
  do {
    // All of the file from here: the daemon cuts it at the file's last block.
    WireMap.encode(view, 0, { version: WIRE_VERSION, offset, length: 2n ** 63n - 1n - offset });
    addon().ioctl(descriptor, Ioctl.EXTENTS, buffer);
    const page = WireMap.decode(view, 0);
    first ??= page;
    if (page.generation !== first.generation) return undefined;
    if (page.count > WIRE_EXTENTS_MAX)
      throw new Failure("daemon", "its answer does not fit", "update mapdirect");
    for (let index = 0; index < page.count; index += 1) {
      const extent = WireExtent.decode(view, WireMap.size + index * WireExtent.size);
      const state = STATE_NAMES[extent.state];
      if (state === undefined)
        throw new Failure("daemon", `unknown extent state ${extent.state}`, "update mapdirect");
      const physical = state === "hole" ? null : BigInt(extent.physical);
      extents.push({ state, offset: extent.offset, length: extent.length, physical });
    }
    offset = page.nextOffset;
  } while (offset !== 0n);
  return { inode: first.inode, size: first.fileBytes, extents };
}

export function prepare(descriptor: number, offset: bigint, length: bigint): void {
  const buffer = new Uint8Array(WireRange.size);
  WireRange.encode(viewOf(buffer), 0, { version: WIRE_VERSION, offset, length });
  addon().ioctl(descriptor, Ioctl.PREPARE, buffer);
}

/** So much of a file at a time: a multiple of what can become one extent. */
const DEFRAG_BYTES = 64n * 1024n * 1024n;

/** Bring the blocks of the whole file together. */
export function defrag(descriptor: number, sizeBytes: bigint): void {
  const buffer = new Uint8Array(WireRange.size);
  for (let offset = 0n; offset < sizeBytes; offset += DEFRAG_BYTES) {
    progress("moving blocks", Number(offset), Number(sizeBytes));
    // The last one goes to the end, whatever that is by now.
    const length = offset + DEFRAG_BYTES < sizeBytes ? DEFRAG_BYTES : 0n;
    WireRange.encode(viewOf(buffer), 0, { version: WIRE_VERSION, offset, length });
    addon().ioctl(descriptor, Ioctl.DEFRAG, buffer);
  }
}

/** Share all blocks of `source` with `target`, from the beginning on. */
export function cloneFile(source: number, target: number): void {
  const buffer = new Uint8Array(WireClone.size);
  addon().ioctl(source, Ioctl.OFFER, buffer);
  // The token is where CLONE wants it; everything else is zero: from the beginning, up to the end.
  addon().ioctl(target, Ioctl.CLONE, buffer);
}

/** None of a daemon of an older version, which goes on until its volume is mounted anew. */
export function askOrphans(descriptor: number): OrphanReport[] {
  try {
    return ask(descriptor, "ORPHANS") as OrphanReport[];
  } catch (error) {
    if (errnoOf(error) === Errno.EINVAL) return [];
    throw error;
  }
}

/** @throws Failure when the daemon's answer is none. */
export function asLeases(answer: unknown): LeaseReport[] {
  if (!Array.isArray(answer))
    throw new Failure("daemon", "its list of leases is no list", "update mapdirect");
  return answer as LeaseReport[];
}
