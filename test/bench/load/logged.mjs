/**
 * Bytes of log that an operation writes, by kind.
 *
 *   node logged.mjs FOLDER COUNT
 *
 * FOLDER lies on a mount of mapdirect that nobody else uses. Prints { kind: bytes per operation } as JSON.
 */
import {
  chmodSync,
  closeSync,
  fsyncSync,
  ftruncateSync,
  linkSync,
  mkdirSync,
  openSync,
  renameSync,
  rmdirSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { ask } from "../../../dist/daemon/client.js";

const [folder, count] = [process.argv[2], Number(process.argv[3])];
const name = (prefix, index) => join(folder, `${prefix}-${index}`);
const block = Buffer.alloc(4096, "x");
const data = openSync(join(folder, "data"), "w+");

const kinds = {
  create: (index) => closeSync(openSync(name("file", index), "wx")),
  chmod: (index) => chmodSync(name("file", index), 0o600),
  rename: (index) => renameSync(name("file", index), name("renamed", index)),
  link: (index) => linkSync(name("renamed", index), name("link", index)),
  unlink: (index) => unlinkSync(name("link", index)),
  "unlink, last name": (index) => unlinkSync(name("renamed", index)),
  mkdir: (index) => mkdirSync(name("directory", index)),
  rmdir: (index) => rmdirSync(name("directory", index)),
  "append 4 KiB": () => writeSync(data, block),
  "overwrite 4 KiB": (index) =>
    writeSync(data, block, 0, block.length, ((index * 7919) % count) * block.length),
  "overwrite 4 KiB, fsync": (index) => {
    writeSync(data, block, 0, block.length, ((index * 7919) % count) * block.length);
    fsyncSync(data);
  },
  truncate: (index) => ftruncateSync(data, (count - index - 1) * block.length),
};

const logBytes = () => ask(data, "STATS").log_bytes;
const found = {};
for (const [kind, run] of Object.entries(kinds)) {
  fsyncSync(data);
  const before = logBytes();
  for (let index = 0; index < count; index += 1) run(index);
  found[kind] = (logBytes() - before) / count;
}
closeSync(data);
console.log(JSON.stringify(found));
