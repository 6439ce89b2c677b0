#!/usr/bin/env node
// @ts-check
/**
 * A JSON document as a read-only tree of files: objects and arrays are directories, everything else is a file that holds
 * its text. Saved anew, the document is shown anew.
 *
 *   node examples/json-view.mjs DOCUMENT MOUNTPOINT
 */
import { watch } from "node:fs";
import { readFile } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { FsError, mount, ROOT_NODE } from "mapdirect/fuse";

const [document, mountpoint] = process.argv.slice(2);
if (document === undefined || mountpoint === undefined) {
  process.stderr.write("usage: json-view.mjs DOCUMENT MOUNTPOINT\n");
  process.exit(2);
}

/** @typedef {{ id: number, parent: number, names: Map<string, number> | null, text: Buffer }} Item */

/** @type {Map<number, Item>} */
const items = new Map();
/** A path keeps its node as long as this runs, one as a directory and one as a file. @type {Map<string, number>} */
const ids = new Map();

/** Names that a directory cannot have: escaped as in a URL, where they have to be. @param {string} key */
function nameOf(key) {
  const name = key.replace(/[%/\0]/g, encodeURIComponent);
  if (name === "" || name === "." || name === "..") return `%${name}`;
  return Buffer.byteLength(name) > 255 ? null : name;
}

/** @param {unknown} value @param {string} path @param {number} parent */
function add(value, path, parent) {
  const isTree = typeof value === "object" && value !== null;
  const key = `${path}${isTree ? "/" : ""}`;
  const id = ids.get(key) ?? ids.size + ROOT_NODE;
  ids.set(key, id);
  /** @type {Item} */
  const item = { id, parent, names: null, text: Buffer.from("") };
  items.set(id, item);
  if (isTree) {
    item.names = new Map();
    for (const [key, each] of Object.entries(value)) {
      const name = nameOf(key);
      if (name !== null) item.names.set(name, add(each, `${path}/${name}`, id));
    }
  } else item.text = Buffer.from(`${typeof value === "string" ? value : JSON.stringify(value)}\n`);
  return id;
}

async function load() {
  const value = JSON.parse(await readFile(String(document), "utf8"));
  if (typeof value !== "object" || value === null) throw new Error("neither an object nor an array");
  items.clear();
  add(value, "", ROOT_NODE);
}

/** @param {number} nodeid */
function item(nodeid) {
  const found = items.get(nodeid);
  if (found === undefined) throw new FsError("ESTALE");
  return found;
}

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;

/** @param {Item} item */
const modeOf = ({ names }) => (names === null ? S_IFREG | 0o444 : S_IFDIR | 0o555);

/** @param {Item} item */
const attributesOf = (item) => ({
  ino: item.id,
  mode: modeOf(item),
  size: item.text.length,
  nlink: item.names === null ? 1 : 2,
});

await load();

const mounted = await mount(
  {
    lookup({ nodeid, name }) {
      const id = item(nodeid).names?.get(name);
      return id === undefined ? null : { nodeid: id, attributes: attributesOf(item(id)) };
    },
    getattr: ({ nodeid }) => attributesOf(item(nodeid)),
    read: ({ nodeid, offset, size }) => item(nodeid).text.subarray(offset, offset + size),
    readdir({ nodeid, offset }) {
      const { id, parent, names } = item(nodeid);
      const entries = [...(names ?? [])].map(([name, ino]) => ({ name, ino, mode: modeOf(item(ino)) }));
      const dots = [
        { name: ".", ino: id, mode: S_IFDIR },
        { name: "..", ino: parent, mode: S_IFDIR },
      ];
      return [...dots, ...entries].slice(offset);
    },
  },
  mountpoint,
  { type: "json", source: document, readOnly: true },
);

/** What the kernel remembers of the old document goes. */
async function reload() {
  const before = [...items.values()];
  try {
    await load();
  } catch (error) {
    // Half-written, or not JSON any more: what was there stays.
    process.stderr.write(`${document}: ${error instanceof Error ? error.message : error}\n`);
    return;
  }
  const names = before.flatMap(({ id, names }) => [...(names?.keys() ?? [])].map((name) => ({ id, name })));
  await Promise.all([
    ...before.map(({ id }) => mounted.invalidateNode(id)),
    ...names.map(({ id, name }) => mounted.invalidateEntry(id, name)),
  ]);
  process.stdout.write("reloaded\n");
}

// The folder: editors put a new file in the place of the old one.
const watcher = watch(dirname(document), (_event, name) => {
  if (name === basename(String(document))) void reload();
});
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => void mounted.unmount({ force: true }));
process.stdout.write(`mounted on ${mounted.path}\n`);
await mounted.ended;
watcher.close();
