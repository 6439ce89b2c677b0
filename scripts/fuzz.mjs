/**
 * `npm run fuzz`: coverage-guided fuzzing, for as long as one likes. What it finds is made small, written down as an input that
 * test/fuzz/regressions/ can keep, and makes the run fail.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { buildClient } from "../test/fuzz/client/build.mjs";
import { build } from "./build.mjs";
import { fail, hasCommand, localBin, root, SetupError, setup } from "./setup.mjs";

/** The client library is C: clang's libFuzzer does the work there. */
const TARGETS = ["image", "session", "client"];

const USAGE = `usage: npm run fuzz -- [--target NAME] [--seconds N] [--seed N] [--corpus FOLDER] [--findings FOLDER]

  --target NAME      ${TARGETS.join(", ")}; all of them, one after the other, if not given
  --seconds N        for each target (60)
  --seed N           the same choices again; a random one if not given
  --corpus FOLDER    inputs to begin with; new ones that lead somewhere new are left there (.cache/fuzz/corpus)
  --findings FOLDER  where findings go (.cache/fuzz/findings)`;

function parse() {
  try {
    const { values } = parseArgs({
      options: {
        target: { type: "string" },
        seconds: { type: "string", default: "60" },
        seed: { type: "string", default: String(Math.floor(Math.random() * 2 ** 31)) },
        corpus: { type: "string", default: join(root, ".cache", "fuzz", "corpus") },
        findings: { type: "string", default: join(root, ".cache", "fuzz", "findings") },
        help: { type: "boolean", default: false },
      },
    });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    if (values.target !== undefined && !TARGETS.includes(values.target))
      throw new Error(`no target is called '${values.target}'`);
    for (const name of ["seconds", "seed"]) {
      const number = Number(values[name]);
      if (!Number.isInteger(number) || number < 0) throw new Error(`--${name} wants a whole number`);
    }
    return values;
  } catch (error) {
    throw new SetupError(`${error.message}\n${USAGE}`);
  }
}

/** @returns exit code */
function fuzzHere({ target, seconds, seed, corpus, findings }) {
  const env = {
    ...process.env,
    ...(target === undefined ? {} : { MAPDIRECT_FUZZ_TARGET: target }),
    MAPDIRECT_FUZZ_SECONDS: seconds,
    MAPDIRECT_SEED: seed,
    MAPDIRECT_FUZZ_CORPUS: resolve(corpus),
    MAPDIRECT_FUZZ_FINDINGS: resolve(findings),
  };
  const done = spawnSync(localBin("vitest"), ["run", "test/fuzz/fuzz.test.ts"], {
    cwd: root,
    stdio: "inherit",
    env,
  });
  return done.status ?? 1;
}

/** @returns exit code */
function fuzzClient({ target, seconds, seed, corpus, findings }) {
  const clang = ["clang", "clang-14"].find(hasCommand);
  if (clang === undefined) {
    if (target === "client")
      throw new SetupError("clang is not installed: 'apt-get install clang-14 libclang-rt-14-dev'");
    console.log("fuzz client: skipped, clang is not installed");
    return 0;
  }
  const inputs = join(resolve(corpus), "client");
  for (const folder of [inputs, resolve(findings)]) mkdirSync(folder, { recursive: true });
  const program = join(root, ".cache", "fuzz", "client");
  buildClient(clang, program, true);
  const words = [
    `-max_total_time=${seconds}`,
    `-seed=${seed}`,
    `-artifact_prefix=${resolve(findings)}/client-`,
    // Faults are answers here; more seconds for one input, MiB of memory or bytes of input than these are not.
    ...[
      "-handle_segv=0",
      "-handle_bus=0",
      "-timeout=30",
      "-rss_limit_mb=2048",
      "-max_len=2048",
      "-print_final_stats=1",
    ],
  ];
  return spawnSync(program, [...words, inputs], { cwd: root, stdio: "inherit" }).status ?? 1;
}

try {
  const wishes = parse();
  setup();
  build();
  console.log(`fuzz: --seed ${wishes.seed} --seconds ${wishes.seconds}; findings go to ${wishes.findings}`);
  const codes = [];
  if (wishes.target !== "client") codes.push(fuzzHere(wishes));
  if (wishes.target === undefined || wishes.target === "client") codes.push(fuzzClient(wishes));
  process.exitCode = Math.max(...codes);
} catch (error) {
  fail(error);
}
