/** What is said at the end, for a terminal. The same figures are in the JSON, and in the page (page.mjs). */

/** Three digits are more than a shared machine can vouch for. */
export const short = (value) => {
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (size >= 10_000) return `${(value / 1000).toFixed(1)}k`;
  if (size >= 100) return value.toFixed(0);
  return size >= 10 ? value.toFixed(1) : value.toFixed(size >= 1 ? 2 : 3);
};
export const times = (value) => `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)}×`;

/** Median, and in parentheses least and most if there are several. */
export const figure = ({ median, least, most, values }, format = short) =>
  values.length > 1 ? `${format(median)} (${format(least)}–${format(most)})` : format(median);

/** One cell; a peer without a figure has a dash. */
export const cell = (summary, format = short) => (summary ? figure(summary, format) : "–");
/** How a row is called. */
export const named = ({ title, unit }) => (unit === undefined || unit === "" ? title : `${title}, ${unit}`);
/** Of the names, those that the first one is compared with in any of the rows. */
export const comparedIn = (rows, names) =>
  names.slice(1).filter((name) => rows.some(({ ratioTo }) => ratioTo[name]));

/** Columns as wide as their widest cell; the first is set left, the others right. */
export function table(rows) {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows
    .map((row) => row.map((cell, at) => (at === 0 ? cell.padEnd(widths[at]) : cell.padStart(widths[at]))))
    .map((row) => row.join("  ").trimEnd())
    .join("\n");
}

export const goalFigure = ({ unit, measured }) =>
  measured === null
    ? "not measured"
    : figure(measured, (value) => (unit === "×" ? times(value) : `${short(value)} ${unit}`));
export const goalLimit = ({ unit, least, most }) => {
  const format = (value) => (unit === "×" ? `${value}×` : `${value} ${unit}`);
  return least === null ? `≤ ${format(most)}` : `≥ ${format(least)}`;
};
export const goalVerdict = ({ reached }) => (reached === null ? "–" : reached ? "reached" : "MISSED");

/** Chapters in the order in which their rows come. */
export function chapters(rows) {
  const found = new Map();
  for (const row of rows) {
    if (Object.keys(row.byPeer).length === 0) continue;
    if (!found.has(row.group)) found.set(row.group, []);
    found.get(row.group).push(row);
  }
  return [...found].map(([group, members]) => ({
    group,
    rows: members,
    peers: [...new Set(members.flatMap(({ byPeer }) => Object.keys(byPeer)))],
  }));
}

/** Names of the peers in the order of the result. */
export const inOrder = (result, names) =>
  result.peers.map(({ name }) => name).filter((name) => names.includes(name));

function heading({ machine, loadAverageAtEnd, settings, profile, seconds, peers }) {
  const loads = (all) => all.map((load) => load.toFixed(2)).join(" ");
  return [
    `${machine.kernel}; ${machine.cpu.count} × ${machine.cpu.model}; ${machine.backing.path} (${machine.backing.fileSystem})`,
    `load average ${loads(machine.loadAverage)} at the start, ${loads(loadAverageAtEnd)} at the end; niceness ${machine.niceness}`,
    Object.entries(machine.versions)
      .filter(([, version]) => version !== null)
      .map(([name, version]) => `${name} ${version}`)
      .join(", "),
    `${profile} run, ${settings.rounds} rounds, interleaved, ${seconds} s; medians, in parentheses least–most`,
    "",
    ...peers.map(({ name, note, skipped }) => `${name}: ${skipped ? `skipped: ${skipped}` : note}`),
  ];
}

export function render(result) {
  const lines = heading(result);
  for (const { group, rows, peers } of chapters(result.rows)) {
    const names = inOrder(result, peers);
    const isRatio = names.length > 1;
    lines.push(
      "",
      table([
        [group, ...names],
        ...rows.map(({ title, unit, byPeer }) => [
          named({ title, unit }),
          ...names.map((name) => cell(byPeer[name])),
        ]),
      ]),
    );
    const others = comparedIn(rows, names);
    if (!isRatio || others.length === 0) continue;
    lines.push(
      "",
      table([
        [`${group}: ${names[0]} ÷`, ...others],
        ...rows
          .filter(({ ratioTo }) => Object.keys(ratioTo).length > 0)
          .map(({ title, better, ratioTo }) => [
            better === "less" ? `${title} (less is better)` : title,
            ...others.map((name) => cell(ratioTo[name], times)),
          ]),
      ]),
    );
  }
  const servers = inOrder(result, [...new Set(result.cpuRows.flatMap(({ byPeer }) => Object.keys(byPeer)))]);
  if (servers.length > 0) {
    lines.push(
      "",
      table([
        ["CPU time of the server per operation, µs", ...servers],
        ...result.cpuRows.map(({ title, byPeer }) => [title, ...servers.map((name) => cell(byPeer[name]))]),
      ]),
    );
    const others = servers.slice(1);
    lines.push(
      "",
      table([
        [`CPU time of the server: ${servers[0]} ÷ (less is better)`, ...others],
        ...result.cpuRows
          .filter(({ ratioTo }) => Object.keys(ratioTo).length > 0)
          .map(({ title, ratioTo }) => [title, ...others.map((name) => cell(ratioTo[name], times))]),
      ]),
    );
  }
  const measured = result.goals.filter((goal) => goal.measured !== null);
  lines.push(
    "",
    table([
      ["goals", "wanted", "measured", ""],
      ...measured.map((goal) => [goal.title, goalLimit(goal), goalFigure(goal), goalVerdict(goal)]),
    ]),
  );
  const others = result.goals.filter((goal) => goal.measured === null).map(({ title }) => title);
  if (others.length > 0) lines.push("", `goals not measured in this run: ${others.join("; ")}`);
  for (const { workload, peer, reason } of result.skipped)
    lines.push(`skipped: ${workload} on ${peer}: ${reason}`);
  for (const failure of result.failures) lines.push(`failed: ${failure}`);
  return lines.join("\n");
}
