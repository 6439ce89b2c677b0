/** Fragmentation: files that were made on a fresh volume, and on one where files came and went for long. */
import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { hasCommand } from "../../../scripts/setup.mjs";
import { unmount } from "../mounts.mjs";
import { run } from "../scope.mjs";
import { GRACE_MS } from "../workloads/data.mjs";
import { end, makeRegion, mount, node } from "./volume.mjs";

const MIB = 1024 * 1024;
const PER_FILE = "extents a file";
const PER_EXTENT = "KiB an extent";

const row = (key, title, unit, better) => ({ key, title, unit, better });

/** Reading all files, one after the other, MB/s; the best of several times. */
async function read(bench, folder, bytes) {
  const options = { limitMs: GRACE_MS, signal: bench.signal };
  let best = 0;
  for (let slice = 0; slice < bench.fewSlices; slice += 1) {
    const from = performance.now();
    await run("sh", ["-c", `cat "$1"/* | wc -c`, "sh", folder], options);
    best = Math.max(best, bytes / ((performance.now() - from) / 1000) / 1e6);
  }
  return best;
}

async function ofMapdirect(bench, turns) {
  const region = await makeRegion(bench, `age-${turns}`, bench.studies.ageMib * MIB);
  const mounted = await mount(bench, region);
  // Half of what is left of a small region after its metadata.
  await node(bench, "age.mjs", mounted.folder, (bench.studies.ageMib - 14) * MIB * 0.8, turns);
  const { files, extents, bytes } = JSON.parse(await node(bench, "extents.mjs", mounted.folder));
  const megabytesPerSec = await read(bench, mounted.folder, bytes);
  await end(bench, mounted);
  return { perFile: extents / files, kib: bytes / extents / 1024, megabytesPerSec };
}

async function ofExt4(bench, turns) {
  const file = join(bench.folder, `age-ext4-${turns}.image`);
  const folder = join(bench.folder, `age-ext4-${turns}`);
  const env = { PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
  const options = { limitMs: GRACE_MS, signal: bench.signal, env };
  writeFileSync(file, "");
  truncateSync(file, bench.studies.ageMib * MIB);
  mkdirSync(folder);
  await run("mkfs.ext4", ["-q", "-F", file], options);
  await run("mount", ["-o", "loop", file, folder], options);
  bench.scope.defer(folder, () => unmount(folder));
  await node(bench, "age.mjs", folder, (bench.studies.ageMib - 14) * MIB * 0.8, turns);
  await run("sync", ["-f", folder], options);
  const text = await run("sh", ["-c", `filefrag "$1"/file-* && du -sB1 "$1"`, "sh", folder], options);
  const counts = [...text.matchAll(/: (\d+) extents? found/g)].map(([, count]) => Number(count));
  const extents = counts.reduce((sum, count) => sum + count, 0);
  const bytes = Number(/^(\d+)\s/m.exec(text.slice(text.lastIndexOf("found")).replace(/^found\n/, ""))[1]);
  const megabytesPerSec = await read(bench, folder, bytes);
  await unmount(folder);
  return { perFile: extents / counts.length, kib: bytes / extents / 1024, megabytesPerSec };
}

const named = (fresh, aged) => ({
  "age-fresh-perFile": fresh.perFile,
  "age-aged-perFile": aged.perFile,
  "age-fresh-kib": fresh.kib,
  "age-aged-kib": aged.kib,
  "age-fresh-read": fresh.megabytesPerSec,
  "age-aged-read": aged.megabytesPerSec,
});

export const AGEING = [
  {
    name: "ageing",
    group: "ageing",
    isWide: true,
    rows: [
      row("age-fresh-perFile", "fresh volume, fragmentation", PER_FILE, "less"),
      row("age-aged-perFile", "aged volume, fragmentation", PER_FILE, "less"),
      row("age-fresh-kib", "fresh volume, size of extents", PER_EXTENT, "more"),
      row("age-aged-kib", "aged volume, size of extents", PER_EXTENT, "more"),
      row("age-fresh-read", "fresh volume, reading all files", "MB/s", "more"),
      row("age-aged-read", "aged volume, reading all files", "MB/s", "more"),
    ],
    async run(bench) {
      const turns = bench.studies.ageTurns;
      const found = { mapdirect: named(await ofMapdirect(bench, 0), await ofMapdirect(bench, turns)) };
      if (process.geteuid() === 0 && hasCommand("mkfs.ext4") && hasCommand("filefrag")) {
        found.ext4 = named(await ofExt4(bench, 0), await ofExt4(bench, turns));
      }
      return found;
    },
  },
];
