/** The linter's own rules in scripts/lint/: what they forbid in src/, and what they let through. */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";

/** Lines of this source that a rule complains about. */
function complaints(rule: string, source: readonly string[]): number[] {
  const folder = mkdtempSync(join(tmpdir(), "mapdirect-lint-"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  const plugin = join(packageRoot, "scripts", "lint", `${rule}.grit`);
  mkdirSync(join(folder, "src"));
  writeFileSync(
    join(folder, "biome.json"),
    JSON.stringify({ overrides: [{ includes: ["src/**"], plugins: [plugin] }] }),
  );
  writeFileSync(join(folder, "src", "a.ts"), `${source.join("\n")}\n`);
  let said: string;
  try {
    said = execFileSync(
      join(packageRoot, "node_modules", ".bin", "biome"),
      ["lint", "--reporter=github", "--max-diagnostics=none", "."],
      { cwd: folder, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] },
    );
  } catch (error) {
    said = (error as { stdout: string }).stdout;
  }
  return said
    .split("\n")
    .filter((line) => line.includes("title=plugin"))
    .map((line) => Number(/line=(\d+)/.exec(line)?.[1]))
    .sort((a, b) => a - b);
}

test("an array as an argument list is forbidden in every form, unless what bounds it is said", () => {
  const source = [
    "export function f(a: number[], g: (...all: number[]) => number): unknown {",
    "  Math.max(...a);",
    "  a.push(1, ...a);",
    "  a?.splice(0, 0, ...a, 2);",
    "  new Set(...(a as []));",
    "  g.apply(null, a);",
    "  Reflect.apply(g, null, a);",
    "  // biome-ignore lint/plugin: two of them",
    "  g(...a);",
    "  return [[...a].length, { ...{ a } }, g(Math.max(a[0] ?? 0, [...a].length))];",
    "}",
  ];
  expect(complaints("no-argument-lists-from-arrays", source)).toEqual([2, 3, 4, 5, 6, 7]);
});

test("a callback of a timer is guarded, unless it is but a name", () => {
  const source = [
    "export function f(run: () => void): void {",
    "  setTimeout(() => run(), 1);",
    "  setInterval(async () => run(), 1);",
    "  setImmediate(() => run());",
    "  setTimeout(run, 1);",
    "  void new Promise((resolve) => setImmediate(resolve)).catch(run);",
    "}",
  ];
  expect(complaints("no-bare-callbacks", source)).toEqual([2, 3, 4]);
});

test("a promise that nobody awaits is caught", () => {
  const source = [
    "export async function f(run: () => Promise<void>): Promise<void> {",
    "  void run();",
    "  void run().then(() => {});",
    "  void run().catch(() => {});",
    "  void (await run());",
    "}",
  ];
  expect(complaints("no-forgotten-promises", source)).toEqual([2, 3]);
});
