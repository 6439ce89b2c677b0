/** Completion, in the shells themselves. */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createProgram } from "../../src/cli/main.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { useMount } from "../support/mount.ts";
import { cli, missing, run, succeed } from "../support/run.ts";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(folderPrefix(tmpdir()));
  for (const shell of ["bash", "zsh", "fish"]) {
    const { code, stdout } = await cli(["completion", shell]);
    expect(code).toBe(0);
    await writeFile(join(folder, shell), stdout);
  }
  await mkdir(join(folder, "place"));
  await writeFile(join(folder, "place", "volume.region"), "");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const mount = useMount();

/** What bash would offer for the last of these words. */
async function offered(...words: string[]): Promise<string[]> {
  const script = `source "$1"; shift; compopt() { :; }; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mapdirect; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const out = await succeed("bash", ["-c", script, "bash", join(folder, "bash"), "mapdirect", ...words], {
    cwd: join(folder, "place"),
  });
  return out.split("\n").filter((line) => line !== "");
}

describe("bash", () => {
  test("offers every command, and the options of each", async () => {
    const program = await createProgram();
    const names = program.commands.flatMap((command) => [command.name(), ...command.aliases()]);
    expect((await offered("")).sort()).toEqual(names.sort());
    expect(await offered("unm")).toEqual(["unmount"]);
    for (const command of program.commands) {
      const options = command.options.filter(({ hidden }) => !hidden).map(({ long }) => long);
      expect(await offered(command.name(), "--")).toEqual(expect.arrayContaining([...options, "--help"]));
    }
    expect(await offered("mount", "--ready")).toEqual([]);
  });

  test("knows sub-commands, choices, mount options, files and mounts", async () => {
    expect(await offered("leases", "br")).toEqual(["break"]);
    expect(await offered("leases", "break", "--f")).toEqual(["--file"]);
    expect(await offered("completion", "z")).toEqual(["zsh"]);
    expect(await offered("mount", "--log-format", "j")).toEqual(["json", "journal"]);
    expect(await offered("mount", "-o", "ro,noa")).toEqual(["ro,noatime"]);
    expect(await offered("mount", "-o", "direct")).toEqual(["direct=", "direct_group="]);
    expect(await offered("fsck", "vol")).toEqual(["volume.region"]);
    expect(await offered("map", "--svg", "vol")).toEqual(["volume.region"]);
    expect(await offered("top", mount.path)).toContain(mount.path);
    expect(await offered("leases", "--json", mount.path)).toContain(mount.path);
  });
});

test.for([
  ["bash", ["-n"]],
  ["zsh", ["-n"]],
  ["fish", ["--no-execute"]],
] as const)("%s reads its file without complaint", async ([shell, check], { skip }) => {
  const lacking = missing(shell);
  if (lacking !== undefined) skip(lacking);
  expect(await run(shell, [...check, join(folder, shell)])).toEqual({ code: 0, stdout: "", stderr: "" });
});

test("fish offers commands, options, choices and mounts", async ({ skip }) => {
  const lacking = missing("fish");
  if (lacking !== undefined) skip(lacking);
  const offers = async (line: string): Promise<string[]> => {
    const out = await succeed("fish", [
      "--no-config",
      "-c",
      `source ${join(folder, "fish")}; complete -C '${line}'`,
    ]);
    return out.split("\n").map((row) => row.split("\t")[0] ?? "");
  };
  expect(await offers("mapdirect unm")).toContain("unmount");
  expect(await offers("mapdirect map --")).toEqual(expect.arrayContaining(["--svg", "--png", "--dark"]));
  expect(await offers("mapdirect mount --log-format ")).toEqual(
    expect.arrayContaining(["json", "text", "journal"]),
  );
  expect(await offers("mapdirect leases break --mount ")).toContain(mount.path);
});

test("another shell is wrong usage", async () => {
  expect(await cli(["completion", "csh"])).toMatchObject({ code: 2, stdout: "" });
});
