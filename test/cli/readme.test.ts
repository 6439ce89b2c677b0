/** Everything in the README that can be run is run: its programs, and its commands one after the other as a user would. */
import { readFileSync } from "node:fs";
import { chmod, mkdir, mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { mountAt } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { withMount } from "../support/mount.ts";
import { noNumpy, numpyPython, pythonPath } from "../support/python.ts";
import { cli, missing, noOtherUser, notRoot, OTHER_UID, run, succeed } from "../support/run.ts";

const readme = readFileSync(join(packageRoot, "README.md"), "utf8");

/** The program for C, as the README has it compiled. */
async function compileTour(folder: string): Promise<string> {
  const program = /```c\n([\s\S]*?)```/.exec(readme)?.[1] ?? "";
  expect(program).toContain("mapdirect_map");
  const source = join(folder, "tour.c");
  const binary = join(folder, "tour");
  await writeFile(source, program);
  const [include, lib] = ["include", "lib"].map((name) => join(packageRoot, "dist", name));
  await succeed("cc", [
    ...["-D_GNU_SOURCE", "-Wall", "-Werror", source, `-I${include}`, `-L${lib}`],
    ...["-lmapdirect", `-Wl,-rpath,${lib}`, "-o", binary],
  ]);
  return binary;
}

test("the program of the tour", async ({ skip }) => {
  const lacking = missing("cc");
  if (lacking !== undefined) skip(lacking);
  await withMount({}, async (mount) => {
    const binary = await compileTour(mount.folder);
    const { code, stderr } = await run(binary, [mount.at("file")]);
    expect(stderr).toBe("truncate while mapped: Text file busy\n");
    expect(code).toBe(0);
    expect((await stat(mount.at("file"))).size).toBe(1 << 20);
    expect(readFileSync(mount.at("file")).toString("latin1", 0, 28)).toBe("stored without a system call");
  });
});

test("the program of the tour, by an ordinary user on root's mount, needs the group that the README names", async ({
  skip,
}) => {
  const lacking = noOtherUser() ?? missing("cc", "setpriv");
  if (lacking !== undefined) skip(lacking);
  const group = 64_124;
  expect(readme).toContain("-o direct_group=GROUP");
  await withMount({ options: `direct_group=${group}` }, async (mount) => {
    const binary = await compileTour(mount.folder);
    await chmod(mount.path, 0o777);
    const asUser = (groups: string) => {
      const identity = [`--reuid=${OTHER_UID}`, `--regid=${OTHER_UID}`, groups];
      return run("setpriv", [...identity, "--", binary, mount.at(`file ${groups}`)]);
    };
    expect(await asUser("--clear-groups")).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("map: Permission denied\n"),
    });
    expect(await asUser(`--groups=${group}`)).toMatchObject({
      code: 0,
      stderr: "truncate while mapped: Text file busy\n",
    });
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
    // Elsewhere than in the clone, and with the link that the README makes.
    await writeFile(join(folder, "tour.mjs"), placed);
    const link =
      /`(mkdir -p node_modules && ln -s PATH_OF_THE_CLONE node_modules\/mapdirect)`/.exec(readme)?.[1] ?? "";
    await succeed("sh", ["-c", link.replace("PATH_OF_THE_CLONE", packageRoot)], { cwd: folder });
    const { code, stdout, stderr } = await run(process.execPath, ["tour.mjs"], { cwd: folder });
    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(/state: 'written',\s+physical: \d+n/);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

test.skipIf(noNumpy !== undefined)(
  `the program for Python${noNumpy === undefined ? "" : `: ${noNumpy}`}`,
  async () => {
    const program = /```python\n([\s\S]*?)```/.exec(readme)?.[1] ?? "";
    expect(program).toContain("mapdirect.map");
    await withMount({}, async (mount) => {
      const placed = program.replace('"/mnt/', `"${mount.path}/`);
      const env = { PYTHONPATH: pythonPath };
      expect(await succeed(numpyPython as string, ["-c", placed], { env })).toMatch(
        /^Location\(state='written', physical=\d+, length=\d+, lease_id=\d+, generation=\d+\)\n$/,
      );
      expect(readFileSync(mount.at("table")).readDoubleLE((1 << 20) - 8)).toBe(1.5);
    });
  },
);

/** The blocks of commands, in order. */
const commands = [...readme.matchAll(/```sh\n([\s\S]*?)```/g)].map((match) => match[1] ?? "");

describe("the commands", () => {
  test("of the first block are scripts of the package; npm start is the demonstration, and leaves nothing behind", async () => {
    const [first = ""] = commands;
    const { scripts } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as {
      scripts: Record<string, string>;
    };
    const named = [...first.matchAll(/^npm (?:run )?(\w+)/gm)].map((match) => match[1] ?? "");
    expect(named).toEqual(["start", "test"]);
    for (const name of named) expect(scripts).toHaveProperty(name);
    const { code, stderr } = await run("npm", ["start", "--silent"], { cwd: packageRoot });
    expect(code, stderr).toBe(0);
  });

  test("of the tour work in their order, from the first to the last", async ({ skip }) => {
    const lacking = notRoot ?? missing("bash", "cc", "fio", "man");
    if (lacking !== undefined) skip(lacking);
    const folder = await mkdtemp(folderPrefix("/dev/shm"));
    onTestFinished(async () => {
      // Only if it went wrong half-way.
      if (mountAt(join(folder, "mnt")) !== undefined) await cli(["unmount", "--lazy", join(folder, "mnt")]);
      await rm(folder, { recursive: true, force: true });
    });
    for (const name of ["mnt", "home/documents"]) await mkdir(join(folder, name), { recursive: true });
    await writeFile(join(folder, "home/documents/book"), "a book");
    await writeFile(
      join(folder, "tour.c"),
      `#define _GNU_SOURCE\n${/```c\n([\s\S]*?)```/.exec(readme)?.[1]}`,
    );
    const lines = commands
      .slice(1)
      .join("\n")
      .split("\n")
      .map((line) => line.replace(/ +#.*$/, "").trim())
      .filter((line) => line !== "");
    expect(lines.length).toBeGreaterThan(15);
    const placed = lines.map((line) => {
      const command = line
        .replaceAll("$PWD", packageRoot)
        .replaceAll("/srv/volume.region", join(folder, "region"))
        .replaceAll(/(?<![\w/])\/mnt\b/g, join(folder, "mnt"))
        .replace("npm run build", `npm --prefix ${packageRoot} --silent run build`);
      // It serves until it is ended.
      if (command.includes("mapdirect dashboard"))
        return `timeout --signal=INT 5 ${command.replace("mapdirect", join(packageRoot, "dist/bin/mapdirect.js"))} || [ $? = 124 ]`;
      return command;
    });
    // Each command is said before it is run: the output tells which one failed.
    const script = [
      "set -euo pipefail",
      ...placed.flatMap((line) => [`echo "+ "${quoted(line)}`, line]),
    ].join("\n");
    const { code, stdout, stderr } = await run("bash", ["-c", script], {
      cwd: folder,
      env: { HOME: join(folder, "home"), MANPAGER: "cat" },
    });
    expect(code, `${stdout}\n${stderr}`).toBe(0);
    expect(stderr).toContain("truncate while mapped: Text file busy");
    expect(stdout).toMatch(/^written +0 +4096 /m);
    expect(stdout).toContain("MAPDIRECT(1)");
    expect(stdout).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/[\w-]{43}\/$/m);
    // fio's mapping was a direct one.
    expect(stderr).toMatch(/\bautomatic=[1-9]/);
    expect(readFileSync(join(folder, "map.png")).subarray(1, 4).toString()).toBe("PNG");
    expect(mountAt(join(folder, "mnt"))).toBeUndefined();
  });
});

const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

test("every picture of the README and of the documents is there, and is a PNG", () => {
  const named = [...readme.matchAll(/!\[[^\]]+\]\(([^)]+)\)/g)].map((match) => match[1] ?? "");
  expect(named.length).toBeGreaterThan(1);
  for (const path of named)
    expect(readFileSync(join(packageRoot, path)).subarray(1, 4).toString(), path).toBe("PNG");
});

test("every document that the README names is there", () => {
  const named = [...readme.matchAll(/\]\(([\w/.-]+\.md|LICENSE)\)/g)].map((match) => match[1] ?? "");
  expect(named.length).toBeGreaterThan(4);
  for (const path of named) expect(() => readFileSync(join(packageRoot, path)), path).not.toThrow();
});
