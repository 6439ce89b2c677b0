/**
 * `npm test [-- vitest arguments]`: everything built, then vitest; the last line counts tests in a form that any
 * machine can read.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { build } from "./build.mjs";
import { fail, isMain, localBin, root, setup } from "./setup.mjs";

/** Run vitest; its exit code, and the line that counts. */
export function runVitest(args) {
  const report = join(root, ".cache", `vitest-${process.pid}.json`);
  mkdirSync(join(root, ".cache"), { recursive: true });
  const done = spawnSync(
    localBin("vitest"),
    ["run", "--reporter=default", "--reporter=json", `--outputFile.json=${report}`, ...args],
    { cwd: root, stdio: "inherit" },
  );
  let code = done.status ?? 1;
  let count = "";
  try {
    const { numPassedTests, numFailedTests, numPendingTests, numTodoTests } = JSON.parse(
      readFileSync(report, "utf8"),
    );
    count = `${numPassedTests} passed, ${numFailedTests} failed, ${numPendingTests + numTodoTests} skipped`;
  } catch {
    // vitest stopped before it could count: that is a failure, whatever its exit code.
    code ||= 1;
  }
  rmSync(report, { force: true });
  return { code, count };
}

if (isMain(import.meta.url)) {
  try {
    setup();
    build();
  } catch (error) {
    fail(error);
  }
  const { code, count } = runVitest(process.argv.slice(2));
  if (count !== "") console.log(count);
  process.exitCode = code;
}
