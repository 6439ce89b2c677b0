/**
 * `npm run fuzz`: coverage-guided fuzzing, for as long as one likes. What it finds is made small, written down as an input that
 * test/fuzz/regressions/ can keep, and makes the run fail.
 */
import { spawnSync } from "node:child_process";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { build } from "./build.mjs";
import { fail, localBin, root, SetupError, setup } from "./setup.mjs";

const TARGETS = ["image", "session"];

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

try {
  const { target, seconds, seed, corpus, findings } = parse();
  setup();
  build();
  const env = {
    ...process.env,
    ...(target === undefined ? {} : { MAPDIRECT_FUZZ_TARGET: target }),
    MAPDIRECT_FUZZ_SECONDS: seconds,
    MAPDIRECT_SEED: seed,
    MAPDIRECT_FUZZ_CORPUS: resolve(corpus),
    MAPDIRECT_FUZZ_FINDINGS: resolve(findings),
  };
  console.log(`fuzz: --seed ${seed} --seconds ${seconds}; findings go to ${findings}`);
  const done = spawnSync(localBin("vitest"), ["run", "test/fuzz/fuzz.test.ts"], {
    cwd: root,
    stdio: "inherit",
    env,
  });
  process.exitCode = done.status ?? 1;
} catch (error) {
  fail(error);
}
