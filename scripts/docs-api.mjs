/**
 * `npm run docs:api`: pages for what the package exports (`mapdirect`, `mapdirect/fuse`) from its declarations and their
 * comments, in docs/api/. TypeDoc works with an older TypeScript than ours, so that both live in scripts/typedoc/, with a
 * lock file of their own, and are installed when they are first needed.
 *
 * Whatever TypeDoc warns of is an error: a link that leads nowhere, something public whose type is not.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fail, root, run, setup } from "./setup.mjs";

const folder = join(root, "scripts/typedoc");

try {
  setup();
  if (!existsSync(join(folder, "node_modules/typedoc"))) {
    run("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund"], { cwd: folder });
  }
  run(process.execPath, ["node_modules/typedoc/bin/typedoc"], { cwd: folder });
} catch (error) {
  fail(error);
}
