/**
 * The server behind `mapdirect dashboard`: a page for one mount, for whoever started it.
 *
 * Invariants:
 * - it listens on the loopback interface alone, and answers nothing to whoever does not have the token, which is in every
 *   path and compared in constant time;
 * - a request that names another host is refused (DNS rebinding), and so is one to change something that another page
 *   sent (Origin, and a header that such a page cannot set);
 * - the page loads nothing from elsewhere, and its policy (CSP) lets it neither do so nor run what it was told in data;
 * - what it may ask the daemon is decided by the daemon: this process has its user's rights and no others.
 */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { ask, asLeases, withOpen } from "../daemon/client.ts";
import { asFailure, Failure } from "../daemon/failure.ts";
import { WHERE_CELLS } from "../lease/wire.ts";
import { packageRoot } from "../region/addon.ts";
import type { MapReport } from "../session/blockmap.ts";
import type { Statistics } from "../session/statistics.ts";
import { CELL_PX, COLUMNS, gridOf, STYLES, styleSheet } from "./picture.ts";

export interface Dashboard {
  /** With the token. */
  readonly url: string;
  close(): Promise<void>;
}

const HOST = "127.0.0.1";
/** Cells of the map: on a laptop, as high as the charts beside it. */
const CELLS = COLUMNS * 64;
/** Several pages, or one that is reloaded, cost the daemon one look in so long, milliseconds. */
const MAP_MS = 1_000;
const BODY_BYTES_MAX = 1024;
/** A page cannot send it to another origin without being asked first, and we do not say yes. */
const GUARD_HEADER = "x-mapdirect";

const HEADERS = {
  "cache-control": "no-store",
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};

type Asset = readonly [type: string, read: () => string | Buffer];

function assets(): Record<string, Asset> {
  const own = (name: string) => () => readFileSync(join(packageRoot, "assets", "dashboard", name));
  const uplot = dirname(fileURLToPath(import.meta.resolve("uplot/package.json")));
  return {
    "": ["text/html; charset=utf-8", own("page.html")],
    "page.css": ["text/css; charset=utf-8", own("page.css")],
    "page.js": ["text/javascript; charset=utf-8", own("page.js")],
    "states.css": ["text/css; charset=utf-8", () => styleSheet("auto")],
    "uplot.js": [
      "text/javascript; charset=utf-8",
      () => readFileSync(join(uplot, "dist", "uPlot.iife.min.js")),
    ],
    "uplot.css": ["text/css; charset=utf-8", () => readFileSync(join(uplot, "dist", "uPlot.min.css"))],
  };
}

/** @throws Failure when the mount does not answer, or not to this user. */
export async function openDashboard(mountpoint: string, port: number): Promise<Dashboard> {
  const mount = new Mount(mountpoint);
  // Who may not see the map is told so before there is a page.
  mount.map();
  const token = randomBytes(32).toString("base64url");
  const files = assets();
  const server = createServer({ requestTimeout: 10_000, headersTimeout: 5_000 }, (request, response) => {
    serve(request, response, { mount, token, files, port: portOf(server) }).catch((error: unknown) => {
      const { message } = asFailure(error, mountpoint, "see 'mapdirect info MOUNTPOINT'");
      sendJson(response, 503, { error: message });
    });
  });
  await new Promise<void>((listening, failed) => {
    server.once("error", (error) => failed(asFailure(error, `port ${port}`, "choose another --port")));
    server.listen({ host: HOST, port }, listening);
  });
  return {
    url: `http://${HOST}:${portOf(server)}/${token}/`,
    close: () =>
      new Promise((closed) => {
        server.close(() => closed());
        server.closeAllConnections();
      }),
  };
}

function portOf(server: Server): number {
  const address = server.address();
  return address !== null && typeof address === "object" ? address.port : 0;
}

/** Questions to the daemon; they block this process, not the daemon. */
class Mount {
  readonly path: string;
  #map: { atMs: number; report: MapReport } | null = null;

  constructor(path: string) {
    this.path = path;
  }

  state(): unknown {
    return withOpen(this.path, (descriptor) => ({
      mountpoint: this.path,
      statistics: ask(descriptor, "STATS") as Statistics,
      leases: asLeases(ask(descriptor, "LEASES")),
    }));
  }

  about(): unknown {
    return withOpen(this.path, (descriptor) => ask(descriptor, "INFO"));
  }

  map(): MapReport {
    if (this.#map === null || Date.now() - this.#map.atMs > MAP_MS) {
      const report = withOpen(this.path, (descriptor) => ask(descriptor, "MAP", CELLS)) as MapReport;
      this.#map = { atMs: Date.now(), report };
    }
    return this.#map.report;
  }

  where(cell: number): unknown {
    return withOpen(this.path, (descriptor) => ask(descriptor, "WHERE", CELLS * WHERE_CELLS + cell));
  }

  break(id: number): unknown {
    const answer = withOpen(this.path, (descriptor) => ask(descriptor, "BREAK", id));
    this.#map = null;
    return answer;
  }
}

interface Context {
  readonly mount: Mount;
  readonly token: string;
  readonly files: Record<string, Asset>;
  readonly port: number;
}

const digest = (text: string): Buffer => createHash("sha256").update(text).digest();

async function serve(request: IncomingMessage, response: ServerResponse, context: Context): Promise<void> {
  const { mount, token, files, port } = context;
  const hosts = [`${HOST}:${port}`, `localhost:${port}`];
  if (!hosts.includes(request.headers.host ?? "")) {
    sendJson(response, 403, { error: "ask by the address that the command printed" });
    return;
  }
  const url = new URL(request.url ?? "/", `http://${HOST}:${port}`);
  const [, given = "", ...rest] = url.pathname.split("/");
  // Digests have one length, whatever was given.
  if (!timingSafeEqual(digest(given), digest(token))) {
    sendJson(response, 404, { error: "not found" });
    return;
  }
  const name = rest.join("/");
  if (name === "api/break") {
    await breakLease(request, response, mount, hosts);
    return;
  }
  if (request.method !== "GET") {
    sendJson(response, 405, { error: "only GET" });
    return;
  }
  switch (name) {
    case "api/about":
      sendJson(response, 200, { about: mount.about(), styles: STYLES, columns: COLUMNS, cellPx: CELL_PX });
      return;
    case "api/state":
      sendJson(response, 200, mount.state());
      return;
    case "api/map": {
      const report = mount.map();
      sendJson(response, 200, { ...report, grid: gridOf(report) });
      return;
    }
    case "api/where": {
      const cell = Number(url.searchParams.get("cell"));
      if (!Number.isInteger(cell) || cell < 0 || cell >= CELLS)
        sendJson(response, 400, { error: "no such cell" });
      else sendJson(response, 200, mount.where(cell));
      return;
    }
    default: {
      const file = Object.hasOwn(files, name) ? files[name] : undefined;
      // Without the slash at the end, what the page names would be looked for outside of the token.
      if (file === undefined || rest.length === 0) sendJson(response, 404, { error: "not found" });
      else send(response, 200, file[0], file[1]());
    }
  }
}

async function breakLease(
  request: IncomingMessage,
  response: ServerResponse,
  mount: Mount,
  hosts: readonly string[],
): Promise<void> {
  const { origin } = request.headers;
  const own = origin === undefined || hosts.some((host) => origin === `http://${host}`);
  if (request.method !== "POST" || !own || request.headers[GUARD_HEADER] === undefined) {
    sendJson(response, 403, { error: "only the page itself may do this" });
    return;
  }
  let text = "";
  for await (const part of request) {
    text += String(part);
    if (text.length > BODY_BYTES_MAX) throw new Failure("request", "it is too long", "reload the page");
  }
  let id: unknown;
  try {
    ({ id } = JSON.parse(text) as { id?: unknown });
  } catch {
    // Said below.
  }
  // 0 would mean all of them.
  if (!Number.isSafeInteger(id) || (id as number) < 1) sendJson(response, 400, { error: "no lease named" });
  else sendJson(response, 200, mount.break(id as number));
}

function sendJson(response: ServerResponse, code: number, value: unknown): void {
  send(response, code, "application/json", JSON.stringify(value));
}

function send(response: ServerResponse, code: number, type: string, body: string | Buffer): void {
  if (response.headersSent) return;
  response.writeHead(code, { ...HEADERS, "content-type": type });
  response.end(body);
}
