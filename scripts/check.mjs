/**
 * `npm run check`: everything that can be said about the sources without running them. Every check runs, also after one
 * that failed; a check whose tool is missing says so and does not fail.
 */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fail, hasCommand, localBin, nativeSources, pythonSources, root, setup } from "./setup.mjs";

try {
  setup();
} catch (error) {
  fail(error);
}

const sh = (command, args) => spawnSync(command, args, { cwd: root, stdio: "inherit" }).status === 0;

const checks = {
  "format and lint": () =>
    sh(localBin("biome"), [
      "ci",
      "--error-on-warnings",
      `--colors=${process.stdout.isTTY ? "force" : "off"}`,
      ".",
    ]),
  types: () => sh(localBin("tsc"), ["-p", "tsconfig.json", "--noEmit"]),
  "native format": () => {
    const files = nativeSources();
    if (files.length === 0) return "no native sources";
    if (!hasCommand("clang-format")) return "clang-format is not installed";
    return sh("clang-format", ["--dry-run", "-Werror", ...files]);
  },
  "python types": () => {
    if (!hasCommand("mypy")) return "mypy is not installed";
    const sources = ["python/mapdirect", ...pythonSources(join(root, "examples"))];
    return sh("mypy", [
      "--strict",
      "--ignore-missing-imports",
      "--no-error-summary",
      "--cache-dir",
      ".cache/mypy",
      ...sources,
    ]);
  },
  "generated files": () => {
    // The declarations are read as compiled: from a fresh clone, or after a change, they have to be compiled first.
    return (
      sh(localBin("tsc"), ["-p", "tsconfig.build.json"]) &&
      sh(process.execPath, ["scripts/generate.mjs", "--check"])
    );
  },
  floors: () => sh(localBin("vitest"), ["run", "--reporter=dot", "test/floors.test.ts"]),
  "lock file": () => {
    // A registry's address in the lock file would bind every clone to it.
    const files = ["package-lock.json", "scripts/typedoc/package-lock.json"];
    return files.every((file) => !/"resolved":/.test(readFileSync(join(root, file), "utf8")));
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  const result = check();
  const word = result === true ? "ok" : result === false ? "FAILED" : `skipped: ${result}`;
  if (result === false) failed += 1;
  console.log(`check: ${name}: ${word}`);
}
process.exitCode = failed === 0 ? 0 : 1;
