/** A loop block device over a file on tmpfs, for the life of one test. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { folderPrefix } from "./leftovers.ts";

export interface LoopDevice {
  readonly path: string;
  /** Also while it is in use. */
  grow(sizeBytes: number): void;
  remove(): void;
}

let reason: string | null | undefined;

/** Why there are no loop devices here, or null. Tried once, by making one. */
export function loopUnavailable(): string | null {
  if (reason !== undefined) return reason;
  if (process.geteuid?.() !== 0) reason = "needs root";
  else if (!existsSync("/dev/loop-control")) reason = "no /dev/loop-control";
  else {
    try {
      makeLoopDevice(1 << 20).remove();
      reason = null;
    } catch (error) {
      reason = `losetup: ${(error as Error).message.split("\n").at(-2) ?? "fails"}`;
    }
  }
  return reason;
}

export function makeLoopDevice(sizeBytes: number): LoopDevice {
  const directory = mkdtempSync(folderPrefix("/dev/shm"));
  const file = join(directory, "backing");
  try {
    writeFileSync(file, "");
    truncateSync(file, sizeBytes);
    const path = execFileSync("losetup", ["--find", "--show", file], {
      encoding: "utf8",
      stdio: "pipe",
    }).trim();
    return {
      path,
      grow(larger) {
        truncateSync(file, larger);
        execFileSync("losetup", ["--set-capacity", path], { stdio: "pipe" });
      },
      remove() {
        // The file goes even when detaching fails; the kernel then detaches at the device's last close.
        try {
          execFileSync("losetup", ["--detach", path], { stdio: "pipe" });
        } finally {
          rmSync(directory, { recursive: true, force: true });
        }
      },
    };
  } catch (error) {
    rmSync(directory, { recursive: true, force: true });
    throw error;
  }
}
