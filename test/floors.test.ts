/**
 * The floors of the source tree: imports go strictly down, so that each floor can be read, tested and replaced without
 * those above it.
 */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const source = join(root, "src");

/** From the bottom to the top. A file imports from its own folder and from folders below. */
const FLOORS = [
  "base",
  "tables",
  "layout",
  "region",
  "media",
  "space",
  "namespace",
  "fsck",
  "lease",
  "session",
  "daemon",
  "cli",
  "api",
  "bin",
];

/** The kernel's protocol is a column beside the floors: it stands on these, and only these stand on it. */
const FUSE_IMPORTS = ["base", "layout"];
const FUSE_IMPORTERS = ["session", "fuse-api"];

/** What the package exports as mapdirect/fuse stands beside the floors, too: it knows of no volume, and nobody imports it. */
const FUSE_API_IMPORTS = ["base", "layout", "fuse", "region"];

function filesUnder(folder: string, pattern: RegExp): string[] {
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && pattern.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name));
}

/** The modules that a file names: static, re-exported, type-only and dynamic. */
function importsOf(text: string): string[] {
  const pattern = /(?:\bfrom\s*|\bimport\s*\(\s*|\bimport\s+)(["'])([^"'\n]+)\1/g;
  return [...text.matchAll(pattern)].map((match) => match[2] ?? "");
}

const floorOf = (file: string): string => relative(source, file).split("/")[0] ?? "";

function violation(from: string, to: string): string | undefined {
  if (from === to) return undefined;
  if (from === "fuse-api") return FUSE_API_IMPORTS.includes(to) ? undefined : `fuse-api may not import ${to}`;
  if (from === "fuse") return FUSE_IMPORTS.includes(to) ? undefined : `fuse may not import ${to}`;
  if (to === "fuse") return FUSE_IMPORTERS.includes(from) ? undefined : `${from} may not import fuse`;
  const [lower, upper] = [FLOORS.indexOf(to), FLOORS.indexOf(from)];
  if (lower < 0 || upper < 0) return `${from} or ${to} is no floor`;
  return lower < upper ? undefined : `${from} may not import ${to}, which is not below it`;
}

describe("floors", () => {
  const files = filesUnder(source, /\.ts$/);

  test("the rule itself tells down from up and sideways", () => {
    expect(violation("cli", "base")).toBeUndefined();
    expect(violation("session", "fuse")).toBeUndefined();
    expect(violation("base", "layout")).toContain("not below");
    expect(violation("fuse", "region")).toContain("may not");
    expect(violation("daemon", "fuse")).toContain("may not");
    expect(violation("fuse-api", "fuse")).toBeUndefined();
    expect(violation("fuse-api", "namespace")).toContain("may not");
    expect(violation("api", "fuse-api")).toContain("no floor");
    expect(violation("native", "base")).toContain("no floor");
  });

  test("every import of a source file goes to its own folder or to a floor below", () => {
    const found = files.flatMap((file) =>
      importsOf(readFileSync(file, "utf8"))
        .filter((name) => name.startsWith("."))
        .map((name) => {
          const problem = violation(floorOf(file), floorOf(resolve(dirname(file), name)));
          return problem === undefined ? undefined : `${relative(root, file)} imports ${name}: ${problem}`;
        })
        .filter((problem) => problem !== undefined),
    );
    expect(found).toEqual([]);
  });

  test("no source file imports through the package or from the compiled output", () => {
    const found = files.filter((file) =>
      importsOf(readFileSync(file, "utf8")).some((name) => /^mapdirect|\/dist\//.test(name)),
    );
    expect(found.map((file) => relative(root, file))).toEqual([]);
  });

  test("the picture of the floors shows each folder", () => {
    const picture = readFileSync(join(root, "docs/images/floors.svg"), "utf8");
    const missing = [...new Set(files.map(floorOf))].filter((floor) => !picture.includes(`>${floor}/<`));
    expect(missing).toEqual([]);
  });

  test("only src/region/addon.ts loads the native addon", () => {
    const loaders = files.filter((file) => {
      const text = readFileSync(file, "utf8");
      return /createRequire|process\.dlopen|require\(|\.node["'`]/.test(text);
    });
    expect(loaders.map((file) => relative(root, file))).toEqual(
      loaders.length === 0 ? [] : ["src/region/addon.ts"],
    );
  });

  test("only native/napi includes the header of N-API", () => {
    const includers = filesUnder(join(root, "native"), /\.(c|cc|cpp|h|hpp)$/).filter((file) =>
      /#\s*include\s*[<"](napi|node_api)\.h[>"]/.test(readFileSync(file, "utf8")),
    );
    const outside = includers
      .map((file) => relative(root, file))
      .filter((path) => !path.startsWith("native/napi/"));
    expect(outside).toEqual([]);
  });

  test("entry points hold no logic: a single call each", () => {
    for (const file of files.filter((path) => floorOf(path) === "bin")) {
      const code = readFileSync(file, "utf8")
        .replace(/^#!.*$/m, "")
        .replace(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, "")
        .split("\n")
        .filter((line) => line.trim() !== "");
      expect(code.length, relative(root, file)).toBeLessThanOrEqual(4);
    }
  });
});
