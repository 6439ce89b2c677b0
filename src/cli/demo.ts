/**
 * `npm start`: the story of one direct mapping, told by doing it. Every sentence that is printed was checked a moment
 * before; the first that turns out false ends the story with exit code 1.
 *
 * Invariants:
 * - whatever happens, nothing stays behind: no mount, no process, no file;
 * - the program that maps (native/demo/story.c) knows nothing of mapdirect: it calls mmap(2) under the preload library.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  accessSync,
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { errnoName } from "../base/errno.ts";
import { ask, asLeases, type ExtentReport, prepare, readExtents, withOpen } from "../daemon/client.ts";
import { Failure } from "../daemon/failure.ts";
import { lockHolder, mountAt } from "../daemon/mounts.ts";
import { formatSize } from "../daemon/sizes.ts";
import { addon, packageRoot } from "../region/addon.ts";
import { print } from "./output.ts";

const PROGRAM = fileURLToPath(new URL("../bin/mapdirect.js", import.meta.url));
const STORY = join(packageRoot, "dist", "demo", "story");
const PRELOAD = join(packageRoot, "dist", "lib", "libmapdirect_preload.so");
const REGION_BYTES = 256 * 1024 * 1024;
const FALLOC_PUNCH_KEEP = 3;

let step = 0;
const heading = (text: string): void => print(`\n${++step}. ${text}`);
const tell = (text: string): void => print(`   ${text}`);

function check(condition: boolean, fact: string): void {
  if (!condition)
    throw new Failure("demo", `not true here: ${fact}`, "please report it with the output above");
  tell(`✓ ${fact}`);
}

/** The command that runs now, if any: cutting it short could leave a mount that comes up a moment later. */
let running: Promise<unknown> = Promise.resolve();

/** Run a command of ours as a user would, showing it. */
function command(...args: string[]): Promise<void> {
  print(`   $ mapdirect ${args.join(" ")}`);
  const done = runCommand(args);
  running = done.catch(() => {});
  return done;
}

async function runCommand(args: readonly string[]): Promise<void> {
  const child = spawn(process.execPath, [PROGRAM, ...args], {
    stdio: ["ignore", "ignore", "pipe"],
    // Ctrl-C on the terminal is for the story alone.
    detached: true,
  });
  let complaint = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    complaint += text;
  });
  const code = await new Promise<number | null>((done) => child.on("close", done));
  if (code !== 0) {
    throw new Failure("demo", `'mapdirect ${args[0]}' failed`, complaint.trim() || `exit code ${code}`);
  }
}

/** The program that maps, at the other end of two pipes. */
class Story {
  readonly child: ChildProcess;
  readonly #answers: AsyncIterator<string>;

  constructor(preload: boolean) {
    this.child = spawn(STORY, [], {
      stdio: ["pipe", "pipe", "inherit"],
      env: preload ? { ...process.env, LD_PRELOAD: PRELOAD } : process.env,
    });
    this.#answers = createInterface({ input: this.child.stdout! })[Symbol.asyncIterator]();
  }

  async say(line: string): Promise<string> {
    this.child.stdin!.write(`${line}\n`);
    const { value, done } = await this.#answers.next();
    if (done === true) throw new Failure("demo", `the program ended at '${line}'`, "see the output above");
    const [word, number] = value.split(" ");
    return word === "errno" ? errnoName(Number(number)) : value;
  }

  get pid(): number {
    return this.child.pid ?? 0;
  }
}

/** The errno name of what a system call of ours failed with, "none" if it did not. */
function failureOf(action: () => void): string {
  try {
    action();
    return "none";
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

function readAt(path: string, offset: number, length: number): string {
  const descriptor = openSync(path, "r");
  try {
    const data = Buffer.alloc(length);
    readSync(descriptor, data, 0, length, offset);
    return data.toString("latin1");
  } finally {
    closeSync(descriptor);
  }
}

const digest = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");

function filesUnder(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
}

const showExtent = ({ state, offset, length, physical }: ExtentReport): string =>
  `${state.padEnd(9)} file ${`${offset}`.padStart(7)} + ${`${length}`.padStart(7)}  →  ${physical === null ? "nothing" : `region ${physical}`}`;

async function tellStory(folder: string, stories: Story[]): Promise<void> {
  const region = join(folder, "region");
  const mountpoint = join(folder, "mnt");

  heading("A region, a file system in it, a mount");
  mkdirSync(mountpoint);
  await command("mkfs", "--size", "256M", "--label", "demo", region);
  await command("mount", region, mountpoint);
  const mount = mountAt(mountpoint);
  check(
    mount?.fsType === "fuse.mapdirect",
    `findmnt shows ${mountpoint} as ${mount?.fsType} from ${mount?.source}`,
  );
  const used = statSync(region).blocks * 512;
  tell(`the region is a sparse file of ${formatSize(REGION_BYTES)}, of which ${formatSize(used)} are used`);

  heading("Real data: this project's sources and documents, copied in with ordinary calls");
  const target = join(mountpoint, "copy");
  mkdirSync(target);
  for (const name of ["docs", "src"]) {
    if (existsSync(join(packageRoot, name)))
      cpSync(join(packageRoot, name), join(target, name), { recursive: true });
  }
  const copied = filesUnder(target);
  const same = copied.every((path) => digest(path) === digest(join(packageRoot, path.slice(target.length))));
  const bytes = copied.reduce((sum, path) => sum + statSync(path).size, 0);
  check(
    copied.length > 0 && same,
    `${copied.length} files, ${formatSize(bytes)}, each with the checksum of its original`,
  );
  const book = join(mountpoint, "book");
  writeFileSync(book, Buffer.concat(copied.map((path) => readFileSync(path))).subarray(0, 256 * 1024));
  const size = statSync(book).size;
  const whole = Math.floor(size / 4096) * 4096;

  heading("Where the bytes of a file lie");
  print(`   $ mapdirect extents ${book}`);
  const { extents } = withOpen(book, readExtents);
  for (const extent of extents) tell(showExtent(extent));
  const first = extents[0];
  const physical = Number(first?.physical ?? -1n);
  check(
    first?.state === "written" && readAt(region, physical, 512) === readAt(book, 0, 512),
    `the first 512 bytes of the file are those at ${physical} of the region`,
  );

  heading("An unmodified program maps it: mmap(…, MAP_SHARED_VALIDATE | MAP_DIRECT, …) under LD_PRELOAD");
  const story = new Story(true);
  stories.push(story);
  check(
    (await story.say(`map ${book} 0 ${whole} direct`)) === "ok",
    `${whole} bytes are mapped by process ${story.pid}`,
  );
  const text = "stored-through-the-mapping";
  check(
    (await story.say(`store 100 ${text}`)) === "ok",
    `it copies "${text}" to byte 100: no system call, no msync`,
  );
  check(
    readAt(region, physical + 100, text.length) === text,
    `the region file has it at ${physical} + 100, the physical block itself`,
  );
  check(readAt(book, 100, text.length) === text, "read(2) on the file sees it at once");
  const [, stores, writes] = (await story.say("time 20000")).split(" ").map(Number);
  check(
    stores !== undefined && writes !== undefined && stores < writes,
    `64 bytes stored and flushed from the CPU's cache: ${stores} ns; 64 bytes with pwrite(2): ${writes} ns`,
  );

  heading("While it is mapped, its blocks stay where they are");
  const before = readFileSync(book);
  check(failureOf(() => truncateSync(book, 0)) === "ETXTBSY", "truncate: ETXTBSY");
  const descriptor = openSync(book, "r+");
  const punched = failureOf(() => addon().fallocate(descriptor, FALLOC_PUNCH_KEEP, 0n, 4096n));
  closeSync(descriptor);
  check(punched === "ETXTBSY", "fallocate(PUNCH_HOLE): ETXTBSY");
  check(before.equals(readFileSync(book)), "and nothing of the file has changed");
  const written = failureOf(() => writeFileSync(book, "in place", { flag: "r+" }));
  check(
    written === "none" && (await story.say("load 0")) === `ok ${"i".charCodeAt(0)}`,
    "write(2) in place is fine, and the mapping sees it",
  );
  print(`   $ mapdirect leases ${mountpoint}`);
  const [lease] = withOpen(mountpoint, (mounted) => asLeases(ask(mounted, "LEASES")));
  check(
    lease?.pid === story.pid,
    `lease ${lease?.id}: ${lease?.kind}, held by ${lease?.command} (${lease?.pid}) on ${lease?.file}, ${lease?.length} bytes`,
  );

  heading("kill -9 ends the lease: the kernel tells, nobody has to clean up");
  const killedAt = performance.now();
  story.child.kill("SIGKILL");
  let left = 1;
  while (left > 0 && performance.now() - killedAt < 5000) {
    await sleep(1);
    left = withOpen(mountpoint, (mounted) => asLeases(ask(mounted, "LEASES"))).length;
  }
  check(left === 0, `no lease is left ${(performance.now() - killedAt).toFixed(0)} ms later`);
  check(readAt(book, 100, text.length) === "x".repeat(text.length), "what it had stored last is in the file");
  check(failureOf(() => truncateSync(book, 0)) === "none", "and truncate works again");

  heading("A store to a hole would need a new block: SIGBUS, with the exact address");
  const sparse = join(mountpoint, "sparse");
  writeFileSync(sparse, Buffer.alloc(4096, 1));
  truncateSync(sparse, 65536);
  for (const extent of withOpen(sparse, readExtents).extents) tell(showExtent(extent));
  const second = new Story(true);
  stories.push(second);
  await second.say(`map ${sparse} 0 65536 direct`);
  check((await second.say("load 20000")) === "ok 0", "a load from the hole gives 0");
  check(
    (await second.say("store 20000 x")) === "SIGBUS BUS_ADRERR 20000",
    "a store to it: SIGBUS, BUS_ADRERR, at byte 20000",
  );
  await second.say("unmap");
  print(`   $ mapdirect prepare ${sparse}`);
  withOpen(sparse, (opened) => prepare(opened, 0n, 0n), "r+");
  await second.say(`map ${sparse} 0 65536 direct`);
  check(
    (await second.say("store 20000 x")) === "ok",
    "prepared (allocated and zeroed) and mapped again, it takes the store",
  );

  heading("What cannot be given is refused, never ignored");
  const outside = join(folder, "outside");
  writeFileSync(outside, Buffer.alloc(8192));
  const plain = new Story(false);
  stories.push(plain);
  for (const [program, how, path, expected, words] of [
    [second, "private", sparse, "EINVAL", "MAP_PRIVATE with MAP_DIRECT"],
    [second, "shared", sparse, "EINVAL", "plain MAP_SHARED with MAP_DIRECT"],
    [second, "read-only", sparse, "EACCES", "without PROT_WRITE"],
    [second, "direct", outside, "EOPNOTSUPP", "a file elsewhere"],
    [second, "sync", sparse, "EOPNOTSUPP", "MAP_SYNC, which a region in the page cache cannot keep"],
    [plain, "direct", sparse, "EOPNOTSUPP", "without the preload library"],
  ] as const) {
    const answer = await program.say(`map ${path} 0 8192 ${how}`);
    check(answer === expected, `${words}: ${answer}`);
  }
}

/** Everything goes, also in the middle of the story. */
async function cleanUp(folder: string, stories: readonly Story[]): Promise<void> {
  for (const { child } of stories) child.kill("SIGKILL");
  await running;
  const mountpoint = join(folder, "mnt");
  const region = join(folder, "region");
  for (let tries = 0; tries < 100 && mountAt(mountpoint) !== undefined; tries += 1) {
    await command("unmount", mountpoint).catch(() => sleep(50));
  }
  const daemon = lockHolder(region);
  if (daemon !== undefined) process.kill(daemon, "SIGTERM");
  rmSync(folder, { recursive: true, force: true });
}

export async function demo(): Promise<void> {
  for (const file of [STORY, PRELOAD]) {
    if (existsSync(file)) continue;
    process.stderr.write(`mapdirect: demo: ${file} is missing; run 'npm run build'\n`);
    process.exitCode = 1;
    return;
  }
  const folder = mkdtempSync(join(writable("/dev/shm") ? "/dev/shm" : tmpdir(), "mapdirect-demo-"));
  const stories: Story[] = [];
  let interrupted = false;
  const stop = (): void => {
    if (interrupted) return;
    interrupted = true;
    print("\ninterrupted: clearing away");
    void cleanUp(folder, stories).finally(() => process.exit(130));
  };
  process.on("SIGINT", stop);
  process.on("SIGTERM", stop);
  print(
    "mapdirect: files whose blocks can be mapped directly. This takes a few seconds and leaves nothing behind.",
  );
  try {
    await tellStory(folder, stories);
    heading("Everything is put away");
  } catch (error) {
    if (interrupted) return;
    process.exitCode = 1;
    process.stderr.write(`mapdirect: ${error instanceof Failure ? error.message : (error as Error).stack}\n`);
  }
  await cleanUp(folder, stories);
  const gone = mountAt(join(folder, "mnt")) === undefined && !existsSync(folder);
  if (process.exitCode === undefined) {
    tell(gone ? "✓ the mount, its daemon and the region are gone" : `left behind: ${folder}`);
    print("\nNext: 'npm start -- REGION MOUNTPOINT' serves a region of your own; README.md has the tour.");
  }
  if (!gone) process.exitCode = 1;
}

function writable(folder: string): boolean {
  try {
    accessSync(folder, 6);
    return true;
  } catch {
    return false;
  }
}
