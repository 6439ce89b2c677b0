/** What a run of the guests measured, as the tables of docs/TESTING.md and docs/PERFORMANCE.md. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const read = (file) => (existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : undefined);

/** The columns of the table: a title, and which checks it stands for. */
const PROMISES = [
  ["mkfs, mount, fsck", /^(set up|mkfs and mount|unmount, fsck, mount again|taken away)$/],
  ["named by info and doctor", /^(info names it|doctor knows what to do)$/],
  ["stores in the region at once; ETXTBSY", /^stores are in the region at once$/],
  ["whole units only", /^mappings in whole units only$/],
  ["MAP_SYNC", /^MAP_SYNC$/],
  ["io_uring buffers", /^io_uring registered buffers$/],
  ["fio psync, mmap", /^fio (psync|mmap)/],
  ["fio libpmem, PMDK", /^(fio libpmem|PMDK)/],
  ["client's programs", /\.c, by /],
  ["FUSE over io_uring", /^FUSE over io_uring$/],
  ["holder outlives the daemon", /^a holder that outlives the daemon$/],
];

/** yes; no and what failed; what the kernel answered instead; nothing if it was not tried. */
function cell(results) {
  if (results.length === 0) return "";
  if (results.some(({ verdict }) => verdict === "not ok")) return "**failed**";
  const tried = results.filter(({ verdict }) => verdict === "ok");
  if (tried.length === 0) return "skipped";
  const other = tried.find(({ measured }) => measured !== "yes");
  if (other === undefined) return "yes";
  return /^refused/.test(other.measured)
    ? `no${other.measured.slice("refused".length).replace(/^ (.+)$/, " ($1)")}`
    : other.measured;
}

function kindsTable(parts) {
  const names = [...new Set(parts.flatMap(({ results }) => results.map(({ kind }) => kind)))];
  const rows = names.flatMap((kind) =>
    parts.map(({ kernel, results }) => {
      const own = results.filter((result) => result.kind === kind);
      const cells = PROMISES.map(([, pattern]) => cell(own.filter(({ what }) => pattern.test(what))));
      return own.length === 0 ? undefined : `| ${[kind, kernel, ...cells].join(" | ")} |`;
    }),
  );
  const titles = ["region", "kernel", ...PROMISES.map(([title]) => title)];
  return [
    `| ${titles.join(" | ")} |`,
    `| ${titles.map(() => "---").join(" | ")} |`,
    ...rows.filter((row) => row !== undefined),
  ].join("\n");
}

function powercutTable({ cycles, operations, stores, lost, seed }) {
  const ways = [...new Set(cycles.map(({ way }) => way))];
  const sum = (list, what) => list.reduce((total, one) => total + one[what], 0);
  const rows = ways.map((way) => {
    const own = cycles.filter((one) => one.way === way);
    return `| ${way} | ${own.length} | ${sum(own, "operations")} | ${sum(own, "stores")} | 0 |`;
  });
  return [
    `| power cut by (seed ${seed}) | cycles | operations acknowledged | direct stores acknowledged | lost |`,
    "| --- | --- | --- | --- | --- |",
    ...rows,
    `| all | ${cycles.length} | ${operations} | ${stores} | ${lost} |`,
  ].join("\n");
}

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

function compareTable({ kernel, ratios }) {
  const rows = ratios.map(({ name, ratios: rounds }) => {
    const [least, most] = [Math.min(...rounds), Math.max(...rounds)];
    return `| ${name} | ${median(rounds).toFixed(2)} (${least.toFixed(2)}–${most.toFixed(2)}) |`;
  });
  return [`| Linux ${kernel}, emulated | mapdirect ÷ ext4 -o dax |`, "| --- | --- |", ...rows].join("\n");
}

/** Markdown of everything that is in the folder; "" if there is nothing. */
export function measured(folder) {
  if (!existsSync(folder)) return "";
  const kinds = readdirSync(folder)
    .filter((name) => name.startsWith("kinds-"))
    .sort((a, b) => a.localeCompare(b, "en", { numeric: true }))
    .map((name) => read(join(folder, name)));
  const powercut = read(join(folder, "powercut.json"));
  const compare = read(join(folder, "compare.json"));
  const parts = [];
  if (kinds.length > 0) parts.push(kindsTable(kinds));
  if (powercut !== undefined) parts.push(powercutTable(powercut));
  if (compare !== undefined) parts.push(compareTable(compare));
  return parts.join("\n\n");
}
