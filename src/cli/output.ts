/** How commands print: tables for people, JSON for programs. Everything goes to stdout; errors never do. */
import { largest } from "../base/arrays.ts";
import { formatSize } from "../daemon/sizes.ts";

/** One JSON document. Integers beyond 2^53 keep all their digits, as JSON allows. */
export function toJson(value: unknown): string {
  return render(value, "");
}

function render(value: unknown, indent: string): string {
  if (typeof value === "bigint") return value.toString();
  if (Array.isArray(value)) {
    if (value.length === 0) return "[]";
    const inner = value.map((item) => `${indent}  ${render(item, `${indent}  `)}`);
    return `[\n${inner.join(",\n")}\n${indent}]`;
  }
  if (typeof value === "object" && value !== null) {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined);
    if (entries.length === 0) return "{}";
    const inner = entries.map(
      ([key, item]) => `${indent}  ${JSON.stringify(key)}: ${render(item, `${indent}  `)}`,
    );
    return `{\n${inner.join(",\n")}\n${indent}}`;
  }
  return JSON.stringify(value) ?? "null";
}

export function print(text: string): void {
  process.stdout.write(text.endsWith("\n") ? text : `${text}\n`);
}

/** How a cell below the header looks on a terminal; its width must stay. */
export type Paint = (text: string, column: number) => string;

/** Columns as wide as their widest cell; cells that are all numbers are set to the right. */
export function table(
  header: readonly string[],
  rows: readonly (readonly string[])[],
  paint: Paint = (text) => text,
): string {
  const numeric = header.map((_, column) => rows.every((row) => /^[0-9-]*$/.test(row[column] ?? "")));
  const widths = header.map((title, column) =>
    Math.max(
      title.length,
      largest(rows, (row) => (row[column] ?? "").length),
    ),
  );
  const line = (cells: readonly string[], row: number): string =>
    cells
      .map((cell, column) => {
        const width = widths[column] ?? 0;
        const padded = numeric[column] ? cell.padStart(width) : cell.padEnd(width);
        return row === 0 ? padded : paint(padded, column);
      })
      .join("  ")
      .trimEnd();
  return [header, ...rows].map(line).join("\n");
}

/** The same, with the numbers of these names as sizes for people. */
export function withUnits(
  value: Readonly<Record<string, unknown>>,
  sizes: ReadonlySet<string>,
): Record<string, unknown> {
  const shown = (key: string, item: unknown): unknown => {
    if (typeof item === "number" && sizes.has(key)) return formatSize(item);
    const nested = typeof item === "object" && item !== null && !Array.isArray(item);
    return nested ? withUnits(item as Record<string, unknown>, sizes) : item;
  };
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, shown(key, item)]));
}

/** Names and values, one a line; nested objects are indented. */
export function properties(value: Readonly<Record<string, unknown>>, indent = ""): string {
  const entries = Object.entries(value).filter(([, item]) => item !== undefined);
  const width = Math.max(
    0,
    largest(entries, ([key]) => key.length),
  );
  return entries
    .map(([key, item]) => {
      const name = `${indent}${key.padEnd(width)}`;
      if (Array.isArray(item)) {
        if (item.length === 0) return `${name}  none`;
        const lines = item.map((part) =>
          typeof part === "object" && part !== null ? JSON.stringify(part) : String(part),
        );
        return `${indent}${key}\n${lines.map((part) => `${indent}  - ${part}`).join("\n")}`;
      }
      if (typeof item === "object" && item !== null) {
        return `${indent}${key}\n${properties(item as Record<string, unknown>, `${indent}  `)}`;
      }
      return `${name}  ${item === null ? "none" : item === true ? "yes" : item === false ? "no" : String(item)}`;
    })
    .join("\n");
}
