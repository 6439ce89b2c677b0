import { open, readFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { mapDirect } from "../../src/api/index.ts";
import { withMount } from "../support/mount.ts";

const MIB = 1 << 20;
/** Fewer than 2 MiB: a larger file gets runs of that size for itself. */
const BLOCKS = 500;

test("defrag brings a file's blocks together, and waits for nobody's seal", async () => {
  await withMount({ sizeBytes: 64 * MIB, options: "break_time=1" }, async (mount) => {
    const path = mount.at("file");
    const file = await open(path, "w+");
    const other = await open(mount.at("other"), "w+");
    const block = (index: number): Buffer => Buffer.alloc(4096, 1 + (index % 250));
    // By turns with another file: none is physically behind its neighbour.
    for (let index = 0; index < BLOCKS; index += 1) {
      for (const one of [file, other]) await one.write(block(index), 0, 4096, index * 4096);
    }
    await file.close();
    await other.close();
    const content = Buffer.concat(Array.from({ length: BLOCKS }, (_, index) => block(index)));
    const sealed = await mapDirect(path, { lease: "seal", length: 4096 });
    const refused = await mount.cli("defrag", path);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain("a direct mapping pins its blocks");
    await sealed.release();
    expect((await mount.cli("defrag", path)).stdout).toMatch(/: 500 extents, now [12]\n$/);
    expect((await mount.cli("defrag", path)).stdout).toMatch(/: [12] extents, as before\n$/);
    expect((await readFile(path)).equals(content)).toBe(true);
    await mount.check();
    await mount.kill9AndRemount();
    expect((await readFile(path)).equals(content)).toBe(true);
    const read = await mount.cli("defrag", mount.path);
    expect(read.code).toBe(1);
  });
});
