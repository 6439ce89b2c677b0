/**
 * `npm test [-- vitest arguments]`: everything built, then vitest; the last line counts tests in a form that any
 * machine can read.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { join, relative } from "node:path";
import { stripVTControlCharacters } from "node:util";
import { build } from "./build.mjs";
import { fail, isMain, localBin, root, setup } from "./setup.mjs";

const MESSAGE_CHARACTERS_MAX = 600;

/** A line for each test, and each file outside its tests, that failed: it stays readable where a long output is cut. */
function failuresOf({ testResults }) {
  return testResults.flatMap(({ name: file, status, message, assertionResults }) => {
    const tests = assertionResults
      .filter((test) => test.status === "failed")
      .map((test) => [test.fullName, test.failureMessages.join(" ")]);
    if (tests.length === 0 && status === "failed") tests.push(["outside its tests", message]);
    return tests.map(([name, why]) => {
      const text = stripVTControlCharacters(why).replaceAll(/\s+/g, " ").trim();
      return `failed: ${relative(root, file)}: ${name}: ${text.slice(0, MESSAGE_CHARACTERS_MAX)}`;
    });
  });
}

/** Run vitest; its exit code, what failed, and the line that counts. */
export function runVitest(args) {
  const report = join(root, ".cache", `vitest-${process.pid}.json`);
  mkdirSync(join(root, ".cache"), { recursive: true });
  const done = spawnSync(
    localBin("vitest"),
    ["run", "--reporter=default", "--reporter=json", `--outputFile.json=${report}`, ...args],
    { cwd: root, stdio: "inherit" },
  );
  let code = done.status ?? 1;
  let summary = [];
  try {
    const results = JSON.parse(readFileSync(report, "utf8"));
    const { numPassedTests, numFailedTests, numPendingTests, numTodoTests } = results;
    summary = [
      ...failuresOf(results),
      `${numPassedTests} passed, ${numFailedTests} failed, ${numPendingTests + numTodoTests} skipped`,
    ];
  } catch {
    // vitest stopped before it could count: that is a failure, whatever its exit code.
    code ||= 1;
  }
  rmSync(report, { force: true });
  return { code, summary };
}

if (isMain(import.meta.url)) {
  try {
    setup();
    build();
  } catch (error) {
    fail(error);
  }
  const { code, summary } = runVitest(process.argv.slice(2));
  for (const line of summary) console.log(line);
  process.exitCode = code;
}
