/**
 * Runs a schedule: real processes (worker.c), a real mount, and the model beside them. Each answer is compared with the
 * model's; after each step the block map of every file is compared with the model's, and with what the kernel says that each
 * process can reach.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readdirSync, readFileSync, statSync, unlinkSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { ask, readExtents, withOpen } from "../../src/daemon/client.ts";
import { deviceOf, runsIn } from "../../src/lease/ghosts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import type { TestMount } from "../support/mount.ts";
import { run } from "../support/run.ts";
import { type Copy, FileModel, type Kind, type Look, Mapping, Model, type Page } from "./model.ts";

const PAGE = 4096;
export const FILES = 3;
export const FILE_PAGES = 6;
const SLOTS = 4;
const WORKERS_MAX = 5;
/** Of the mount. */
export const BREAK_TIME_MS = 1000;
/** After a break new leases are refused for a second. */
const AFTER_BREAK_MS = 1300;

/** Numbers choose among what is there at that moment. */
export type Step =
  | { do: "map"; worker: number; file: number; first: number; count: number; kind: Kind; kept: boolean }
  | { do: "unmap" | "cut" | "move"; worker: number; slot: number; page: number }
  | { do: "load" | "store"; worker: number; slot: number; page: number; value: number }
  | { do: "read"; worker: number; file: number; page: number; kept: boolean; way: number }
  | {
      do: "write" | "truncate" | "punch" | "allocate" | "prepare";
      worker: number;
      file: number;
      first: number;
      count: number;
      value: number;
      nonblocking: boolean;
      kept: boolean;
      aim: number;
    }
  | { do: "sync"; worker: number; file: number }
  | { do: "copy"; worker: number; file: number; to: number; count: number }
  | { do: "race"; worker: number; other: number; file: number; first: number; count: number; kind: Kind }
  | { do: "fork" | "kill" | "stop" | "replace"; worker: number; file: number };

export class Divergence extends Error {}

function expectSame(what: string, seen: string, expected: readonly string[]): void {
  if (!expected.includes(seen)) throw new Divergence(`${what}: ${seen} instead of ${expected.join(" or ")}`);
}

interface Worker {
  readonly name: string;
  readonly socket: Socket;
  readonly pid: number;
  /** Those that this process spawned. */
  child: ChildProcess | undefined;
  readonly answers: Map<string, (answer: string) => void>;
  next: number;
}

interface Slot {
  readonly mapping: Mapping;
  readonly copy: Copy;
}

interface OpenFile {
  readonly model: FileModel;
  /** Undefined when the name is another file's by now and nobody keeps the inode but its mappings. */
  descriptor: number | undefined;
}

export class Bench {
  readonly #mount: TestMount;
  readonly #program: string;
  readonly #server: Server;
  readonly #socketPath: string;
  readonly #waiting = new Map<string, (worker: Worker) => void>();
  readonly #workers = new Map<string, Worker>();
  readonly #regionDevice: string;
  readonly #regionInode: string;
  #model = new Model();
  #files: OpenFile[] = [];
  /** Of each name, how many files have had it. */
  readonly #generations = new Map<string, number>();
  /** By process, then by slot. */
  #slots = new Map<string, Map<number, Slot>>();
  #stopped = new Set<string>();
  #tokens = 0;
  /** What happened, for the report of a failure. */
  log: string[] = [];
  readonly counts: Record<string, number> = {};

  private constructor(mount: TestMount, program: string) {
    this.#mount = mount;
    this.#program = program;
    this.#socketPath = join(mount.folder, "socket");
    const region = statSync(mount.region, { bigint: true });
    this.#regionDevice = deviceOf(region.dev);
    this.#regionInode = `${region.ino}`;
    this.#server = createServer((socket) => this.#connected(socket));
  }

  static async begin(mount: TestMount): Promise<Bench> {
    const program = join(mount.folder, "worker");
    const library = join(packageRoot, "dist", "lib");
    const source = join(packageRoot, "test", "schedules", "worker.c");
    const include = `-I${join(packageRoot, "native", "client")}`;
    const flags = ["-O1", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", include];
    const { code, stderr } = await run("cc", [
      ...flags,
      "-o",
      program,
      source,
      `-L${library}`,
      "-lmapdirect",
      `-Wl,-rpath,${library}`,
    ]);
    if (code !== 0) throw new Error(stderr);
    const bench = new Bench(mount, program);
    await new Promise<void>((resolve) => bench.#server.listen(bench.#socketPath, resolve));
    return bench;
  }

  async end(): Promise<void> {
    for (const worker of [...this.#workers.values()]) await this.#kill(worker);
    this.#server.close();
  }

  // ---- processes

  #connected(socket: Socket): void {
    let worker: Worker | undefined;
    socket.on("error", () => {});
    createInterface({ input: socket }).on("line", (line) => {
      const space = line.indexOf(" ");
      const [number, text] = [line.slice(0, space), line.slice(space + 1)];
      if (worker === undefined) {
        worker = { name: number, socket, pid: Number(text), child: undefined, answers: new Map(), next: 0 };
        this.#waiting.get(number)?.(worker);
        this.#waiting.delete(number);
        return;
      }
      const answers = worker.answers;
      answers.get(number)?.(text);
      answers.delete(number);
    });
    socket.on("close", () => {
      for (const answer of worker?.answers.values() ?? []) answer("process ended");
    });
  }

  #expectWorker(): { name: string; arrived: Promise<Worker> } {
    this.#tokens += 1;
    const name = `w${this.#tokens}`;
    const arrived = new Promise<Worker>((resolve) => this.#waiting.set(name, resolve));
    return { name, arrived };
  }

  async #spawn(): Promise<void> {
    const { name, arrived } = this.#expectWorker();
    const door = this.#tokens % 2 === 0 ? "library" : "preload";
    const child = spawn(this.#program, [this.#socketPath, name, door], {
      stdio: ["ignore", "inherit", "inherit"],
      env: {
        ...process.env,
        ...(door === "preload"
          ? { LD_PRELOAD: join(packageRoot, "dist", "lib", "libmapdirect_preload.so") }
          : {}),
      },
    });
    const worker = await arrived;
    worker.child = child;
    this.#workers.set(name, worker);
    this.#slots.set(name, new Map());
  }

  async #tell(worker: Worker, ...words: readonly (string | number)[]): Promise<string> {
    worker.next += 1;
    const number = `${worker.next}`;
    const answered = new Promise<string>((resolve) => worker.answers.set(number, resolve));
    const text = words.join(" ");
    worker.socket.write(`${number} ${text}\n`);
    const answer = await answered;
    this.log.push(`${worker.name} ${text}: ${answer}`);
    const [what = ""] = words;
    this.#count(`${what} ${answer.startsWith("ok") ? "ok" : answer}`);
    return answer;
  }

  #count(key: string): void {
    this.counts[key] = (this.counts[key] ?? 0) + 1;
  }

  async #kill(worker: Worker): Promise<void> {
    process.kill(worker.pid, "SIGKILL");
    this.#workers.delete(worker.name);
    this.#slots.delete(worker.name);
    this.#stopped.delete(worker.name);
    for (const mapping of this.#model.mappings) mapping.copies.delete(worker.name);
    worker.socket.destroy();
    while (stillThere(worker.pid)) await sleep(1);
  }

  // ---- a schedule

  async run(layouts: readonly string[], steps: readonly Step[]): Promise<void> {
    this.log = [];
    this.#model = new Model();
    for (const [name, worker] of [...this.#workers]) {
      if (worker.child === undefined) await this.#kill(worker);
      else this.#slots.set(name, new Map());
    }
    while (this.#workers.size < 3) await this.#spawn();
    this.#files = [];
    for (const [index, layout] of layouts.entries()) {
      await this.#makeFile(index, layout);
    }
    try {
      for (const step of steps) {
        await this.#step(step);
        this.#checkReach();
      }
      await this.#checkContent();
    } finally {
      await this.#clear();
    }
    await this.#checkEmpty();
  }

  #path(index: number): string {
    return this.#mount.at(`file${index}`);
  }

  /** On a descriptor that the process keeps: of this file, and of none that had its name before. */
  #keptIf(kept: boolean, path: string, mark: "=" | "<" = "="): string {
    return kept ? `${mark}${this.#generations.get(path)}${mark}${path}` : path;
  }

  /** One letter for each page: W written, U unwritten, H hole. */
  async #makeFile(index: number, layout: string): Promise<void> {
    const worker = this.#pick(0) as Worker;
    const path = this.#path(index);
    const model = new FileModel();
    const file = { model, descriptor: openSync(path, "w+") };
    this.#files[index] = file;
    this.#generations.set(path, (this.#generations.get(path) ?? 0) + 1);
    expectSame("truncate", await this.#tell(worker, "truncate", path, layout.length), ["ok"]);
    Model.apply("truncate", model, layout.length, 0, 0);
    for (const [page, letter] of [...layout].entries()) {
      const value = 10 + page;
      if (letter === "W") {
        expectSame("write", await this.#tell(worker, "write", path, page, value), ["ok"]);
        Model.apply("write", model, page, 1, value);
      } else if (letter === "U") {
        expectSame("allocate", await this.#tell(worker, "allocate", path, page, 1), ["ok"]);
        Model.apply("allocate", model, page, 1, 0);
      }
      this.#learnConversions(model);
    }
  }

  /** A process that runs. */
  #pick(number: number): Worker | undefined {
    const running = [...this.#workers.values()].filter(({ name }) => !this.#stopped.has(name));
    return running[number % running.length];
  }

  #pickSlot(worker: Worker, number: number): [number, Slot] | undefined {
    const slots = [...(this.#slots.get(worker.name) ?? [])];
    return slots[number % slots.length];
  }

  async #step(step: Step): Promise<void> {
    const worker = this.#pick(step.worker);
    if (worker === undefined) return;
    const file = "file" in step ? (this.#files[step.file % FILES] as OpenFile) : undefined;
    const path = "file" in step ? this.#path(step.file % FILES) : "";
    switch (step.do) {
      case "map":
        await this.#map(worker, this.#keptIf(step.kept, path), (file as OpenFile).model, step);
        return;
      case "unmap":
      case "cut":
      case "move":
        await this.#changeSlot(worker, step);
        return;
      case "load":
      case "store":
        await this.#access(worker, step);
        return;
      case "read": {
        const { pages } = (file as OpenFile).model;
        const page = pages[step.page];
        const expected = page === undefined ? "ok end" : `ok ${page.value}`;
        expectSame(
          "R24 read",
          await this.#tell(worker, "read", this.#keptIf(step.kept, path, "<"), step.page, step.way),
          [expected],
        );
        return;
      }
      case "copy":
        await this.#copy(worker, step);
        return;
      case "sync":
        // On page granularity blocks that were freed are free from now on.
        expectSame("R13 sync", await this.#tell(worker, "sync", path, 0), ["ok"]);
        return;
      case "race":
        await this.#race(worker, path, (file as OpenFile).model, step);
        return;
      case "fork":
        await this.#fork(worker);
        return;
      case "kill":
        await this.#kill(worker);
        if (this.#workers.size === this.#stopped.size) await this.#spawn();
        return;
      case "stop":
        // At least one goes on.
        if (this.#workers.size - this.#stopped.size > 1) await this.#stopForAConflict(worker);
        return;
      case "replace":
        await this.#replace(step.file % FILES);
        return;
      default: {
        const { index, first } = this.#aim(step);
        const { model } = this.#files[index] as OpenFile;
        await this.#change(worker, this.#path(index), model, { ...step, first });
      }
    }
  }

  /** Half of all changes are of a range that somebody maps, if there is one. */
  #aim(step: { file: number; first: number; aim: number }): { index: number; first: number } {
    const index = step.file % FILES;
    const targets = this.#model.mappings.flatMap((mapping) => {
      const mapped = this.#files.findIndex(({ model }) => model === mapping.file);
      return mapping.held && mapped >= 0 ? [{ index: mapped, first: mapping.first }] : [];
    });
    if (step.aim % 2 === 0 || targets.length === 0) return { index, first: step.first };
    return targets[(step.aim >> 1) % targets.length] as { index: number; first: number };
  }

  async #map(
    worker: Worker,
    path: string,
    file: FileModel,
    range: { first: number; count: number; kind: Kind },
  ): Promise<void> {
    const slots = this.#slots.get(worker.name) as Map<number, Slot>;
    const free = Array.from({ length: SLOTS }, (_, slot) => slot).find((slot) => !slots.has(slot));
    if (free === undefined) return;
    const { first, count, kind } = range;
    const pages = Array.from({ length: count }, (_, index) => file.pages[first + index]);
    const answer = await this.#tell(worker, "map", free, path, first, count, kind);
    if (pages.some((page) => page?.state === "shared")) {
      // What is shared no longer, but not known to be so yet, may be given back by the attempt.
      if (answer === "EPERM") return;
      this.#learnStates();
    }
    const mayBeRefused = performance.now() - file.brokenAtMs < AFTER_BREAK_MS;
    if (mayBeRefused && answer === "EAGAIN") return;
    expectSame("R1 map", answer.slice(0, 2), ["ok"]);
    this.#mapped(worker, free, file, range, answer);
  }

  /** The answer to a map: in what state each page is, and where. */
  #mapped(
    worker: Worker,
    slot: number,
    file: FileModel,
    range: { first: number; count: number; kind: Kind },
    answer: string,
  ): Mapping {
    const [, leaseId, ...seen] = answer.split(" ");
    const end = file.size;
    const looks: Look[] = seen.map((text, index) => {
      const page = file.pages[range.first + index];
      const look: Look =
        range.first + index >= end
          ? "beyond"
          : page?.state === "written" || page?.state === "shared"
            ? "block"
            : "zeros";
      expectSame(`R9, R10 page ${index}`, text[0] ?? "", [{ block: "w", zeros: "h", beyond: "b" }[look]]);
      return look;
    });
    const places = seen.map((text) => (text.startsWith("w") ? Number(text.slice(1)) : undefined));
    const mapping = new Mapping(Number(leaseId), { ...range, file }, looks, places);
    const copy: Copy = { slot, gone: new Set(), revoked: false, zombie: false };
    mapping.copies.set(worker.name, copy);
    this.#model.mappings.push(mapping);
    this.#slots.get(worker.name)?.set(slot, { mapping, copy });
    return mapping;
  }

  async #changeSlot(
    worker: Worker,
    step: { do: "unmap" | "cut" | "move"; slot: number; page: number },
  ): Promise<void> {
    const found = this.#pickSlot(worker, step.slot);
    if (found === undefined) return;
    const [number, { mapping, copy }] = found;
    const page = step.page % mapping.count;
    if (step.do === "move") {
      if (copy.gone.size > 0) return;
      expectSame("R22 move", await this.#tell(worker, "move", number), ["ok"]);
      return;
    }
    if (step.do === "cut") {
      if (copy.gone.has(page)) return; // something else may be there by now
      expectSame("R22 munmap of a page", await this.#tell(worker, "cut", number, page), ["ok"]);
      copy.gone.add(page);
      if (copy.gone.size < mapping.count) return;
    } else {
      // What lies in its gaps by now is not ours to unmap.
      if (copy.gone.size > 0) return;
      expectSame("munmap", await this.#tell(worker, "unmap", number), ["ok"]);
    }
    mapping.copies.delete(worker.name);
    this.#slots.get(worker.name)?.delete(number);
  }

  async #access(
    worker: Worker,
    step: { do: "load" | "store"; slot: number; page: number; value: number },
  ): Promise<void> {
    const found = this.#pickSlot(worker, step.slot);
    if (found === undefined) return;
    const [number, { mapping, copy }] = found;
    const page = step.page % mapping.count;
    if (copy.gone.has(page)) return;
    const load = Model.load(mapping, copy, page);
    if (step.do === "load") {
      expectSame("R10, R20, R24 load", await this.#tell(worker, "load", number, page), [load]);
      return;
    }
    const takes = load !== "SIGBUS" && mapping.looks[page] === "block";
    const answer = await this.#tell(worker, "store", number, page, step.value);
    expectSame("R10, R20 store", answer, [takes ? "ok" : "SIGBUS"]);
    if (takes) mapping.file.page(mapping.first + page).value = step.value;
  }

  async #change(
    worker: Worker,
    path: string,
    file: FileModel,
    step: Extract<Step, { nonblocking: boolean }>,
  ): Promise<void> {
    const what = step.do;
    const { first, value } = step;
    let count = what === "write" ? 1 : step.count;
    if (what === "allocate" || what === "prepare") count = Math.min(count, file.size - first);
    if (count <= 0) return;
    const changed = Model.changedBy(what, file, first, count);
    const { sealed, toBreak } = this.#model.conflict(file, changed);
    // fallocate of shared blocks changes nothing, and shared blocks that nobody shares any more need no copy.
    const unsure = changed.some((page) => file.pages[page]?.state === "shared");
    const argument = what === "write" ? [first, value] : what === "truncate" ? [first] : [first, count];
    const nonblocking = step.nonblocking && what !== "prepare";
    const by = nonblocking ? `!${path}` : this.#keptIf(step.kept, path);
    const answer = await this.#tell(worker, what, by, ...argument);
    if (sealed) {
      if (!(unsure && answer === "ok")) expectSame(`R12 ${what} under a seal`, answer, ["ETXTBSY"]);
    } else {
      expectSame(`R12, R13, R15 ${what}`, answer, ["ok"]);
    }
    if (!sealed && toBreak.length > 0 && !(unsure && this.#isHeld(toBreak))) {
      this.#model.revoke(toBreak, this.#stopped, performance.now());
    }
    if (answer === "ok") Model.apply(what, file, first, count, value);
    if (what === "write") this.#learnConversions(file);
  }

  #leaseIds(...states: string[]): Set<number> {
    const leases = withOpen(this.#mount.path, (descriptor) => ask(descriptor, "LEASES")) as {
      id: number;
      state: string;
    }[];
    return new Set(leases.filter(({ state }) => states.includes(state)).map(({ id }) => id));
  }

  /** Bytes. */
  #quarantined(): number {
    const info = withOpen(this.#mount.path, (descriptor) => ask(descriptor, "INFO"));
    return (info as { quarantined: number }).quarantined;
  }

  #isHeld(mappings: readonly Mapping[]): boolean {
    const ids = this.#leaseIds("held", "breaking");
    return mappings.some(({ leaseId }) => ids.has(leaseId));
  }

  async #copy(worker: Worker, step: { file: number; to: number; count: number }): Promise<void> {
    const [from, to] = [step.file % FILES, step.to % FILES];
    if (from === to) return;
    const source = (this.#files[from] as OpenFile).model;
    const target = (this.#files[to] as OpenFile).model;
    const count = Math.min(step.count, source.size);
    if (count === 0) return;
    const all = Array.from({ length: FILE_PAGES * 4 }, (_, page) => page);
    const { sealed, toBreak } = this.#model.conflict(target, all);
    if (sealed || toBreak.length > 0) return; // whether it would change the map depends on too much
    const answer = await this.#tell(worker, "copy", this.#path(from), this.#path(to), count);
    expectSame("R12 a copy out of a leased range", answer, ["ok"]);
    for (let page = 0; page < count; page += 1) {
      const { value } = source.page(page);
      Model.apply("write", target, page, 1, value);
    }
    this.#learnStates();
  }

  /** After sharing: which blocks are shared is not foretold, only that content and leases are right. */
  #learnStates(): void {
    for (const file of this.#files) {
      const seen = this.#statesOf(file);
      for (const [page, state] of seen.entries())
        if (file.model.pages[page]) file.model.page(page).state = state.state;
    }
  }

  /** A write into an unwritten page may have converted those around it, but none that a lease pins. */
  #learnConversions(model: FileModel): void {
    const file = this.#files.find((one) => one.model === model);
    if (file === undefined) return;
    for (const [page, { state }] of this.#statesOf(file).entries()) {
      const expected = model.pages[page];
      const pinned = this.#model.mappings.some((mapping) => mapping.held && mapping.covers(model, page));
      if (expected?.state === "unwritten" && state === "written" && !pinned) expected.state = "written";
    }
  }

  /** A mapping is asked for while another process punches: either is first. */
  async #race(
    worker: Worker,
    path: string,
    file: FileModel,
    step: { other: number; first: number; count: number; kind: Kind },
  ): Promise<void> {
    const other = this.#pick(step.other);
    const slots = this.#slots.get(worker.name) as Map<number, Slot>;
    const free = Array.from({ length: SLOTS }, (_, slot) => slot).find((slot) => !slots.has(slot));
    const page = step.first;
    if (other === undefined || other === worker || free === undefined) return;
    if (file.pages[page]?.state !== "written") return;
    if (file.pages.some(({ state }) => state === "shared")) return;
    const before = this.#model.conflict(file, [page]);
    if (before.sealed || before.toBreak.length > 0) return;
    const [mapped, punched] = await Promise.all([
      this.#tell(worker, "map", free, path, page, step.count, step.kind),
      this.#tell(other, "punch", path, page, 1),
    ]);
    const mayBeRefused = performance.now() - file.brokenAtMs < AFTER_BREAK_MS;
    if (punched === "ETXTBSY") {
      expectSame("race: the seal that refused it", `${step.kind} ${mapped.slice(0, 2)}`, ["seal ok"]);
      this.#mapped(worker, free, file, { ...step, first: page }, mapped);
      return;
    }
    expectSame("race: punch", punched, ["ok"]);
    const sawBlock = mapped.split(" ")[2]?.startsWith("w") ?? false;
    // Revoked before the library had finished: the lease was granted, the mapping was not, or is gone again.
    if (mapped === "EAGAIN" && (mayBeRefused || step.kind === "breakable")) {
      Model.apply("punch", file, page, 1, 0);
      file.brokenAtMs = performance.now();
      return;
    }
    if (mapped.includes("revoked") || mapped === "lost") {
      expectSame("race: who loses the mapping", step.kind, ["breakable"]);
      await this.#tell(worker, "unmap", free);
      Model.apply("punch", file, page, 1, 0);
      file.brokenAtMs = performance.now();
      return;
    }
    expectSame("race: map", mapped.slice(0, 2), ["ok"]);
    if (sawBlock) {
      expectSame("race: what is punched under a mapping", step.kind, ["breakable"]);
      const mapping = this.#mapped(worker, free, file, { ...step, first: page }, mapped);
      this.#model.revoke([mapping], this.#stopped, performance.now());
      Model.apply("punch", file, page, 1, 0);
    } else {
      Model.apply("punch", file, page, 1, 0);
      this.#mapped(worker, free, file, { ...step, first: page }, mapped);
    }
  }

  async #fork(worker: Worker): Promise<void> {
    if (this.#workers.size >= WORKERS_MAX) return;
    const { name, arrived } = this.#expectWorker();
    expectSame("fork", (await this.#tell(worker, "fork", name)).slice(0, 2), ["ok"]);
    const child = await arrived;
    this.#workers.set(name, child);
    const slots = new Map<number, Slot>();
    for (const [slot, { mapping, copy }] of this.#slots.get(worker.name) ?? []) {
      const copied = { ...copy, gone: new Set(copy.gone) };
      slots.set(slot, { mapping, copy: copied });
      mapping.copies.set(name, copied);
    }
    this.#slots.set(name, slots);
  }

  /** R19: a holder that is stopped loses at the deadline, and finds out when it goes on. */
  async #stopForAConflict(worker: Worker): Promise<void> {
    const held = [...(this.#slots.get(worker.name)?.values() ?? [])].find(
      ({ mapping, copy }) =>
        mapping.held && mapping.kind === "breakable" && !copy.revoked && mapping.looks.includes("block"),
    );
    if (held === undefined) return;
    const { mapping } = held;
    const index = this.#files.findIndex(({ model }) => model === mapping.file);
    const other = [...this.#workers.values()].find(
      ({ name }) => name !== worker.name && !this.#stopped.has(name),
    );
    if (index < 0 || other === undefined) return;
    process.kill(worker.pid, "SIGSTOP");
    while (!isStopped(worker.pid)) await sleep(1);
    this.#stopped.add(worker.name);
    const page = mapping.first + mapping.looks.indexOf("block");
    const path = this.#path(index);
    const begun = performance.now();
    let over = false;
    const punched = this.#change(other, path, mapping.file, {
      ...{ do: "punch", worker: 0, file: index, first: page, count: 1, value: 0, aim: 0 },
      ...{ nonblocking: false, kept: false },
    }).finally(() => {
      over = true;
    });
    await Promise.all([punched, this.#tryDuringBreak(mapping, path, page, [worker, other], () => over)]);
    if (held.copy.zombie) {
      const waited = performance.now() - begun;
      if (waited < BREAK_TIME_MS - 50) throw new Divergence(`R15: waited for ${waited} ms`);
      if (this.#quarantined() === 0) throw new Divergence("R19: nothing is in quarantine");
      this.#count("stop revoked");
    }
    this.#checkReach();
    // Somebody takes what is free.
    await this.#tell(other, "sync", path, 0);
    await this.#replace((index + 1) % FILES);
    this.#checkReach();
    process.kill(worker.pid, "SIGCONT");
    this.#stopped.delete(worker.name);
    for (const [slot, { mapping: one, copy }] of this.#slots.get(worker.name) ?? []) {
      if (!copy.zombie) continue;
      const there = Array.from({ length: one.count }, (_, at) => at).find((at) => !copy.gone.has(at));
      const until = performance.now() + 5000;
      while (there !== undefined && (await this.#tell(worker, "load", slot, there)) !== "SIGBUS") {
        if (performance.now() > until) throw new Divergence("R19: a holder that goes on is not revoked");
        await sleep(2);
      }
      copy.zombie = false;
      copy.revoked = true;
    }
  }

  /** R16: while the lease is being broken nobody gets another; everybody else is served. */
  async #tryDuringBreak(
    mapping: Mapping,
    path: string,
    page: number,
    busy: readonly Worker[],
    isOver: () => boolean,
  ): Promise<void> {
    const third = [...this.#workers.values()].find((one) => !busy.includes(one));
    while (third !== undefined && !isOver()) {
      if (!this.#leaseIds("breaking").has(mapping.leaseId)) {
        await sleep(2);
        continue;
      }
      const value = `ok ${mapping.file.page(page).value}`;
      const read = await this.#tell(third, "read", path, page);
      const mapped = await this.#tell(third, "map", SLOTS, path, page, 1, "breakable");
      if (isOver()) {
        if (mapped.startsWith("ok")) await this.#tell(third, "unmap", SLOTS);
        return;
      }
      expectSame("R24 read during a break", read, [value]);
      expectSame("R16 map during a break", mapped, ["EAGAIN"]);
      this.#count("stop refused");
      return;
    }
  }

  /** The name goes, the blocks stay as long as somebody maps them (R13); a new file takes the name. */
  async #replace(index: number): Promise<void> {
    const file = this.#files[index] as OpenFile;
    if (file.descriptor !== undefined) closeSync(file.descriptor);
    unlinkSync(this.#path(index));
    await this.#makeFile(index, "WWHUWW".slice(0, FILE_PAGES));
  }

  // ---- invariants

  #statesOf(file: OpenFile): (Page & { place: number | undefined })[] {
    if (file.descriptor === undefined) return [];
    const map = readExtents(file.descriptor);
    const pages = Array.from({ length: Math.ceil(Number(map.size) / PAGE) }, () => ({
      state: "hole" as Page["state"],
      value: 0,
      place: undefined as number | undefined,
    }));
    for (const { state, offset, length, physical } of map.extents) {
      for (let at = 0; at < Number(length); at += PAGE) {
        const page = pages[(Number(offset) + at) / PAGE];
        if (page === undefined) continue;
        page.state = state;
        page.place = physical === null ? undefined : Number(physical) + at;
      }
    }
    return pages;
  }

  /** No block has two owners, and what a process reaches is the block of the file that it has mapped. */
  #checkReach(): void {
    const owners = new Map<number, { file: FileModel; page: number; shared: boolean }>();
    for (const file of this.#files) {
      const pages = this.#statesOf(file);
      if (pages.length !== file.model.size)
        throw new Divergence(`R14 size: ${pages.length} pages instead of ${file.model.size}`);
      for (const [page, seen] of pages.entries()) {
        const expected = file.model.page(page);
        // What was shared may be the file's own by now.
        if (expected.state === "shared" && seen.state === "written") expected.state = "written";
        expectSame(`R14 state of page ${page}`, seen.state, [expected.state]);
        if (seen.place === undefined) continue;
        const other = owners.get(seen.place);
        if (other !== undefined && !(other.shared && seen.state === "shared"))
          throw new Divergence(`block ${seen.place} has two owners`);
        owners.set(seen.place, { file: file.model, page, shared: seen.state === "shared" });
      }
    }
    const current = new Set(this.#files.map(({ model }) => model));
    for (const mapping of this.#model.mappings) {
      if (!mapping.held || !current.has(mapping.file)) continue;
      for (const [index, place] of mapping.places.entries()) {
        const owner = place === undefined ? undefined : owners.get(place);
        if (place !== undefined && (owner?.file !== mapping.file || owner.page !== mapping.first + index))
          throw new Divergence(
            `lease ${mapping.leaseId}: block ${place} is not the file's page ${index} any more`,
          );
      }
    }
    for (const worker of this.#workers.values()) this.#checkWorker(worker, owners);
  }

  #checkWorker(worker: Worker, owners: Map<number, { file: FileModel }>): void {
    const mayReach = new Map<number, FileModel>();
    for (const { mapping, copy } of this.#slots.get(worker.name)?.values() ?? []) {
      if (copy.revoked) continue;
      for (const [index, place] of mapping.places.entries()) {
        if (place !== undefined && !copy.gone.has(index)) mayReach.set(place, mapping.file);
      }
    }
    const maps = readFileSync(`/proc/${worker.pid}/maps`, "latin1");
    const own = { device: this.#regionDevice, inode: this.#regionInode };
    for (const { start, count } of runsIn(maps, PAGE, own)) {
      for (let block = start; block < start + count; block += 1) {
        const place = block * PAGE;
        const file = mayReach.get(place);
        if (file === undefined)
          throw new Divergence(`process ${worker.name} reaches block ${place}, which it has not mapped`);
        const owner = owners.get(place);
        if (owner !== undefined && owner.file !== file)
          throw new Divergence(`block ${place} is reached by ${worker.name} and belongs to another file`);
      }
    }
  }

  async #checkContent(): Promise<void> {
    const worker = this.#pick(0) as Worker;
    for (const [index, { model }] of this.#files.entries()) {
      for (const [page, { value }] of model.pages.entries()) {
        expectSame("content at the end", await this.#tell(worker, "read", this.#path(index), page), [
          `ok ${value}`,
        ]);
      }
    }
  }

  async #clear(): Promise<void> {
    for (const name of this.#stopped) process.kill((this.#workers.get(name) as Worker).pid, "SIGCONT");
    this.#stopped.clear();
    for (const worker of [...this.#workers.values()]) {
      if (worker.child === undefined) await this.#kill(worker);
      else await this.#tell(worker, "reset");
    }
    for (const [index, { descriptor }] of this.#files.entries()) {
      if (descriptor !== undefined) closeSync(descriptor);
      unlinkSync(this.#path(index));
    }
    this.#files = [];
  }

  /** When all is unmapped, nothing is leased or in quarantine, and the volume is consistent. */
  async #checkEmpty(): Promise<void> {
    const until = performance.now() + 5000;
    for (;;) {
      const leases = this.#leaseIds("held", "breaking");
      const quarantined = this.#quarantined();
      if (leases.size === 0 && quarantined === 0) break;
      if (performance.now() > until)
        throw new Divergence(`R21: leases ${[...leases].join()} and ${quarantined} bytes in quarantine stay`);
      await sleep(2);
    }
    const { consistent } = withOpen(this.#mount.path, (descriptor) => ask(descriptor, "CHECK")) as {
      consistent: boolean;
    };
    if (!consistent) throw new Divergence("the volume is not consistent");
  }
}

function statOf(pid: number): string {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "latin1");
    return text.slice(text.lastIndexOf(")") + 2, text.lastIndexOf(")") + 3);
  } catch {
    return "";
  }
}

/** Any of its threads. */
function stillThere(pid: number): boolean {
  const state = statOf(pid);
  if (state === "") return false;
  if (state !== "Z") return true;
  try {
    return readdirSync(`/proc/${pid}/task`).length > 1;
  } catch {
    return false;
  }
}

/** All of its threads. */
function isStopped(pid: number): boolean {
  return readdirSync(`/proc/${pid}/task`).every((tid) => {
    const text = readFileSync(`/proc/${pid}/task/${tid}/stat`, "latin1");
    return text[text.lastIndexOf(")") + 2] === "T";
  });
}
