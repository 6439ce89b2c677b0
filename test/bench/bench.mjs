/**
 * One run: every peer mounted, rounds of every workload on every peer in turn, what is measured once, results, everything
 * gone again.
 *
 * Order: within a round a workload runs on all peers, one after the other, before the next workload begins; each round
 * begins with another peer. So neighbours in time are compared, and no peer always comes first. Workloads with slices
 * go round the peers several times in a round, and the median of a peer's slices counts. A slice is long enough to forget what
 * ran before it: whether a program and its server share a processor makes a request two or three times as fast, and how busy
 * the processors were a moment ago decides it.
 */
import { accessSync, constants, mkdirSync, readdirSync, readFileSync, rmSync, statfsSync } from "node:fs";
import { loadavg } from "node:os";
import { join } from "node:path";
import { hasCommand } from "../../scripts/setup.mjs";
import { GOALS, judge } from "./goals.mjs";
import { describeMachine } from "./machine.mjs";
import { folderName, sweep } from "./mounts.mjs";
import { Missing, PEERS } from "./peers.mjs";
import { curvesOf, medianOf, Results } from "./results.mjs";
import { Interrupted, run, Scope, startFirst } from "./scope.mjs";
import { STUDIES } from "./studies/index.mjs";
import { prepareData } from "./workloads/data.mjs";
import { takesPart, WORKLOADS } from "./workloads/index.mjs";

const BACKING = "/dev/shm";
const MIB = 1024 * 1024;

/**
 * How large everything is. `wideRounds`: rounds in which the wide workloads run. `slices`, `fewSlices`: how often the
 * peers take turns within a round, in short and in longer workloads.
 */
export const PROFILES = {
  full: {
    rounds: 3,
    wideRounds: 2,
    slices: 3,
    fewSlices: 2,
    sliceSec: 0.4,
    fioMs: 250,
    fileMib: 128,
    metaFiles: 1500,
    treeFiles: 1500,
    transactions: 400,
    directSlices: 40,
    directSliceMs: 4,
    mappedMib: 64,
    hugeMib: 2048,
    grantSec: 0.15,
    studies: { files: [1000, 100_000, 1_000_000], ageMib: 256, ageTurns: 4, pauseSec: 6, operations: 1000 },
  },
  quick: {
    rounds: 2,
    wideRounds: 0,
    slices: 2,
    fewSlices: 1,
    sliceSec: 0.15,
    fioMs: 150,
    fileMib: 64,
    metaFiles: 300,
    treeFiles: 300,
    transactions: 100,
    directSlices: 20,
    directSliceMs: 3,
    mappedMib: 32,
    hugeMib: 512,
    grantSec: 0.05,
    studies: { files: [1000, 20_000], ageMib: 64, ageTurns: 1, pauseSec: 1, operations: 300 },
  },
  /** Does everything, and measures nothing: for the test of the benchmark. */
  smoke: {
    rounds: 1,
    wideRounds: 1,
    slices: 1,
    fewSlices: 1,
    sliceSec: 0.01,
    fioMs: 20,
    fileMib: 16,
    metaFiles: 20,
    treeFiles: 20,
    transactions: 5,
    directSlices: 2,
    directSliceMs: 1,
    mappedMib: 4,
    hugeMib: 8,
    grantSec: 0.01,
    studies: { files: [100, 300], ageMib: 16, ageTurns: 1, pauseSec: 0.2, operations: 20 },
  },
};

export const PARTS = [...WORKLOADS, ...STUDIES];

function checkBacking(needBytes) {
  accessSync(BACKING, constants.W_OK);
  const { bavail, bsize } = statfsSync(BACKING);
  if (bavail * bsize < needBytes) {
    throw new Error(
      `${BACKING} has ${Math.floor((bavail * bsize) / MIB)} MiB free, ${Math.ceil(needBytes / MIB)} MiB are needed`,
    );
  }
}

/** `only`: a part is chosen when its name or group is one of these, or its name begins with one. */
const isChosen = (only, { name, group }) =>
  only === undefined || only.some((word) => name === word || group === word || name.startsWith(`${word}-`));

export async function runBench({ profile, rounds, only, peers, first = false, nodeArguments = [], say }) {
  const sizes = { ...PROFILES[profile], rounds: rounds ?? PROFILES[profile].rounds };
  const fileBytes = sizes.fileMib * MIB;
  const regionBytes = 3 * fileBytes + 512 * MIB;
  // Regions and files are sparse: what is written counts, in some ten peers at a time.
  checkBacking(10 * fileBytes + (1024 + sizes.hugeMib) * MIB);
  await sweep(BACKING);
  if (first) startFirst();
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
    ...sizes,
    ...{ scope, folder, fileBytes, regionBytes, nodeArguments, say },
    ...{ programs: new Map(), stages: new Map(), mapped: new Set() },
    signal: interruption.signal,
    versions: machine.versions,
  };
  const from = performance.now();
  try {
    mkdirSync(folder, { mode: 0o700 });
    scope.defer(folder, async () => rmSync(folder, { recursive: true, force: true }));
    const workloads = WORKLOADS.filter((part) => isChosen(only, part));
    const studies = STUDIES.filter(
      (part) => isChosen(only, part) && (only !== undefined || profile !== "quick" || !part.isWide),
    );
    const chosen = PEERS.filter(({ name }) => peers === undefined || peers.includes(name));
    const measured = new Measurement(bench, sizes, only !== undefined);
    await measured.start(chosen, workloads);
    await measured.rounds(workloads);
    await measured.studies(studies);
    return {
      at: new Date().toISOString(),
      machine,
      loadAverageAtEnd: loadavg(),
      seconds: Math.round((performance.now() - from) / 1000),
      profile,
      settings: { ...sizes, fio: hasCommand("fio") },
      ...measured.results([...workloads, ...studies]),
    };
  } finally {
    for (const failure of await scope.close()) say(`could not clear up ${failure}`);
    for (const signal of signals) process.off(signal, interrupt);
  }
}

class Measurement {
  #bench;
  #sizes;
  /** Wide workloads were asked for by name: they run whatever the profile. */
  #asked;
  #described = [];
  #running = [];
  #samples = [];
  #failures = [];
  #skipped = [];
  /** A peer that fails in a workload (a request not answered, say) is not asked again: it may hang. */
  #failed = new Set();

  constructor(bench, sizes, asked) {
    this.#bench = bench;
    this.#sizes = sizes;
    this.#asked = asked;
  }

  async start(chosen, workloads) {
    const bench = this.#bench;
    for (const peer of chosen) {
      const { name, note, variantOf, env } = peer;
      try {
        bench.say(`starting ${name}`, { passing: true });
        const base = this.#running.find((one) => one.name === variantOf);
        if (variantOf !== undefined && base === undefined) throw new Missing(`${variantOf} is not measured`);
        const started = base === undefined ? await peer.start(bench) : await variant(bench, base, name);
        const running = { ...started, name, note, variantOf, env };
        if (name === "mapdirect") bench.mapdirect = running;
        if (running.folder !== undefined && workloads.length > 0) await prepareData(bench, running);
        this.#running.push(running);
        this.#described.push({ name, note });
      } catch (error) {
        bench.signal.throwIfAborted();
        bench.say(`${name}: skipped: ${error.message}`);
        this.#described.push({ name, note, skipped: error.message });
      }
    }
  }

  async rounds(workloads) {
    const { rounds } = this.#sizes;
    for (let round = 0; round < rounds; round += 1) {
      for (const workload of workloads) {
        if (workload.isWide && !this.#asked && round >= this.#sizes.wideRounds) continue;
        this.#bench.say(`round ${round + 1}/${rounds}: ${workload.name}`, { passing: true });
        if (workload.contestants !== undefined) await this.#compare(workload, round);
        else await this.#takeTurns(workload, round);
      }
    }
  }

  async #takeTurns(workload, round) {
    const slices = workload.slices === undefined ? 1 : this.#sizes[workload.slices];
    const taking = this.#running.filter((peer) => takesPart(workload, peer));
    const found = new Map();
    for (let slice = 0; slice < slices; slice += 1) {
      for (let turn = 0; turn < taking.length; turn += 1) {
        const peer = taking[(round + slice + turn) % taking.length];
        await this.#attempt(workload, peer.name, async () => {
          const before = cpuNanos(peer.pid);
          const measured = await workload.run(this.#bench, peer, round * slices + slice);
          // A thread that ended meanwhile has taken its time with it: then there is no figure.
          const nanos = cpuNanos(peer.pid) - before;
          const cpuMicros = nanos < 0 ? Number.NaN : nanos / 1000 / measured.operations;
          found.set(peer, [...(found.get(peer) ?? []), { ...measured, cpuMicros }]);
        });
      }
    }
    for (const [peer, measured] of found) {
      const { cpuMicros, ...sample } = medianOf(workload, measured);
      const hasFigure = peer.pid !== undefined && Number.isFinite(cpuMicros);
      this.#add(round, workload, peer.name, hasFigure ? { ...sample, cpuMicros } : sample);
    }
  }

  async #compare(workload, round) {
    if (!workload.contestants.every((name) => this.#running.some((peer) => peer.name === name))) return;
    await this.#attempt(workload, workload.contestants[0], async () => {
      const { values, ratios, details } = await workload.runAll(this.#bench, round);
      for (const [peer, measured] of Object.entries(values)) {
        const isFirst = peer === workload.contestants[0];
        this.#add(round, workload, peer, { values: measured, ...(isFirst ? { ratios, details } : {}) });
      }
    });
  }

  /** Each once: they make volumes of their own. */
  async studies(studies) {
    if (this.#bench.mapdirect === undefined) return;
    for (const study of studies) {
      this.#bench.say(`${study.name}`, { passing: true });
      const scope = new Scope();
      await this.#attempt(study, "mapdirect", async () => {
        try {
          for (const [peer, values] of Object.entries(await study.run({ ...this.#bench, scope }))) {
            this.#add(0, study, peer, { values });
          }
        } finally {
          for (const failure of await scope.close()) this.#bench.say(`could not clear up ${failure}`);
        }
      });
    }
  }

  #add(round, { name }, peer, measured) {
    this.#samples.push({ round, workload: name, peer, ...measured, load: loadavg()[0] });
  }

  async #attempt({ name }, peer, measure) {
    if (this.#failed.has(peer) || this.#skipped.some((one) => one.workload === name && one.peer === peer))
      return;
    try {
      await measure();
    } catch (error) {
      this.#bench.signal.throwIfAborted();
      if (error instanceof Missing) {
        this.#skipped.push({ workload: name, peer, reason: error.message });
        return;
      }
      this.#failures.push(`${peer}, ${name}: ${error.message}`);
      this.#bench.say(this.#failures.at(-1));
      // The others compare mapdirect with itself, or are short; a mount that failed once may hang.
      if (peer !== "mapdirect" || /not done after/.test(error.message)) this.#failed.add(peer);
    }
  }

  results(parts) {
    const results = new Results(this.#samples, parts, "mapdirect");
    const rows = results.rows(this.#running);
    return {
      peers: this.#described,
      rows,
      cpuRows: results.cpuRows(this.#running),
      curves: curvesOf(rows, "mapdirect"),
      goals: judge(results, GOALS),
      skipped: this.#skipped,
      failures: this.#failures,
      samples: this.#samples,
    };
  }
}

/** A folder of its own in the same mount: the workloads of the two must not meet. */
async function variant(bench, base, name) {
  const folder = join(base.folder, name);
  await run("mkdir", [folder], { limitMs: 10_000, signal: bench.signal });
  return { ...base, folder };
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
