/**
 * `npm test [-- vitest arguments]`: everything built, then vitest; the last line counts tests in a form that any
 * machine can read.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { build } from "./build.mjs";
import { fail, localBin, root, setup } from "./setup.mjs";

try {
  setup();
  build();
} catch (error) {
  fail(error);
}

const report = join(root, ".cache", `vitest-${process.pid}.json`);
mkdirSync(join(root, ".cache"), { recursive: true });
const done = spawnSync(
  localBin("vitest"),
  ["run", "--reporter=default", "--reporter=json", `--outputFile.json=${report}`, ...process.argv.slice(2)],
  { cwd: root, stdio: "inherit" },
);

let code = done.status ?? 1;
try {
  const { numPassedTests, numFailedTests, numPendingTests, numTodoTests } = JSON.parse(
    readFileSync(report, "utf8"),
  );
  console.log(
    `${numPassedTests} passed, ${numFailedTests} failed, ${numPendingTests + numTodoTests} skipped`,
  );
} catch {
  // vitest stopped before it could count: that is a failure, whatever its exit code.
  code ||= 1;
}
rmSync(report, { force: true });
process.exitCode = code;
