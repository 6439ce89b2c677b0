/**
 * The command line of the benchmark: what `npm run bench` runs when everything is installed and built. Prints tables;
 * writes the figures (JSON), a page with charts (HTML), and the tables for a document (Markdown).
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { fail, root, SetupError } from "../../scripts/setup.mjs";
import { PARTS, PROFILES, runBench } from "./bench.mjs";
import { renderMarkdown } from "./markdown.mjs";
import { page } from "./page.mjs";
import { PEERS } from "./peers.mjs";
import { render } from "./report.mjs";
import { Interrupted } from "./scope.mjs";

const GROUPS = [...new Set(PARTS.map(({ group }) => group))];
const USAGE = `usage: npm run bench -- [options]

  --quick              about a minute: less of everything, the heavy parts left out
  --rounds N           how often everything is measured (full ${PROFILES.full.rounds}, quick ${PROFILES.quick.rounds})
  --only LIST          only these, separated by commas: a group (${GROUPS.join(", ")}), a
                       workload, or the beginning of its name up to a dash; see --list
  --peers LIST         only these: ${PEERS.map(({ name }) => name).join(", ")}
  --first              as root: before everything else on the machine, for a machine that others use as well
  --output FOLDER      where the results go (bench-results)
  --list               print the workloads, and end
  --node-options LIST  for the daemon of mapdirect, separated by commas, e.g. --cpu-prof,--cpu-prof-dir=/tmp`;

function checkNames(words, known, what) {
  const unknown = words?.find((word) => !known(word));
  if (unknown !== undefined) throw new Error(`no ${what} is called '${unknown}'`);
}

function parse() {
  try {
    const { values } = parseArgs({
      options: {
        quick: { type: "boolean", default: false },
        smoke: { type: "boolean", default: false },
        rounds: { type: "string" },
        only: { type: "string" },
        peers: { type: "string" },
        first: { type: "boolean", default: false },
        output: { type: "string" },
        list: { type: "boolean", default: false },
        "node-options": { type: "string" },
        help: { type: "boolean", default: false },
      },
    });
    const rounds = values.rounds === undefined ? undefined : Number(values.rounds);
    if (rounds !== undefined && (!Number.isInteger(rounds) || rounds < 1)) {
      throw new Error("--rounds wants a whole number from 1");
    }
    if (values.first && process.geteuid() !== 0) throw new Error("--first takes root");
    const [only, peers] = [values.only?.split(","), values.peers?.split(",")];
    checkNames(peers, (word) => PEERS.some(({ name }) => name === word), "peer");
    const isPart = (word) =>
      PARTS.some(({ name, group }) => name === word || group === word || name.startsWith(`${word}-`));
    checkNames(only, isPart, "workload");
    return {
      profile: values.smoke ? "smoke" : values.quick ? "quick" : "full",
      ...{ rounds, only, peers, first: values.first, list: values.list, help: values.help },
      output: resolve(values.output ?? join(root, "bench-results")),
      nodeArguments: values["node-options"]?.split(",") ?? [],
    };
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

async function main() {
  const { list, help, output, ...settings } = parse();
  if (help) return console.log(USAGE);
  if (list) return console.log(PARTS.map(({ group, name }) => `${group}: ${name}`).join("\n"));
  const result = await runBench({ ...settings, say });
  if (process.stderr.isTTY) process.stderr.write("\r\u001b[K");
  mkdirSync(output, { recursive: true });
  const file = join(output, result.at.replace(/[:.]/g, "-"));
  writeFileSync(`${file}.json`, `${JSON.stringify(result, null, 2)}\n`);
  writeFileSync(`${file}.html`, page(result));
  writeFileSync(`${file}.md`, renderMarkdown(result));
  console.log(`${render(result)}\n\nwritten to ${file}.json, .html and .md`);
  process.exitCode = result.failures.length > 0 ? 1 : 0;
}

try {
  await main();
} catch (error) {
  if (error instanceof Interrupted) process.exitCode = error.signal === "SIGINT" ? 130 : 143;
  else if (error instanceof SetupError) fail(error);
  else fail(new SetupError(`bench: ${error.message}`));
}
