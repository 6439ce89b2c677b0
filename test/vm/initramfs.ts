/**
 * What a guest begins with: busybox, an init, and the kernel modules that Debian does not build in, loaded in the order
 * that they depend on each other. Everything else is the host's root, read-only.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import type { Kernel } from "./kernels.ts";

const here = fileURLToPath(new URL(".", import.meta.url));
const BUSYBOX = "/bin/busybox";

/** For the guest to reach the host, to mount us, and to have persistent memory. */
const BASE = ["virtio_pci", "9pnet_virtio", "9p", "fuse", "nd_e820", "nd_pmem", "dax_pmem", "device_dax"];

const canonical = (name: string): string => name.replaceAll("-", "_");

/** Name → file, for each module of a kernel. */
function moduleFiles(folder: string): Map<string, string> {
  const files = new Map<string, string>();
  for (const entry of readdirSync(folder, { recursive: true, encoding: "utf8" })) {
    const match = /^(.*)\.ko(\.xz|\.zst)?$/.exec(basename(entry));
    if (match !== null) files.set(canonical(match[1] as string), join(folder, entry));
  }
  return files;
}

function readModule(file: string): Buffer {
  if (file.endsWith(".ko")) return readFileSync(file);
  const [command, option] = file.endsWith(".xz") ? (["xz", "-dc"] as const) : (["zstd", "-dcq"] as const);
  const done = spawnSync(command, [option, file], { maxBuffer: 1 << 28 });
  if (done.status !== 0) throw new Error(`${command} ${file}: ${done.error?.message ?? done.stderr}`);
  return done.stdout;
}

/** What a module says of itself in its section .modinfo. */
function dependsOf(bytes: Buffer): string[] {
  const at = bytes.indexOf("\0depends=");
  if (at < 0) return [];
  const start = at + "\0depends=".length;
  const text = bytes.toString("latin1", start, bytes.indexOf(0, start));
  return text.split(",").filter((name) => name !== "");
}

/** The modules, each after those that it needs; what is built in, or not there, is left out. */
function orderModules(folder: string, wanted: readonly string[]): Map<string, Buffer> {
  const files = moduleFiles(folder);
  const ordered = new Map<string, Buffer>();
  const visit = (name: string): void => {
    const file = files.get(canonical(name));
    if (file === undefined || ordered.has(canonical(name))) return;
    const bytes = readModule(file);
    for (const other of dependsOf(bytes)) visit(other);
    ordered.set(canonical(name), bytes);
  };
  // ext4 and xfs ask for it by name while they are loaded, which nothing in them says.
  for (const name of ["crc32c_generic", ...wanted]) visit(name);
  return ordered;
}

export interface Entry {
  readonly path: string;
  readonly mode: number;
  readonly content?: Buffer;
}

/** The format "newc" of cpio(5): a header of thirteen hexadecimal numbers, name and content padded to four bytes. */
export function cpio(entries: readonly Entry[]): Buffer {
  const parts: Buffer[] = [];
  const pad = (length: number): Buffer => Buffer.alloc((4 - (length % 4)) % 4);
  let inode = 1;
  for (const { path, mode, content = Buffer.alloc(0) } of [...entries, { path: "TRAILER!!!", mode: 0 }]) {
    const name = Buffer.from(`${path}\0`);
    const numbers = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length, 0];
    const header = `070701${numbers.map((number) => number.toString(16).padStart(8, "0")).join("")}`;
    parts.push(Buffer.from(header), name, pad(header.length + name.length), content, pad(content.length));
    inode += 1;
  }
  return Buffer.concat(parts);
}

const PT_INTERP = 3;

/** Whether an ELF file of 64 bits asks for a dynamic loader. */
function isDynamic(bytes: Buffer): boolean {
  const [table, size, count] = [
    Number(bytes.readBigUInt64LE(0x20)),
    bytes.readUInt16LE(0x36),
    bytes.readUInt16LE(0x38),
  ];
  for (let index = 0; index < count; index += 1) {
    if (bytes.readUInt32LE(table + index * size) === PT_INTERP) return true;
  }
  return false;
}

/** A guest has no libraries before it has the host's root. */
function readBusybox(): Buffer {
  const bytes = readFileSync(BUSYBOX);
  if (isDynamic(bytes)) throw new Error(`${BUSYBOX} needs libraries: apt-get install busybox-static`);
  return bytes;
}

const FILE = 0o100755;
const FOLDER = 0o040755;

/** Make the initramfs of a kernel, with more modules than the usual ones; its path. */
export function buildInitramfs(kernel: Kernel, cache: string, more: readonly string[] = []): string {
  const modules = orderModules(kernel.modules, [...BASE, ...more]);
  const folders = ["bin", "dev", "modules", "new", "out", "proc", "sys"];
  const archive = cpio([
    ...folders.map((path) => ({ path, mode: FOLDER })),
    { path: "init", mode: FILE, content: readFileSync(join(here, "guest", "init.sh")) },
    { path: "bin/busybox", mode: FILE, content: readBusybox() },
    ...[...modules].map(([name, content]) => ({ path: `modules/${name}.ko`, mode: FILE, content })),
    { path: "modules/order", mode: FILE, content: Buffer.from(`${[...modules.keys()].join("\n")}\n`) },
  ]);
  const target = join(cache, "initramfs", `${[kernel.version, ...more].join("+")}.gz`);
  mkdirSync(join(cache, "initramfs"), { recursive: true });
  const fresh = `${target}.${process.pid}`;
  writeFileSync(fresh, gzipSync(archive, { level: 1 }));
  renameSync(fresh, target);
  return target;
}
