/** Operations on names. */
import { join } from "node:path";
import { compiled } from "../peers.mjs";
import { run } from "../scope.mjs";
import { GRACE_MS } from "./data.mjs";

const DIRECTORIES = 16;

/** A folder of its own for each run, gone again afterwards. */
export async function inFolder(bench, peer, name, use) {
  const folder = join(peer.folder, name);
  const options = { limitMs: GRACE_MS, signal: bench.signal };
  await run("mkdir", [folder], options);
  const result = await use(folder);
  await run("rm", ["-rf", folder], options);
  return result;
}

const meta = (name, title, how, phases) => ({
  name,
  group: "metadata",
  slices: "fewSlices",
  title,
  rows: phases.map(([phase, words, unit = "operations/s"]) => ({
    key: `${name}-${phase}`,
    title: `${words}${title === "" ? "" : `, ${title}`}`,
    unit,
  })),
  run: (bench, peer, index) =>
    inFolder(bench, peer, `${name}-${index}`, async (folder) => {
      const program = await compiled(bench, "load/meta.c");
      const options = { limitMs: GRACE_MS, signal: bench.signal };
      const found = JSON.parse(await run(program, [folder, `${bench.metaFiles}`, how], options));
      const values = Object.fromEntries(phases.map(([phase]) => [`${name}-${phase}`, found[phase]]));
      return { values, operations: bench.metaFiles * Object.keys(found).length };
    }),
});

const PHASES = [
  ["create", "create"],
  ["statCold", "stat, cold"],
  ["statCached", "stat, cached"],
  ["readdir", "readdir", "entries/s"],
  ["rename", "rename"],
  ["unlink", "unlink"],
];

export const METADATA = [
  meta("one", "", "0", PHASES),
  meta("many", `${DIRECTORIES} directories`, `${DIRECTORIES}`, PHASES),
  meta("synced", "", "fsync", [["createSynced", "create, write 4 KiB, fsync"]]),
];
