/**
 * What a benchmark run owns: processes, mounts, files. All of it goes again, also after a failure or Ctrl-C.
 *
 * Invariants:
 * - what was acquired is released in the opposite order, each release bounded in time; a release that fails does not
 *   keep the others from running;
 * - every command has a time limit. Commands run in process groups of their own, so that Ctrl-C at the terminal reaches
 *   only us, and ending one ends its children;
 * - no path under a mount of ours is touched by this process itself: a mount that hangs would hang it for good.
 */
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { setPriority } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";

const KEPT_OUTPUT = 8192;
const FIRST = -20;
let isFirst = false;

/**
 * From now on what is started gets the processor before other programs on the machine: as a process, and as a session,
 * since the kernel shares the time among sessions first where it groups them (sched_autogroup). Takes root.
 */
export function startFirst() {
  setPriority(FIRST);
  isFirst = true;
}

/** A session begins with what it inherits as a process, and with nothing as a group. */
function favour(child) {
  if (!isFirst || child.pid === undefined) return;
  try {
    writeFileSync(`/proc/${child.pid}/autogroup`, `${FIRST}`);
  } catch {
    // It has ended, or the kernel groups nothing.
  }
}

const RELEASE_MS = 15_000;

export class Interrupted extends Error {
  constructor(signal) {
    super(`interrupted by ${signal}`);
    this.signal = signal;
  }
}

export class Scope {
  #releases = [];

  defer(name, release) {
    this.#releases.push({ name, release });
  }

  /** Names what could not be released. */
  async close() {
    const failures = [];
    for (;;) {
      const last = this.#releases.pop();
      if (last === undefined) return failures;
      try {
        await within(RELEASE_MS, last.release());
      } catch (error) {
        failures.push(`${last.name}: ${error.message}`);
      }
    }
  }
}

async function within(limitMs, promise) {
  const timer = new AbortController();
  const limit = sleep(limitMs, undefined, { signal: timer.signal }).then(() => {
    throw new Error(`not done after ${limitMs / 1000} s`);
  });
  limit.catch(() => {});
  try {
    return await Promise.race([promise, limit]);
  } finally {
    timer.abort();
  }
}

export function killGroup(child, signal) {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return;
  try {
    process.kill(-child.pid, signal);
  } catch (error) {
    if (error.code !== "ESRCH") throw error;
  }
}

export const hasEnded = (child) => child.exitCode !== null || child.signalCode !== null;

export async function waitForEnd(child, limitMs) {
  const end = performance.now() + limitMs;
  while (!hasEnded(child) && performance.now() < end) await sleep(10);
  return hasEnded(child);
}

/** The last lines of what a process said, for messages. */
const lastLines = (text) => text.trim().split("\n").slice(-3).join(" | ");

/**
 * Run a command to its end. Throws when it fails (unless `anyCode`), takes longer than the limit, or the run is
 * interrupted. `input` is its standard input; `env` is added to ours.
 * @returns its standard output
 */
export function run(command, args, { limitMs, signal, input, env, anyCode = false, ...options }) {
  const { promise, resolve, reject } = withResolvers();
  if (signal?.aborted) return Promise.reject(signal.reason);
  const child = spawn(command, args, {
    stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
    detached: true,
    env: { ...process.env, ...env },
    ...options,
  });
  favour(child);
  if (input !== undefined) {
    child.stdin.on("error", () => {}); // It has ended without reading all: its exit code says why.
    child.stdin.end(input);
  }
  let stdout = "";
  let stderr = "";
  let ended = false;
  const what = `${command} ${args.join(" ")}`;
  const settle = (action) => {
    if (ended) return;
    ended = true;
    clearTimeout(timer);
    signal?.removeEventListener("abort", interrupt);
    action();
  };
  const stop = (error) => {
    killGroup(child, "SIGKILL");
    // It may be stuck in a request that a hung file system does not answer: then it ends when that one is ended.
    settle(() => reject(error));
  };
  const interrupt = () => stop(signal.reason);
  const timer = setTimeout(() => stop(new Error(`${what}: not done after ${limitMs / 1000} s`)), limitMs);
  signal?.addEventListener("abort", interrupt);
  child.stdout.on("data", (chunk) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    stderr = (stderr + chunk).slice(-KEPT_OUTPUT);
  });
  child.on("error", (error) => settle(() => reject(new Error(`${command}: ${error.message}`))));
  child.on("close", (code, by) =>
    settle(() => {
      if (code === 0 || (anyCode && code !== null)) resolve(stdout);
      else reject(new Error(`${what}: ${by ?? `exit code ${code}`}: ${lastLines(stderr || stdout)}`));
    }),
  );
  return promise;
}

/** Node 20 has no Promise.withResolvers. */
function withResolvers() {
  const parts = {};
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
  return parts;
}

/** Start a process that serves until it is ended. What it says on stderr is kept, for messages. */
export function startServer(scope, command, args, options = {}) {
  const child = spawn(command, args, { stdio: ["pipe", "ignore", "pipe"], detached: true, ...options });
  favour(child);
  const server = { child, said: () => lastLines(stderr), failure: undefined };
  let stderr = "";
  child.stderr.on("data", (chunk) => {
    stderr = (stderr + chunk).slice(-KEPT_OUTPUT);
  });
  child.on("error", (error) => {
    server.failure = error;
  });
  child.stdin.on("error", () => {});
  scope.defer(`${command} ${args.join(" ")}`, async () => {
    if (child.pid === undefined) return;
    for (const signal of ["SIGTERM", "SIGKILL"]) {
      if (hasEnded(child)) return;
      killGroup(child, signal);
      if (await waitForEnd(child, 5000)) return;
    }
    throw new Error(`process ${child.pid} does not end`);
  });
  return server;
}
