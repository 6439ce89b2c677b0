/**
 * What `npm install mapdirect` runs: takes what was compiled in advance where it runs here, and compiles otherwise. A clone
 * always compiles: there the sources are what counts.
 *
 * `npm install --build-from-source` compiles in any case.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { build } from "./build.mjs";
import { use } from "./prebuilt.mjs";
import { fail, missingBuildPackages, root, SetupError } from "./setup.mjs";

function install() {
  const wish = process.env.npm_config_build_from_source;
  const compile = existsSync(join(root, "test")) || (wish !== undefined && wish !== "false");
  const why = compile ? "that was asked for" : use();
  if (why === undefined) return;
  const missing = missingBuildPackages();
  if (missing.length > 0) {
    const todo = `install them (Debian: 'apt-get install -y ${missing.join(" ")}'), and run this again`;
    throw new SetupError(`install: ${why}, and to compile it ${missing.join(", ")} are missing; ${todo}`);
  }
  process.stderr.write(`mapdirect: install: compiling: ${why}\n`);
  build({ nativeOnly: true });
}

try {
  install();
} catch (error) {
  fail(error);
}
