import { describe, expect, test } from "vitest";
import { properties, table, toJson } from "../../src/cli/output.ts";

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
