/**
 * `npm run prebuilds`: compile for this architecture, for those who cannot. `--check` only says whether that is up to date.
 * (npm would run a script named prebuild before each build.)
 */
import { relative } from "node:path";
import { build } from "./build.mjs";
import { check, save } from "./prebuilt.mjs";
import { fail, root, setup } from "./setup.mjs";

try {
  if (process.argv.includes("--check")) check();
  else {
    setup();
    build();
    console.log(`prebuild: ${relative(root, save())}`);
  }
} catch (error) {
  fail(error);
}
