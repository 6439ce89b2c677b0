/**
 * `npm run test:vm [-- vitest arguments]`: everything built, then guests in QEMU with persistent memory; prints what was
 * measured, as the tables of docs/TESTING.md and docs/PERFORMANCE.md, and the count of tests in the last line.
 */
import { rmSync } from "node:fs";
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
const args = process.argv.slice(2);
const folder = join(root, ".cache", "vm", "measured");
// A run of everything begins anew; one of a part takes the place of that part.
if (args.length === 0) rmSync(folder, { recursive: true, force: true });
const { code, summary } = runVitest(["--config", join(root, "vitest.vm.config.ts"), ...args]);
const tables = measured(folder);
if (tables !== "") console.log(`\n${tables}\n`);
for (const line of summary) console.log(line);
process.exitCode = code;
