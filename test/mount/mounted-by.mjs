/**
 * A daemon whose mount says that somebody else has made it, as fusermount3 says it of its user: for the test of whom a client
 * believes. Root's alone to run. Arguments: region, mountpoint, the user id. Serves until it is unmounted.
 */
import { openFuseMount } from "../../dist/region/fusemount.js";
import { openRegion } from "../../dist/region/open.js";
import { Session } from "../../dist/session/session.js";
import { Volume } from "../../dist/session/volume.js";

const [path, mountpoint, user] = process.argv.slice(2);
const region = openRegion(path, { readOnly: false });
const volume = await Volume.open(region, {
  readOnly: false,
  ...{ direct: "seal", breakTimeSeconds: 5, maxLeases: 100, maxLeasedBytes: 1 << 30, administratorUid: 0 },
});
const { device } = await openFuseMount({
  source: path,
  mountpoint,
  // The last one counts.
  options: ["rw", "allow_other", "default_permissions", `user_id=${user}`],
  fsType: "fuse.mapdirect",
});
const session = new Session(volume, {
  ...{ uid: Number(user), debug: null, warn: console.error, mountSource: path, mountpoint, directSocket: "" },
  ...{ atime: "relatime", noDirectoryAtime: false, ring: null },
});
session.attach(device);
process.stdout.write("mounted\n");
await session.ended;
await session.close();
await volume.close();
region.close();
process.exit(0);
