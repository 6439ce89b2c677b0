/**
 * `npm run test:vm [-- vitest arguments]`: everything built, then guests in QEMU with persistent memory; prints what was
 * measured, as the tables of docs/TESTING.md and docs/PERFORMANCE.md, and the count of tests in the last line.
 */
import { join } from "node:path";
import { measured } from "../test/vm/report.mjs";
import { build } from "./build.mjs";
import { fail, root, setup } from "./setup.mjs";
import { runVitest } from "./test.mjs";

try {
  setup({ vm: true });
  build();
} catch (error) {
  fail(error);
}
const { code, count } = runVitest(["--config", join(root, "vitest.vm.config.ts"), ...process.argv.slice(2)]);
const tables = measured(join(root, ".cache", "vm", "measured"));
if (tables !== "") console.log(`\n${tables}\n`);
if (count !== "") console.log(count);
process.exitCode = code;
