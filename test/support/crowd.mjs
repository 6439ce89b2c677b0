/** Plain JavaScript, for the guests of test/vm run it, too. */
import { spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";

/** A processor has a queue of its own in the kernel: what the daemon does not take waits there, in order. */
const onFirstCpu = (command, path) =>
  spawn("taskset", ["-c", "0", "sh", "-c", `${command} "$0"`, path], { stdio: "ignore" });

/** While the daemon is stopped, `callers` programs begin to empty `leased`, and then one to read `other`. */
export async function crowd({ daemon, leased, callers, other, pauseMs }) {
  process.kill(daemon, "SIGSTOP");
  const waiting = Array.from({ length: callers }, () => onFirstCpu(": >", leased));
  await sleep(2 * pauseMs);
  const reader = onFirstCpu("exec cat", other);
  await sleep(pauseMs);
  process.kill(daemon, "SIGCONT");
  return { waiting, reader };
}
