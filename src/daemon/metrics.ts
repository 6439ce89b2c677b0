/**
 * Metrics for Prometheus: at a port of the loopback interface, at a unix socket, or in a file for node_exporter's
 * textfile collector.
 *
 * Invariants:
 * - nobody on another machine can ask: only loopback addresses are accepted, and what reaches them through a browser
 *   (DNS rebinding) is turned away by its Host header; a unix socket has mode 0600;
 * - nothing here is done synchronously on a path that a user names once the mount serves, and none may lie on the mount
 *   itself: the daemon would wait for itself;
 * - a metric says nothing of names, files or holders;
 * - whatever goes wrong later (disk full, connection lost) is a line in the log, and the file system goes on.
 */
import { lstatSync, unlinkSync } from "node:fs";
import { rename, rm, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { connect } from "node:net";
import { basename, dirname, join } from "node:path";
import { Counter, Gauge, Registry } from "prom-client";
import { every, fault } from "../base/faults.ts";
import { packageVersion } from "../region/addon.ts";
import { boundMicros, countsOf, type Statistics } from "../session/statistics.ts";
import { asFailure, Failure, reason } from "./failure.ts";
import type { Log } from "./log.ts";
import { isLoopback, METRICS_WANTS, type MetricsAddress, showMetricsAddress } from "./metrics-address.ts";
import { liesBelow } from "./mounts.ts";

/** Of this daemon, whatever is installed by now. */
const VERSION = packageVersion();
/** The file is written anew this often, milliseconds. */
const FILE_MS = 15_000;
/** Who asks has so long to say what, milliseconds. */
const REQUEST_MS = 5_000;
const CONNECTIONS_MAX = 16;

export class Metrics {
  /** As a user would type it; the port is the one in use. */
  readonly address: string;
  readonly #close: () => Promise<void>;

  private constructor(address: string, close: () => Promise<void>) {
    this.address = address;
    this.#close = close;
  }

  /**
   * Before the mount is there: afterwards a path could lead to it. `look` says null as long as nothing is served.
   * @throws Failure when the address cannot be used.
   */
  static async open(
    address: MetricsAddress,
    mountpoint: string,
    look: () => Statistics | null,
    log: Log,
  ): Promise<Metrics> {
    const registry = new Measured(look);
    if (address.kind === "file") {
      refuseBelow(address.path, mountpoint);
      return Metrics.#toFile(address.path, registry, log);
    }
    const server = createServer(
      { requestTimeout: REQUEST_MS, headersTimeout: REQUEST_MS },
      (request, response) => {
        answer(registry, address, request, response).catch((error: unknown) => {
          fault("metrics", error);
          response.destroy();
        });
      },
    );
    server.maxConnections = CONNECTIONS_MAX;
    server.keepAliveTimeout = REQUEST_MS;
    const listen = (where: { host: string; port: number } | { path: string }): Promise<void> =>
      new Promise((listening, failed) => {
        server.once("error", failed);
        server.listen(where, listening);
      });
    const umask = process.umask(0o177);
    try {
      if (address.kind === "socket") {
        refuseBelow(address.path, mountpoint);
        await removeStale(address.path);
        await listen({ path: address.path });
      } else await listen({ host: address.host, port: address.port });
    } catch (error) {
      server.close();
      throw asFailure(error, `metrics at ${showMetricsAddress(address)}`, `choose ${METRICS_WANTS}`);
    } finally {
      process.umask(umask);
    }
    server.removeAllListeners("error");
    server.on("error", (error) => log.warn(`metrics: ${error.message}`));
    // The mount keeps the daemon alive, not this.
    server.unref();
    const bound = server.address();
    const port = bound !== null && typeof bound === "object" ? bound.port : 0;
    return new Metrics(
      address.kind === "port"
        ? `http://${showMetricsAddress({ ...address, port })}/metrics`
        : showMetricsAddress(address),
      async () => {
        server.close();
        server.closeAllConnections();
      },
    );
  }

  static async #toFile(path: string, registry: Measured, log: Log): Promise<Metrics> {
    // The collector takes files that end in .prom; this one does not.
    const fresh = join(dirname(path), `.${basename(path)}.${process.pid}`);
    let told = false;
    let writing: Promise<void> | null = null;
    const write = async (): Promise<void> => {
      // The collector runs as a user of its own, and must never see half a file.
      await writeFile(fresh, (await registry.text()) ?? "# not mounted yet\n", { mode: 0o644 });
      await rename(fresh, path);
      told = false;
    };
    try {
      await write();
    } catch (error) {
      throw asFailure(error, `metrics in ${path}`, `choose ${METRICS_WANTS}`);
    }
    const timer = every(FILE_MS, "writing metrics", () => {
      writing ??= write()
        .catch((error: unknown) => {
          if (!told) log.warn(`metrics in ${path}: ${reason(error)}`);
          told = true;
        })
        .finally(() => {
          writing = null;
        });
    });
    timer.unref();
    return new Metrics(`file:${path}`, async () => {
      clearInterval(timer);
      await writing;
      // What is not served any more must not look as if it were.
      await Promise.all([fresh, path].map((name) => rm(name, { force: true }).catch(() => {})));
    });
  }

  async close(): Promise<void> {
    await this.#close();
  }
}

function refuseBelow(path: string, mountpoint: string): void {
  let below: boolean;
  try {
    below = liesBelow(path, mountpoint);
  } catch (error) {
    throw asFailure(error, dirname(path), "metrics need a directory that exists");
  }
  if (below) throw new Failure(path, "it lies on the mount that the metrics are of", "choose another place");
}

/** A socket whose daemon died is in the way; one at which somebody answers is somebody's. */
async function removeStale(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  const answered = await new Promise<boolean>((done) => {
    const socket = connect(path);
    socket.on("connect", () => {
      socket.destroy();
      done(true);
    });
    socket.on("error", () => done(false));
  });
  if (!found.isSocket() || answered)
    throw new Failure(path, "something is there already", "choose another path");
  unlinkSync(path);
}

async function answer(
  registry: Measured,
  address: MetricsAddress,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const say = (code: number, text: string, type = "text/plain; charset=utf-8"): void => {
    response.writeHead(code, { "content-type": type, "cache-control": "no-store" });
    response.end(request.method === "HEAD" ? undefined : text);
  };
  // A page from elsewhere that got a name of its own resolved to this address still sends that name.
  const host = (request.headers.host ?? "").replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
  if (address.kind === "port" && host !== "localhost" && !isLoopback(host)) {
    say(403, "ask by the loopback address\n");
  } else if (request.method !== "GET" && request.method !== "HEAD") say(405, "GET /metrics\n");
  else if (request.url !== "/metrics") say(404, "GET /metrics\n");
  else {
    const text = await registry.text();
    if (text === null) say(503, "not mounted yet\n");
    else say(200, text, registry.contentType);
  }
}

/** Metrics are filled in when somebody asks: counting itself knows nothing of them. */
class Measured {
  readonly #look: () => Statistics | null;
  readonly #registry: Registry;
  #seen: Statistics | null = null;

  constructor(look: () => Statistics | null) {
    this.#look = look;
    this.#registry = registryOf(() => this.#seen as Statistics);
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** Null as long as there is nothing to measure. */
  async text(): Promise<string | null> {
    // One look for all metrics of an answer.
    this.#seen = this.#look();
    return this.#seen === null ? null : await this.#registry.metrics();
  }
}

function registryOf(stats: () => Statistics): Registry {
  const registry = new Registry();
  const registers = [registry];
  type Row = readonly [labels: Record<string, string>, value: number];
  const rowsOf = (value: number | Row[]): Row[] => (typeof value === "number" ? [[{}, value]] : value);
  const metric =
    (Kind: typeof Counter | typeof Gauge) =>
    (name: string, help: string, labelNames: string[], read: (s: Statistics) => number | Row[]): void => {
      const made: Counter | Gauge = new Kind({
        ...{ name, help, labelNames, registers },
        collect() {
          made.reset();
          for (const [labels, value] of rowsOf(read(stats()))) made.inc(labels, value);
        },
      });
    };
  const counter = metric(Counter);
  const gauge = metric(Gauge);
  const by = (label: string, values: Readonly<Record<string, number>>): Row[] =>
    Object.entries(values).map(([name, value]) => [{ [label]: name }, value]);

  counter("mapdirect_requests_total", "Requests of the kernel.", ["operation"], (s) =>
    by("operation", s.operations),
  );
  counter("mapdirect_errors_total", "Requests answered with an error.", ["errno"], (s) =>
    by("errno", s.errors_by),
  );
  counter("mapdirect_read_bytes_total", "Bytes read through the kernel.", [], (s) => s.bytes_read);
  counter("mapdirect_written_bytes_total", "Bytes written through the kernel.", [], (s) => s.bytes_written);
  gauge(
    "mapdirect_requests_waiting",
    "Requests that wait for a lease, a sync or space.",
    [],
    (s) => s.waiting,
  );
  gauge("mapdirect_open_files", "Open files and directories.", [], (s) => s.open_files);
  gauge("mapdirect_inodes", "Files, directories and others.", [], (s) => s.inodes);
  gauge("mapdirect_leases", "Leases by state.", ["state"], (s) => by("state", s.leases_by));
  gauge(
    "mapdirect_orphaned_processes",
    "Processes that still map files from before this mount.",
    [],
    (s) => s.orphaned_processes,
  );
  counter("mapdirect_lease_grants_total", "Leases granted.", [], (s) => s.grants);
  counter("mapdirect_lease_refusals_total", "Operations refused for a seal.", [], (s) => s.refusals);
  counter("mapdirect_lease_breaks_total", "Leases that were asked to end.", [], (s) => s.breaks);
  counter("mapdirect_lease_revocations_total", "Leases that did not end in time.", [], (s) => s.revocations);
  gauge("mapdirect_volume_size_bytes", "Size of the volume.", [], (s) => s.space.size);
  gauge("mapdirect_volume_free_bytes", "Space that files could get.", [], (s) => s.space.free);
  gauge(
    "mapdirect_volume_metadata_bytes",
    "Space of metadata, its reserve included.",
    [],
    (s) => s.space.metadata,
  );
  gauge(
    "mapdirect_volume_quarantined_bytes",
    "Space that is freed, and still within reach of a holder.",
    [],
    (s) => s.space.quarantined,
  );
  gauge("mapdirect_volume_read_only", "1 when nothing can be written.", [], (s) =>
    s.read_only === null ? 0 : 1,
  );
  counter("mapdirect_log_written_bytes_total", "Bytes appended to the log.", [], (s) => s.log_bytes);
  counter("mapdirect_log_groups_total", "Groups of records committed.", [], (s) => s.groups);
  gauge("mapdirect_log_segments", "Segments of the log.", [], (s) => s.log_segments);
  counter("mapdirect_checkpoints_total", "Checkpoints completed.", [], (s) => s.checkpoints);
  gauge("mapdirect_checkpoint_running", "1 while a checkpoint is being written.", [], (s) =>
    s.checkpointing ? 1 : 0,
  );
  gauge(
    "mapdirect_checkpoint_slice_max_seconds",
    "Longest time that a slice of a checkpoint kept requests waiting.",
    [],
    (s) => s.longest_slice_ms / 1000,
  );
  counter(
    "mapdirect_wakeups_total",
    "Times that the daemon was woken by a request.",
    [],
    (s) => s.channel?.wakeups ?? 0,
  );
  gauge("mapdirect_build_info", "1; the daemon's version is the label.", ["version"], () => [
    [{ version: VERSION }, 1],
  ]);
  gauge("mapdirect_uptime_seconds", "Time since the mount.", [], (s) => s.uptime_s);
  gauge("process_resident_memory_bytes", "Resident memory of the daemon.", [], (s) => s.resident_bytes);
  gauge(
    "mapdirect_memory_bytes",
    "Memory of the daemon's own, without pages of the region.",
    [],
    (s) => s.memory_bytes,
  );
  registry.registerMetric(durations(stats) as never);
  return registry;
}

/** prom-client's own histogram counts by itself; this one shows what is counted already, an octave a bucket. */
function durations(stats: () => Statistics): { name: string; get(): Promise<unknown>; reset(): void } {
  const name = "mapdirect_request_duration_seconds";
  return {
    name,
    reset() {},
    async get() {
      const values: { metricName: string; labels: Record<string, string | number>; value: number }[] = [];
      for (const [operation, latency] of Object.entries(stats().latency)) {
        const counts = countsOf(latency);
        let sum = 0;
        for (let bucket = 0; bucket < counts.length - 1; bucket += 1) {
          sum += counts[bucket] as number;
          if (bucket % 4 === 0)
            values.push({
              metricName: `${name}_bucket`,
              labels: { operation, le: boundMicros(bucket) / 1e6 },
              value: sum,
            });
        }
        values.push({
          metricName: `${name}_bucket`,
          labels: { operation, le: "+Inf" },
          value: latency.count,
        });
        values.push({ metricName: `${name}_sum`, labels: { operation }, value: latency.total_us / 1e6 });
        values.push({ metricName: `${name}_count`, labels: { operation }, value: latency.count });
      }
      const help = "Time from the arrival of a request to its answer, waiting included.";
      return { name, help, type: "histogram", values, aggregator: "sum" };
    },
  };
}
