/**
 * A source tree unpacked, searched and removed. The tree is what every clone has: the sources of this project and of the
 * packages that it is built with, in the order of their names, as many files as wanted.
 */
import { readdirSync, statSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { root } from "../../../scripts/setup.mjs";
import { run } from "../scope.mjs";
import { GRACE_MS } from "./data.mjs";
import { inFolder } from "./metadata.mjs";

/** Larger ones are bundles and binaries: no sources. */
const FILE_BYTES_MAX = 512 * 1024;
const FOLDERS = ["src", "native", "test", "docs", "node_modules"];

function* filesBelow(folder) {
  const entries = readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1));
  for (const entry of entries) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesBelow(path);
    else if (entry.isFile() && statSync(path).size <= FILE_BYTES_MAX) yield path;
  }
}

/** Once per run: an archive on tmpfs, and how many files are in it. */
function archive(bench) {
  const make = async () => {
    const files = [];
    for (const folder of FOLDERS) {
      for (const path of filesBelow(join(root, folder))) {
        if (files.length >= bench.treeFiles) break;
        files.push(relative(root, path));
      }
    }
    const list = join(bench.folder, "tree.list");
    const tar = join(bench.folder, "tree.tar");
    writeFileSync(list, files.join("\0"));
    const words = ["-c", "-f", tar, "--null", "-T", list];
    await run("tar", words, { limitMs: GRACE_MS, signal: bench.signal, cwd: root });
    return { tar, count: files.length };
  };
  bench.programs.set("tree.tar", bench.programs.get("tree.tar") ?? make());
  return bench.programs.get("tree.tar");
}

export const TREE = [
  {
    name: "tree",
    group: "source tree",
    slices: "fewSlices",
    rows: [
      { key: "treeAll", title: "untar + grep + rm", unit: "files/s" },
      { key: "untar", title: "untar", unit: "files/s" },
      { key: "grep", title: "grep -r", unit: "files/s" },
      { key: "rm", title: "rm -r", unit: "files/s" },
    ],
    async run(bench, peer, index) {
      const { tar, count } = await archive(bench);
      const options = { limitMs: GRACE_MS, signal: bench.signal };
      const timed = async (command, args, more) => {
        const from = performance.now();
        await run(command, args, { ...options, ...more });
        return (performance.now() - from) / 1000;
      };
      return inFolder(bench, peer, `tree-${index}`, async (folder) => {
        const untar = await timed("tar", ["-x", "-f", tar, "-C", folder]);
        // No file has the word: all of each is read.
        const grep = await timed("grep", ["-r", "-q", "-F", "no such word".repeat(3), folder], {
          anyCode: true,
        });
        const rm = await timed("rm", ["-r", folder]);
        await run("mkdir", [folder], options);
        const values = { untar: count / untar, grep: count / grep, rm: count / rm };
        return { values: { treeAll: count / (untar + grep + rm), ...values }, operations: count };
      });
    },
  },
];
