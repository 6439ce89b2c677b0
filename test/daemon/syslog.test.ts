/** Lines to the system's log, where it reads them and where it does not. */
import { spawn } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { expect, onTestFinished, test } from "vitest";
import { createLog } from "../../src/daemon/logger.ts";
import { openSyslog, syslogLine } from "../../src/daemon/syslog.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { missing } from "../support/run.ts";

test("a line has priority and facility, local time, program and process", () => {
  const at = new Date(2026, 2, 7, 8, 9, 10);
  expect(syslogLine(4, "a warning", at, 42)).toBe("<28>Mar  7 08:09:10 mapdirect[42]: a warning");
});

/** Does not read before it is told to. */
const sleeper = `
import socket, sys
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
while True: print(log.recv(65536).decode(), flush=True)`;

test("nobody is waited for: where it is not read lines are lost, counted, and said when one gets through again", async ({
  skip,
}) => {
  const lacking = missing("python3");
  if (lacking !== undefined) skip(lacking);
  const folder = mkdtempSync(folderPrefix("/dev/shm"));
  const path = join(folder, "log");
  const child = spawn("python3", ["-c", sleeper, path], { stdio: ["pipe", "pipe", "inherit"] });
  onTestFinished(async () => {
    child.kill("SIGKILL");
    await rm(folder, { recursive: true, force: true });
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async (): Promise<string> => String((await lines.next()).value);
  const sink = openSyslog("/mnt", path);
  // Nobody listens yet: that costs these two.
  sink(6, "before");
  sink(6, "before");
  expect(await next()).toBe("ready");
  // More than any queue takes.
  const SENT = 100_000;
  for (let index = 0; index < SENT; index += 1) sink(6, `line ${index}`);
  child.stdin.write("\n");
  expect(await next()).toMatch(/^<28>.* \/mnt: 2 lines of this log were lost$/);
  let read = 0;
  for (; read < SENT; read += 1) {
    sink(6, "again");
    if (/lines of this log were lost$/.test(await next())) break;
  }
  expect(read).toBeGreaterThan(0);
  expect(read).toBeLessThan(SENT);
});

test("a message of several lines is as many, each with its priority", () => {
  const seen: [number, string][] = [];
  const log = createLog({
    lowest: "info",
    format: "text",
    sink: (priority, text) => seen.push([priority, text]),
  });
  log.error("one\ntwo");
  log.debug("no");
  expect(seen).toEqual([
    [3, "one"],
    [3, "two"],
  ]);
});
