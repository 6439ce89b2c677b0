/**
 * Draws the pictures of docs/ARCHITECTURE.md: `node scripts/architecture.mjs` writes docs/images/floors.svg and
 * docs/images/mapping.svg. Plain SVG on a ground of its own, so that they look the same in a dark and in a light page.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "./setup.mjs";

const INK = "#1c2530";
const SOFT = "#5b6875";
const FONT = "font-family='DejaVu Sans, Segoe UI, Helvetica, Arial, sans-serif'";
const MONO = "font-family='DejaVu Sans Mono, Menlo, Consolas, monospace'";

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

function text(
  x,
  y,
  content,
  { size = 13, anchor = "start", color = INK, weight = "normal", mono = false } = {},
) {
  return `<text x="${x}" y="${y}" font-size="${size}" text-anchor="${anchor}" fill="${color}" font-weight="${weight}" ${mono ? MONO : FONT}>${escaped(content)}</text>`;
}

function box(x, y, width, height, fill, stroke = "#9aa7b4") {
  return `<rect x="${x}" y="${y}" width="${width}" height="${height}" rx="6" fill="${fill}" stroke="${stroke}"/>`;
}

/** An arrow with words above its middle. */
function arrow(x1, y1, x2, y2, words = "", { color = INK, dashed = false } = {}) {
  const dash = dashed ? 'stroke-dasharray="5 4"' : "";
  const line = `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" stroke="${color}" stroke-width="1.5" marker-end="url(#tip)" ${dash}/>`;
  return words === ""
    ? line
    : line + text((x1 + x2) / 2, y1 - 6, words, { size: 12, anchor: "middle", color });
}

function svg(width, height, title, parts) {
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${escaped(title)}">
<title>${escaped(title)}</title>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="${INK}"/></marker></defs>
<rect width="${width}" height="${height}" fill="#fbfcfd"/>
${parts.join("\n")}
</svg>
`;
}

/** From the top to the bottom: folder, what is there. As test/floors.test.ts has them. */
const FLOORS = [
  ["bin", "entry points, without logic", "#eef1f4"],
  ["api", 'import … from "mapdirect": mappings as Buffers, mkfs, mount', "#eef1f4"],
  ["cli", "the commands", "#eef1f4"],
  ["daemon", "the life of a daemon; starting, asking, ending one", "#e3eefb"],
  ["session", "requests: dispatch, one handler for each; volume, handles", "#e3eefb"],
  ["lease", "leases, what they forbid, the wire to the client library", "#fbe9e3"],
  ["fsck", "damaged media read as far as they go, and made to fit", "#e6f4e6"],
  ["namespace", "inodes, names, data; the one way to change anything", "#e6f4e6"],
  ["space", "free space, block maps, quarantine", "#e6f4e6"],
  ["media", "superblock, log, checkpoint, recovery, mkfs", "#e6f4e6"],
  ["region", "the mapped file or device; the only loader of the addon", "#f3ecfa"],
  ["layout", "a struct declared once: offsets, codecs, C header", "#f6f3e4"],
  ["tables", "rows by the million, outside the JavaScript heap", "#f6f3e4"],
  ["base", "errno, the three kinds of error, waiting, the clock", "#f6f3e4"],
];

function floors() {
  const [left, top, width, height, gap] = [40, 84, 560, 34, 6];
  const at = (name) => top + FLOORS.findIndex(([floor]) => floor === name) * (height + gap);
  const parts = [
    text(40, 36, "The floors of src/", { size: 20, weight: "bold" }),
    text(40, 60, "Imports go strictly down, past floors or to the next; a test keeps it so.", {
      color: SOFT,
    }),
  ];
  for (const [name, what, fill] of FLOORS) {
    const y = at(name);
    parts.push(
      box(left, y, width, height, fill),
      text(left + 14, y + 22, `${name}/`, { mono: true, weight: "bold" }),
    );
    parts.push(text(left + 126, y + 22, what, { size: 12.5 }));
  }
  const column = (name, what, x, from, to, fill) => {
    const [y, end] = [at(from), at(to) + height];
    parts.push(
      box(x, y, 140, end - y, fill),
      text(x + 70, y + 24, `${name}/`, { mono: true, weight: "bold", anchor: "middle" }),
    );
    what.forEach((line, index) => {
      parts.push(text(x + 70, y + 48 + index * 18, line, { size: 12, anchor: "middle" }));
    });
  };
  column(
    "fuse",
    ["the kernel's protocol", "and nothing else:", "stands on layout", "and base alone"],
    630,
    "lease",
    "region",
    "#fdf3d8",
  );
  column(
    "fuse-api",
    ["mapdirect/fuse:", "file systems", "of others; stands on", "fuse, region, below"],
    790,
    "api",
    "session",
    "#fdf3d8",
  );
  parts.push(arrow(600, at("session") + 17, 700, at("lease") - 2));
  parts.push(arrow(860, at("session") + height, 770, at("lease") + 20));
  parts.push(arrow(700, at("region") + height, 604, at("layout") + 17));
  const y = at("base") + height + 44;
  parts.push(
    text(left, y, "native/", { mono: true, weight: "bold" }),
    text(left + 126, y, "what TypeScript cannot do", { color: SOFT }),
  );
  const natives = [
    ["napi", "addon, loaded by region/", "#f3ecfa"],
    ["region, persist", "map, copy, flush, CRC32C", "#f3ecfa"],
    ["fuse", "/dev/fuse on the event loop", "#f3ecfa"],
    ["client", "the C library: its own process", "#fbe9e3"],
  ];
  natives.forEach(([name, what, fill], index) => {
    const x = left + index * 224;
    parts.push(
      box(x, y + 14, 212, 52, fill),
      text(x + 12, y + 36, name, { mono: true, weight: "bold" }),
      text(x + 12, y + 55, what, { size: 12 }),
    );
  });
  parts.push(
    text(
      left,
      y + 96,
      "The client library shares nothing with the daemon but the bytes of lease/wire.ts, from which its header is generated.",
      { size: 12.5, color: SOFT },
    ),
  );
  return svg(970, y + 120, "The floors of the source tree", parts);
}

function mapping() {
  const lanes = [
    ["program", 90],
    ["client library", 290],
    ["kernel", 490],
    ["daemon", 690],
    ["region", 890],
  ];
  const x = Object.fromEntries(lanes);
  const parts = [text(40, 36, "The life of a direct mapping", { size: 20, weight: "bold" })];
  let y = 118;
  const bands = [];
  let open = () => {};
  /** Begin a part of the story; its ground is as high as what comes until the next. */
  const band = (label, fill) => {
    open();
    const top = y - 26;
    open = () => {
      bands.push(`<rect x="20" y="${top}" width="960" height="${y - top - 14}" rx="8" fill="${fill}"/>`);
      y += 20;
    };
    parts.push(text(32, y - 8, label, { size: 12, weight: "bold", color: SOFT }));
    y += 24;
  };
  const step = (from, to, words, options) => {
    parts.push(arrow(x[from], y, x[to], y, words, options));
    y += 34;
  };
  const note = (lane, words) => {
    const width = Math.max(...words.map((line) => line.length)) * 6.9 + 20;
    const left = Math.min(x[lane] - width / 2, 976 - width);
    parts.push(box(left, y - 22, width, 12 + words.length * 17, "#ffffff"));
    words.forEach((line, index) => {
      parts.push(text(left + 10, y - 5 + index * 17, line, { size: 12 }));
    });
    y += 18 + words.length * 17;
  };
  band("1  the grant", "#eef4fb");
  step("program", "client library", "mmap(… MAP_DIRECT)");
  step("client library", "daemon", "open the file once more: a description of its own");
  step("client library", "daemon", "ioctl GRANT on it");
  note("daemon", [
    "rights, limits, conflicts; cached pages written",
    "back and dropped; where the blocks are is durable",
  ]);
  step("daemon", "client library", "extents, lease, generation", { dashed: true });
  step(
    "client library",
    "region",
    "open with its own rights, the same one? map the extents over one reserved range",
  );
  note("client library", [
    "holes: pages that raise SIGBUS at a store",
    "anchor: one PROT_NONE page of the description",
  ]);
  band("2  use", "#eef8ee");
  step("program", "region", "loads and stores: no system call, no daemon");
  step("program", "region", "persist: CPU flush and fence (pmem), or msync");
  note("kernel", ["read(2) and write(2) of everybody reach the same blocks"]);
  band("3  somebody wants to change the blocks", "#fdf1ec");
  step("kernel", "daemon", "truncate, punch, …");
  note("daemon", ["a seal: ETXTBSY, and nothing has changed", "a breakable lease: the operation waits"]);
  step("daemon", "client library", "poll wakes the watch: being broken", { dashed: true });
  step("client library", "program", "handler: last stores");
  step("client library", "daemon", "pages replaced by ones that raise SIGBUS; END");
  note("daemon", [
    "the operation goes on. A holder that does not let go in break_time:",
    "it goes on all the same, and what is freed is in quarantine",
  ]);
  band("4  the end", "#f4eefa");
  step("program", "kernel", "the last munmap, exit, exec or kill -9, in every child");
  step("kernel", "daemon", "RELEASE of the description");
  note("daemon", ["the lease has ended; quarantined blocks are free"]);
  open();
  const height = y - 20;
  const rails = lanes.flatMap(([name, at]) => [
    `<line x1="${at}" y1="86" x2="${at}" y2="${height - 12}" stroke="#b8c2cc" stroke-dasharray="2 4"/>`,
    box(at - 64, 58, 128, 28, "#ffffff", INK),
    text(at, 77, name, { anchor: "middle", weight: "bold" }),
  ]);
  // Bands first, rails above them, everything else on top.
  return svg(1000, height, "The life of a direct mapping", [...bands, ...rails, ...parts]);
}

const images = join(root, "docs", "images");
mkdirSync(images, { recursive: true });
writeFileSync(join(images, "floors.svg"), floors());
writeFileSync(join(images, "mapping.svg"), mapping());
