/**
 * Around a whole run of vitest: clear away what a killed run left, and check at the end that this one leaves nothing:
 * no mount, no daemon, no loop device. Root has the kernel allow FUSE over io_uring meanwhile, where it can.
 */
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { isRunning } from "../../src/daemon/mounts.ts";
import { ENABLE_URING } from "../../src/region/fuse-ring.ts";
import { findLeftovers, type Leftover, removeFolders } from "./leftovers.ts";

function clear(leftovers: readonly Leftover[]): void {
  for (const { kind, pid } of leftovers) {
    if (kind !== "process" || pid === undefined) continue;
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It ended meanwhile.
    }
  }
  for (const { kind, name } of leftovers) {
    const command = kind === "mount" ? ["umount", "-l", name] : ["losetup", "-d", name.split(" ")[0] ?? ""];
    if (kind !== "mount" && kind !== "loop device") continue;
    try {
      execFileSync(command[0] as string, command.slice(1), { stdio: "ignore", timeout: 10_000 });
    } catch {
      process.stderr.write(`could not clear ${kind} ${name}\n`);
    }
  }
  removeFolders(leftovers);
}

let uringBefore: string | undefined;

/** It concerns daemons that ask for it and nobody else. */
function allowUring(): void {
  try {
    const before = readFileSync(ENABLE_URING, "latin1").trim();
    if (before === "Y" || process.getuid?.() !== 0) return;
    writeFileSync(ENABLE_URING, "Y");
    uringBefore = before;
  } catch {
    // The kernel has none: the tests say that they are skipped.
  }
}

export function setup(): void {
  allowUring();
  process.env.MAPDIRECT_TEST_RUN = `${process.pid}`;
  clear(findLeftovers().filter(({ run }) => !isRunning(run)));
}

export function teardown(): void {
  if (uringBefore !== undefined) writeFileSync(ENABLE_URING, uringBefore);
  const ours = findLeftovers().filter(({ run }) => run === process.pid);
  const serious = ours.filter(({ kind }) => kind !== "folder");
  clear(ours);
  if (serious.length === 0) return;
  process.exitCode = 1;
  throw new Error(`tests left behind:\n${serious.map(({ kind, name }) => `  ${kind} ${name}`).join("\n")}`);
}
