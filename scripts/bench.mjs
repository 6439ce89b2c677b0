/**
 * `npm run bench`: mapdirect beside other file systems in memory, on this machine, in one run. Installs and builds what is
 * missing; the rest is in test/bench/.
 */
import { build } from "./build.mjs";
import { fail, setup } from "./setup.mjs";

try {
  setup();
  build();
} catch (error) {
  fail(error);
}
// It imports packages: they have to be there first.
await import("../test/bench/main.mjs");
