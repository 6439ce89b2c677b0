/**
 * Programs as they are, under the preload library with MAPDIRECT=auto: nothing in them knows of direct mappings. The
 * library's counters (MAPDIRECT_STATS) tell that their mappings were direct ones.
 */
import { execFileSync, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { beforeAll, describe, expect, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { type TestMount, useMount } from "../support/mount.ts";
import { missing, run, succeed } from "../support/run.ts";

const preload = join(packageRoot, "dist", "lib", "libmapdirect_preload.so");
const MIB = 1024 * 1024;

/** One line of MAPDIRECT_STATS. */
type Stats = Record<string, string>;

class Programs {
  readonly #mount: TestMount;

  constructor(mount: TestMount) {
    this.#mount = mount;
  }

  get #statsFile(): string {
    return join(this.#mount.folder, "stats");
  }

  /** The environment of a program that is mapped directly without its knowledge. */
  get environment(): Record<string, string> {
    return { LD_PRELOAD: preload, MAPDIRECT: "auto", MAPDIRECT_STATS: this.#statsFile };
  }

  succeed(command: string, args: readonly string[], words = "auto"): Promise<string> {
    return succeed(command, args, { env: { ...this.environment, MAPDIRECT: words } });
  }

  /** What the programs since the last call have counted. */
  async stats(): Promise<Stats[]> {
    const text = await readFile(this.#statsFile, "utf8").catch(() => "");
    await rm(this.#statsFile, { force: true });
    return text
      .split("\n")
      .filter((line) => line !== "")
      .map((line) =>
        Object.fromEntries([...line.matchAll(/(\w+)=(\S+)/g)].map(([, name, value]) => [name, value])),
      );
  }

  /** Compile one of the programs here; its path. */
  compile(name: string, libraries: readonly string[]): string {
    const output = join(this.#mount.folder, name);
    const source = join(packageRoot, "test", "programs", `${name}.c`);
    const flags = ["-O1", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra"];
    execFileSync("cc", [...flags, "-o", output, source, ...libraries], { stdio: "inherit" });
    return output;
  }
}

const WHY = ["past_end", "busy", "no_space", "no_access", "unsupported", "other"] as const;

/** Each process mapped something, and every mapping was a direct one. */
function expectAllDirect(stats: readonly Stats[], processes: number): void {
  expect(stats.length).toBeGreaterThanOrEqual(processes);
  for (const line of stats) {
    expect(Number(line.automatic), JSON.stringify(line)).toBeGreaterThan(0);
    for (const reason of WHY) expect(line[reason], JSON.stringify(line)).toBe("0");
  }
}

const noFio = missing("fio", "cc");

for (const assumePmem of [false, true]) {
  const kind = assumePmem ? "of cache-line granularity" : "in the page cache";
  describe(`on a region ${kind}`, () => {
    const mount = useMount({ sizeBytes: 256 * MIB, assumePmem });
    const programs = new Programs(mount);

    describe.skipIf(noFio !== undefined)(`fio${noFio === undefined ? "" : `: ${noFio}`}`, () => {
      for (const [engine, rw, bs] of [
        ["mmap", "randwrite", "4k"],
        ["mmap", "write", "64k"],
        ["libpmem", "randwrite", "4k"],
        ["libpmem", "write", "64k"],
      ] as const) {
        // libpmem takes nothing but persistent memory.
        if (engine === "libpmem" && !assumePmem) continue;
        test(`${engine}, ${rw}: four jobs verify what they stored, and so does read(2) after a remount`, async () => {
          const folder = await mount.fresh();
          const job = [
            "--name=job",
            `--directory=${folder}`,
            `--rw=${rw}`,
            `--bs=${bs}`,
            "--size=4m",
            "--numjobs=4",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randseed=11",
          ];
          const direct = engine === "libpmem" ? ["--direct=1"] : [];
          await programs.stats();
          await programs.succeed("fio", [...job, ...direct, `--ioengine=${engine}`, "--do_verify=1"]);
          expectAllDirect(await programs.stats(), 4);
          await mount.remount();
          const again = await succeed("fio", [
            ...job,
            "--ioengine=psync",
            "--verify_only",
            "--output-format=json",
          ]);
          const report = JSON.parse(again.slice(again.indexOf("{"))) as {
            jobs: { error: number; read: { total_ios: number; io_kbytes: number } }[];
          };
          expect(report.jobs.map(({ error }) => error)).toEqual([0, 0, 0, 0]);
          expect(report.jobs.map(({ read }) => read.io_kbytes)).toEqual([4096, 4096, 4096, 4096]);
        });
      }
    });

    const noPmem = assumePmem ? () => {} : test.skipIf(noFio !== undefined);
    noPmem("fio's libpmem engine is told that this is none", async () => {
      const args = [
        "--name=job",
        `--directory=${await mount.fresh()}`,
        "--size=1m",
        "--rw=write",
        "--direct=1",
      ];
      const { code, stdout, stderr } = await run("fio", [...args, "--ioengine=libpmem"], {
        env: programs.environment,
      });
      expect(code).not.toBe(0);
      expect(stdout + stderr).toContain("does not point to persistent memory");
    });

    const noLmdb =
      missing("mdb_stat", "mdb_dump", "cc") ??
      (existsSync("/usr/include/lmdb.h") ? undefined : "liblmdb-dev is not installed");
    describe.skipIf(noLmdb !== undefined)(`LMDB${noLmdb === undefined ? "" : `: ${noLmdb}`}`, () => {
      test("with MDB_WRITEMAP: two processes fill one database, and it is whole", async () => {
        const store = programs.compile("store", ["-llmdb"]);
        const folder = await mount.fresh();
        await programs.stats();
        await Promise.all([
          programs.succeed(store, ["fill", folder, "0", "3000"]),
          programs.succeed(store, ["fill", folder, "3000", "6000"]),
        ]);
        expectAllDirect(await programs.stats(), 2);
        await programs.succeed(store, ["check", folder, "6000"]);
        await mount.remount();
        await succeed(store, ["check", folder, "6000"]);
        expect(await succeed("mdb_stat", [folder])).toContain("Entries: 4000");
        const dump = await succeed("mdb_dump", [folder]);
        expect(dump.split("\n").filter((line) => line.startsWith(" ")).length).toBe(2 * 4000);
      });

      test("a writer that is killed at random moments leaves what it had committed", async () => {
        const store = programs.compile("store", ["-llmdb"]);
        const folder = await mount.fresh();
        await programs.succeed(store, ["fill", folder, "0", "500"]);
        for (let round = 0; round < 5; round += 1) {
          const child = spawn(store, ["fill", folder, "500", "20000"], {
            env: { ...process.env, ...programs.environment },
            stdio: "ignore",
          });
          const gone = new Promise((done) => child.on("exit", done));
          await sleep(20 + Math.random() * 80);
          child.kill("SIGKILL");
          await gone;
          await programs.succeed(store, ["check", folder, "500"]);
          await succeed("mdb_stat", [folder]);
        }
        await programs.stats();
      });
    });

    const noSqlite = missing("sqlite3");
    describe.skipIf(noSqlite !== undefined)(`SQLite${noSqlite === undefined ? "" : `: ${noSqlite}`}`, () => {
      test("in WAL mode: three processes insert, and the database is whole", async () => {
        const folder = await mount.fresh();
        const database = join(folder, "wal.db");
        await programs.stats();
        const setup = "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, who, text);";
        expect(await programs.succeed("sqlite3", [database, setup])).toBe("wal\n");
        const insert = (who: number): string =>
          `PRAGMA busy_timeout=30000; ${`INSERT INTO t (who, text) VALUES (${who}, hex(randomblob(500)));`.repeat(100)}`;
        await Promise.all([0, 1, 2].map((who) => programs.succeed("sqlite3", [database, insert(who)])));
        // The index of the log is the shared mapping.
        const stats = await programs.stats();
        expect(stats.filter(({ automatic }) => Number(automatic) > 0).length).toBeGreaterThanOrEqual(1);
        const check = "PRAGMA integrity_check; SELECT who, count(*) FROM t GROUP BY who ORDER BY who;";
        expect(await programs.succeed("sqlite3", [database, check])).toBe("ok\n0|100\n1|100\n2|100\n");
        await mount.remount();
        expect(await succeed("sqlite3", [database, check])).toBe("ok\n0|100\n1|100\n2|100\n");
      });

      // The journal comes and goes with each transaction, and with it the number of its descriptor.
      test("with a journal that is deleted: reads and writes are served from mappings, and the database is whole", async () => {
        const database = join(await mount.fresh(), "journal.db");
        await programs.stats();
        const insert = "INSERT INTO t (text) VALUES (hex(randomblob(500)));".repeat(200);
        const setup = `PRAGMA journal_mode=DELETE; CREATE TABLE t (id INTEGER PRIMARY KEY, text); ${insert}`;
        for (let round = 0; round < 5; round += 1) {
          const statements = round === 0 ? setup : insert;
          await programs.succeed("sqlite3", ["-bail", database, statements], "auto,io");
        }
        const check = "PRAGMA integrity_check; SELECT count(*) FROM t;";
        expect(await programs.succeed("sqlite3", [database, check], "auto,io")).toBe("ok\n1000\n");
        expect(await succeed("sqlite3", [database, check])).toBe("ok\n1000\n");
      });
    });
  });
}

const noPmdk =
  missing("pmempool", "cc") ??
  (existsSync("/usr/include/libpmemobj.h") ? undefined : "libpmemobj-dev is not installed");

describe.skipIf(noPmdk !== undefined)(`PMDK${noPmdk === undefined ? "" : `: ${noPmdk}`}`, () => {
  const mount = useMount({ sizeBytes: 256 * MIB, assumePmem: true });
  const programs = new Programs(mount);
  let bank = "";
  beforeAll(() => {
    bank = programs.compile("bank", ["-lpmemobj", "-lpmem"]);
  });

  test("pmempool creates a pool and finds it consistent", async () => {
    const pool = join(await mount.fresh(), "pool");
    await programs.stats();
    await programs.succeed("pmempool", ["create", "obj", "--layout=test", "--size=32M", pool]);
    const checked = await programs.succeed("pmempool", ["check", "-v", pool]);
    expect(checked).toContain("consistent");
    expectAllDirect(await programs.stats(), 2);
    expect(await programs.succeed("pmempool", ["info", pool])).toContain("PMEMOBJ");
    await mount.remount();
    expect(await succeed("pmempool", ["check", "-v", pool])).toContain("consistent");
  });

  test("libpmem takes the mapping for persistent memory, because MAP_SYNC is honoured", async () => {
    const pool = join(await mount.fresh(), "pool");
    await programs.stats();
    await programs.succeed(bank, ["create", pool]);
    expect(await programs.succeed(bank, ["check", pool])).toBe("counter 0, sum 512000, pmem 1\n");
    expectAllDirect(await programs.stats(), 2);
    // Without the library the same file is none.
    expect(await succeed(bank, ["check", pool])).toBe("counter 0, sum 512000, pmem 0\n");
  });

  test("a program that is killed at random moments loses no transaction that it had committed", async () => {
    await mkdir(mount.at("bank"));
    const pool = mount.at("bank", "pool");
    await programs.succeed(bank, ["create", pool]);
    let acknowledged = 0;
    for (let round = 0; round < 15; round += 1) {
      const child = spawn(bank, ["run", pool], {
        env: { ...process.env, ...programs.environment },
        stdio: ["ignore", "pipe", "inherit"],
      });
      const gone = new Promise((done) => child.on("close", done));
      const lines = createInterface({ input: child.stdout });
      const begun = new Promise((resolve) => lines.once("line", resolve));
      lines.on("line", (line) => {
        acknowledged = Number(line);
      });
      await begun;
      await sleep(Math.random() * 40);
      child.kill("SIGKILL");
      await gone;
      expect(await programs.succeed("pmempool", ["check", "-v", pool])).toContain("consistent");
      const [, counter, sum] =
        /counter (\d+), sum (-?\d+)/.exec(await programs.succeed(bank, ["check", pool])) ?? [];
      expect(sum).toBe("512000");
      expect(Number(counter)).toBeGreaterThanOrEqual(acknowledged);
      // The one that was under way may be in, too.
      expect(Number(counter)).toBeLessThanOrEqual(acknowledged + 1);
    }
    expect(acknowledged).toBeGreaterThan(100);
    await mount.kill9AndRemount();
    expect(await programs.succeed(bank, ["check", pool])).toMatch(/sum 512000, pmem 1/);
  });
});
