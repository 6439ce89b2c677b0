/**
 * A file of so many extents: blocks of 4 KiB, written last to first, so that none is physically behind its neighbour.
 *
 *   node scatter.mjs FILE EXTENTS
 */
import { closeSync, openSync, writeSync } from "node:fs";

const block = Buffer.alloc(4096, "s");
const fd = openSync(process.argv[2], "wx");
for (let index = Number(process.argv[3]) - 1; index >= 0; index -= 1)
  writeSync(fd, block, 0, block.length, index * block.length);
closeSync(fd);
