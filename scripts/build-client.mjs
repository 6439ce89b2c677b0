#!/usr/bin/env node
/**
 * Build the C client with plain cc: no Node headers, no node-gyp, so that it is the same library for every program.
 *
 *   dist/lib/libmapdirect.so (and .so.0, its soname)   mapdirect.h
 *   dist/lib/libmapdirect_preload.so                   mmap(2) and its relatives, interposed
 *   dist/include/mapdirect.h
 *
 * A file is made again when anything that it is made from is newer. CC and CFLAGS are honoured.
 */
import { spawnSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const sourceFolder = join(root, "native", "client");

/** What both libraries share, and what only the preload library has. */
export const CORE_SOURCES = [
  "lines.c",
  "table.c",
  "keeper.c",
  "mount.c",
  "hole.c",
  "map.c",
  "change.c",
  "break.c",
  "relay.c",
  "persist.c",
  "stats.c",
  "api.c",
];
export const PRELOAD_SOURCES = [...CORE_SOURCES, "auto.c", "io.c", "preload.c"];
export const COMPILE_FLAGS = [
  "-std=gnu11",
  "-D_GNU_SOURCE",
  "-Wall",
  "-Wextra",
  "-Wconversion",
  "-fvisibility=hidden",
];
/**
 * now: no lazy binding, for mmap is called before it would work. nodelete: the keeper's code must outlive dlclose.
 * defs: nothing unresolved.
 */
const LINK_FLAGS = ["-shared", "-pthread", "-Wl,-z,now,-z,nodelete,-z,relro,-z,defs"];

const sources = (names) => names.map((name) => join(sourceFolder, name));

const products = [
  { file: "dist/lib/libmapdirect.so", soname: "libmapdirect.so.0", sources: sources(CORE_SOURCES) },
  {
    file: "dist/lib/libmapdirect_preload.so",
    soname: "libmapdirect_preload.so",
    sources: sources(PRELOAD_SOURCES),
  },
];

const modified = (file) => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;

function build() {
  const headers = readdirSync(sourceFolder).filter((name) => name.endsWith(".h"));
  const common = [...sources(headers), fileURLToPath(import.meta.url)];
  const cc = process.env.CC ?? "cc";
  const extra = (process.env.CFLAGS ?? "").split(/\s+/).filter((flag) => flag !== "");

  mkdirSync(join(root, "dist", "lib"), { recursive: true });
  mkdirSync(join(root, "dist", "include"), { recursive: true });

  for (const product of products) {
    const target = join(root, product.file);
    const newest = Math.max(...[...product.sources, ...common].map(modified));
    if (modified(target) < newest) {
      /* Renamed into place: a program that runs with the old file keeps it whole. */
      const fresh = `${target}.${process.pid}`;
      const args = ["-O2", "-g", "-fPIC", ...COMPILE_FLAGS, ...extra, ...LINK_FLAGS];
      args.push(`-Wl,-soname,${product.soname}`, "-o", fresh, ...product.sources);
      const result = spawnSync(cc, args, { stdio: "inherit" });
      if (result.status !== 0) {
        rmSync(fresh, { force: true });
        console.error(
          `build-client: ${cc} failed for ${product.file}${result.error ? `: ${result.error.message}` : ""}`,
        );
        return 1;
      }
      renameSync(fresh, target);
      console.log(`built ${product.file}`);
    }
    const name = join(dirname(target), product.soname);
    if (name !== target && !existsSync(name)) {
      rmSync(name, { force: true });
      symlinkSync(product.file.slice(product.file.lastIndexOf("/") + 1), name);
    }
  }
  const header = join(root, "dist", "include", "mapdirect.h");
  if (modified(header) < modified(join(sourceFolder, "mapdirect.h"))) {
    copyFileSync(join(sourceFolder, "mapdirect.h"), header);
  }
  return 0;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exitCode = build();
