/** What is said at the end: a table for people, the same figures as JSON for programs. */

/** What mapdirect has to reach, as a ratio to a peer. */
export const GOALS = [
  { key: "randomRead4k", against: "fuse-native", least: 3 },
  { key: "randomWrite4k", against: "fuse-native", least: 3 },
  { key: "write1m", against: "fuse-native", least: 10 },
  { key: "randomRead4k", against: "fuse-native-tuned", least: 3 },
  { key: "randomWrite4k", against: "fuse-native-tuned", least: 3 },
  { key: "write1m", against: "fuse-native-tuned", least: 10 },
];

const short = (value) =>
  value >= 1e6
    ? `${(value / 1e6).toFixed(2)}M`
    : value >= 10_000
      ? `${(value / 1000).toFixed(1)}k`
      : value.toFixed(0);

const figure = ({ median, least, most }, format) => `${format(median)} (${format(least)}–${format(most)})`;
const times = (value) => `${value.toFixed(value < 10 ? 2 : 1)}×`;

/** Columns as wide as their widest cell; the first is set left, the others right. */
export function table(rows) {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows
    .map((row) => row.map((cell, at) => (at === 0 ? cell.padEnd(widths[at]) : cell.padStart(widths[at]))))
    .map((row) => row.join("  ").trimEnd())
    .join("\n");
}

export function render(result) {
  const { machine, peers, rows, settings } = result;
  const measured = peers.filter((peer) => peer.skipped === undefined);
  const lines = [
    `${machine.kernel}; ${machine.cpu.count} × ${machine.cpu.model}; ${machine.backing.path} (${machine.backing.fileSystem})`,
    `load average ${machine.loadAverage.map((load) => load.toFixed(2)).join(" ")} at the start, ` +
      `${result.loadAverageAtEnd.map((load) => load.toFixed(2)).join(" ")} at the end`,
    Object.entries(machine.versions)
      .filter(([, version]) => version !== null)
      .map(([name, version]) => `${name} ${version}`)
      .join(", "),
    `${settings.rounds} rounds, interleaved; medians, in parentheses least–most`,
    "",
    ...peers.map(({ name, note, skipped }) => `${name}: ${skipped ? `skipped: ${skipped}` : note}`),
    "",
    table([
      ["", ...measured.map(({ name }) => name)],
      ...rows.map(({ title, unit, byPeer }) => [
        `${title}, ${unit}`,
        ...measured.map(({ name }) => (byPeer[name] ? figure(byPeer[name], short) : "failed")),
      ]),
    ]),
  ];
  const servers = measured.filter(({ name }) => result.cpuRows.some(({ byPeer }) => byPeer[name]));
  if (servers.length > 0) {
    const micros = (value) => value.toFixed(value < 100 ? 1 : 0);
    lines.push(
      "",
      table([
        ["CPU time of the server per operation, µs", ...servers.map(({ name }) => name)],
        ...result.cpuRows.map(({ title, byPeer }) => [
          title,
          ...servers.map(({ name }) => (byPeer[name] ? figure(byPeer[name], micros) : "failed")),
        ]),
      ]),
    );
  }
  const [first, ...others] = measured;
  if (others.length > 0) {
    lines.push(
      "",
      table([
        [`${first.name} ÷`, ...others.map(({ name }) => name)],
        ...rows.map(({ title, ratioTo }) => [
          title,
          ...others.map(({ name }) => (ratioTo[name] ? figure(ratioTo[name], times) : "–")),
        ]),
      ]),
    );
  }
  if (result.grants.length > 0) {
    const micros = (value) => value.toFixed(value < 100 ? 1 : 0);
    lines.push(
      "",
      table([
        ["a mapping of so many extents, µs", "MAP_DIRECT", "plain mmap", "÷", "munmap", "plain munmap"],
        ...result.grants.map(({ extents, map, unmap, plainMap, plainUnmap, ratio }) => [
          `${extents}`,
          figure(map, micros),
          figure(plainMap, micros),
          figure(ratio, times),
          figure(unmap, micros),
          figure(plainUnmap, micros),
        ]),
      ]),
    );
  }
  lines.push("");
  for (const { title, against, least, reached } of result.goals) {
    const verdict =
      reached === null ? "not measured" : `${times(reached)}, ${reached >= least ? "reached" : "MISSED"}`;
    lines.push(`goal: ${title} ≥ ${least}× ${against}: ${verdict}`);
  }
  for (const failure of result.failures) lines.push(`failed: ${failure}`);
  return lines.join("\n");
}
