/**
 * Ages a file system: fills it, then again and again removes files and makes others, several growing at a time.
 *
 *   node age.mjs FOLDER BYTES TURNS
 *
 * Keeps about 80 % of BYTES in files of 4 KiB to 2 MiB (as many of each order of magnitude). In each turn about BYTES are
 * written anew. The same choices each time.
 */
import { closeSync, openSync, unlinkSync, writeSync } from "node:fs";
import { join } from "node:path";

const [folder, bytes, turns] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const PIECE = 64 * 1024;
const GROWING = 4;
const piece = Buffer.alloc(PIECE, "a");

/** mulberry32 */
let state = 1;
function random() {
  state = (state + 0x6d2b79f5) >>> 0;
  let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
  mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000;
}

const files = [];
let kept = 0;
let made = 0;
let written = 0;

/** Several files, a piece of each by turns. */
function makeSome() {
  const growing = Array.from({ length: GROWING }, () => {
    const size = Math.ceil((4096 * 2 ** (random() * 9)) / 4096) * 4096;
    made += 1;
    const path = join(folder, `file-${made}`);
    return { path, size, left: size, fd: openSync(path, "wx") };
  });
  for (let left = GROWING; left > 0; ) {
    for (const file of growing) {
      if (file.left === 0) continue;
      const length = Math.min(PIECE, file.left);
      writeSync(file.fd, piece, 0, length);
      file.left -= length;
      if (file.left === 0) left -= 1;
    }
  }
  for (const { path, size, fd } of growing) {
    closeSync(fd);
    files.push({ path, size });
    kept += size;
    written += size;
  }
}

function removeOne() {
  const index = Math.floor(random() * files.length);
  const [gone] = files.splice(index, 1);
  unlinkSync(gone.path);
  kept -= gone.size;
}

while (kept < bytes * 0.8) makeSome();
for (let turn = 0; turn < turns; turn += 1) {
  written = 0;
  while (written < bytes) {
    while (kept > bytes * 0.8) removeOne();
    makeSome();
  }
}
console.log(JSON.stringify({ files: files.length, bytes: kept }));
