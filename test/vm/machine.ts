/**
 * What all guests of a run share: kernels, initramfs, programs, made once before the first test (setup.ts), and a guest
 * from its request to its results.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { inject, onTestFinished } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { buildInitramfs } from "./initramfs.ts";
import type { Kernel } from "./kernels.ts";
import { Guest, type GuestEnd, type GuestRequest } from "./qemu.ts";

export const cache = join(packageRoot, ".cache", "vm");

/** By the name in the matrix: the kernel, or why it is not there. */
export type Kernels = Record<string, Kernel | string>;

declare module "vitest" {
  interface ProvidedContext {
    kernels: Kernels;
    programs: string;
  }
}

/** One line of results.jsonl, as guest/support.mjs writes it. */
export interface Result {
  readonly kernel: string;
  readonly kind: string;
  readonly what: string;
  readonly verdict: "ok" | "not ok" | "skip";
  readonly measured?: string;
  readonly why?: string;
  readonly ms: number;
}

export function kernelNamed(name: string): Kernel | string {
  return inject("kernels")[name] ?? `no kernel is called ${name}`;
}

/** Where guests write to and what lies behind their devices: memory, for the life of one test file. */
export function workFolder(): string {
  return mkdtempSync(folderPrefix("/dev/shm"));
}

export interface Boot extends Omit<GuestRequest, "initramfs" | "script" | "out"> {
  /** In test/vm/guest/. */
  readonly script: string;
  /** Modules beside the usual ones. */
  readonly modules?: readonly string[];
  /** Goes to the script. */
  readonly request: Record<string, unknown>;
  /** A folder of its own is made in there. */
  readonly folder: string;
  readonly name: string;
}

export interface Booted {
  readonly guest: Guest;
  readonly out: string;
}

export interface Running extends Booted {
  readonly ended: Promise<GuestEnd>;
}

function boot(from: Boot): Booted {
  const { script, modules = [], request, folder, name, ...rest } = from;
  const out = join(folder, name);
  mkdirSync(out);
  writeFileSync(
    join(out, "request.json"),
    JSON.stringify({ root: packageRoot, programs: inject("programs"), ...request }),
  );
  const guest = new Guest({
    ...rest,
    out,
    script: join(packageRoot, "test", "vm", "guest", script),
    initramfs: buildInitramfs(from.kernel, cache, modules),
  });
  return { guest, out };
}

/** A machine is started again as often as this when it does not come to its script. */
const BOOTS_MAX = 3;
const LOOK_MS = 50;

/**
 * The same, once its script has begun. Now and then a kernel crashes while it boots: it patches its own text, which an emulator
 * of several processors does not always get right (`Oops: int3`). That says nothing of us, so the machine is started again.
 * Each has `limitMs` until it is killed.
 */
export async function bootToScript(from: Boot, limitMs: number): Promise<Running> {
  for (let attempt = 1; ; attempt += 1) {
    const booted = boot(from);
    let over = false;
    const ended = booted.guest.end(limitMs).finally(() => {
      over = true;
    });
    const begun = join(booted.out, "begun");
    while (!over && !existsSync(begun)) await sleep(LOOK_MS);
    if (existsSync(begun) || attempt === BOOTS_MAX) return { ...booted, ended };
    await ended;
    process.stderr.write(
      `${from.name}: the guest ended while it booted; once more\n${booted.guest.console(20)}\n`,
    );
    rmSync(booted.out, { recursive: true });
  }
}

/** The lines of a file of JSON lines; none if it is not there. */
export function readLines<T>(file: string): T[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch {
    return [];
  }
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as T);
}

/** What was measured, kept for `npm run test:vm` to print; one file for each part of a run. */
export function keep(part: string, value: unknown): void {
  const folder = join(cache, "measured");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${part}.json`), `${JSON.stringify(value, null, 1)}\n`);
}

export const removeAtEnd = (folder: string): void => {
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
};
