/**
 * The block map of a volume as a picture. One drawing serves the file that `mapdirect map` writes and the page of
 * `mapdirect dashboard`.
 *
 * Invariants:
 * - a cell shows what its blocks are in proportion, from the bottom up; what needs attention (breaking, quarantined) is
 *   seen in a cell even if it is a single block of a million;
 * - the size of a picture depends on the number of cells and not on the number of extents.
 */
import { formatSize } from "../daemon/sizes.ts";
import type { MapReport } from "../session/blockmap.ts";

interface Style {
  readonly title: string;
  /** Colours on light and on dark. */
  readonly light: string;
  readonly dark: string;
}

/** In the order in which a cell is filled. */
export const STYLES: Readonly<Record<string, Style>> = {
  metadata: { title: "metadata", light: "#7c8798", dark: "#8b96a8" },
  data: { title: "file data", light: "#3f86c6", dark: "#4c94d8" },
  unwritten: { title: "unwritten", light: "#b3d2ec", dark: "#2c5478" },
  shared: { title: "shared", light: "#2a9d83", dark: "#35b598" },
  leased: { title: "leased (breakable)", light: "#e2b93b", dark: "#e8c658" },
  sealed: { title: "sealed", light: "#dd7a22", dark: "#ef8f3c" },
  breaking: { title: "breaking", light: "#d02f45", dark: "#f4566c" },
  quarantined: { title: "quarantined", light: "#8d49b6", dark: "#b57be0" },
  free: { title: "free", light: "#e7ebf0", dark: "#262c35" },
};
const TEXT = { light: "#1f2630", dark: "#dfe5ee" };
const FAINT = { light: "#667085", dark: "#97a2b3" };
const PAPER = { light: "#ffffff", dark: "#14181e" };

export const COLUMNS = 128;
/** Of a cell, with the gap to the next. */
export const CELL_PX = 9;
const GAP_PX = 1;
/** Least height of what must not be overlooked. */
const URGENT_PX = 3;
const URGENT = new Set(["sealed", "breaking", "quarantined"]);

/** Cell by cell, the blocks in each state. */
export function* cellsIn(report: MapReport): IterableIterator<readonly number[]> {
  for (const [repeat = 0, ...counts] of report.cells) for (let n = 0; n < repeat; n += 1) yield counts;
}

export interface Grid {
  readonly rows: number;
  readonly width: number;
  readonly height: number;
  /** A path for each state that occurs. */
  readonly paths: Readonly<Record<string, string>>;
}

export function gridOf(report: MapReport): Grid {
  const paths: Record<string, string[]> = {};
  const full = CELL_PX - GAP_PX;
  const put = (state: string, x: number, y: number, width: number, height: number): void => {
    paths[state] ??= [];
    paths[state].push(`M${x} ${round(y)}h${width}v${round(height)}h-${width}z`);
  };
  let index = 0;
  for (const counts of cellsIn(report)) {
    const x = (index % COLUMNS) * CELL_PX;
    const y = Math.floor(index / COLUMNS) * CELL_PX;
    const total = counts.reduce((sum, count) => sum + count, 0);
    put("free", x, y, full, full);
    let bottom = y + full;
    const heights = heightsOf(report.states, counts, total, full);
    for (const [state, height] of heights) {
      put(state, x, bottom - height, full, height);
      bottom -= height;
    }
    index += 1;
  }
  const rows = Math.ceil(index / COLUMNS);
  return {
    rows,
    width: Math.min(index, COLUMNS) * CELL_PX - GAP_PX,
    height: rows * CELL_PX - GAP_PX,
    paths: Object.fromEntries(Object.entries(paths).map(([state, parts]) => [state, parts.join("")])),
  };
}

/** From the bottom of a cell upwards: how high each state is, in pixels. */
function heightsOf(
  states: readonly string[],
  counts: readonly number[],
  total: number,
  full: number,
): [string, number][] {
  const heights: [string, number][] = [];
  for (const state of Object.keys(STYLES)) {
    const count = counts[states.indexOf(state)] ?? 0;
    if (state === "free" || count === 0) continue;
    const height = (count / total) * full;
    heights.push([state, URGENT.has(state) ? Math.max(height, URGENT_PX) : Math.max(height, 0.6)]);
  }
  const sum = heights.reduce((all, [, height]) => all + height, 0);
  // What must be seen took more than its share: the others give way, never it.
  if (sum > full) {
    const urgent = heights.reduce((all, [state, height]) => all + (URGENT.has(state) ? height : 0), 0);
    for (const entry of heights) {
      if (urgent >= full) entry[1] *= full / sum;
      else if (!URGENT.has(entry[0])) entry[1] *= (full - urgent) / (sum - urgent);
    }
  }
  return heights;
}

const round = (value: number): number => Math.round(value * 100) / 100;

const escapeText = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

/** Theme "auto" follows whoever looks at it (prefers-color-scheme). */
export type Theme = "auto" | "light" | "dark";

function colours(theme: "light" | "dark"): string {
  const rules = Object.entries(STYLES).map(([state, style]) => `.${state}{fill:${style[theme]}}`);
  return `${rules.join("")}.paper{fill:${PAPER[theme]}}.text{fill:${TEXT[theme]}}.faint{fill:${FAINT[theme]}}`;
}

export function styleSheet(theme: Theme): string {
  if (theme !== "auto") return colours(theme);
  return `${colours("light")}@media(prefers-color-scheme:dark){${colours("dark")}}`;
}

/** The picture with title, scale and legend. */
export function pictureOf(report: MapReport, name: string, theme: Theme): string {
  const grid = gridOf(report);
  const left = 92;
  const top = 76;
  const width = left + COLUMNS * CELL_PX + 24;
  const legendTop = top + grid.height + 36;
  const height = legendTop + 62;
  const parts: string[] = [];
  const text = (x: number, y: number, words: string, look: string, anchor = "start"): void => {
    parts.push(`<text x="${x}" y="${y}" class="${look}" text-anchor="${anchor}">${escapeText(words)}</text>`);
  };
  text(24, 34, name, "text big");
  const cell = report.cell_blocks * report.block_size;
  const blocks = report.cell_blocks === 1 ? "a block" : `${report.cell_blocks} blocks`;
  text(
    24,
    56,
    `${formatSize(report.size)}, ${count(report.files, "file")} in ${count(report.extents, "extent")}, ` +
      `${count(report.leases, "lease")}; each cell is ${formatSize(cell)} (${blocks}), a line ${formatSize(cell * COLUMNS)}`,
    "faint",
  );
  for (let row = 0; row < grid.rows; row += 8) {
    text(left - 10, top + row * CELL_PX + 8, formatSize(row * COLUMNS * cell), "faint small", "end");
  }
  for (const [state, path] of Object.entries(grid.paths)) {
    parts.push(`<path class="${state}" transform="translate(${left} ${top})" d="${path}"/>`);
  }
  Object.entries(STYLES).forEach(([state, { title }], index) => {
    const x = left + (index % 5) * 230;
    const y = legendTop + Math.floor(index / 5) * 26;
    parts.push(`<rect class="${state}" x="${x}" y="${y - 11}" width="13" height="13"/>`);
    text(x + 20, y, `${title}: ${formatSize(report.totals[state] ?? 0)}`, "text");
  });
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" ` +
    `font-family="PT Sans, system-ui, DejaVu Sans, sans-serif" font-size="14">` +
    `<title>${escapeText(name)}</title><style>${styleSheet(theme)}.big{font-size:20px;font-weight:600}.small{font-size:11px}</style>` +
    `<rect class="paper" width="${width}" height="${height}"/>${parts.join("\n")}</svg>\n`
  );
}

export function count(number: number, what: string): string {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}
