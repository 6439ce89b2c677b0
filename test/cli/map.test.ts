/** The picture of a volume, mounted and not. */
import { closeSync, openSync } from "node:fs";
import { chmod, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { cellsIn, gridOf, STYLES } from "../../src/cli/picture.ts";
import { Ioctl, LeaseKind } from "../../src/lease/wire.ts";
import { BLOCK_STATES } from "../../src/namespace/blockmap.ts";
import { addon } from "../../src/region/addon.ts";
import type { MapReport } from "../../src/session/blockmap.ts";
import { grantRequest } from "../support/grant.ts";
import { type TestMount, withMount } from "../support/mount.ts";
import { cli, noOtherUser, OTHER_UID, succeed } from "../support/run.ts";

const MIB = 1024 * 1024;

async function report(path: string, ...more: string[]): Promise<MapReport> {
  const { code, stdout, stderr } = await cli(["map", "--json", ...more, path]);
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as MapReport;
}

/** A file of each kind; returns a descriptor that holds a seal. */
async function fill(mount: TestMount): Promise<number> {
  await writeFile(mount.at("data"), Buffer.alloc(4 * MIB, 1));
  await writeFile(mount.at("sealed"), Buffer.alloc(2 * MIB, 2));
  await writeFile(mount.at("source"), Buffer.alloc(MIB, 3));
  await succeed("fallocate", ["-l", "3M", mount.at("unwritten")]);
  expect(await cli(["clone", mount.at("source"), mount.at("copy")])).toMatchObject({ code: 0 });
  const holder = openSync(mount.at("sealed"), "r+");
  addon().ioctl(holder, Ioctl.GRANT, grantRequest(LeaseKind.SEAL, 0, 2 * MIB));
  return holder;
}

describe("map", () => {
  test("of a mount and of its region say the same of files; leases are only there while it is mounted", async () => {
    await withMount({}, async (mount) => {
      const holder = await fill(mount);
      const mounted = await report(mount.path);
      closeSync(holder);
      expect(mounted.totals).toMatchObject({
        data: 4 * MIB,
        sealed: 2 * MIB,
        shared: MIB,
        unwritten: 3 * MIB,
      });
      expect(Object.values(mounted.totals).reduce((sum, bytes) => sum + bytes, 0)).toBe(64 * MIB);
      expect(mounted).toMatchObject({ files: 5, leases: 1 });
      expect(mounted.most_extents.every(({ file }) => file.startsWith(`${mount.path}/`))).toBe(true);
      await mount.unmount();
      const region = await report(mount.region);
      expect(region.totals).toMatchObject({ data: 6 * MIB, sealed: 0, shared: MIB, unwritten: 3 * MIB });
      expect((await cli(["map", mount.region])).stdout).toMatch(/^file data +6291456 +6 MiB +9\.4 %$/m);
      await mount.mount();
    });
  });

  test("as SVG it has title, scale, legend and the states that there are; as PNG it is one of that size", async () => {
    await withMount({}, async (mount) => {
      const holder = await fill(mount);
      const svg = join(mount.folder, "map.svg");
      const png = join(mount.folder, "map.png");
      const { code, stdout, stderr } = await cli(["map", "--svg", svg, "--png", png, "--dark", mount.path]);
      closeSync(holder);
      expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: "", stderr: "" });
      const text = await readFile(svg, "utf8");
      for (const { title } of Object.values(STYLES)) expect(text).toContain(`>${title}: `);
      for (const state of ["data", "sealed", "shared", "unwritten", "metadata", "free"])
        expect(text).toContain(`<path class="${state}"`);
      expect(text).not.toContain('<path class="breaking"');
      expect(text).toContain("5 files in 5 extents, 1 lease; each cell is 8192 B (2 blocks)");
      const { Resvg } = await import("@resvg/resvg-js");
      const { width, height } = new Resvg(text);
      const image = await readFile(png);
      expect(image.subarray(1, 4).toString()).toBe("PNG");
      expect([image.readUInt32BE(16), image.readUInt32BE(20)]).toEqual([2 * width, 2 * height]);
    });
  });

  test("is for root and whoever mounted", async ({ skip }) => {
    const lacking = noOtherUser();
    if (lacking !== undefined) skip(lacking);
    await withMount({}, async (mount) => {
      await chmod(mount.path, 0o755);
      const { code, stderr } = await cli(["map", mount.path], { user: OTHER_UID });
      expect(code).toBe(1);
      expect(stderr).toContain("root");
    });
  });

  test.each([
    ["no cells", ["map", "--cells", "0", "/x"]],
    ["too many cells", ["map", "--cells", "65537", "/x"]],
    ["both themes", ["map", "--dark", "--light", "/x"]],
  ])("%s is wrong usage", async (_, args) => {
    expect(await cli(args)).toMatchObject({ code: 2, stdout: "" });
  });
});

describe("a cell of the picture", () => {
  const states = [...BLOCK_STATES];
  const of = (...cells: number[][]): MapReport =>
    ({ states, cells, totals: {}, cell_blocks: 1000, block_size: 4096 }) as unknown as MapReport;

  test("shows a single block that is being broken among a thousand others", () => {
    const { paths } = gridOf(of([1, 0, 0, 999, 0, 0, 0, 0, 1, 0]));
    expect(Number(/v([\d.]+)/.exec(paths.breaking ?? "")?.[1])).toBeGreaterThanOrEqual(3);
  });

  test("is never higher than a cell, whatever is in it", () => {
    for (const counts of [
      [1, 1, 1, 1, 1, 1, 1, 1, 1],
      [0, 0, 997, 0, 0, 0, 1, 1, 1],
      [0, 300, 300, 1, 1, 1, 1, 1, 395],
    ]) {
      const { paths } = gridOf(of([1, ...counts]));
      const heights = Object.entries(paths).map(
        ([state, path]) => [state, Number(/v([\d.]+)/.exec(path)?.[1])] as const,
      );
      const sum = heights.reduce((all, [state, height]) => all + (state === "free" ? 0 : height), 0);
      expect(sum).toBeLessThanOrEqual(8.05);
    }
  });

  test("is said once for all that are alike, and drawn as often as there are", () => {
    expect([...cellsIn(of([3, 1, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]))]).toHaveLength(4);
  });
});
