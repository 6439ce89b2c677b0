/**
 * The load of the power cuts: mounts the region, which recovers it, has two programs store through direct mappings, and
 * then changes files as fast as it can until the power goes. All of it is told to the host as it is acknowledged.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { mapdirect, OUT, programs, request, succeed } from "./support.mjs";

const MNT = "/tmp/mnt";
const { cycle, seed, sysrqAfterMs } = request;

function device() {
  if (!existsSync("/dev/dax0.0")) {
    succeed("ndctl", [
      "create-namespace",
      "-f",
      "-e",
      "namespace0.0",
      "-m",
      "devdax",
      "-M",
      "mem",
      "-a",
      4096,
    ]);
  }
  return "/dev/dax0.0";
}

mkdirSync(MNT, { recursive: true });
const region = device();
if (request.fresh) await mapdirect("mkfs", "--force", region);
await mapdirect("mount", region, MNT);
// Where the host finds the region in the file behind this guest's memory.
const attribute = (name) => Number(readFileSync(`/sys/bus/dax/devices/dax0.0/${name}`, "utf8"));
writeFileSync(
  join(OUT, "where.json"),
  JSON.stringify({ offset: attribute("resource"), bytes: attribute("size") }),
);
if (!request.fresh) {
  const { recovery } = JSON.parse(await mapdirect("info", "--json", MNT));
  writeFileSync(join(OUT, "recovery.json"), JSON.stringify(recovery));
}

for (const [id, kind] of ["seal", "breakable"].entries()) {
  const log = openSync(join(OUT, `direct-${id}`), "w");
  const stdio = ["ignore", log, "inherit"];
  spawn(join(programs, "direct"), ["load", join(MNT, `direct-${cycle}-${id}`), 262_144, kind], { stdio });
}
const folder = join(MNT, `cycle-${cycle}`);
mkdirSync(folder);
if (sysrqAfterMs !== null) {
  // Counted from when all three programs have been acknowledged something.
  const begun = `[ -s ${OUT}/direct-0 ] && [ -s ${OUT}/direct-1 ] && grep -q '^<' ${OUT}/log`;
  const script = `until ${begun}; do sleep 0.1; done; sleep ${sysrqAfterMs / 1000}; echo b > /proc/sysrq-trigger`;
  spawn("sh", ["-c", script], { stdio: "ignore" });
}
process.argv[2] = folder;
process.argv[3] = `${seed}`;
await import("../../crash/load.mjs");
