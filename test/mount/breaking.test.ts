/**
 * Breakable leases and revocation on a real mount, with the ioctls themselves in place of the client library: this
 * process is a holder without any goodwill.
 */
import { spawn } from "node:child_process";
import { closeSync, constants, openSync, statfsSync, truncateSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { ask, withOpen } from "../../src/daemon/client.ts";
import { type StructValue, viewOf } from "../../src/layout/struct.ts";
import * as wire from "../../src/lease/wire.ts";
import { addon, packageRoot } from "../../src/region/addon.ts";
import { grantRequest } from "../support/grant.ts";
import { useMount } from "../support/mount.ts";
import { type Result, run } from "../support/run.ts";

const BREAK_SEC = 2;
const mount = useMount({ options: `break_time=${BREAK_SEC}` });
const BYTES = 1024 * 1024;

class HeldFile {
  readonly path: string;
  readonly #lease: number;
  readonly #watch: number;
  readonly id: number;
  #open = true;

  constructor(path: string, kind: number, offset = 0, length = BYTES) {
    this.path = path;
    this.#lease = openSync(path, "r+");
    this.#watch = openSync(path, "r+");
    const argument = grantRequest(kind, offset, length);
    try {
      addon().ioctl(this.#lease, wire.Ioctl.GRANT, argument);
    } catch (error) {
      this.close();
      throw error;
    }
    const { leaseId, token } = wire.WireMap.decode(viewOf(argument), 0);
    this.id = leaseId;
    const range = new Uint8Array(wire.WireLease.size);
    wire.WireLease.encode(viewOf(range), 0, { version: wire.WIRE_VERSION, leaseId, token });
    addon().ioctl(this.#watch, wire.Ioctl.WATCH, range);
  }

  status(): StructValue<typeof wire.WireStatus> {
    const argument = new Uint8Array(wire.WireStatus.size);
    addon().ioctl(this.#watch, wire.Ioctl.STATUS, argument);
    return wire.WireStatus.decode(viewOf(argument), 0);
  }

  /** Let go: the lease's own description is closed. */
  release(): void {
    if (this.#open) closeSync(this.#lease);
    this.#open = false;
  }

  close(): void {
    this.release();
    closeSync(this.#watch);
  }
}

async function file(): Promise<string> {
  const path = join(await mount.fresh(), "file");
  writeFileSync(path, Buffer.alloc(BYTES, 7));
  return path;
}

/** truncate(2) in another process; the path form cannot be non-blocking. */
function truncateElsewhere(path: string, size: number): Promise<Result> {
  return run("python3", [
    "-S",
    "-c",
    "import os, sys; os.truncate(sys.argv[1], int(sys.argv[2]))",
    path,
    `${size}`,
  ]);
}

async function hold<T>(
  kind: number,
  action: (held: HeldFile) => Promise<T>,
  path: string | null = null,
): Promise<T> {
  const held = new HeldFile(path ?? (await file()), kind);
  try {
    return await action(held);
  } finally {
    held.close();
  }
}

const failing = (code: string) => expect.objectContaining({ code });
const { SEAL, BREAKABLE } = wire.LeaseKind;
const { HELD, BREAKING, REVOKED, GONE } = wire.LeaseState;

async function until(condition: () => boolean): Promise<void> {
  for (let tries = 0; tries < 500 && !condition(); tries += 1) await sleep(10);
  expect(condition()).toBe(true);
}

describe("a breakable lease", () => {
  test("makes a conflict wait for its early release, tells the holder why, and serves others meanwhile", async () => {
    await hold(BREAKABLE, async (held) => {
      expect(held.status().state).toBe(HELD);
      const truncated = truncateElsewhere(held.path, 4096);
      await until(() => held.status().state === BREAKING);
      const { reason, offset, length, remainingMs } = held.status();
      expect({ reason, offset, length }).toEqual({
        reason: wire.BreakReason.CONFLICT,
        offset: 4096n,
        length: BigInt(BYTES - 4096),
      });
      expect(remainingMs).toBeGreaterThan(0);
      expect(remainingMs).toBeLessThanOrEqual(BREAK_SEC * 1000);
      // Everybody else goes on: a new file, written and read, while the truncate waits.
      const other = await file();
      expect(statfsSync(other).type).toBeGreaterThan(0);
      held.release();
      expect(await truncated).toMatchObject({ code: 0 });
      expect(held.status().state).toBe(GONE);
    });
    await mount.check();
  });

  test("is revoked at the deadline; what the holder can still reach is in quarantine until it lets go", async () => {
    await hold(BREAKABLE, async (held) => {
      const free = () => statfsSync(mount.path).bfree;
      const before = free();
      expect(await truncateElsewhere(held.path, 0)).toMatchObject({ code: 0 });
      expect(held.status().state).toBe(REVOKED);
      expect(free()).toBe(before);
      const report = withOpen(mount.path, (descriptor) => ask(descriptor, "LEASES"));
      expect(report).toEqual([
        expect.objectContaining({ id: held.id, state: "revoked", quarantined: BYTES }),
      ]);
      await mount.check();
      held.release();
      await until(() => free() >= before + BYTES / 4096);
    });
    await mount.check();
  });

  test("answers EWOULDBLOCK to an open(2) that truncates and does not want to wait, and the break goes on", async () => {
    await hold(BREAKABLE, async (held) => {
      const flags = constants.O_WRONLY | constants.O_TRUNC | constants.O_NONBLOCK;
      await expect(open(held.path, flags)).rejects.toMatchObject({ code: "EAGAIN" });
      expect(held.status().state).toBe(BREAKING);
    });
  });

  test.each([
    ["truncate(1)", "os.ftruncate(fd, 0)"],
    ["write(2)", "os.pwrite(fd, b'x', size)"],
    ["fallocate(2)", "os.posix_fallocate(fd, size, 4096)"],
  ])("makes %s wait on a descriptor that is O_NONBLOCK", async (_, call) => {
    const path = join(await mount.fresh(), "sparse");
    // The last block is a hole.
    writeFileSync(path, Buffer.alloc(BYTES - 4096));
    truncateSync(path, BYTES);
    await hold(
      BREAKABLE,
      async (held) => {
        const script = `import os, sys
size = ${BYTES} - 4096
fd = os.open(sys.argv[1], os.O_RDWR | os.O_NONBLOCK)
${call}`;
        const waiting = run("python3", ["-S", "-c", script, held.path]);
        await until(() => held.status().state === BREAKING);
        held.release();
        expect(await waiting).toMatchObject({ code: 0, stderr: "" });
      },
      path,
    );
  });

  test("lets a waiting conflict be interrupted, and nothing has changed then", async () => {
    await hold(BREAKABLE, async (held) => {
      const script = `import os, signal, sys
def stop(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    os.truncate(sys.argv[1], 0)
except KeyboardInterrupt:
    print(os.stat(sys.argv[1]).st_size)`;
      const { code, stdout } = await run("python3", ["-S", "-c", script, held.path]);
      expect({ code, size: stdout.trim() }).toEqual({ code: 0, size: `${BYTES}` });
      expect(held.status().state).toBe(BREAKING);
    });
  });

  test("lets a waiting prepare be interrupted: the caller does not have to wait for the deadline", async () => {
    const path = join(await mount.fresh(), "sparse");
    writeFileSync(path, "");
    truncateSync(path, BYTES);
    await hold(
      BREAKABLE,
      async (held) => {
        const program = join(packageRoot, "dist", "bin", "mapdirect.js");
        const preparing = spawn(process.execPath, [program, "prepare", path], { stdio: "ignore" });
        const ended = new Promise((resolve) => preparing.once("close", resolve));
        await until(() => held.status().state === BREAKING);
        preparing.kill("SIGINT");
        await ended;
        expect(held.status().state).toBe(BREAKING);
      },
      path,
    );
  });

  test("takes one break time for several holders, and gives no new lease meanwhile", async () => {
    const path = await file();
    await hold(
      BREAKABLE,
      (first) =>
        hold(
          BREAKABLE,
          async (second) => {
            const begun = performance.now();
            const truncated = truncateElsewhere(path, 0);
            await until(() => first.status().state === BREAKING && second.status().state === BREAKING);
            expect(() => new HeldFile(path, BREAKABLE)).toThrow(failing("EAGAIN"));
            expect(await truncated).toMatchObject({ code: 0 });
            expect(performance.now() - begun).toBeLessThan(BREAK_SEC * 2000);
          },
          path,
        ),
      path,
    );
  });

  test("stays as it is for what is no conflict", async () => {
    await hold(BREAKABLE, async (held) => {
      writeFileSync(held.path, Buffer.alloc(100, 1), { flag: "r+" });
      writeFileSync(held.path, Buffer.alloc(5000, 2), { flag: "a" });
      expect(held.status().state).toBe(HELD);
    });
  });
});

describe("the administrator", () => {
  test("breaks a seal, which then no longer refuses", async () => {
    await hold(SEAL, async (held) => {
      const refused = await truncateElsewhere(held.path, 0);
      expect(refused.stderr).toContain("Text file busy");
      withOpen(mount.path, (descriptor) => ask(descriptor, "BREAK", held.id));
      expect(held.status()).toMatchObject({ state: BREAKING, reason: wire.BreakReason.ADMINISTRATOR });
      expect(await truncateElsewhere(held.path, 0)).toMatchObject({ code: 0 });
      expect(held.status().state).toBe(REVOKED);
    });
  });
});

describe("the command line", () => {
  test("breaks all leases on a file, and returns when they are in nobody's way", async () => {
    await hold(SEAL, async (held) => {
      const { code, stdout, stderr } = await mount.cli("leases", "break", "--file", held.path);
      expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: "1 lease broken\n", stderr: "" });
      expect(held.status().state).toBe(REVOKED);
    });
  });

  test("names who maps files when an unmount finds them in use", async () => {
    await hold(SEAL, async (held) => {
      const { code, stderr } = await mount.cli("unmount", mount.path);
      expect(code).toBe(1);
      expect(stderr).toContain(`(${process.pid}) maps ${held.path}`);
    });
  });

  test("wants an id or a file to break", async () => {
    expect(await mount.cli("leases", "break")).toMatchObject({ code: 2 });
    expect(await mount.cli("leases", "break", "--mount", mount.path, "4711")).toMatchObject({ code: 1 });
  });
});
