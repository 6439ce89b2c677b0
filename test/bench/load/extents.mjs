/**
 * How fragmented the files of a folder are: { files, extents, bytes } as JSON.
 *
 *   node extents.mjs FOLDER
 *
 * On a mount of mapdirect. What is physically contiguous counts as one.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { readExtents, withOpen } from "../../../dist/daemon/client.js";

let [files, count, bytes] = [0, 0, 0];
for (const entry of readdirSync(process.argv[2], { withFileTypes: true })) {
  if (!entry.isFile()) continue;
  const { extents } = withOpen(join(process.argv[2], entry.name), readExtents);
  let end;
  for (const { state, physical, length } of extents) {
    if (state === "hole") continue;
    if (physical !== end) count += 1;
    end = physical + length;
    bytes += Number(length);
  }
  files += 1;
}
console.log(JSON.stringify({ files, extents: count, bytes }));
