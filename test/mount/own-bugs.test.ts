/**
 * Our own bugs, made to happen in the daemon of a real mount (test/support/faulty.mjs): each ends what it happened in, and
 * nothing else.
 */
import { spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { ask, withOpen } from "../../src/daemon/client.ts";
import { isRunning } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { type TestMount, withMount } from "../support/mount.ts";
import { patchSuperblock } from "../support/volume.ts";

const failing = (code: string) => expect.objectContaining({ code });

interface Daemon {
  readonly mount: TestMount;
  /** From now on these happen. */
  faults(...names: readonly string[]): void;
  /** Lines that say so. */
  log(what: string): string[];
  /** Mount again, the faults that are set included; returns the exit code. */
  mountAgain(): Promise<number>;
}

async function withFaults(action: (daemon: Daemon) => Promise<void>): Promise<void> {
  await withMount({}, async (mount) => {
    const list = join(mount.folder, "faults");
    const logFile = join(mount.folder, "log");
    writeFileSync(list, "");
    const mountAgain = async (): Promise<number> => {
      const before = process.env.NODE_OPTIONS;
      process.env.NODE_OPTIONS = `--import=${join(packageRoot, "test", "support", "faulty.mjs")}`;
      process.env.MAPDIRECT_FAULTS = list;
      try {
        return (await mount.cli("mount", "--log", logFile, mount.region, mount.path)).code;
      } finally {
        if (before === undefined) delete process.env.NODE_OPTIONS;
        else process.env.NODE_OPTIONS = before;
        delete process.env.MAPDIRECT_FAULTS;
      }
    };
    await mount.unmount();
    expect(await mountAgain()).toBe(0);
    await action({
      mount,
      mountAgain,
      faults: (...names) => writeFileSync(list, names.join("\n")),
      log: (what) =>
        readFileSync(logFile, "utf8")
          .split("\n")
          .filter((line) => line.includes(what)),
    });
  });
}

const quarantined = (mount: TestMount) =>
  (withOpen(mount.path, (descriptor) => ask(descriptor, "INFO")) as { quarantined: number }).quarantined;

const info = (mount: TestMount) =>
  withOpen(mount.path, (descriptor) => ask(descriptor, "INFO")) as {
    read_only: string | null;
    created: string;
  };

describe("what nobody expected", () => {
  test("before the commit is EIO for that caller and one line in the log; everybody else goes on, writing too", async () => {
    await withFaults(async ({ mount, faults, log }) => {
      faults("before-commit");
      for (let tries = 0; tries < 3; tries += 1)
        expect(() => writeFileSync(mount.at("marked"), "x")).toThrow(failing("EIO"));
      writeFileSync(mount.at("other"), "other");
      expect(log("injected")).toHaveLength(1);
      expect(log("injected")[0]).toMatch(/internal error in CREATE of inode 1: RangeError: injected/);
      faults();
      writeFileSync(mount.at("marked"), "now");
      await mount.check();
      await mount.kill9AndRemount();
      expect(await readFile(mount.at("marked"), "utf8")).toBe("now");
      expect(await readFile(mount.at("other"), "utf8")).toBe("other");
      await mount.check();
    });
  });

  test("while a record is applied leaves a mount that can be read, with the reason, and a volume that mounts again", async () => {
    await withFaults(async ({ mount, faults, log }) => {
      writeFileSync(mount.at("before"), "before");
      const open = openSync(mount.at("before"), "r+");
      try {
        faults("applying");
        expect(() => writeFileSync(mount.at("marked"), "x")).toThrow(failing("EIO"));
        expect(() => writeFileSync(mount.at("later"), "x")).toThrow(failing("EROFS"));
        expect(readFileSync(mount.at("before"), "utf8")).toBe("before");
        expect(info(mount).read_only).toContain("injected: applying");
        expect(() => fsyncSync(open)).toThrow(failing("EIO"));
      } finally {
        closeSync(open);
      }
      expect(log("nothing is written to the volume any more: injected: applying")).toHaveLength(1);
      // The fault is still there: whoever replays the record meets it.
      await mount.kill9AndRemount();
      expect(await readFile(mount.at("before"), "utf8")).toBe("before");
      expect(existsSync(mount.at("marked"))).toBe(false);
      writeFileSync(mount.at("later"), "later");
      await mount.check();
      await mount.unmount();
      expect((await mount.cli("fsck", mount.region)).code).toBe(0);
    });
  });

  test("about an invariant makes the mount read-only before anything is written", async () => {
    await withFaults(async ({ mount, faults }) => {
      writeFileSync(mount.at("before"), "before");
      faults("invariant-before-commit");
      expect(() => writeFileSync(mount.at("marked"), "x")).toThrow(failing("EIO"));
      expect(() => writeFileSync(mount.at("later"), "x")).toThrow(failing("EROFS"));
      expect(readFileSync(mount.at("before"), "utf8")).toBe("before");
      expect(info(mount).read_only).toContain("injected");
      await mount.kill9AndRemount();
      writeFileSync(mount.at("later"), "later");
      await mount.check();
    });
  });

  test("after check has found an invariant broken, fsync(2) says EIO and the daemon goes on", async () => {
    await withFaults(async ({ mount, faults }) => {
      const file = openSync(mount.at("file"), "w");
      try {
        writeFileSync(file, "content");
        faults("check");
        expect((await mount.cli("check", mount.path)).code).not.toBe(0);
        for (let tries = 0; tries < 2; tries += 1) expect(() => fsyncSync(file)).toThrow(failing("EIO"));
      } finally {
        closeSync(file);
      }
      // The write-back comes round.
      await sleep(4500);
      expect(readFileSync(mount.at("file"), "utf8")).toBe("content");
      await mount.kill9AndRemount();
      expect(readFileSync(mount.at("file"), "utf8")).toBe("content");
    });
  });

  test("in a timer, in a callback of whatever kind and in a promise ends none but these", async () => {
    await withFaults(async ({ mount, faults, log }) => {
      writeFileSync(mount.at("file"), "content");
      faults("sync", "callback", "rejection");
      for (let tries = 0; tries < 100 && log("write-back").length === 0; tries += 1) await sleep(100);
      for (const [what, where] of [
        ["sync", "in write-back"],
        ["callback", "in a callback"],
        ["rejection", "in a callback"],
      ] as const) {
        expect(log(`injected: ${what}`)).toHaveLength(1);
        expect(log(`injected: ${what}`)[0]).toContain(where);
      }
      faults();
      expect(readFileSync(mount.at("file"), "utf8")).toBe("content");
      writeFileSync(mount.at("another"), "x");
      await mount.check();
    });
  });

  test("while an orphan is freed at mount sets it aside, and the next mount frees it", async () => {
    for (const [fault, writable] of [
      ["orphan", true],
      ["orphan-applying", false],
    ] as const) {
      await withFaults(async ({ mount, faults, log, mountAgain }) => {
        writeFileSync(mount.at("orphan"), Buffer.alloc(1 << 20));
        writeFileSync(mount.at("other"), "other");
        const open = openSync(mount.at("orphan"), "r");
        try {
          unlinkSync(mount.at("orphan"));
          await mount.kill9();
        } finally {
          closeSync(open);
        }
        faults(fault);
        expect(await mountAgain()).toBe(0);
        expect(log("could not be freed: injected")).toHaveLength(1);
        expect(readFileSync(mount.at("other"), "utf8")).toBe("other");
        if (writable) writeFileSync(mount.at("new"), "new");
        else expect(() => writeFileSync(mount.at("new"), "new")).toThrow(failing("EROFS"));
        faults();
        await mount.kill9AndRemount();
        const { inodes } = withOpen(mount.path, (at) => ask(at, "INFO")) as { inodes: number };
        expect(inodes).toBe(writable ? 3 : 2);
        await mount.check();
      });
    }
  });

  test("in a question of the administrator's is EIO to whoever asks", async () => {
    await withFaults(async ({ mount, faults, log }) => {
      faults("info");
      expect(() => info(mount)).toThrow("EIO");
      expect(log("internal error in IOCTL")).toHaveLength(1);
      faults();
      expect(info(mount).read_only).toBeNull();
    });
  });
});

test("a volume that was made 2^60 seconds after 1970 says so, and goes on", async () => {
  await withMount({}, async (mount) => {
    await mount.unmount();
    const image = await readFile(mount.region);
    patchSuperblock(image, () => ({ createdSec: 2n ** 60n }));
    await writeFile(mount.region, image);
    await mount.mount();
    expect(info(mount).created).toBe(`@${2n ** 60n}`);
    const { code, stdout } = await mount.cli("info", mount.path);
    expect([code, stdout]).toEqual([0, expect.stringContaining(`@${2n ** 60n}`)]);
    writeFileSync(mount.at("file"), "x");
  });
});

test("a region that is renamed while processes that map it hold blocks in quarantine goes on being served", async () => {
  await withMount({}, async (mount) => {
    await mount.unmount();
    const script = `import mmap, sys
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 1 << 20, offset=16 << 20)
print("mapped", flush=True)
sys.stdin.read()`;
    const holder = spawn("python3", ["-S", "-c", script, mount.region], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    try {
      await new Promise((resolve, failed) => {
        holder.stdout.once("data", resolve);
        holder.once("exit", failed);
      });
      await mount.mount();
      const pid = mount.daemonPid();
      expect(quarantined(mount)).toBe(1 << 20);
      renameSync(mount.region, `${mount.region}.else`);
      try {
        await sleep(2500);
        expect(isRunning(pid)).toBe(true);
        writeFileSync(mount.at("file"), "x");
        expect(readFileSync(mount.at("file"), "utf8")).toBe("x");
      } finally {
        renameSync(`${mount.region}.else`, mount.region);
      }
    } finally {
      holder.kill("SIGKILL");
    }
    for (let tries = 0; tries < 500 && quarantined(mount) > 0; tries += 1) await sleep(10);
    expect(quarantined(mount)).toBe(0);
    await mount.check();
  });
});
