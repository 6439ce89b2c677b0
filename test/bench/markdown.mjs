/** The same figures as tables for a document: docs/PERFORMANCE.md has those of one run. */
import {
  cell,
  chapters,
  comparedIn,
  goalFigure,
  goalLimit,
  goalVerdict,
  inOrder,
  named,
  times,
} from "./report.mjs";

const row = (cells) => `| ${cells.join(" | ")} |`;
const table = (head, rows) => [row(head), row(head.map(() => "---")), ...rows.map(row)].join("\n");

const goals = (result) =>
  table(
    ["goal", "wanted", "measured", ""],
    result.goals.map((goal) => [
      goal.title,
      goalLimit(goal),
      goalFigure(goal),
      goalVerdict(goal).replace("MISSED", "**missed**"),
    ]),
  );

/** Rows that are points of a curve: a table with its x for columns. */
const curve = ({ name, x, series }) =>
  table(
    [name, ...x.map((value) => value.toLocaleString("en"))],
    series.map((one) => [named(one), ...one.values.map((value) => cell(value))]),
  );

function chapter(result, { group, rows, peers }) {
  const single = rows.filter((one) => one.curve === undefined);
  const parts = [`### ${group}`];
  const names = inOrder(result, peers);
  if (single.length > 0) {
    parts.push(
      table(
        ["", ...names],
        single.map((one) => [named(one), ...names.map((name) => cell(one.byPeer[name]))]),
      ),
    );
    const first = names[0];
    const others = comparedIn(single, names);
    if (others.length > 0) {
      parts.push(
        table(
          [`${first} ÷`, ...others],
          single
            .filter(({ ratioTo }) => others.some((name) => ratioTo[name]))
            .map((one) => [one.title, ...others.map((name) => cell(one.ratioTo[name], times))]),
        ),
      );
    }
  }
  for (const one of result.curves.filter(({ name }) => rows.some((each) => each.curve?.name === name)))
    parts.push(curve(one));
  return parts.join("\n\n");
}

function cpu(result) {
  const { cpuRows } = result;
  const names = inOrder(result, [...new Set(cpuRows.flatMap(({ byPeer }) => Object.keys(byPeer)))]);
  return [
    "### CPU time of the server per operation, µs",
    table(
      ["", ...names],
      cpuRows.map(({ title, byPeer }) => [title, ...names.map((name) => cell(byPeer[name]))]),
    ),
  ].join("\n\n");
}

export const renderMarkdown = (result) =>
  [
    "### Goals",
    goals(result),
    ...chapters(result.rows).map((one) => chapter(result, one)),
    ...(result.cpuRows.length > 0 ? [cpu(result)] : []),
    "",
  ].join("\n\n");
