import type { ChildProcess } from "node:child_process";

export function crowd(request: {
  /** Its process id. */
  daemon: number;
  /** A file that somebody holds a lease of. */
  leased: string;
  callers: number;
  /** Another file of the mount. */
  other: string;
  /** In which a program begins and comes to its request, ms. */
  pauseMs: number;
}): Promise<{ waiting: ChildProcess[]; reader: ChildProcess }>;
