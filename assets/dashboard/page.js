/**
 * The page of `mapdirect dashboard`. Text from the mount (names of files and programs) becomes text nodes and nothing
 * else; there is nothing here that would read it as markup.
 */

/* global uPlot */

const STATE_MS = 1000;
const MAP_MS = 3000;
const HOVER_MS = 120;
const CHART_PX = 150;
/** Seconds of the charts. */
const HISTORY = 180;

const byId = (id) => document.getElementById(id);

async function get(path) {
  const response = await fetch(`api/${path}`);
  const value = await response.json();
  if (!response.ok) throw new Error(value.error ?? response.statusText);
  return value;
}

function element(name, content = "", className = "") {
  const made = document.createElement(name);
  made.textContent = content;
  if (className !== "") made.className = className;
  return made;
}

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function size(bytes) {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < 5) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
}

const number = (value) => Math.round(value).toLocaleString("en");
const micros = (value) =>
  value >= 1e6
    ? `${(value / 1e6).toFixed(2)} s`
    : value >= 1e4
      ? `${(value / 1e3).toFixed(0)} ms`
      : value >= 1e3
        ? `${(value / 1e3).toFixed(1)} ms`
        : `${value.toFixed(0)} µs`;

// ---- what the daemon counts

/** As src/session/counting.ts has them: bucket b holds times up to 2^(b / 4) µs. */
function percentile(counts, share) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total === 0) return null;
  let left = share * total;
  for (let bucket = 0; bucket < counts.length; bucket += 1) {
    const count = counts[bucket] ?? 0;
    if (count > 0 && left <= count) {
      const low = bucket === 0 ? 0 : 2 ** ((bucket - 1) / 4);
      return low + (2 ** (bucket / 4) - low) * (left / count);
    }
    left -= count;
  }
  return null;
}

/** All operations together, by bucket; but for ioctl, by which this page asks its own, long questions. */
function bucketsOf(statistics) {
  const counts = [];
  for (const [operation, { buckets }] of Object.entries(statistics.latency)) {
    if (operation === "ioctl") continue;
    for (const [bucket, count] of buckets) counts[bucket] = (counts[bucket] ?? 0) + count;
  }
  return Array.from(counts, (count) => count ?? 0);
}

const sumOf = (record) => Object.values(record).reduce((sum, value) => sum + value, 0);

let last = null;
const history = { time: [], ops: [], p50: [], p99: [] };

function remember(ops, p50, p99) {
  history.time.push(Date.now() / 1000);
  history.ops.push(ops);
  history.p50.push(p50);
  history.p99.push(p99);
  for (const values of Object.values(history)) if (values.length > HISTORY) values.shift();
}

function note(statistics) {
  const now = performance.now() / 1000;
  const requests = sumOf(statistics.operations);
  const buckets = bucketsOf(statistics);
  if (last !== null && last.uptime <= statistics.uptime_s) {
    const ops = (requests - last.requests) / (now - last.now);
    const fresh = buckets.map((count, bucket) => count - (last.buckets[bucket] ?? 0));
    const [p50, p99] = [0.5, 0.99].map((share) => percentile(fresh, share));
    remember(ops, p50, p99);
    byId("tile-ops").textContent = number(ops);
    byId("tile-latency").textContent = p99 === null ? "–" : micros(p99);
  }
  last = { now, requests, buckets, uptime: statistics.uptime_s };
}

let charts = [];

function drawCharts() {
  for (const { chart } of charts) chart.destroy();
  const look = getComputedStyle(document.documentElement);
  const colour = (name) => look.getPropertyValue(name).trim();
  const axis = (extra) => ({
    stroke: colour("--faint"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
    font: "11px system-ui, sans-serif",
    ...extra,
  });
  const make = (id, names, scale, splits, data) => {
    const box = byId(id);
    const options = {
      width: box.clientWidth,
      height: CHART_PX,
      cursor: { drag: { x: false, y: false } },
      legend: { show: names.length > 1, live: false },
      scales: { y: scale },
      axes: [
        axis({ space: 70 }),
        axis({ size: 62, space: 28, ...(splits && { splits, filter: (_, values) => values }) }),
      ],
      series: [
        {},
        ...names.map(([label, name]) => ({
          label,
          stroke: colour(name),
          width: 1.6,
          points: { show: false },
          spanGaps: false,
        })),
      ],
    };
    return { chart: new uPlot(options, data(), box), data };
  };
  charts = [
    make(
      "chart-ops",
      [["requests a second", "--accent"]],
      { range: (_, __, max) => [0, Math.max(10, max * 1.1)] },
      null,
      () => [history.time, history.ops],
    ),
    make(
      "chart-latency",
      [
        ["half within", "--accent"],
        ["99 of 100 within", "--accent2"],
      ],
      { distr: 3, range: (_, min, max) => [Math.max(0.5, (min ?? 1) / 2), Math.max(100, (max ?? 1) * 2)] },
      (_, __, min, max) =>
        [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].filter((value) => value >= min && value <= max),
      () => [history.time, history.p50, history.p99],
    ),
  ];
}

// ---- leases

const asked = new Set();

function showLeases(leases) {
  byId("leases-count").textContent = leases.length === 0 ? "none" : `${leases.length}`;
  const rows = leases.slice(0, 500).map((lease) => {
    const row = element("tr");
    const range = `${size(lease.length)} at ${size(lease.offset)}`;
    row.append(
      element("td", lease.id, "n"),
      element("td", lease.kind),
      element("td", lease.state, `state-${lease.state}`),
      element("td", `${lease.command} (${lease.pid})`),
      element("td", lease.uid, "n"),
      element("td", lease.file),
      element("td", range, "n"),
      element("td", `${Math.floor(lease.age_s)} s`, "n"),
    );
    const cell = element("td", "", "n");
    if (lease.state === "held") {
      const button = element("button", "Break…");
      button.type = "button";
      button.dataset.lease = lease.id;
      button.disabled = asked.has(lease.id);
      button.addEventListener("click", () => confirmBreak(lease));
      cell.append(button);
    }
    row.append(cell);
    return row;
  });
  // A button that has the focus keeps it, though its row is a new one.
  const focused = document.activeElement?.dataset?.lease;
  byId("leases").replaceChildren(...rows);
  if (focused !== undefined)
    byId("leases")
      .querySelector(`[data-lease="${CSS.escape(focused)}"]`)
      ?.focus();
}

let breakTime = null;

function confirmBreak(lease) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = `Break lease ${lease.id}?`;
  const time = breakTime === null ? "a while" : `${breakTime} seconds`;
  byId("confirm-text").textContent =
    `${lease.command} (process ${lease.pid}) maps ${lease.file}. It is told, and has ${time} to let go; then the lease is ` +
    "revoked, and its mapping does not count any more.";
  byId("confirm-no").onclick = () => dialog.close();
  byId("confirm-yes").onclick = async () => {
    dialog.close();
    asked.add(lease.id);
    try {
      const response = await fetch("api/break", {
        method: "POST",
        headers: { "content-type": "application/json", "x-mapdirect": "1" },
        body: JSON.stringify({ id: lease.id }),
      });
      if (!response.ok) trouble((await response.json()).error);
    } catch (error) {
      trouble(error.message);
    }
    asked.delete(lease.id);
    await Promise.all([refreshState(), refreshMap()]);
  };
  dialog.showModal();
}

// ---- the map

let about = null;
let map = null;
let cells = [];
/** Undefined unless one was clicked, or chosen by the keyboard. */
let kept;

function showMap(report) {
  map = report;
  cells = report.cells.flatMap(([repeat, ...counts]) => Array.from({ length: repeat }, () => counts));
  const { width, height, paths } = report.grid;
  byId("map").setAttribute("viewBox", `0 0 ${width} ${height}`);
  byId("map-cells").replaceChildren(
    ...Object.entries(paths).map(([state, d]) => svg("path", { class: state, d })),
  );
  const cell = report.cell_blocks * report.block_size;
  byId("map-scale").textContent = `each cell is ${size(cell)}, a line ${size(cell * about.columns)}`;
  byId("legend").replaceChildren(
    ...Object.entries(about.styles).map(([state, { title }]) => {
      const item = element("li");
      const mark = svg("svg", { class: "mark", viewBox: "0 0 1 1" });
      mark.append(svg("rect", { class: state, width: 1, height: 1 }));
      item.append(mark, `${title} ${size(report.totals[state] ?? 0)}`);
      return item;
    }),
  );
  byId("files").replaceChildren(
    ...report.most_extents.map((file) => {
      const row = element("tr");
      row.append(
        element("td", number(file.extents), "n"),
        element("td", size(file.size), "n"),
        element("td", file.file),
      );
      return row;
    }),
  );
  const most = Math.max(1, ...report.files_by_extents.map(({ files }) => files));
  byId("by-extents").replaceChildren(
    ...report.files_by_extents.map(({ from, to, files }) => {
      const row = element("div", "", "bar");
      const bar = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none" });
      // Few files with many extents are what one looks for: a bar that is there is seen.
      bar.append(svg("rect", { width: files === 0 ? 0 : Math.max(0.6, (100 * files) / most), height: 10 }));
      row.append(
        element("span", from === to ? number(from) : `${number(from)}–${number(to)}`),
        bar,
        element("span", number(files)),
      );
      return row;
    }),
  );
}

function cellAt(event) {
  if (map === null) return undefined;
  const box = byId("map").getBoundingClientRect();
  const scale = map.grid.width / box.width;
  const column = Math.floor(((event.clientX - box.left) * scale) / about.cellPx);
  const row = Math.floor(((event.clientY - box.top) * scale) / about.cellPx);
  const cell = row * about.columns + column;
  return column >= 0 && column < about.columns && cell >= 0 && cell < cells.length ? cell : undefined;
}

function mark(cell) {
  const cursor = byId("map-cursor");
  cursor.toggleAttribute("hidden", cell === undefined);
  if (cell === undefined) return;
  const px = about.cellPx;
  const place = { x: (cell % about.columns) * px - 1, y: Math.floor(cell / about.columns) * px - 1 };
  for (const [key, value] of Object.entries({ ...place, width: px + 1, height: px + 1 }))
    cursor.setAttribute(key, value);
}

/** What the map itself says of a cell. */
function summary(cell) {
  const bytes = map.cell_blocks * map.block_size;
  const parts = map.states
    .map((state, index) => [about.styles[state].title, (cells[cell] ?? [])[index] * map.block_size])
    .filter(([, inside]) => inside > 0)
    .map(([title, inside]) => `${title} ${size(inside)}`);
  return [`${size(cell * bytes)} in the region: ${parts.join(", ")}`];
}

/** What the daemon says of it: files, extents, leases and who holds them. */
function detail(found, most) {
  const lines = [];
  if (found.metadata.length > 0) lines.push(`metadata: ${found.metadata.join(", ")}`);
  for (const lease of found.leases.slice(0, most))
    lines.push(
      `lease ${lease.id} (${lease.kind}, ${lease.state}) of ${lease.command}, process ${lease.pid}, user ${lease.uid}`,
    );
  for (const extent of found.extents.slice(0, most)) {
    lines.push(
      `${extent.file}: ${size(extent.length)} ${extent.state} at ${size(extent.offset)} of the file, ${size(extent.physical)} of the region`,
    );
  }
  const more = found.count - Math.min(found.extents.length, most);
  if (more > 0) lines.push(`and ${number(more)} more extents`);
  return lines;
}

const paragraphs = (lines) => lines.map((line) => element("p", line));

let hoverTimer = 0;
let hovered;

function hover(event) {
  const cell = cellAt(event);
  const tip = byId("tip");
  if (cell === undefined) {
    leave();
    return;
  }
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 16, innerWidth - 400))}px`;
  tip.style.top = `${event.clientY + 18}px`;
  if (cell === hovered) return;
  hovered = cell;
  mark(cell);
  tip.hidden = false;
  tip.replaceChildren(...paragraphs(summary(cell)));
  clearTimeout(hoverTimer);
  hoverTimer = setTimeout(async () => {
    const found = await get(`where?cell=${cell}`).catch(() => null);
    if (found === null || hovered !== cell) return;
    tip.replaceChildren(...paragraphs([...summary(cell), ...detail(found, 4)]));
    // Not over the edge of the window.
    const { bottom } = tip.getBoundingClientRect();
    if (bottom > innerHeight) tip.style.top = `${Math.max(4, innerHeight - tip.offsetHeight - 8)}px`;
  }, HOVER_MS);
}

function leave() {
  hovered = undefined;
  clearTimeout(hoverTimer);
  byId("tip").hidden = true;
  mark(kept);
}

async function keep(cell) {
  kept = cell;
  mark(cell);
  try {
    const found = await get(`where?cell=${cell}`);
    if (kept === cell) byId("where").replaceChildren(...paragraphs([...summary(cell), ...detail(found, 50)]));
  } catch (error) {
    trouble(error.message);
  }
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function key(event) {
  const step = STEPS[event.key];
  if (map === null || (step === undefined && event.key !== "Enter")) return;
  event.preventDefault();
  const next = (kept ?? 0) + (step === undefined ? 0 : step[0] + step[1] * about.columns);
  if (next < 0 || next >= cells.length) return;
  if (event.key === "Enter") keep(next);
  else {
    kept = next;
    mark(next);
    byId("where").replaceChildren(...paragraphs(summary(next)));
  }
}

// ---- looking again and again

function trouble(text) {
  const box = byId("trouble");
  box.hidden = text === "";
  box.textContent = text;
}

async function refreshState() {
  const { mountpoint, statistics, leases } = await get("state");
  document.body.classList.remove("stale");
  note(statistics);
  for (const { chart, data } of charts) chart.setData(data());
  byId("name").textContent = about.about.label === "" ? mountpoint : `${about.about.label} on ${mountpoint}`;
  const { held, breaking, revoked, ended } = statistics.leases_by;
  byId("tile-leases").textContent = number(held + breaking);
  const more = [
    [breaking, "breaking"],
    [revoked + ended, "not let go"],
  ]
    .filter(([n]) => n > 0)
    .map(([n, what]) => `${n} ${what}`);
  byId("tile-leases-more").textContent = ["leases", ...more].join(", ");
  const { space } = statistics;
  byId("tile-free").textContent = size(space.free);
  byId("tile-free-more").textContent =
    `free of ${size(space.size)}${space.quarantined > 0 ? `, ${size(space.quarantined)} in quarantine` : ""}`;
  byId("tile-log").textContent = size(statistics.log_bytes);
  byId("tile-log-more").textContent =
    `of log, ${number(statistics.checkpoints)} checkpoints${statistics.checkpointing ? ", one running" : ""}`;
  showLeases(leases);
  trouble(statistics.read_only === null ? "" : `read-only: ${statistics.read_only}`);
}

async function refreshMap() {
  showMap(await get("map"));
}

/** Numbers of a daemon that does not answer must not look like those of now. */
function stale(error) {
  trouble(error.message);
  // A gap in the charts.
  if (!document.body.classList.contains("stale")) remember(null, null, null);
  last = null;
  document.body.classList.add("stale");
  for (const id of ["tile-ops", "tile-latency", "tile-leases", "tile-free", "tile-log"])
    byId(id).textContent = "–";
  for (const button of byId("leases").querySelectorAll("button")) button.disabled = true;
}

function repeat(action, ms, failed) {
  const run = async () => {
    // A page that nobody looks at asks nothing.
    if (!document.hidden) await action().catch(failed);
    setTimeout(run, ms);
  };
  setTimeout(run, ms);
}

async function begin() {
  about = await get("about");
  const { region, block_size, uuid, mount } = about.about;
  breakTime = mount?.break_time_s ?? null;
  byId("about").textContent =
    `${region.path}, ${region.kind}, ${region.granularity} granularity, blocks of ${size(block_size)}, ${uuid}`;
  drawCharts();
  await Promise.all([refreshState(), refreshMap()]);
  document.body.dataset.ready = "yes";
  repeat(refreshState, STATE_MS, stale);
  repeat(refreshMap, MAP_MS, (error) => trouble(error.message));
  const picture = byId("map");
  picture.addEventListener("mousemove", hover);
  picture.addEventListener("mouseleave", leave);
  picture.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell !== undefined) keep(cell);
  });
  picture.addEventListener("keydown", key);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
  let resizing = 0;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(drawCharts, 150);
  });
}

begin().catch((error) => trouble(error.message));
