/** What /proc knows of a process that asks for a lease. Reading it never touches the own mount. */
import { existsSync, readFileSync, readlinkSync } from "node:fs";

export interface ProcessFacts {
  /** Thread group id: what users call the process id. */
  readonly pid: number;
  /** The command name (comm), at most 15 bytes. */
  readonly command: string;
}

/** A program that maps again and again is looked up once in so long, milliseconds: no thread id comes round so soon. */
const KNOWN_MS = 1000;
const KNOWN_MAX = 256;
const known = new Map<number, { readonly facts: ProcessFacts; readonly untilMs: number }>();

/** The kernel names the thread that called; its process and command are in /proc. */
export function processOfThread(tid: number): ProcessFacts {
  const now = performance.now();
  const before = known.get(tid);
  if (before !== undefined && now < before.untilMs) return before.facts;
  const facts = lookUp(tid);
  if (known.size >= KNOWN_MAX) known.clear();
  known.set(tid, { facts, untilMs: now + KNOWN_MS });
  return facts;
}

function lookUp(tid: number): ProcessFacts {
  try {
    const status = readFileSync(`/proc/${tid}/status`, "latin1");
    const pid = Number(/^Tgid:\s*(\d+)$/m.exec(status)?.[1] ?? tid);
    // The main thread's name is the command's; a helper thread may be named otherwise.
    const command = readFileSync(`/proc/${pid}/comm`, "utf8").trimEnd();
    return { pid, command };
  } catch {
    return { pid: tid, command: "" };
  }
}

/** Who asks for a lease: looked up when somebody wants to know, so that nobody has to wait for it. */
export class Caller {
  readonly uid: number;
  readonly #tid: number;
  #facts: ProcessFacts | null = null;

  constructor(tid: number, uid: number) {
    this.#tid = tid;
    this.uid = uid;
  }

  /** As they were when first asked for; afterwards the thread may end. */
  facts(): ProcessFacts {
    this.#facts ??= processOfThread(this.#tid);
    return this.#facts;
  }

  get pid(): number {
    return this.facts().pid;
  }

  get command(): string {
    return this.facts().command;
  }
}

/**
 * Calls that read from a file, by number (asm/unistd.h), and which of their arguments is its descriptor: read, pread64,
 * readv, preadv, preadv2, sendfile, splice, copy_file_range.
 */
const READING: Readonly<Record<string, Readonly<Record<number, number>>>> = {
  x64: { 0: 0, 17: 0, 19: 0, 295: 0, 327: 0, 40: 1, 275: 0, 326: 0 },
  arm64: { 63: 0, 67: 0, 65: 0, 69: 0, 286: 0, 71: 1, 76: 0, 285: 0 },
};

/**
 * The thread waits in a call that reads this file, and not in a fault of a mapping of it; null if it does not wait yet. False
 * where that cannot be told: /proc/TID/syscall is for who may trace the thread (proc_pid_syscall(5)).
 */
export function isReading(tid: number, ino: number): boolean | null {
  try {
    const [number = "", ...args] = readFileSync(`/proc/${tid}/syscall`, "latin1").split(" ");
    if (number.startsWith("running")) return null;
    const argument = READING[process.arch]?.[Number(number)];
    if (argument === undefined) return false;
    const descriptor = Number(args[argument]);
    const about = readFileSync(`/proc/${tid}/fdinfo/${descriptor}`, "latin1");
    return Number(/^ino:\s*(\d+)$/m.exec(about)?.[1]) === ino;
  } catch {
    return false;
  }
}

/** linux/capability.h */
export const CAP_FOWNER = 3;
export const CAP_FSETID = 4;
export const CAP_LINUX_IMMUTABLE = 9;
export const CAP_SYS_ADMIN = 21;

/**
 * Whether a thread has a capability (its bit; linux/capability.h) and may use it here: a user namespace of its own gives it
 * none over this mount. Null where that cannot be told.
 */
export function hasCapability(tid: number, bit: number): boolean | null {
  try {
    const status = readFileSync(`/proc/${tid}/status`, "latin1");
    const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1];
    if (effective === undefined) return null;
    if (((BigInt(`0x${effective}`) >> BigInt(bit)) & 1n) === 0n) return false;
    return readlinkSync(`/proc/${tid}/ns/user`) === readlinkSync(`/proc/self/ns/user`);
  } catch {
    return null;
  }
}

/** Supplementary groups; none if it is gone, or in a namespace that we do not see. */
export function groupsOfThread(tid: number): number[] {
  try {
    const status = readFileSync(`/proc/${tid}/status`, "latin1");
    const groups = /^Groups:\s*(.*)$/m.exec(status)?.[1] ?? "";
    return groups.split(/\s+/).filter(Boolean).map(Number);
  } catch {
    return [];
  }
}

/** Whom nothing belongs to. */
const NOBODY = 65_534;

/** Its real user; that of nobody (65534) if it is gone. */
export function userOfProcess(pid: number): number {
  try {
    return Number(/^Uid:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1] ?? NOBODY);
  } catch {
    return NOBODY;
  }
}

/** The process does not exist any more. Children that it forked may still hold what it held. */
export function holderIsGone(pid: number): boolean {
  return !existsSync(`/proc/${pid}`);
}
