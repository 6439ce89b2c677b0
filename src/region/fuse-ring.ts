/** FUSE over io_uring: whether this machine has it, and the ring for it. */
import { readFileSync } from "node:fs";
import { FsError } from "../base/errors.ts";
import { addon, type NativeRing } from "./addon.ts";

/** "Y" where root has allowed it. */
export const ENABLE_URING = "/sys/module/fuse/parameters/enable_uring";
const POSSIBLE = "/sys/devices/system/cpu/possible";
/** Requests of one CPU that are served at a time before the ring grows. */
const DEPTH = 8;

function text(path: string): string {
  try {
    return readFileSync(path, "latin1").trim();
  } catch {
    return "";
  }
}

/** How many CPUs a list such as "0-3,8" names; the kernel has a queue for each (num_possible_cpus()). */
export function cpusIn(list: string): number {
  let count = 0;
  for (const part of list.split(",")) {
    const [first, last = first] = part.split("-").map(Number);
    if (first === undefined || last === undefined || !(last >= first)) return 0;
    count += last - first + 1;
  }
  return count;
}

/**
 * @param payloadBytes largest READ or WRITE
 * @throws FsError EOPNOTSUPP saying what to do; what io_uring_setup(2) says
 */
export function openFuseRing(payloadBytes: number): NativeRing {
  const enabled = text(ENABLE_URING);
  if (enabled === "") {
    throw new FsError(
      "EOPNOTSUPP",
      "this kernel has no FUSE over io_uring; Linux 6.14 and later can have it",
    );
  }
  if (enabled !== "Y" && enabled !== "1") {
    throw new FsError("EOPNOTSUPP", `it is switched off in the kernel; as root: echo Y > ${ENABLE_URING}`);
  }
  return addon().openRing({ queues: cpusIn(text(POSSIBLE)), depth: DEPTH, payloadBytes });
}
