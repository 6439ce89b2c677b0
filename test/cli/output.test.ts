import { describe, expect, test } from "vitest";
import { properties, table, toJson } from "../../src/cli/output.ts";
import { missing, programPath, run } from "../support/run.ts";

describe("output", () => {
  test("JSON keeps all digits of 64-bit numbers and leaves out what is undefined", () => {
    const text = toJson({
      big: 2n ** 63n - 1n,
      list: [1, "a\n", null, { deep: true }],
      none: undefined,
      empty: {},
    });
    expect(text).toContain("9223372036854775807");
    expect(JSON.parse(text)).toEqual({ big: 2 ** 63, list: [1, "a\n", null, { deep: true }], empty: {} });
    expect(toJson([])).toBe("[]");
  });

  test("a table lines up its columns, numbers to the right", () => {
    expect(
      table(
        ["state", "offset"],
        [
          ["hole", "0"],
          ["written", "4096"],
        ],
      ),
    ).toBe(["state    offset", "hole          0", "written    4096"].join("\n"));
  });

  test("a table has as many rows as there are: the extents of a file are many", () => {
    const rows = Array.from({ length: 150_000 }, (_, index) => ["written", `${index}`]);
    const lines = table(["state", "offset"], rows).split("\n");
    expect([lines.length, lines[1], lines.at(-1)]).toEqual([150_001, "written       0", "written  149999"]);
  });

  test("properties show nested objects and lists", () => {
    expect(
      properties({ uuid: "x", region: { kind: "file", map_sync: false }, notes: ["a"], none: null }),
    ).toBe(
      ["uuid    x", "region", "  kind      file", "  map_sync  no", "notes", "  - a", "none    none"].join(
        "\n",
      ),
    );
  });
});

describe("colours", () => {
  const ESC = String.fromCharCode(27);
  // Node takes no terminal for one that has colours when CI is set.
  const onTerminal = (args: string, env: Record<string, string> = {}) =>
    run("script", ["-qec", `env -u CI ${process.execPath} ${programPath} ${args}`, "/dev/null"], {
      env: { TERM: "xterm", ...env },
    });

  test("on a terminal titles of help are bold and errors begin in red; with NO_COLOR nothing is", async ({
    skip,
  }) => {
    const lacking = missing("script");
    if (lacking !== undefined) skip(lacking);
    expect((await onTerminal("mkfs --help")).stdout).toContain(`${ESC}[1mOptions:`);
    expect((await onTerminal("info /no/such")).stdout).toContain(`${ESC}[31mmapdirect:`);
    for (const args of ["mkfs --help", "info /no/such", "frobnicate"])
      expect((await onTerminal(args, { NO_COLOR: "1" })).stdout).not.toContain(ESC);
  });

  test("paint of a cell leaves the columns where they are", () => {
    const plain = table(
      ["state", "file"],
      [
        ["held", "a"],
        ["breaking", "b"],
      ],
    );
    const painted = table(
      ["state", "file"],
      [
        ["held", "a"],
        ["breaking", "b"],
      ],
      (text, column) => (column === 0 ? `<${text}>` : text),
    );
    expect(painted.replaceAll(/[<>]/g, "")).toBe(plain);
    expect(painted).toContain("<held    >");
  });
});
