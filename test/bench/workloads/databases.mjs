/** Small transactions of databases, each durable as the file system has it. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { hasCommand } from "../../../scripts/setup.mjs";
import { compiled, Missing } from "../peers.mjs";
import { run } from "../scope.mjs";
import { GRACE_MS } from "./data.mjs";
import { inFolder } from "./metadata.mjs";

const isPeer = ({ folder }) => folder !== undefined;

const sqlite = (mode, title) => ({
  name: `sqlite-${mode}`,
  group: "databases",
  isPeer,
  isWide: true,
  rows: [{ key: `sqlite-${mode}`, title, unit: "transactions/s" }],
  async run(bench, peer, index) {
    if (!hasCommand("sqlite3")) throw new Missing("sqlite3 is not installed");
    return inFolder(bench, peer, `sqlite-${mode}-${index}-${peer.name}`, async (folder) => {
      const options = { limitMs: GRACE_MS, signal: bench.signal, env: peer.env };
      const file = join(folder, "db");
      const count = bench.transactions;
      // Where files cannot be mapped shared, a write-ahead log is an error, or silently something else.
      const made = await run(
        "sqlite3",
        [file, `PRAGMA journal_mode=${mode}; CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT);`],
        { ...options, anyCode: true },
      );
      if (made.trim() !== mode) throw new Missing(`SQLite cannot use journal_mode=${mode} there`);
      const insert = (number) => `INSERT INTO t VALUES(${number}, 'the value of number ${number}');`;
      const script = Array.from({ length: count }, (_, number) => insert(number)).join("\n");
      const from = performance.now();
      // Without a shared mapping for the index of the log it fails here, if not before.
      const said = await run("sqlite3", ["-bail", file], {
        ...options,
        input: script,
      }).catch((error) => error.message);
      if (/disk I\/O error/.test(said)) throw new Missing(`SQLite cannot use journal_mode=${mode} there`);
      if (said !== "") throw new Error(said);
      const seconds = (performance.now() - from) / 1000;
      return { values: { [`sqlite-${mode}`]: count / seconds }, operations: count };
    });
  },
});

const lmdb = (how, title) => ({
  name: `lmdb-${how}`,
  group: "databases",
  isPeer,
  isWide: true,
  rows: [
    { key: `lmdb-${how}`, title, unit: "transactions/s" },
    { key: `lmdb-${how}-read`, title: `${title}: look-ups`, unit: "operations/s" },
  ],
  async run(bench, peer, index) {
    if (!existsSync("/usr/include/lmdb.h")) throw new Missing("lmdb.h is not installed (liblmdb-dev)");
    const program = await compiled(bench, "load/lmdb.c", ["-llmdb"]);
    return inFolder(bench, peer, `lmdb-${how}-${index}-${peer.name}`, async (folder) => {
      const options = { limitMs: GRACE_MS, signal: bench.signal, env: peer.env };
      try {
        const words = [folder, `${bench.transactions}`, how];
        const { transactions, lookups } = JSON.parse(await run(program, words, options));
        const values = { [`lmdb-${how}`]: transactions, [`lmdb-${how}-read`]: lookups };
        return { values, operations: bench.transactions };
      } catch (error) {
        bench.signal.throwIfAborted();
        if (/No such device/.test(error.message)) throw new Missing("files there cannot be mapped shared");
        throw error;
      }
    });
  },
});

export const DATABASES = [
  sqlite("wal", "SQLite, write-ahead log"),
  sqlite("delete", "SQLite, rollback journal"),
  lmdb("write", "LMDB"),
  lmdb("writemap", "LMDB, MDB_WRITEMAP"),
];
