/** The man pages say all that the program has, and are well-formed. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Command } from "commander";
import { describe, expect, test } from "vitest";
import { createProgram } from "../../src/cli/main.ts";
import { mountOptionNames } from "../../src/daemon/options.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { missing, run } from "../support/run.ts";

const folder = join(packageRoot, "dist", "share", "man");
const pathOf = (section: number, name = "mapdirect"): string =>
  join(folder, `man${section}`, `${name}.${section}`);
/** As a reader sees it, without fonts. */
const textOf = (section: number): string =>
  readFileSync(pathOf(section), "utf8")
    .replaceAll(/\\f[BIR]/g, "")
    .replaceAll("\\-", "-");

describe("the pages", () => {
  test("mapdirect(1) has every command, and every option with what it does", async () => {
    const text = textOf(1);
    const look = (command: Command, path: string): void => {
      expect(text).toContain(`.SS ${path}\n`);
      for (const option of command.options.filter(({ hidden }) => !hidden)) {
        expect(text).toContain(`.TP\n${option.flags}\n${option.description.split(" ")[0]}`);
      }
      for (const sub of command.commands) look(sub, `${path} ${sub.name()}`);
    };
    for (const command of (await createProgram()).commands) look(command, `mapdirect ${command.name()}`);
    expect(text).toContain("Examples:\n  mapdirect mkfs --size 1G");
    expect(text).toContain(".SH WHEN SOMETHING IS WRONG");
  });

  test("mapdirect(5) has every mount option but what contradicts another, and the format", () => {
    const text = textOf(5);
    const negations =
      /^(no(relatime|strictatime)|(di)?ratime|a?sync|atime|exec|nosuid|nodev|diratime|default_permissions)$/;
    for (const name of mountOptionNames().filter((one) => !negations.test(one)))
      expect(text, name).toContain(name);
    expect(text).toContain(".SH SUPERBLOCK");
    expect(text).toContain("segment_bytes");
  });

  test("mapdirect(3) has every function of the header, which has a page of its own", () => {
    const header = readFileSync(join(packageRoot, "native", "client", "mapdirect.h"), "utf8");
    const names = [...header.matchAll(/^MAPDIRECT_API .*?(mapdirect_\w+)\(/gm)].map(
      (match) => match[1] ?? "",
    );
    expect(names.length).toBeGreaterThan(5);
    const text = textOf(3);
    for (const name of names) {
      expect(text).toContain(`.SS ${name}\n`);
      expect(readFileSync(pathOf(3, name), "utf8")).toBe(".so man3/mapdirect.3\n");
    }
    expect(readdirSync(join(folder, "man3"))).toHaveLength(names.length + 1);
  });
});

describe.each([1, 3, 5])("mapdirect(%i)", (section) => {
  test("passes mandoc's lint", async ({ skip }) => {
    const lacking = missing("mandoc");
    if (lacking !== undefined) skip(lacking);
    expect(await run("mandoc", ["-T", "lint", "-W", "warning", pathOf(section)])).toEqual({
      code: 0,
      stdout: "",
      stderr: "",
    });
  });

  test("is formatted by man(1) without a warning", async ({ skip }) => {
    const lacking = missing("man", "groff");
    if (lacking !== undefined) skip(lacking);
    const { code, stderr } = await run(
      "man",
      ["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", pathOf(section)],
      { env: { MANWIDTH: "100", LC_ALL: "C.UTF-8" } },
    );
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  });
});
