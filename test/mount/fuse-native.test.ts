/** The second transport: what it refuses, and what happens without it. The suite of mounts runs over it as well. */
import { readFileSync } from "node:fs";
import { mkdir, open, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { mapDirect, open as openDirect } from "../../src/api/index.ts";
import { mountAt } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { withMount } from "../support/mount.ts";
import { cli, run } from "../support/run.ts";
import { fuseNativeUnavailable, LACKING } from "../support/transport.ts";

const unavailable = fuseNativeUnavailable();

describe.skipIf(unavailable !== null)(
  `transport=fuse-native${unavailable ? ` (${unavailable})` : ""}`,
  () => {
    test("a volume is the same over either transport", async () => {
      await withMount({ options: "transport=fuse-native" }, async (mount) => {
        await mkdir(mount.at("folder"));
        const bytes = Buffer.alloc(3_000_001, "over fuse-native ");
        await writeFile(mount.at("folder/file"), bytes);
        await mount.unmount();
        await mount.mount("rw");
        expect((await readFile(mount.at("folder/file"))).equals(bytes)).toBe(true);
        await writeFile(mount.at("folder/file"), "and back");
        await mount.unmount();
        await mount.mount("transport=fuse-native");
        expect(await readFile(mount.at("folder/file"), "utf8")).toBe("and back");
        await mount.unmount();
        expect((await mount.cli("fsck", mount.region)).code).toBe(0);
      });
    });

    test("a direct mapping is refused, and commands that need the daemon's answer say why there is none", async () => {
      await withMount({ options: "transport=fuse-native" }, async (mount) => {
        await writeFile(mount.at("file"), Buffer.alloc(8192));
        const file = await openDirect(mount.at("file"));
        await expect(mapDirect(file)).rejects.toMatchObject({ code: "EOPNOTSUPP" });
        await file.close();
        for (const command of ["leases", "info", "extents", "check", "prepare", "defrag"]) {
          const about = ["extents", "prepare", "defrag"].includes(command) ? mount.at("file") : mount.path;
          const { code, stderr } = await mount.cli(command, about);
          expect(code, command).toBe(1);
          expect(stderr, command).toMatch(/served through fuse-native, which has no ioctl/);
        }
      });
    });

    test("a mount in use can be told to end, and nothing that was written is lost", async () => {
      await withMount({ options: "transport=fuse-native" }, async (mount) => {
        const handle = await open(mount.at("file"), "w");
        await handle.write("kept");
        const refused = await mount.cli("unmount", mount.path);
        expect(refused.code).toBe(1);
        expect((await stat(mount.at("file"))).size).toBe(4);
        const pid = mount.daemonPid();
        expect((await mount.cli("unmount", "--lazy", mount.path)).code).toBe(0);
        await handle.close().catch(() => {});
        await run("tail", ["--pid", `${pid}`, "-f", "/dev/null"]);
        await mount.mount("rw");
        expect(await readFile(mount.at("file"), "utf8")).toBe("kept");
      });
    });
  },
);

test("options that fuse-native cannot keep are refused before anything is mounted", async () => {
  const refusals: [string, RegExp][] = [
    ["transport=fuse-native,direct=seal", /no direct mappings/],
    ["direct_group=0,transport=fuse-native", /no direct mappings/],
    ["transport=fuse-native,allow_other", /does not say which user calls/],
    ["transport=libfuse", /wants kernel, io_uring or fuse-native/],
    ["transport", /needs a value/],
  ];
  for (const [options, expected] of refusals) {
    const { code, stderr } = await cli(["mount", "-o", options, "/nowhere", "/nowhere"]);
    expect(code, options).toBe(2);
    expect(stderr, options).toMatch(expected);
  }
  expect((await cli(["mount", "--transport", "carrier-pigeon", "/nowhere", "/nowhere"])).code).toBe(2);
});

const HIDE = `
const Module = require("node:module");
const resolve = Module._resolveFilename;
Module._resolveFilename = function (request, ...rest) {
  if (request.startsWith("fuse-native")) throw Object.assign(new Error("hidden"), { code: "MODULE_NOT_FOUND" });
  return resolve.call(this, request, ...rest);
};`;
const BREAK = `
const dlopen = process.dlopen;
process.dlopen = (...args) => {
  if (args[1].includes("fuse-native")) throw new Error("libfuse.so.2: cannot open shared object file");
  return dlopen(...args);
};`;

test.for([
  ["not installed", HIDE, /fuse-native is not installed; mount without that option/],
  ["not loadable", BREAK, /fuse-native (cannot be loaded|is not installed).*; mount without that option/],
] as const)(
  "where fuse-native is %s, asking for it fails with what to do, and everything else works",
  async ([, code, expected]) => {
    await withMount({}, async (mount) => {
      await mount.unmount();
      const preload = join(mount.folder, "preload.cjs");
      await writeFile(preload, code);
      const env = { NODE_OPTIONS: `--require=${preload}` };
      const asked = await cli(["mount", "--transport", "fuse-native", mount.region, mount.path], { env });
      expect(asked.code).toBe(1);
      expect(asked.stderr).toMatch(expected);
      expect(mountAt(mount.path)).toBeUndefined();
      expect((await cli(["mount", mount.region, mount.path], { env })).code).toBe(0);
      await writeFile(mount.at("file"), "works");
    });
  },
);

test("every test that is skipped over fuse-native exists", () => {
  const suite = ["data", "lifecycle", "names", "tools"]
    .map((name) => readFileSync(join(packageRoot, "test/mount", `${name}.test.ts`), "utf8"))
    .join("\n");
  const gone = Object.keys(LACKING).filter(
    (name) => !suite.includes(`"${name}"`) && !suite.includes(name.replace(/^(cp -a|rsync|tar) /, "")),
  );
  expect(gone).toEqual([]);
});
