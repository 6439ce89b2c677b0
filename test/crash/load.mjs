/**
 * A program that changes files as fast as it can, and says on its standard output what it is about to do (`> {…}`) and
 * that it was done (`<`). The model in test/crash/model.ts replays that log.
 *
 * Invariant: every line is written with one write(2) before the next system call on the file system, so that whoever
 * reads the log after a crash knows of every call that returned, and of at most one that did not.
 *
 * Arguments: the folder to work in, a seed.
 */
import {
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

const [folder, seedText] = process.argv.slice(2);
let state = Number(seedText) >>> 0;

/** mulberry32: small, and the same everywhere. */
function random(below) {
  state = (state + 0x6d2b79f5) >>> 0;
  let value = Math.imul(state ^ (state >>> 15), 1 | state);
  value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
  return ((value ^ (value >>> 14)) >>> 0) % below;
}

const at = (name) => join(folder, name);
const say = (line) => writeSync(1, `${line}\n`);

const files = new Map();
const folders = new Set();
let next = 0;

const ACTIONS = {
  create: ({ name }) => closeSync(openSync(at(name), "wx")),
  write: ({ name, offset, length, fill }) => {
    const descriptor = openSync(at(name), "r+");
    try {
      const data = Buffer.alloc(length, fill);
      if (writeSync(descriptor, data, 0, length, offset) !== length) throw new Error("short write");
    } finally {
      closeSync(descriptor);
    }
  },
  truncate: ({ name, size }) => {
    const descriptor = openSync(at(name), "r+");
    try {
      ftruncateSync(descriptor, size);
    } finally {
      closeSync(descriptor);
    }
  },
  fsync: ({ name }) => {
    const descriptor = openSync(at(name), "r+");
    try {
      fsyncSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
  },
  rename: ({ from, to }) => renameSync(at(from), at(to)),
  link: ({ from, to }) => linkSync(at(from), at(to)),
  unlink: ({ name }) => unlinkSync(at(name)),
  mkdir: ({ name }) => mkdirSync(at(name)),
  rmdir: ({ name }) => rmdirSync(at(name)),
};

function perform(operation) {
  say(`> ${JSON.stringify(operation)}`);
  ACTIONS[operation.op](operation);
  say("<");
}

const pick = (collection) => [...collection][random(collection.size)];
const freshName = () => {
  next += 1;
  const parent = folders.size > 0 && random(3) === 0 ? `${pick(folders)}/` : "";
  return `${parent}f${next}-${"n".repeat(random(40))}`;
};
/** Sizes around block boundaries, and some larger. */
const size = () => [random(100), 4095 + random(3), random(20_000), 65_536 + random(65_536)][random(4)];

function step() {
  const name = files.size > 0 ? pick(files.keys()) : undefined;
  const choice = random(100);
  if (name === undefined || (choice < 15 && files.size < 60)) {
    const created = freshName();
    perform({ op: "create", name: created });
    files.set(created, 0);
  } else if (choice < 50) {
    const length = 1 + size();
    const offset = random(2) === 0 ? files.get(name) : random(200_000);
    perform({ op: "write", name, offset, length, fill: 1 + random(255) });
    files.set(name, Math.max(files.get(name), offset + length));
  } else if (choice < 58) {
    const length = size();
    perform({ op: "truncate", name, size: length });
    files.set(name, length);
  } else if (choice < 68) {
    perform({ op: "fsync", name });
  } else if (choice < 80) {
    const to = files.size > 1 && random(2) === 0 ? pick(files.keys()) : freshName();
    if (to === name) return;
    perform({ op: "rename", from: name, to });
    files.set(to, files.get(name));
    files.delete(name);
  } else if (choice < 84) {
    // A name alone: the model knows that both are one file, this program need not.
    const to = freshName();
    perform({ op: "link", from: name, to });
    perform({ op: "unlink", name });
    files.set(to, files.get(name));
    files.delete(name);
  } else if (choice < 94) {
    perform({ op: "unlink", name });
    files.delete(name);
  } else if (choice < 97 && folders.size < 8) {
    next += 1;
    const created = `d${next}`;
    perform({ op: "mkdir", name: created });
    folders.add(created);
  } else if (folders.size > 0) {
    const removed = pick(folders);
    if ([...files.keys()].some((file) => file.startsWith(`${removed}/`))) return;
    perform({ op: "rmdir", name: removed });
    folders.delete(removed);
  }
}

try {
  for (;;) step();
} catch (error) {
  // The daemon is gone: the last line said what was being done. Any other error is for the test to see.
  const expected = ["ENOTCONN", "ECONNABORTED", "ECONNREFUSED", "EPIPE"].includes(error.code);
  if (!expected) {
    say(`! ${error.stack}`);
    process.exitCode = 1;
  }
}
