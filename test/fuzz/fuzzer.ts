/**
 * Coverage-guided fuzzing of whatever a target describes.
 *
 * Inputs are plain values (JSON): what is done to something well-formed, step by step, and not the bytes that come of it. So
 * they can be read, made smaller, and kept as tests though times and checksums change.
 *
 * Invariants:
 * - with the same seed and the same code the same inputs are tried, but for those that a corpus folder brings in;
 * - the input that is being tried is in `current` (a file) while it is: what hangs or kills the process is known;
 * - each kind of finding is reported once, made as small as it can be.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { randomOf } from "../support/volume.ts";
import { Coverage } from "./coverage.ts";

export interface Target<Input> {
  readonly name: string;
  seeds(): Input[];
  mutate(input: Input, random: () => number, other: () => Input): Input;
  /** Returns what the input led to, in words: input that leads elsewhere is kept, too. Throws when a property does not hold. */
  run(input: Input): Promise<readonly string[]>;
  /** Inputs with less in them. */
  smaller(input: Input): Iterable<Input>;
}

export interface FuzzOptions {
  readonly seed: number;
  /** Whichever is reached first. */
  readonly executions: number;
  readonly seconds: number;
  /** Inputs worth keeping are read from here, and written. */
  readonly corpus: string | null;
  /** Where findings go. */
  readonly findings: string;
  readonly say: (text: string) => void;
}

export interface FuzzReport {
  readonly executions: number;
  readonly seconds: number;
  readonly features: number;
  readonly corpus: number;
  readonly findings: readonly { readonly file: string; readonly message: string }[];
}

/** Inputs run between two looks at the coverage. */
const BATCH = 8;
/** No input takes longer, however busy the machine, milliseconds. */
const HANG_MS = 180_000;
/** Nor so much of the processor, milliseconds. */
const SLOW_MS = 5000;
/** A volume of a few MiB has no business with more: growth of the process over one batch, KiB. */
const GROWTH_KIB = 768 * 1024;
const FINDINGS_MAX = 20;
const SMALLER_MAX = 400;
const PROGRESS_MS = 60_000;

export class Finding extends Error {}

export async function fuzz<Input>(target: Target<Input>, options: FuzzOptions): Promise<FuzzReport> {
  const fuzzer = new Fuzzer(target, options);
  try {
    return await fuzzer.run();
  } finally {
    fuzzer.close();
  }
}

class Fuzzer<Input> {
  readonly #target: Target<Input>;
  readonly #options: FuzzOptions;
  readonly #coverage = new Coverage();
  readonly #watchdog: Watchdog;
  readonly #random: () => number;
  readonly #corpus: Input[] = [];
  readonly #blocks = new Set<number>();
  readonly #words = new Set<string>();
  readonly #findings = new Map<string, { file: string; message: string }>();
  readonly #begun = performance.now();
  readonly #cpu = process.cpuUsage();
  #executions = 0;

  constructor(target: Target<Input>, options: FuzzOptions) {
    this.#target = target;
    this.#options = options;
    this.#random = randomOf(options.seed);
    mkdirSync(options.findings, { recursive: true });
    this.#watchdog = new Watchdog(join(options.findings, `${target.name}-current.json`));
  }

  async run(): Promise<FuzzReport> {
    const { seconds, executions, say } = this.#options;
    for (const input of [...this.#target.seeds(), ...this.#kept()]) await this.#batch([input], true);
    let said = performance.now();
    while (this.#executions < executions && this.#seconds() < seconds) {
      const batch = Array.from({ length: BATCH }, () =>
        this.#target.mutate(this.#pick(), this.#random, () => this.#pick()),
      );
      await this.#batch(batch, false);
      if (this.#findings.size >= FINDINGS_MAX) break;
      if (performance.now() - said < PROGRESS_MS) continue;
      said = performance.now();
      say(this.#figures());
    }
    say(this.#figures());
    return {
      executions: this.#executions,
      seconds: this.#seconds(),
      features: this.#blocks.size + this.#words.size,
      corpus: this.#corpus.length,
      findings: [...this.#findings.values()],
    };
  }

  close(): void {
    this.#coverage.close();
    this.#watchdog.close();
  }

  #seconds(): number {
    return (performance.now() - this.#begun) / 1000;
  }

  #figures(): string {
    const seconds = this.#seconds();
    const { user, system } = process.cpuUsage(this.#cpu);
    return (
      `${this.#target.name}: ${this.#executions} executions in ${seconds.toFixed(0)} s ` +
      `(${((user + system) / 1e6).toFixed(0)} s of CPU), ` +
      `${(this.#executions / seconds).toFixed(1)}/s; ${this.#blocks.size} blocks and ${this.#words.size} answers reached, ` +
      `corpus ${this.#corpus.length}, findings ${this.#findings.size}`
    );
  }

  /** What was found lately more often: it leads on. */
  #pick(): Input {
    const { length } = this.#corpus;
    const recent =
      this.#random() < 0.5 ? Math.floor((1 - this.#random() ** 3) * length) : this.#random() * length;
    return this.#corpus[Math.min(length - 1, Math.floor(recent))] as Input;
  }

  async #batch(inputs: readonly Input[], keep: boolean): Promise<void> {
    const before = process.resourceUsage().maxRSS;
    const kept = new Set<Input>();
    for (const input of inputs) {
      const words = await this.#one(input);
      if (words === null) continue;
      if (this.#isNew(words, this.#words) || keep) kept.add(input);
    }
    const grown = process.resourceUsage().maxRSS - before;
    if (grown > GROWTH_KIB) {
      const message = `${grown} KiB of memory for small inputs`;
      for (const input of inputs) await this.#found(input, new Finding(message));
    }
    if (this.#isNew(this.#coverage.take(), this.#blocks) && !keep) {
      // One of them has been where none was: which, only another run of each can tell.
      const mine: number[][] = [];
      for (const input of inputs) {
        await this.#one(input);
        mine.push(this.#coverage.take());
      }
      for (const [index, blocks] of mine.entries()) {
        if (blocks.some((block) => this.#fresh.has(block))) kept.add(inputs[index] as Input);
        for (const block of blocks) this.#fresh.delete(block);
      }
    }
    this.#fresh.clear();
    for (const input of kept) this.#keep(input);
  }

  /** Blocks that the last look has seen for the first time. */
  readonly #fresh = new Set<number>();

  #isNew<T extends number | string>(features: readonly T[], known: Set<T>): boolean {
    let any = false;
    for (const feature of features) {
      if (known.has(feature)) continue;
      known.add(feature);
      if (typeof feature === "number") this.#fresh.add(feature);
      any = true;
    }
    return any;
  }

  /** null: it was a finding. */
  async #one(input: Input): Promise<readonly string[] | null> {
    this.#executions += 1;
    this.#watchdog.begin(input);
    const from = process.cpuUsage();
    try {
      const words = await this.#target.run(input);
      // Of the processor: a busy machine is no finding.
      const { user, system } = process.cpuUsage(from);
      if (user + system > SLOW_MS * 1000) throw new Finding(`it took ${(user + system) / 1000} ms`);
      return words;
    } catch (error) {
      await this.#found(input, error);
      return null;
    } finally {
      this.#watchdog.end();
    }
  }

  async #found(input: Input, error: unknown): Promise<void> {
    const kind = kindOf(error);
    if (this.#findings.has(kind)) return;
    const name = `${this.#target.name}-${createHash("sha256").update(kind).digest("hex").slice(0, 8)}.json`;
    const file = join(this.#options.findings, name);
    this.#findings.set(kind, { file, message: `${error instanceof Error ? error.stack : error}` });
    const small = await this.#minimise(input, kind);
    writeFileSync(file, `${JSON.stringify({ target: this.#target.name, input: small }, null, 1)}\n`);
    this.#options.say(
      `${this.#target.name}: FINDING ${file}\n${error instanceof Error ? error.stack : error}\n${JSON.stringify(small)}`,
    );
  }

  async #minimise(input: Input, kind: string): Promise<Input> {
    let small = input;
    let left = SMALLER_MAX;
    for (let again = true; again; ) {
      again = false;
      for (const candidate of this.#target.smaller(small)) {
        left -= 1;
        if (left < 0) return small;
        this.#watchdog.begin(candidate);
        const same = await this.#target.run(candidate).then(
          () => false,
          (error: unknown) => kindOf(error) === kind,
        );
        this.#watchdog.end();
        if (!same) continue;
        small = candidate;
        again = true;
        break;
      }
    }
    return small;
  }

  #keep(input: Input): void {
    this.#corpus.push(input);
    const folder = this.#folder();
    if (folder === null) return;
    const text = JSON.stringify(input);
    const file = join(folder, `${createHash("sha256").update(text).digest("hex").slice(0, 16)}.json`);
    if (!existsSync(file)) writeFileSync(file, text);
  }

  #kept(): Input[] {
    const folder = this.#folder();
    if (folder === null) return [];
    return readdirSync(folder)
      .sort()
      .map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as Input);
  }

  #folder(): string | null {
    const { corpus } = this.#options;
    if (corpus === null) return null;
    const folder = join(corpus, this.#target.name);
    mkdirSync(folder, { recursive: true });
    return folder;
  }
}

/** The same mistake has the same kind: what is said without its numbers, and where in src/ it came up. */
export function kindOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const words = wordsOf(error.message.split("\n")[0] ?? "");
  const frames = (error.stack ?? "").split("\n").filter((line) => line.includes("/src/"));
  const place = /\/(src\/[^:]*)/.exec(frames[0] ?? "")?.[1] ?? "";
  return `${error.name} ${words} ${place}`;
}

/** A message without what differs from input to input. */
export function wordsOf(message: string): string {
  return message.replace(/"[^"]*"/g, '""').replace(/-?[0-9]+|0x[0-9a-f]+/g, "#");
}

/** A thread beside the one that may hang: it then says what was being tried, and ends the process. */
class Watchdog {
  readonly #file: string;
  readonly #beats = new Int32Array(new SharedArrayBuffer(4));
  readonly #worker: Worker;

  constructor(file: string) {
    this.#file = file;
    const code = `
      const { workerData } = require("node:worker_threads");
      const { writeSync } = require("node:fs");
      let last = 0, since = Date.now();
      setInterval(() => {
        const now = Atomics.load(workerData.beats, 0);
        if (now !== last || now % 2 === 0) { last = now; since = Date.now(); return; }
        if (Date.now() - since < ${HANG_MS}) return;
        writeSync(2, "fuzz: HANG; the input is in " + workerData.file + "\\n");
        process.kill(process.pid, "SIGKILL");
      }, 1000);`;
    this.#worker = new Worker(code, { eval: true, workerData: { beats: this.#beats, file } });
    this.#worker.unref();
  }

  begin(input: unknown): void {
    writeFileSync(this.#file, JSON.stringify(input));
    Atomics.add(this.#beats, 0, 1);
  }

  end(): void {
    Atomics.add(this.#beats, 0, 1);
  }

  close(): void {
    void this.#worker.terminate();
  }
}
