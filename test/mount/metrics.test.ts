/** What a mount tells of itself: statistics, metrics, the log. */
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmdirSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { mkdir, readFile, rm } from "node:fs/promises";
import { request } from "node:http";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { Ioctl, LeaseKind } from "../../src/lease/wire.ts";
import { addon } from "../../src/region/addon.ts";
import type { Statistics } from "../../src/session/statistics.ts";
import { grantRequest } from "../support/grant.ts";
import { type TestMount, withMount } from "../support/mount.ts";
import { cli, succeed } from "../support/run.ts";

async function stats(mount: TestMount): Promise<Statistics> {
  const { code, stdout, stderr } = await cli(["stats", "--json", mount.path]);
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as Statistics;
}

/** GET with a Host header of one's own, which fetch does not let one choose. */
function get(
  where: { port: number } | { socketPath: string },
  path = "/metrics",
  host?: string,
): Promise<{ code: number; type: string; text: string }> {
  return new Promise((done, failed) => {
    const asked = request(
      { host: "127.0.0.1", ...where, path, ...(host && { headers: { host } }) },
      (response) => {
        let text = "";
        response.setEncoding("utf8");
        response.on("data", (part: string) => {
          text += part;
        });
        response.on("end", () =>
          done({ code: response.statusCode ?? 0, type: response.headers["content-type"] ?? "", text }),
        );
      },
    );
    asked.on("error", failed);
    asked.end();
  });
}

/** Names and labels to values, as the exposition format has them. */
function parse(text: string): Map<string, number> {
  const found = new Map<string, number>();
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const match = /^([a-z_]+(?:\{[^}]*\})?) (\S+)$/.exec(line);
    expect(match, line).not.toBeNull();
    found.set(match?.[1] ?? "", Number(match?.[2]));
  }
  return found;
}

async function withLog(
  extra: readonly string[],
  action: (mount: TestMount, log: () => Promise<string>) => Promise<void>,
): Promise<void> {
  await withMount({}, async (mount) => {
    await mount.unmount();
    const file = join(mount.folder, "log");
    const { code, stderr } = await cli(["mount", "--log", file, ...extra, mount.region, mount.path]);
    expect(code, stderr).toBe(0);
    await action(mount, () => readFile(file, "utf8"));
  });
}

describe("statistics", () => {
  test("count what was done, with times and bytes", async () => {
    await withMount({}, async (mount) => {
      const before = await stats(mount);
      writeFileSync(mount.at("file"), Buffer.alloc(100_000));
      expect(readFileSync(mount.at("file"))).toHaveLength(100_000);
      mkdirSync(mount.at("full", "inside"), { recursive: true });
      expect(() => rmdirSync(mount.at("full"))).toThrow("ENOTEMPTY");
      const after = await stats(mount);
      expect(after.bytes_written - before.bytes_written).toBe(100_000);
      expect(after.bytes_read - before.bytes_read).toBe(100_000);
      expect(after.errors_by.ENOTEMPTY).toBe(1);
      expect(after.operations.write).toBeGreaterThan(0);
      expect(after.latency.write?.count).toBe(after.operations.write);
      expect(after.latency.write?.p99_us).toBeGreaterThanOrEqual(after.latency.write?.p50_us ?? Infinity);
      expect(after.space.free).toBeLessThan(before.space.free);
      expect(after.leases_by).toEqual({ held: 0, breaking: 0, revoked: 0, ended: 0 });
      expect((await cli(["stats", mount.path])).stdout).toMatch(/operation +count +p50 us/);
    });
  });

  test("a time has what the request waited for in it", async () => {
    await withMount({ options: "direct=breakable,break_time=1" }, async (mount) => {
      const path = mount.at("file");
      writeFileSync(path, Buffer.alloc(8192));
      const holder = openSync(path, "r+");
      addon().ioctl(holder, Ioctl.GRANT, grantRequest(LeaseKind.BREAKABLE, 0, 8192));
      // In another process: the daemon's mount must not stop this one. truncate(1) opens without waiting.
      await succeed("python3", ["-S", "-c", "import os, sys; os.truncate(sys.argv[1], 0)", path]);
      const { latency, breaks, revocations } = await stats(mount);
      closeSync(holder);
      expect({ breaks, revocations }).toEqual({ breaks: 1, revocations: 1 });
      expect(latency.setattr?.total_us).toBeGreaterThan(900_000);
    });
  });
});

describe("metrics", () => {
  test("at a loopback port: values, conventional names, and nothing for a page from elsewhere", async () => {
    await withLog(["--metrics", "127.0.0.1:0"], async (mount, log) => {
      const port = Number(/metrics are at http:\/\/127\.0\.0\.1:(\d+)\/metrics/.exec(await log())?.[1]);
      expect(port).toBeGreaterThan(0);
      writeFileSync(mount.at("file"), "x");
      const { code, type, text } = await get({ port });
      expect(code).toBe(200);
      expect(type).toMatch(/^text\/plain; version=0\.0\.4/);
      const values = parse(text);
      expect(values.get('mapdirect_requests_total{operation="write"}')).toBe(1);
      expect(values.get("mapdirect_written_bytes_total")).toBe(1);
      const { version } = JSON.parse(readFileSync("package.json", "utf8")) as { version: string };
      expect(values.get(`mapdirect_build_info{version="${version}"}`)).toBe(1);
      // What the alerts of the documents ask for is there.
      const alerts = /## Alerts[\s\S]*?\n### /.exec(readFileSync("docs/OPERATIONS.md", "utf8"))?.[0] ?? "";
      const named = [...alerts.matchAll(/\bmapdirect_[a-z_]+/g)].map(([name]) => name);
      expect(named.length).toBeGreaterThan(8);
      for (const name of named) expect(text).toMatch(new RegExp(`^${name}|^# TYPE ${name} `, "m"));
      expect(values.get("mapdirect_volume_size_bytes")).toBe(64 * 1024 * 1024);
      expect(values.get('mapdirect_request_duration_seconds_count{operation="write"}')).toBe(1);
      expect(values.get('mapdirect_request_duration_seconds_bucket{operation="write",le="+Inf"}')).toBe(1);
      // Prometheus' own rules: counters end in _total, every metric has a help and a type.
      for (const [, name, kind] of text.matchAll(/^# TYPE (\S+) (\S+)$/gm)) {
        expect(text).toContain(`# HELP ${name} `);
        expect(name?.endsWith("_total"), name).toBe(kind === "counter");
      }
      // Buckets of a histogram never go down.
      let last = 0;
      for (const [, value] of [...values].filter(([name]) =>
        /duration_seconds_bucket\{operation="lookup"/.test(name),
      )) {
        expect(value).toBeGreaterThanOrEqual(last);
        last = value;
      }
      expect(text).not.toContain(mount.folder);
      expect((await get({ port }, "/metrics", "evil.example:80")).code).toBe(403);
      expect((await get({ port }, "/metrics", `localhost:${port}`)).code).toBe(200);
      expect((await get({ port }, "/other")).code).toBe(404);
      // Only on that address: another of this machine's own is refused.
      await expect(
        new Promise((done, failed) => connect(port, "127.0.0.2").on("connect", done).on("error", failed)),
      ).rejects.toMatchObject({ code: "ECONNREFUSED" });
      await mount.unmount();
      await expect(get({ port })).rejects.toMatchObject({ code: "ECONNREFUSED" });
    });
  });

  test("at a unix socket that only its owner can use; a stale one is replaced, anything else is not", async () => {
    const socket = (mount: TestMount): string => join(mount.folder, "metrics.sock");
    await withMount({}, async (mount) => {
      await mount.unmount();
      const options = `metrics=unix:${socket(mount)}`;
      await mount.mount(options);
      expect(statSync(socket(mount)).mode & 0o777).toBe(0o600);
      expect(parse((await get({ socketPath: socket(mount) })).text).size).toBeGreaterThan(20);
      await mount.kill9();
      expect(existsSync(socket(mount))).toBe(true);
      await mount.mount(options);
      expect((await get({ socketPath: socket(mount) })).code).toBe(200);
      await mount.unmount();
      expect(existsSync(socket(mount))).toBe(false);
      writeFileSync(socket(mount), "mine");
      const { code, stderr } = await mount.cli("mount", "-o", options, mount.region, mount.path);
      expect(code).toBe(1);
      expect(stderr).toContain("something is there already");
      expect(readFileSync(socket(mount), "utf8")).toBe("mine");
    });
  });

  test("in a file for the textfile collector, gone after the mount", async () => {
    await withMount({}, async (mount) => {
      await mount.unmount();
      const file = join(mount.folder, "mapdirect.prom");
      await mount.mount(`metrics=file:${file}`);
      for (let tries = 0; tries < 200 && !readFileSync(file, "utf8").includes("mapdirect_uptime"); tries += 1)
        await sleep(100);
      expect(parse(readFileSync(file, "utf8")).get("mapdirect_volume_size_bytes")).toBe(64 * 1024 * 1024);
      expect(statSync(file).mode & 0o777).toBe(0o644);
      await mount.unmount();
      expect(existsSync(file)).toBe(false);
    });
  });

  test("a place on the mount itself is refused, and nothing hangs", async () => {
    await withMount({}, async (mount) => {
      await mkdir(mount.at("inside"));
      await mount.unmount();
      await mkdir(join(mount.path, "inside"));
      for (const kind of ["unix", "file"]) {
        const { code, stderr } = await mount.cli(
          "mount",
          "--metrics",
          `${kind}:${mount.path}/inside/m`,
          mount.region,
          mount.path,
        );
        expect(code).toBe(1);
        expect(stderr).toContain("lies on the mount");
      }
      await rm(join(mount.path, "inside"), { recursive: true });
      await mount.mount();
    });
  });

  test("an address that others could reach is wrong usage", async () => {
    const { code, stderr } = await cli(["mount", "--metrics", "0.0.0.0:9464", "/dev/null", "/mnt"]);
    expect(code).toBe(2);
    expect(stderr).toContain("loopback");
  });
});

describe("the log", () => {
  test("in JSON, requests included, every line is an object with the mount", async () => {
    await withLog(["--log-format", "json", "--debug"], async (mount, log) => {
      writeFileSync(mount.at("file"), "x");
      await mount.unmount();
      const lines = (await log())
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line) as Record<string, unknown>);
      expect(
        lines.every(({ region, mountpoint }) => region === mount.region && mountpoint === mount.path),
      ).toBe(true);
      expect(lines.some(({ level, msg }) => level === "debug" && /WRITE/.test(`${msg}`))).toBe(true);
      expect(lines.at(-1)).toMatchObject({ level: "info", msg: expect.stringContaining("is unmounted") });
    });
  });

  test("with a higher level only what is worth it", async () => {
    await withLog(["--log-level", "warn"], async (mount, log) => {
      await mount.unmount();
      expect(await log()).toBe("");
    });
  });
});
