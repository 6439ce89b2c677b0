/**
 * One run: every peer mounted, rounds of every workload on every peer in turn, results, everything gone again.
 *
 * Order: within a round a workload runs on all peers, one after the other, before the next workload begins; each round
 * begins with another peer. So neighbours in time are compared, and no peer always comes first.
 */
import { accessSync, constants, mkdirSync, readdirSync, readFileSync, rmSync, statfsSync } from "node:fs";
import { loadavg } from "node:os";
import { join } from "node:path";
import { hasCommand } from "../../scripts/setup.mjs";
import { measureGrants } from "./grants.mjs";
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
    const grants = await grantsOf(bench, running, failures, rounds, say);
    return {
      at: new Date().toISOString(),
      machine,
      loadAverageAtEnd: loadavg(),
      settings: { rounds, seconds, fileBytes, metaFiles, load: bench.hasFio ? "fio" : "io.c" },
      peers: described.map(({ name, note, skipped }) => ({ name, note, skipped })),
      ...summarise(running, samples, rounds),
      grants,
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
        try {
          const cpuBefore = cpuNanos(peer.pid);
          const measured = await workload.run(bench, peer, round);
          const cpuMicrosPerOperation = (cpuNanos(peer.pid) - cpuBefore) / 1000 / measured.operations;
          const where = { round, workload: workload.name, peer: peer.name };
          samples.push({ ...where, ...measured, cpuMicrosPerOperation, load: loadavg()[0] });
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

/** Empty when mapdirect is not among the peers, or failed. */
async function grantsOf(bench, running, failures, rounds, say) {
  const peer = running.find(({ name }) => name === "mapdirect");
  if (peer === undefined || failures.some((failure) => failure.startsWith("mapdirect,"))) return [];
  try {
    return await measureGrants(bench, peer, rounds, say);
  } catch (error) {
    bench.signal.throwIfAborted();
    failures.push(`mapdirect, grants: ${error.message}`);
    say(failures.at(-1));
    return [];
  }
}

/** User and system time that the threads of a server have used. Zero if there is no server. */
function cpuNanos(pid) {
  if (pid === undefined) return 0;
  let nanos = 0;
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    try {
      nanos += Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, "utf8").split(" ")[0]);
    } catch {
      // A thread that has just ended, or a kernel without scheduler statistics.
    }
  }
  return nanos;
}

function summarise(running, samples, rounds) {
  /** Per round; undefined where there is no sample. */
  const valuesOf = (workload, peer, pick) => {
    const values = Array(rounds).fill(undefined);
    for (const sample of samples) {
      if (sample.workload === workload && sample.peer === peer) values[sample.round] = pick(sample);
    }
    return values;
  };
  const [first, ...others] = running;
  const row = (workload, pick, isPart = () => true) => {
    const byPeer = {};
    const ratioTo = {};
    for (const { name } of running.filter(isPart)) {
      const values = valuesOf(workload, name, pick).filter((value) => value !== undefined);
      if (values.length > 0) byPeer[name] = summary(values);
    }
    for (const { name } of others.filter(isPart)) {
      const ratio = ratios(valuesOf(workload, first.name, pick), valuesOf(workload, name, pick));
      if (ratio !== undefined) ratioTo[name] = ratio;
    }
    return { byPeer, ratioTo };
  };
  const rows = WORKLOADS.flatMap(({ name, rows: metrics }) =>
    metrics.map((metric) => ({ ...metric, ...row(name, ({ values }) => values[metric.key]) })),
  );
  const cpuRows = WORKLOADS.map(({ name, title }) => ({
    title,
    ...row(
      name,
      (sample) => sample.cpuMicrosPerOperation,
      ({ pid }) => pid !== undefined,
    ),
  }));
  const goals = GOALS.map((goal) => {
    const { title, ratioTo } = rows.find(({ key }) => key === goal.key);
    const reached = first?.name === "mapdirect" ? (ratioTo[goal.against]?.median ?? null) : null;
    return { ...goal, title, reached };
  });
  return { rows, cpuRows, goals };
}
