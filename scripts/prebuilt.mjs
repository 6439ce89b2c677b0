/**
 * What is compiled, built in advance: `prebuilds/linux-ARCH/`, which `npm pack` takes along and `npm install` uses where it
 * matches, so that a machine without a compiler can install the package.
 *
 * Invariants:
 * - what is packed was built from the sources that are packed: a digest of them lies beside it;
 * - what is used has been loaded first, in a process of its own: another C library, or an older one, shows there.
 */
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { digest } from "./build.mjs";
import { root, SetupError } from "./setup.mjs";

/** From the package's root, and what each is called in `prebuilds/`. */
const PRODUCTS = {
  "build/Release/mapdirect.node": "mapdirect.node",
  "build/Release/mapdirect_client.node": "mapdirect_client.node",
  "dist/lib/libmapdirect.so": "libmapdirect.so",
  "dist/lib/libmapdirect_preload.so": "libmapdirect_preload.so",
  "dist/demo/story": "story",
};
const SONAME_LINKS = { "dist/lib/libmapdirect.so.0": "libmapdirect.so" };

export const prebuilds = join(root, "prebuilds");
const platform = `${process.platform}-${process.arch}`;
const folder = join(prebuilds, platform);
const STAMP = "sources.sha256";

/** What the products are made from. */
const sources = () =>
  digest([join(root, "native"), join(root, "binding.gyp"), join(root, "scripts/build-client.mjs")]);

/** Copy what was built into `prebuilds/`, without debugging symbols. */
export function save() {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  for (const [product, name] of Object.entries(PRODUCTS)) {
    const target = join(folder, name);
    copyFileSync(join(root, product), target);
    const stripped = spawnSync("strip", ["--strip-unneeded", target], { stdio: "inherit" });
    if (stripped.status !== 0) throw new SetupError("prebuild: strip failed: is binutils installed?");
  }
  writeFileSync(join(folder, STAMP), `${sources()}\n`);
  return folder;
}

/** @throws SetupError: what would be packed was not built from what is here */
export function check() {
  if (!existsSync(folder)) return;
  const stamp = join(folder, STAMP);
  if (existsSync(stamp) && readFileSync(stamp, "utf8").trim() === sources()) return;
  throw new SetupError(
    `pack: prebuilds/${platform} is not of these sources; run 'npm run prebuilds', or remove it`,
  );
}

/** Put the products where a build would have put them. Returns why that cannot be, or undefined. */
export function use() {
  if (!existsSync(folder)) return `nothing is prebuilt for ${platform}`;
  const addons = Object.values(PRODUCTS).filter((name) => name.endsWith(".node"));
  const load = addons.map((name) => `require(${JSON.stringify(join(folder, name))});`).join("");
  const loaded = spawnSync(process.execPath, ["--eval", load], { encoding: "utf8" });
  if (loaded.status !== 0) {
    const why = loaded.stderr.split("\n").find((line) => line.startsWith("Error:")) ?? "it cannot be loaded";
    return `what is prebuilt for ${platform} does not run here: ${why}`;
  }
  for (const [product, name] of Object.entries(PRODUCTS)) {
    const target = join(root, product);
    mkdirSync(dirname(target), { recursive: true });
    copyFileSync(join(folder, name), target);
    chmodSync(target, 0o755);
  }
  for (const [link, target] of Object.entries(SONAME_LINKS)) {
    rmSync(join(root, link), { force: true });
    symlinkSync(target, join(root, link));
  }
  mkdirSync(join(root, "dist/include"), { recursive: true });
  copyFileSync(join(root, "native/client/mapdirect.h"), join(root, "dist/include/mapdirect.h"));
  return undefined;
}
