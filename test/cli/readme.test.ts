/** The README's program compiles with warnings as errors and does what the README says. */
import { readFileSync } from "node:fs";
import { mkdir, mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { withMount } from "../support/mount.ts";
import { missing, run, succeed } from "../support/run.ts";

const readme = readFileSync(join(packageRoot, "README.md"), "utf8");

test("the program of the tour", async ({ skip }) => {
  const lacking = missing("cc");
  if (lacking !== undefined) skip(lacking);
  const program = /```c\n([\s\S]*?)```/.exec(readme)?.[1] ?? "";
  expect(program).toContain("mapdirect_map");
  await withMount({}, async (mount) => {
    const source = join(mount.folder, "tour.c");
    const binary = join(mount.folder, "tour");
    await writeFile(source, program);
    const [include, lib] = ["include", "lib"].map((name) => join(packageRoot, "dist", name));
    await succeed("cc", [
      ...["-D_GNU_SOURCE", "-Wall", "-Werror", source, `-I${include}`, `-L${lib}`],
      ...["-lmapdirect", `-Wl,-rpath,${lib}`, "-o", binary],
    ]);
    const { code, stderr } = await run(binary, [mount.at("file")]);
    expect(stderr).toBe("truncate while mapped: Text file busy\n");
    expect(code).toBe(0);
    expect((await stat(mount.at("file"))).size).toBe(1 << 20);
    expect(readFileSync(mount.at("file")).toString("latin1", 0, 28)).toBe("stored without a system call");
  });
});

test("the program for Node", async () => {
  const program = /```js\n([\s\S]*?)```/.exec(readme)?.[1] ?? "";
  expect(program).toContain("mapDirect");
  const folder = await mkdtemp(folderPrefix("/dev/shm"));
  try {
    await mkdir(join(folder, "mnt"));
    const placed = program
      .replaceAll("/srv/volume.region", join(folder, "region"))
      .replaceAll('"/mnt', `"${join(folder, "mnt")}`)
      .replace("1 << 30", "1 << 25");
    const { code, stdout, stderr } = await run(process.execPath, ["--input-type=module", "-e", placed], {
      cwd: packageRoot,
    });
    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(/state: 'written',\s+physical: \d+n/);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

test("every document that the README names is there", () => {
  const named = [...readme.matchAll(/\]\(([\w/.-]+\.md|LICENSE)\)/g)].map((match) => match[1] ?? "");
  expect(named.length).toBeGreaterThan(4);
  for (const path of named) expect(() => readFileSync(join(packageRoot, path)), path).not.toThrow();
});
