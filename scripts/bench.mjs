/**
 * `npm run bench`: mapdirect beside other file systems in memory, on this machine, in one run. Prints a table and writes
 * the figures to bench-results/.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { runBench } from "../test/bench/bench.mjs";
import { PEERS } from "../test/bench/peers.mjs";
import { render } from "../test/bench/report.mjs";
import { Interrupted } from "../test/bench/scope.mjs";
import { build } from "./build.mjs";
import { fail, root, SetupError, setup } from "./setup.mjs";

const USAGE = `usage: npm run bench -- [--quick] [--rounds N] [--peers LIST] [--node-options LIST]

  --quick              short: 3 rounds of 1 s, smaller files
  --rounds N           how often everything is measured (7)
  --peers LIST         only these, separated by commas: ${PEERS.map(({ name }) => name).join(", ")}
  --node-options LIST  for the daemon of mapdirect, separated by commas, e.g. --cpu-prof,--cpu-prof-dir=/tmp`;

function parse() {
  try {
    const { values } = parseArgs({
      options: {
        quick: { type: "boolean", default: false },
        rounds: { type: "string" },
        peers: { type: "string" },
        "node-options": { type: "string" },
        help: { type: "boolean", default: false },
      },
    });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    const rounds = Number(values.rounds ?? (values.quick ? 3 : 7));
    if (!Number.isInteger(rounds) || rounds < 1) throw new Error("--rounds wants a whole number from 1");
    const peers = values.peers?.split(",");
    const unknown = peers?.find((wanted) => !PEERS.some(({ name }) => name === wanted));
    if (unknown !== undefined) throw new Error(`no peer is called '${unknown}'`);
    const size = values.quick
      ? { seconds: 1, fileMib: 64, metaFiles: 1000 }
      : { seconds: 3, fileMib: 256, metaFiles: 4000 };
    return { rounds, peers, nodeArguments: values["node-options"]?.split(",") ?? [], ...size };
  } catch (error) {
    throw new SetupError(`${error.message}\n${USAGE}`);
  }
}

/** Progress overwrites itself on a terminal, and is left out elsewhere. */
function say(text, { passing = false } = {}) {
  const { isTTY } = process.stderr;
  if (passing && !isTTY) return;
  process.stderr.write(`${isTTY ? "\r\u001b[K" : ""}bench: ${text}${passing ? "" : "\n"}`);
}

try {
  const settings = parse();
  setup();
  build();
  const result = await runBench({ ...settings, say });
  if (process.stderr.isTTY) process.stderr.write("\r\u001b[K");
  const folder = join(root, "bench-results");
  mkdirSync(folder, { recursive: true });
  const file = join(folder, `${result.at.replace(/[:.]/g, "-")}.json`);
  writeFileSync(file, `${JSON.stringify(result, null, 2)}\n`);
  console.log(`${render(result)}\n\nwritten to ${file}`);
  process.exitCode = result.failures.length > 0 ? 1 : 0;
} catch (error) {
  if (error instanceof Interrupted) process.exitCode = error.signal === "SIGINT" ? 130 : 143;
  else if (error instanceof SetupError) fail(error);
  else fail(new SetupError(`bench: ${error.message}`));
}
