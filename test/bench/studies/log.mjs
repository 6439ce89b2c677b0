/** Log that an operation writes. */
import { makeRegion, mount, node } from "./volume.mjs";

const KINDS = [
  ...["create", "chmod", "rename", "link", "unlink", "unlink, last name", "mkdir", "rmdir", "append 4 KiB"],
  ...["overwrite 4 KiB", "overwrite 4 KiB, fsync", "truncate"],
];

export const LOG = [
  {
    name: "log",
    group: "log",
    rows: KINDS.map((kind) => ({ key: `log-${kind}`, title: kind, unit: "bytes of log", better: "less" })),
    async run(bench) {
      const region = await makeRegion(bench, "log", 512 * 1024 * 1024);
      const { folder } = await mount(bench, region);
      const found = JSON.parse(await node(bench, "logged.mjs", folder, bench.studies.operations));
      return { mapdirect: Object.fromEntries(KINDS.map((kind) => [`log-${kind}`, found[kind]])) };
    },
  },
];
