/**
 * A volume with many empty files, made by the daemon's own code without mounting it: in seconds, where a mount takes
 * minutes.
 *
 *   node volume.mjs REGION FILES PER_DIRECTORY
 *
 * PER_DIRECTORY 0: all in one, /big. Otherwise in /d0, /d1, …
 */
import { Wait } from "../../../dist/base/wait.js";
import { defaultMountOptions, leasePolicy } from "../../../dist/daemon/options.js";
import { ROOT_INO } from "../../../dist/media/mkfs.js";
import { create } from "../../../dist/namespace/names.js";
import { openRegion } from "../../../dist/region/open.js";
import { Volume } from "../../../dist/session/volume.js";

const [path, files, perDirectory] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const creator = { uid: process.getuid(), gid: process.getgid() };

const region = openRegion(path);
const volume = await Volume.open(region, {
  ...leasePolicy(defaultMountOptions(false), region.facts.sizeBytes, 0),
  readOnly: false,
});
const { store } = volume;

async function make(parent, name, mode) {
  for (;;) {
    try {
      return create(store, parent, name, mode, 0, creator, null);
    } catch (error) {
      if (!(error instanceof Wait)) throw error;
      await error.until;
    }
  }
}

let directory;
for (let index = 0; index < files; index += 1) {
  if (perDirectory === 0) directory ??= await make(store.inode(ROOT_INO), "big", S_IFDIR | 0o755);
  else if (index % perDirectory === 0)
    directory = await make(store.inode(ROOT_INO), `d${index / perDirectory}`, S_IFDIR | 0o755);
  await make(directory, `an ordinary name ${index}`, S_IFREG | 0o644);
  // A checkpoint under way goes on between two turns of the event loop.
  if (index % 256 === 0) await new Promise((resolve) => setImmediate(resolve));
}
await volume.close();
region.close();
