/**
 * The page with charts: one HTML file that needs nothing else. The charts are SVG, drawn here by ECharts; the tables hold
 * every figure that a chart shows, and more.
 */
import * as echarts from "echarts";
import {
  cell,
  chapters,
  comparedIn,
  goalFigure,
  goalLimit,
  goalVerdict,
  inOrder,
  named,
  short,
  times,
} from "./report.mjs";

const WIDTH = 980;
const COLOURS = [
  "#1b6ac9",
  "#5aa9e6",
  "#8fd0c2",
  "#d1495b",
  "#e58a3c",
  "#edc948",
  "#8c6bb1",
  "#c59bd6",
  "#6b7280",
  "#a3a3a3",
];
const FONT = "system-ui, sans-serif";
/** Room to spare: the widths of texts are guesses where there is no browser to ask. */
const LEGEND = { top: 36, left: 0, itemGap: 30, itemWidth: 14, itemHeight: 10, icon: "roundRect" };
const heading = (text) => ({ text, left: 0, top: 4, textStyle: { fontSize: 14 } });
/** Numbers of things: 1, 16, 10k. */
const counted = (at) =>
  at < 1000
    ? `${at}`
    : short(at)
        .replace(/\.0+(?=k|M|$)/, "")
        .replace(/\.00(?=M)/, "");

const escaped = (text) =>
  String(text).replace(
    /[&<>"]/g,
    (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign],
  );

function svg(height, option) {
  const chart = echarts.init(null, null, { renderer: "svg", ssr: true, width: WIDTH, height });
  try {
    chart.setOption({ animation: false, textStyle: { fontFamily: FONT }, color: COLOURS, ...option });
    return chart.renderToSVGString();
  } finally {
    chart.dispose();
  }
}

/** Bars: how often as fast as each other peer; the line at 1 is a draw. */
function ratioChart(title, rows, others) {
  const named = rows.filter(({ ratioTo }) => Object.keys(ratioTo).length > 0);
  // A ratio of what is better when less is turned round: to the right is always faster.
  const value = ({ better, ratioTo }, name) => {
    const ratio = ratioTo[name]?.median;
    if (ratio === undefined || ratio <= 0) return null;
    return better === "less" ? 1 / ratio : ratio;
  };
  const height = 120 + named.length * (14 + others.length * 9);
  return svg(height, {
    title: heading(title),
    legend: LEGEND,
    grid: { left: 300, right: 60, top: 76, bottom: 30 },
    xAxis: { type: "log", name: "×", axisLabel: { formatter: (at) => short(at) } },
    yAxis: {
      ...{ type: "category", inverse: true, data: named.map((row) => row.title) },
      axisLabel: { width: 280, overflow: "truncate" },
    },
    series: others.map((name, index) => ({
      ...{ type: "bar", name, barGap: "10%", data: named.map((row) => value(row, name)) },
      ...(index > 0
        ? {}
        : { markLine: { symbol: "none", silent: true, label: { show: false }, data: [{ xAxis: 1 }] } }),
    })),
  });
}

/** What no other peer has, as it grows. */
function curveChart({ name, x, series }, unit) {
  return svg(360, {
    title: heading(`${name}, ${unit}`),
    legend: LEGEND,
    grid: { left: 70, right: 40, top: 100, bottom: 40 },
    xAxis: { type: "category", name: "", data: x.map(counted) },
    yAxis: { type: "log", axisLabel: { formatter: (at) => short(at) } },
    series: series.map(({ title, values }) => ({
      ...{ type: "line", name: title, connectNulls: true },
      data: values.map((value) => (value === null || value.median <= 0 ? null : value.median)),
    })),
  });
}

/** How much of what is wanted: 1 is enough, on the right more. */
function goalChart(goals) {
  const measured = goals.filter((goal) => goal.measured !== null);
  const share = ({ least, most, measured: { median } }) =>
    least === null ? most / Math.max(median, 1e-9) : median / least;
  return svg(70 + measured.length * 17, {
    title: heading("Measured, as a share of what is wanted"),
    grid: { left: 420, right: 60, top: 36, bottom: 30 },
    xAxis: { type: "log", axisLabel: { formatter: (at) => short(at) } },
    yAxis: {
      ...{ type: "category", inverse: true, data: measured.map(({ title }) => title) },
      axisLabel: { width: 400, overflow: "truncate", interval: 0, fontSize: 11 },
    },
    series: [
      {
        type: "bar",
        data: measured.map((goal) => ({
          value: share(goal),
          itemStyle: { color: goal.reached ? "#2e8b57" : "#d1495b" },
        })),
        markLine: { symbol: "none", silent: true, label: { show: false }, data: [{ xAxis: 1 }] },
      },
    ],
  });
}

function htmlTable([head, ...rows]) {
  const cells = (row, tag) =>
    row.map((cell, at) => `<${tag}${at === 0 ? "" : ' class="n"'}>${escaped(cell)}</${tag}>`).join("");
  return `<div class="wide"><table><thead><tr>${cells(head, "th")}</tr></thead><tbody>${rows
    .map((row) => `<tr>${cells(row, "td")}</tr>`)
    .join("\n")}</tbody></table></div>`;
}

const STYLE = `
body { font: 15px/1.5 ${FONT}; max-width: 1020px; margin: 2rem auto; padding: 0 1rem; color: #1f2937; background: #fff }
h1 { font-size: 1.5rem } h2 { margin-top: 2.5rem; text-transform: capitalize } svg { max-width: 100%; height: auto }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 12.5px; margin: 1rem 0 }
td, th { padding: 2px 10px; border-bottom: 1px solid #e5e7eb; text-align: left; white-space: nowrap }
.n { text-align: right; font-variant-numeric: tabular-nums } .MISSED { color: #b42335 } .reached { color: #1d7a46 }`;

function goalTable(goals) {
  const rows = goals.map(
    (goal) =>
      `<tr><td>${escaped(goal.title)}</td><td class="n">${escaped(goalLimit(goal))}</td><td class="n">${escaped(
        goalFigure(goal),
      )}</td><td class="${goalVerdict(goal)}">${goalVerdict(goal)}</td></tr>`,
  );
  return `<div class="wide"><table><thead><tr><th>goal</th><th class="n">wanted</th><th class="n">measured</th><th></th></tr></thead><tbody>${rows.join(
    "\n",
  )}</tbody></table></div>`;
}

function chapter(result, { group, rows, peers }) {
  const names = inOrder(result, peers);
  const others = comparedIn(rows, names);
  const parts = [`<h2>${escaped(group)}</h2>`];
  if (others.length > 0) parts.push(ratioChart(`${names[0]} ÷ …, to the right is faster`, rows, others));
  const curveNames = new Set(rows.map(({ curve }) => curve?.name).filter(Boolean));
  for (const curve of result.curves.filter(({ name }) => curveNames.has(name))) {
    for (const unit of new Set(curve.series.map((series) => series.unit))) {
      const series = curve.series.filter((one) => one.unit === unit);
      if (curve.x.length > 1) parts.push(curveChart({ ...curve, series }, unit));
    }
  }
  parts.push(
    htmlTable([
      ["", ...names],
      ...rows.map(({ title, unit, byPeer }) => [
        named({ title, unit }),
        ...names.map((name) => cell(byPeer[name])),
      ]),
    ]),
  );
  if (others.length > 0) {
    parts.push(
      htmlTable([
        [`${names[0]} ÷`, ...others],
        ...rows
          .filter(({ ratioTo }) => Object.keys(ratioTo).length > 0)
          .map(({ title, better, ratioTo }) => [
            better === "less" ? `${title} (less is better)` : title,
            ...others.map((name) => cell(ratioTo[name], times)),
          ]),
      ]),
    );
  }
  return parts.join("\n");
}

export function page(result) {
  const { machine, settings } = result;
  const servers = inOrder(result, [...new Set(result.cpuRows.flatMap(({ byPeer }) => Object.keys(byPeer)))]);
  const facts = [
    ["kernel", machine.kernel],
    ["processor", `${machine.cpu.count} × ${machine.cpu.model}`],
    [
      "backing",
      `${machine.backing.path} (${machine.backing.fileSystem}), huge pages: ${machine.backing.hugePages ?? "unknown"}`,
    ],
    [
      "load average",
      `${machine.loadAverage.join(" ")} at the start, ${result.loadAverageAtEnd.join(" ")} at the end; niceness ${machine.niceness}`,
    ],
    ["run", `${result.profile}, ${settings.rounds} rounds, ${result.seconds} s, ${result.at}`],
    ...Object.entries(machine.versions).filter(([, version]) => version !== null),
  ];
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mapdirect: benchmark</title>
<meta name="viewport" content="width=device-width"><style>${STYLE}</style></head><body>
<h1>mapdirect beside others</h1>
<p>Medians of rounds that take turns; in parentheses the least and the most. Ratios are formed within a round.</p>
${htmlTable([["", ""], ...facts])}
${htmlTable([["peer", ""], ...result.peers.map(({ name, note, skipped }) => [name, skipped ? `skipped: ${skipped}` : note])])}
<h2>Goals</h2>
${result.goals.some(({ measured }) => measured !== null) ? goalChart(result.goals) : ""}
${goalTable(result.goals)}
${chapters(result.rows)
  .map((one) => chapter(result, one))
  .join("\n")}
<h2>CPU time of the server per operation, µs</h2>
${htmlTable([
  ["", ...servers],
  ...result.cpuRows.map(({ title, byPeer }) => [title, ...servers.map((name) => cell(byPeer[name]))]),
])}
${htmlTable([
  [`${servers[0] ?? ""} ÷ (less is better)`, ...servers.slice(1)],
  ...result.cpuRows
    .filter(({ ratioTo }) => Object.keys(ratioTo).length > 0)
    .map(({ title, ratioTo }) => [title, ...servers.slice(1).map((name) => cell(ratioTo[name], times))]),
])}
${[
  ...result.skipped.map(({ workload, peer, reason }) => `skipped: ${workload} on ${peer}: ${reason}`),
  ...result.failures.map((failure) => `failed: ${failure}`),
]
  .map((line) => `<p>${escaped(line)}</p>`)
  .join("\n")}
</body></html>
`;
}
