/**
 * `npm run pictures`: the pictures of docs/images, from a real mount with something going on: files whole and in pieces,
 * clones, unwritten blocks, leases of both kinds, one that is being broken, blocks in quarantine, and a load.
 *
 * Needs root (a mount for all), Chromium and tmux. Leaves nothing behind but the pictures.
 */
import { spawn, spawnSync } from "node:child_process";
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  rmdirSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { build } from "./build.mjs";
import { fail, hasCommand, isMain, root, SetupError, setup } from "./setup.mjs";

const MIB = 1024 * 1024;
const images = join(root, "docs", "images");
const program = join(root, "dist", "bin", "mapdirect.js");

function cli(...args) {
  const done = spawnSync(process.execPath, [program, ...args], { encoding: "utf8" });
  if (done.status !== 0) throw new SetupError(`pictures: mapdirect ${args.join(" ")}: ${done.stderr}`);
  return done.stdout;
}

/** A program with this name that holds a lease until it is killed. */
async function holder(children, name, file, kind, offset, length) {
  const script = `
    import { openSync } from "node:fs";
    import { addon } from ${JSON.stringify(join(root, "dist/region/addon.js"))};
    import * as wire from ${JSON.stringify(join(root, "dist/lease/wire.js"))};
    import { viewOf } from ${JSON.stringify(join(root, "dist/layout/struct.js"))};
    process.title = ${JSON.stringify(name)};
    const argument = new Uint8Array(wire.WIRE_MAP_BYTES);
    wire.WireMap.encode(viewOf(argument), 0, {
      version: wire.WIRE_VERSION, kind: ${kind}, offset: ${offset}n, length: ${length}n,
    });
    addon().ioctl(openSync(${JSON.stringify(file)}, "r+"), wire.Ioctl.GRANT, argument);
    process.stdout.write("held\\n");
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  children.push(child);
  await new Promise((done, failed) => {
    child.stdout.once("data", done);
    child.once("exit", () => failed(new SetupError(`pictures: ${name} has no lease`)));
  });
  return child;
}

/** Reads and writes at random, for the charts. */
function load(children, file) {
  const script = `
    import { openSync, readSync, writeSync, fsyncSync } from "node:fs";
    const file = openSync(${JSON.stringify(file)}, "r+");
    const buffer = Buffer.alloc(16384, 7);
    for (let turn = 0; ; turn += 1) {
      const until = performance.now() + 20 + 15 * Math.sin(turn / 40);
      while (performance.now() < until) {
        const at = Math.floor(Math.random() * 1024) * 16384;
        if (Math.random() < 0.7) readSync(file, buffer, 0, 16384, at);
        else writeSync(file, buffer, 0, 16384, at);
      }
      if (turn % 5 === 0) fsyncSync(file);
      await new Promise((next) => setTimeout(next, 30));
    }`;
  children.push(spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: "inherit" }));
}

async function fill(children, mnt) {
  mkdirSync(join(mnt, "photos"));
  for (let index = 0; index < 300; index += 1)
    writeFileSync(
      join(mnt, "photos", `${index}.jpg`),
      Buffer.alloc(4096 + ((index * 7919) % 200_000), index),
    );
  for (let turn = 0; turn < 1500; turn += 1)
    for (const name of ["access.log", "error.log"])
      appendFileSync(join(mnt, name), Buffer.alloc(4096 * (1 + (turn % 3)), turn));
  writeFileSync(join(mnt, "database"), Buffer.alloc(48 * MIB, 1));
  writeFileSync(join(mnt, "journal"), Buffer.alloc(12 * MIB, 2));
  writeFileSync(join(mnt, "cache"), Buffer.alloc(6 * MIB, 3));
  writeFileSync(join(mnt, "old"), Buffer.alloc(10 * MIB, 4));
  writeFileSync(join(mnt, "image.raw"), Buffer.alloc(20 * MIB, 5));
  spawnSync("fallocate", ["-l", "70M", join(mnt, "image.raw")]);
  writeFileSync(join(mnt, "work"), Buffer.alloc(16 * MIB, 6));
  writeFileSync(join(mnt, "base.tar"), Buffer.alloc(24 * MIB, 7));
  cli("clone", join(mnt, "base.tar"), join(mnt, "copy.tar"));
  // Every other photo goes: free space between the others.
  for (let index = 0; index < 300; index += 3) rmSync(join(mnt, "photos", `${index}.jpg`));
  await holder(children, "postgres", join(mnt, "database"), 1, 0, 32 * MIB);
  await holder(children, "queue", join(mnt, "journal"), 2, 0, 12 * MIB);
  // Revoked, and not let go: what was freed is in quarantine.
  await holder(children, "stopped", join(mnt, "old"), 2, 0, 10 * MIB);
}

/** The lease of that program, as the daemon numbers it. */
const leaseOf = (mnt, name) =>
  JSON.parse(cli("leases", "--json", mnt)).find(({ command }) => command === name)?.id;

/** The page in both colours, with a cell of a sealed file chosen. */
async function photographDashboard(browser, url, breakOne) {
  const page = await browser.newPage();
  await page.goto(url);
  await page.waitForSelector("body[data-ready=yes]");
  // Something to see in the charts.
  await sleep(40_000);
  breakOne();
  await page.waitForSelector("#map-cells path.breaking");
  const path = (await page.locator("#map-cells path.sealed").getAttribute("d")) ?? "M0 0";
  const [, x = 0, y = 0] = /M([\d.]+) ([\d.]+)/.exec(path) ?? [];
  const box = await page.locator("#map").boundingBox();
  const scale = box.width / (128 * 9 - 1);
  await page.mouse.click(box.x + (Number(x) + 4) * scale, box.y + (Number(y) + 4) * scale);
  await page.waitForSelector("#where p:nth-child(2)");
  await page.mouse.move(2, 2);
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    await sleep(500);
    await page.screenshot({ path: join(images, `dashboard-${colorScheme}.png`), fullPage: true });
  }
  await page.close();
}

const PALETTE = { 31: "#f4566c", 34: "#6fb0ee", 35: "#b57be0" };

/** The sequences that `top` uses, as markup. */
function terminalPage(text) {
  const look = { bold: false, faint: false, line: false, colour: "" };
  const spans = [];
  for (const [part, codes] of text.matchAll(
    new RegExp(`${String.fromCharCode(27)}\\[([0-9;]*)m|[^${String.fromCharCode(27)}]+`, "g"),
  )) {
    if (codes === undefined) {
      const style = [
        look.bold && "font-weight:bold",
        look.faint && "opacity:.6",
        look.line && "text-decoration:underline",
        look.colour && `color:${look.colour}`,
      ].filter(Boolean);
      const words = part.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
      spans.push(`<span style="${style.join(";")}">${words}</span>`);
      continue;
    }
    for (const code of codes.split(";").map(Number)) {
      if (code === 0) Object.assign(look, { bold: false, faint: false, line: false, colour: "" });
      else if (code === 1) look.bold = true;
      else if (code === 2) look.faint = true;
      else if (code === 22) Object.assign(look, { bold: false, faint: false });
      else if (code === 4) look.line = true;
      else if (code === 24) look.line = false;
      else if (code === 39) look.colour = "";
      else look.colour = PALETTE[code] ?? look.colour;
    }
  }
  return `<body style="margin:0;background:#14181e"><pre style="display:inline-block;margin:0;padding:14px 18px;color:#dfe5ee;font:14px/1.35 'DejaVu Sans Mono',monospace">${spans.join("")}</pre>`;
}

/** What a terminal shows of `mapdirect top`. */
async function photographTop(browser, mnt) {
  const tmux = (...args) =>
    spawnSync("tmux", ["-L", `mapdirect-pictures-${process.pid}`, "-f", "/dev/null", ...args], {
      encoding: "utf8",
    }).stdout;
  try {
    tmux("new-session", "-d", "-x", "124", "-y", "26", "-s", "t", "sh");
    tmux("send-keys", "-t", "t", `TERM=xterm-256color ${process.execPath} ${program} top ${mnt}`, "Enter");
    await sleep(6000);
    const text = tmux("capture-pane", "-e", "-p", "-t", "t").trimEnd();
    const page = await browser.newPage();
    await page.setContent(terminalPage(text));
    await page.locator("pre").screenshot({ path: join(images, "top.png") });
    await page.close();
  } finally {
    tmux("kill-server");
  }
}

function launch(folder) {
  return import("playwright-core").then(({ chromium }) =>
    chromium.launchPersistentContext(join(folder, "profile"), {
      executablePath: "/usr/bin/chromium",
      headless: true,
      viewport: { width: 1366, height: 768 },
      args: [
        ...[
          "--no-sandbox",
          "--disable-gpu",
          "--disable-quic",
          "--no-first-run",
          "--disable-background-networking",
        ],
        ...["--disable-component-update", "--disable-sync"],
      ],
    }),
  );
}

/** Started as a user would; resolves with the address that it prints. */
function serveDashboard(children, mnt) {
  const child = spawn(process.execPath, [program, "dashboard", mnt], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  children.push(child);
  return new Promise((done, failed) => {
    child.stdout.once("data", (text) => done(String(text).trim()));
    child.once("exit", () => failed(new SetupError("pictures: the dashboard ended")));
  });
}

async function pictures() {
  for (const command of ["chromium", "tmux"])
    if (!hasCommand(command)) throw new SetupError(`pictures: ${command} is missing`);
  const folder = mkdtempSync(join(tmpdir(), "mapdirect-pictures-"));
  const memory = mkdtempSync("/dev/shm/mapdirect-pictures-");
  const region = join(memory, "volume.region");
  // Short, for it is in the pictures.
  const mnt = mkdtempSync(join(tmpdir(), "demo-"));
  const children = [];
  mkdirSync(images, { recursive: true });
  try {
    cli("mkfs", "--size", "512M", "--label", "demo", region);
    cli("mount", "-o", "break_time=25", region, mnt);
    await fill(children, mnt);
    cli("leases", "break", "--mount", mnt, `${leaseOf(mnt, "stopped")}`);
    truncateSync(join(mnt, "old"), 0);
    load(children, join(mnt, "work"));
    const browser = await launch(folder);
    try {
      await photographDashboard(browser, await serveDashboard(children, mnt), () =>
        cli("leases", "break", "--no-wait", "--mount", mnt, `${leaseOf(mnt, "queue")}`),
      );
      await photographTop(browser, mnt);
      cli("map", "--png", join(images, "map.png"), mnt);
      cli("map", "--png", join(images, "map-dark.png"), "--dark", mnt);
    } finally {
      await browser.close();
    }
  } finally {
    for (const child of children) child.kill("SIGKILL");
    // The kernel releases what they held; then the mount is not in use.
    await sleep(500);
    spawnSync(process.execPath, [program, "unmount", mnt]);
    rmdirSync(mnt);
    rmSync(folder, { recursive: true, force: true });
    rmSync(memory, { recursive: true, force: true });
  }
}

if (isMain(import.meta.url)) {
  try {
    setup();
    build();
    await pictures();
  } catch (error) {
    fail(error);
  }
}
