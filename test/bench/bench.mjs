/**
 * One run: every peer mounted, rounds of every workload on every peer in turn, results, everything gone again.
 *
 * Order: within a round a workload runs on all peers, one after the other, before the next workload begins; each round
 * begins with another peer. So neighbours in time are compared, and no peer always comes first.
 */
import { accessSync, constants, mkdirSync, readFileSync, rmSync, statfsSync } from "node:fs";
import { loadavg } from "node:os";
import { join } from "node:path";
import { hasCommand } from "../../scripts/setup.mjs";
import { describeMachine } from "./machine.mjs";
import { folderName, sweep } from "./mounts.mjs";
import { compile, PEERS } from "./peers.mjs";
import { GOALS } from "./report.mjs";
import { Interrupted, Scope } from "./scope.mjs";
import { ratios, summary } from "./statistics.mjs";
import { prepare, WORKLOADS } from "./workloads.mjs";

const BACKING = "/dev/shm";
const MIB = 1024 * 1024;

function checkBacking(needBytes) {
  accessSync(BACKING, constants.W_OK);
  const { bavail, bsize } = statfsSync(BACKING);
  if (bavail * bsize < needBytes) {
    throw new Error(
      `${BACKING} has ${Math.floor((bavail * bsize) / MIB)} MiB free, ${needBytes / MIB} MiB are needed`,
    );
  }
}

export async function runBench({ rounds, seconds, fileMib, metaFiles, peers, nodeArguments, say }) {
  const fileBytes = fileMib * MIB;
  const regionBytes = 4 * fileBytes + 256 * MIB;
  checkBacking(2 * regionBytes + fileBytes);
  await sweep(BACKING);
  const machine = await describeMachine(BACKING);

  const scope = new Scope();
  const interruption = new AbortController();
  const interrupt = (signal) => {
    if (interruption.signal.aborted) return;
    say(`${signal}: clearing up`);
    interruption.abort(new Interrupted(signal));
  };
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"];
  for (const signal of signals) process.on(signal, interrupt);

  const folder = join(BACKING, folderName());
  const bench = {
    ...{ scope, folder, fileBytes, regionBytes, seconds, metaFiles, nodeArguments },
    signal: interruption.signal,
    hasFio: hasCommand("fio"),
    versions: machine.versions,
  };
  try {
    mkdirSync(folder, { mode: 0o700 });
    scope.defer(folder, async () => rmSync(folder, { recursive: true, force: true }));
    await compile(bench, "load/meta.c", join(folder, "meta"));
    if (!bench.hasFio) await compile(bench, "load/io.c", join(folder, "io"));
    const chosen = PEERS.filter(({ name }) => peers === undefined || peers.includes(name));
    const described = await startPeers(bench, chosen, say);
    const running = described.filter(({ skipped }) => skipped === undefined);
    const { samples, failures } = await measure(bench, running, rounds, say);
    return {
      at: new Date().toISOString(),
      machine,
      loadAverageAtEnd: loadavg(),
      settings: { rounds, seconds, fileBytes, metaFiles, load: bench.hasFio ? "fio" : "io.c" },
      peers: described.map(({ name, note, skipped }) => ({ name, note, skipped })),
      ...summarise(running, samples, rounds),
      samples,
      failures,
    };
  } finally {
    for (const failure of await scope.close()) say(`could not clear up ${failure}`);
    for (const signal of signals) process.off(signal, interrupt);
  }
}

async function startPeers(bench, chosen, say) {
  const described = [];
  for (const peer of chosen) {
    try {
      const { folder, pid } = await peer.start(bench);
      const running = { name: peer.name, note: peer.note, folder, pid };
      await prepare(bench, running);
      described.push(running);
    } catch (error) {
      bench.signal.throwIfAborted();
      say(`${peer.name}: skipped: ${error.message}`);
      described.push({ name: peer.name, note: peer.note, skipped: error.message });
    }
  }
  return described;
}

/** A peer that fails in a workload (a request not answered, say) is not asked again: it may hang. */
async function measure(bench, running, rounds, say) {
  const samples = [];
  const failures = [];
  const failed = new Set();
  for (let round = 0; round < rounds; round += 1) {
    for (const workload of WORKLOADS) {
      for (let turn = 0; turn < running.length; turn += 1) {
        const peer = running[(round + turn) % running.length];
        if (failed.has(peer.name)) continue;
        say(`round ${round + 1}/${rounds}: ${workload.name}: ${peer.name}`, { passing: true });
        const cpuBefore = cpuSeconds(peer.pid);
        try {
          const { values, details } = await workload.run(bench, peer, round);
          const serverCpuSeconds = cpuSeconds(peer.pid) - cpuBefore;
          samples.push({
            round,
            workload: workload.name,
            peer: peer.name,
            values,
            details,
            serverCpuSeconds,
          });
        } catch (error) {
          bench.signal.throwIfAborted();
          failed.add(peer.name);
          failures.push(`${peer.name}, ${workload.name}: ${error.message}`);
          say(failures.at(-1));
        }
      }
    }
  }
  return { samples, failures };
}

/** User and system time of a server, in the unit of USER_HZ = 100. Zero if there is no server. */
function cpuSeconds(pid) {
  if (pid === undefined) return 0;
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  } catch {
    return 0;
  }
}

function summarise(running, samples, rounds) {
  const valuesOf = (workload, key, peer) => {
    const values = Array(rounds).fill(undefined);
    for (const sample of samples) {
      if (sample.workload === workload && sample.peer === peer) values[sample.round] = sample.values[key];
    }
    return values;
  };
  const [first, ...others] = running;
  const rows = [];
  for (const { name: workload, rows: metrics } of WORKLOADS) {
    for (const { key, title, unit } of metrics) {
      const byPeer = {};
      for (const { name } of running) {
        const values = valuesOf(workload, key, name).filter((value) => value !== undefined);
        if (values.length > 0) byPeer[name] = summary(values);
      }
      const ratioTo = {};
      for (const { name } of others) {
        const ratio = ratios(valuesOf(workload, key, first.name), valuesOf(workload, key, name));
        if (ratio !== undefined) ratioTo[name] = ratio;
      }
      rows.push({ key, title, unit, byPeer, ratioTo });
    }
  }
  const goals = GOALS.map((goal) => {
    const row = rows.find(({ key }) => key === goal.key);
    const reached = first?.name === "mapdirect" ? (row.ratioTo[goal.against]?.median ?? null) : null;
    return { ...goal, title: row.title, reached };
  });
  return { rows, goals };
}
