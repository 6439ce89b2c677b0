/** `mapdirect top`: one frame as text, and live in a real terminal (tmux). */
import { spawnSync } from "node:child_process";
import { closeSync, openSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import pc from "picocolors";
import { describe, expect, onTestFinished, test } from "vitest";
import { hasColours } from "../../src/cli/colours.ts";
import { ratesBetween } from "../../src/cli/rates.ts";
import { frameLines } from "../../src/cli/top.ts";
import { Ioctl, LeaseKind } from "../../src/lease/wire.ts";
import { addon } from "../../src/region/addon.ts";
import type { Statistics } from "../../src/session/statistics.ts";
import { grantRequest } from "../support/grant.ts";
import { useMount } from "../support/mount.ts";
import { cli, missing, programPath } from "../support/run.ts";

const ESC = String.fromCharCode(27);

const statistics = (change: Partial<Statistics> = {}): Statistics => ({
  uptime_s: 100,
  operations: { read: 1000, write: 10 },
  errors: 5,
  errors_by: { ENOENT: 5 },
  latency: {
    read: { count: 1000, total_us: 20_000, p50_us: 20, p90_us: 20, p99_us: 20, buckets: [[16, 1000]] },
  },
  bytes_read: 4_096_000,
  bytes_written: 0,
  waiting: 0,
  open_files: 1,
  inodes: 2,
  leases: 1,
  leases_by: { held: 1, breaking: 0, revoked: 0, ended: 0 },
  grants: 1,
  refusals: 0,
  breaks: 0,
  revocations: 0,
  space: { size: 1000, free: 250, metadata: 10, quarantined: 0 },
  checkpoints: 0,
  checkpointing: false,
  groups: 0,
  longest_slice_ms: 0,
  log_bytes: 0,
  log_segments: 1,
  read_only: null,
  channel: null,
  orphaned_processes: 0,
  memory_bytes: 1024,
  resident_bytes: 2048,
  ...change,
});

describe("rates", () => {
  test("are differences by time; percentiles are of what came in between", () => {
    const later = statistics({
      uptime_s: 102,
      operations: { read: 1200, write: 10 },
      bytes_read: 4_096_000 + 2048,
      latency: {
        read: {
          ...statistics().latency.read,
          count: 1200,
          buckets: [
            [16, 1000],
            [40, 200],
          ],
        } as never,
      },
    });
    const rates = ratesBetween(statistics(), later, 2);
    expect(rates).toMatchObject({ requests: 100, readBytes: 1024, errors: 0 });
    expect(rates.operations[0]).toMatchObject({ operation: "read", perSecond: 100 });
    expect(rates.operations[0]?.micros.p50).toBeGreaterThan(800);
  });

  test("of a daemon that was started anew are nothing, not less than nothing", () => {
    const rates = ratesBetween(statistics(), statistics({ uptime_s: 1, operations: { read: 3 } }), 1);
    expect(rates.requests).toBe(0);
  });
});

describe("a frame", () => {
  const frame = (file = "/mnt/file", number = 1) => ({
    name: "demo on /mnt",
    statistics: statistics(),
    rates: ratesBetween(null, statistics(), 1),
    leases: Array.from({ length: number }, (_, index) => ({
      ...{
        id: index + 1,
        kind: "seal" as const,
        state: "held",
        pid: 7,
        uid: 0,
        command: "program",
        file,
        inode: 2,
      },
      ...{ offset: 0, length: 4096, quarantined: 0, age_s: 1 },
    })),
  });

  test("fits the terminal, whatever its size and however many leases there are", () => {
    for (const [columns, rows] of [
      [80, 23],
      [40, 12],
      [200, 60],
      [20, 6],
    ] as const) {
      const lines = frameLines(frame("/mnt/file", 300), { columns, rows, colours: pc.createColors(true) });
      expect(lines.length).toBeLessThanOrEqual(Math.max(rows, 12));
      for (const line of lines) {
        const visible = line.replaceAll(new RegExp(`${ESC}\\[[0-9;]*m`, "g"), "");
        expect(visible.length).toBeLessThanOrEqual(columns);
      }
    }
  });

  test("lets no name of a file talk to the terminal", () => {
    const lines = frameLines(frame(`/mnt/${ESC}[2Jevil\n`), {
      columns: 300,
      rows: 40,
      colours: pc.createColors(false),
    });
    expect(lines.join("")).not.toContain(ESC);
    expect(lines.join("")).toContain("/mnt/?[2Jevil?");
  });
});

test("colours are for terminals that have them, unless NO_COLOR is set", () => {
  const terminal = { isTTY: true, hasColors: () => true };
  expect(hasColours(terminal, {})).toBe(true);
  expect(hasColours(terminal, { NO_COLOR: "" })).toBe(true);
  expect(hasColours(terminal, { NO_COLOR: "0" })).toBe(false);
  expect(hasColours(terminal, { TERM: "dumb" })).toBe(false);
  expect(hasColours({ isTTY: false }, {})).toBe(false);
});

describe("of a mount", () => {
  const mount = useMount();

  test("without a terminal one frame is printed, without colours", async () => {
    writeFileSync(mount.at("file"), Buffer.alloc(8192));
    const holder = openSync(mount.at("file"), "r+");
    addon().ioctl(holder, Ioctl.GRANT, grantRequest(LeaseKind.SEAL, 0, 8192));
    const { code, stdout } = await cli(["top", mount.path], { env: { FORCE_COLOR: "1" } });
    closeSync(holder);
    expect(code).toBe(0);
    expect(stdout).not.toContain(ESC);
    expect(stdout).toMatch(/requests\/s/);
    expect(stdout).toMatch(/leases {2}1 held/);
    expect(stdout).toMatch(
      new RegExp(`seal +held +\\d+ s +\\S+ \\(${process.pid}\\) +8192 B at 0 B +${mount.at("file")}`),
    );
    expect(await cli(["top", "--interval", "0", mount.path])).toMatchObject({ code: 2 });
  });

  test("live, it shows what goes on, follows the size of the terminal, and leaves it as it was", async ({
    skip,
  }) => {
    const lacking = missing("tmux");
    if (lacking !== undefined) skip(lacking);
    const socket = `mapdirect-test-${process.pid}`;
    const tmux = (...args: string[]): string =>
      spawnSync("tmux", ["-L", socket, "-f", "/dev/null", ...args], { encoding: "utf8" }).stdout;
    onTestFinished(() => {
      tmux("kill-server");
    });
    tmux("new-session", "-d", "-x", "110", "-y", "30", "-s", "t", "sh");
    const screen = (): string => tmux("capture-pane", "-p", "-t", "t");
    tmux(
      "send-keys",
      "-t",
      "t",
      `PS1='prompt> '; ${process.execPath} ${programPath} top ${mount.path}`,
      "Enter",
    );
    await expect.poll(screen, { timeout: 40_000 }).toContain("operation");
    for (let turn = 0; turn < 40; turn += 1) {
      writeFileSync(mount.at("busy"), Buffer.alloc(4096, turn));
      await sleep(50);
    }
    await expect
      .poll(
        () => {
          writeFileSync(mount.at("busy"), Buffer.alloc(4096));
          return screen();
        },
        { timeout: 20_000 },
      )
      .toMatch(/^write +[1-9]\d* +\d/m);
    tmux("resize-window", "-t", "t", "-x", "60", "-y", "14");
    await expect.poll(() => screen().split("\n").length, { timeout: 20_000 }).toBeLessThanOrEqual(15);
    expect(screen()).toContain("requests/s");
    tmux("send-keys", "-t", "t", "q");
    await expect.poll(screen, { timeout: 20_000 }).toMatch(/prompt> *\n*$/);
    expect(screen()).not.toContain("requests/s");
    // The shell's own echo is back.
    tmux("send-keys", "-t", "t", "echo st''ill here", "Enter");
    await expect.poll(screen, { timeout: 20_000 }).toContain("still here");
  }, 180_000);
});
