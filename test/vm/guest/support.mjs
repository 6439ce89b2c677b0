/**
 * For scripts that run in a guest: commands, the command line of mapdirect, and results, one JSON line each, in the folder
 * that the host reads.
 *
 * Invariant: a check that throws is a failed check, and the script goes on with the next one.
 */
import { spawnSync } from "node:child_process";
import { appendFileSync, readFileSync } from "node:fs";
import { release } from "node:os";
import { join } from "node:path";
import { main } from "../../../dist/cli/main.js";

export const OUT = "/run/out";
export const project = "/run/project";
/** What the host wants of this guest. */
export const request = JSON.parse(readFileSync(join(OUT, "request.json"), "utf8"));
export const programs = request.programs.replace(request.root, project);
const COMMAND_LIMIT_MS = 600_000;

const environment = { ...process.env, PATH: "/usr/sbin:/usr/bin:/sbin:/bin" };
export const preload = join(project, "dist/lib/libmapdirect_preload.so");
/** Of programs whose shared mappings are direct ones without their knowledge. */
export const automatic = { LD_PRELOAD: preload, MAPDIRECT: "auto" };

/** Run a program: { code, stdout, stderr }. */
export function run(command, args, { env = {}, timeoutMs = COMMAND_LIMIT_MS } = {}) {
  const done = spawnSync(command, args.map(String), {
    encoding: "utf8",
    env: { ...environment, LD_LIBRARY_PATH: join(project, "dist/lib"), ...env },
    timeout: timeoutMs,
    killSignal: "SIGKILL",
    maxBuffer: 1 << 26,
  });
  if (done.error)
    throw new Error(`${command} ${args.join(" ")}: ${done.error.message}\n${done.stdout}${done.stderr}`);
  return { code: done.status ?? -1, stdout: done.stdout, stderr: done.stderr };
}

/** Run a program that must succeed; its standard output. */
export function succeed(command, args, options) {
  const { code, stdout, stderr } = run(command, args, options);
  if (code !== 0)
    throw new Error(`${command} ${args.join(" ")}: exit code ${code}\n${stdout}${stderr}`.trim());
  return stdout;
}

/** The command line of mapdirect, in this process: another start of Node takes a second and more here. */
export async function mapdirect(...args) {
  const text = { stdout: "", stderr: "" };
  const real = {};
  for (const name of ["stdout", "stderr"]) {
    real[name] = process[name].write;
    process[name].write = (part) => {
      text[name] += part;
      return true;
    };
  }
  process.exitCode = 0;
  try {
    await main(args);
  } finally {
    for (const name of ["stdout", "stderr"]) process[name].write = real[name];
  }
  const code = process.exitCode;
  process.exitCode = 0;
  if (code !== 0)
    throw new Error(`mapdirect ${args.join(" ")}: exit code ${code}: ${text.stderr}${text.stdout}`);
  return text.stdout;
}

export function equal(found, expected, what) {
  if (found !== expected)
    throw new Error(`${what}: ${JSON.stringify(found)}, should be ${JSON.stringify(expected)}`);
}

let failed = 0;
/** Without these there is nothing to look at. */
const needed = /^(set up|mkfs and mount|taken away)$/;

function record(entry) {
  appendFileSync(join(OUT, "results.jsonl"), `${JSON.stringify({ kernel: release(), ...entry })}\n`);
  console.log(
    `${entry.verdict} ${entry.kind}: ${entry.what} (${entry.ms} ms)${entry.why ? `: ${entry.why}` : ""}`,
  );
}

/**
 * One check. The body returns what was measured ("yes", "no", "refused: …"), undefined for a plain yes, or { skipped }
 * with a reason; it throws when something is not as it should be. Returns whether it held.
 */
export async function check(kind, what, body) {
  if (request.only !== undefined && !needed.test(what) && !new RegExp(request.only).test(what)) return true;
  const begin = Date.now();
  try {
    const measured = (await body()) ?? "yes";
    const ms = Date.now() - begin;
    if (typeof measured === "object") record({ kind, what, verdict: "skip", why: measured.skipped, ms });
    else record({ kind, what, verdict: "ok", measured, ms });
    return true;
  } catch (error) {
    failed += 1;
    const why = error instanceof Error ? error.message : String(error);
    record({ kind, what, verdict: "not ok", measured: "no", why, ms: Date.now() - begin });
    return false;
  }
}

export const exitCode = () => (failed > 0 ? 1 : 0);

/** More for the host than verdicts. */
export const note = (value) => appendFileSync(join(OUT, "notes.jsonl"), `${JSON.stringify(value)}\n`);
