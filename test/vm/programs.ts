/** What guests run besides mapdirect itself, compiled on the host: the client's C programs, and a few of the guest's own. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { COMPILE_FLAGS } from "../../scripts/build-client.mjs";
import { packageRoot as root } from "../../src/region/addon.ts";

/** Of test/client/programs: those that the guests run. */
const CLIENT = ["arguments", "cache", "coherence", "faults", "lifetime", "rights", "sharing"];

export function buildPrograms(cache: string): string {
  const folder = join(cache, "programs");
  mkdirSync(folder, { recursive: true });
  const cc = process.env.CC ?? "cc";
  const flags = ["-g", "-O1", ...COMPILE_FLAGS, "-Wno-unused-function", "-Wno-conversion", "-pthread"];
  const library = [
    `-I${join(root, "native/client")}`,
    `-L${join(root, "dist/lib")}`,
    "-lmapdirect",
    "-Wl,-rpath,/run/project/dist/lib",
  ];
  const compile = (name: string, source: string, libraries: readonly string[]): void => {
    // Renamed into place: a guest of another run may have the old one open.
    const fresh = join(folder, `${name}.${process.pid}`);
    execFileSync(cc, [...flags, "-o", fresh, join(root, source), ...libraries], { stdio: "inherit" });
    renameSync(fresh, join(folder, name));
  };
  compile("direct", "test/vm/guest/direct.c", library);
  for (const name of CLIENT) compile(name, `test/client/programs/${name}.c`, library);
  if (existsSync("/usr/include/libpmemobj.h"))
    compile("bank", "test/programs/bank.c", ["-lpmemobj", "-lpmem"]);
  return folder;
}
