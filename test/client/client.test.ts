/**
 * The client library and the preload library, through C programs of their own (programs/*.c) against a real mount. A
 * program prints a line for each property that it checked; a test here is one program through one door, and fails with
 * the lines that say "not ok".
 *
 * By hand: MAPDIRECT_TEST_DIR=/mnt MAPDIRECT_TEST_REGION=/srv/region npx vitest run test/client uses a mount that is
 * there instead of its own; `program DIRECTORY REGION library|preload` runs one.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { COMPILE_FLAGS, CORE_SOURCES, PRELOAD_SOURCES } from "../../scripts/build-client.mjs";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { type MountRequest, useMount } from "../support/mount.ts";
import { missing, noUserMount, OTHER_UID, type Result, run } from "../support/run.ts";

const doors = ["library", "preload"] as const;
type Door = (typeof doors)[number];

const here = join(packageRoot, "test", "client");
const sourceFolder = join(packageRoot, "native", "client");
const library = join(packageRoot, "dist", "lib");
const cc = process.env.CC ?? "cc";
const noCompiler = missing(cc);

const programs = readdirSync(join(here, "programs"))
  .filter((name) => name.endsWith(".c"))
  .map((name) => name.slice(0, -2));

/** Need something special around them, and have tests of their own below. */
const special = ["uffd", "breaking", "relayed", "registered", "automatic", "served", "failures"];

const noUser = noUserMount();

const environment = process.env.MAPDIRECT_TEST_DIR;
const existing =
  environment === undefined
    ? undefined
    : { path: environment, region: process.env.MAPDIRECT_TEST_REGION ?? "" };

let built = "";

function compile(output: string, ...args: string[]): void {
  execFileSync(cc, ["-g", ...COMPILE_FLAGS, "-o", join(built, output), ...args], { stdio: "inherit" });
}

const sources = (names: readonly string[]): string[] => names.map((name) => join(sourceFolder, name));

/** A program as users link theirs, one with the library compiled in under sanitizers, and their substitutes. */
function buildAll(): void {
  built = mkdtempSync(folderPrefix(tmpdir()));
  chmodSync(built, 0o755);
  const quiet = ["-Wno-unused-function", "-Wno-conversion", "-pthread", `-I${sourceFolder}`];
  for (const program of programs) {
    const source = join(here, "programs", `${program}.c`);
    // A child has the locks of the address sanitizer's allocator as some thread of its parent held them at that moment,
    // and may wait for them for ever. threads.c leaves its forks out instead.
    const forks = program !== "threads" && readFileSync(source, "utf8").includes("fork()");
    const sanitizers = [
      `-fsanitize=${forks ? "undefined" : "address,undefined"}`,
      ...["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    ];
    compile(program, "-O1", ...quiet, source, `-L${library}`, "-lmapdirect", `-Wl,-rpath,${library}`);
    compile(
      `${program}-sanitized`,
      "-O1",
      "-DMAPDIRECT_CHECKS",
      ...sanitizers,
      ...quiet,
      source,
      ...sources(CORE_SOURCES),
    );
  }
  const failing = ["-O1", "-DMAPDIRECT_CHECKS", "-DMAPDIRECT_FAILURES", ...quiet];
  const failures = join(here, "programs", "failures.c");
  compile("failures-library", ...failing, failures, ...sources(CORE_SOURCES));
  compile("failures-preload", ...failing, failures, ...sources(PRELOAD_SOURCES));
  const shared = ["-shared", "-fPIC", "-pthread", "-Wl,-z,now"];
  compile(
    "checked_preload.so",
    "-O1",
    "-DMAPDIRECT_CHECKS",
    "-fsanitize=undefined",
    "-fsanitize-undefined-trap-on-error",
    ...shared,
    ...sources(PRELOAD_SOURCES),
  );
  compile("userfaultfd.so", ...shared, join(here, "substitutes", "userfaultfd.c"));
}

const automatic: Variant & { env: Record<string, string> } = { env: { MAPDIRECT: "auto" } };

interface Where {
  readonly path: string;
  readonly region: string;
}

interface Variant {
  readonly sanitized?: boolean;
  /** Goes before the library in LD_PRELOAD. */
  readonly substitute?: Record<string, string>;
  /** Uid to run as. */
  readonly user?: number;
  /** More of the environment. */
  readonly env?: Record<string, string>;
}

async function runProgram(program: string, door: Door, where: Where, variant: Variant = {}): Promise<Result> {
  const { sanitized = false, substitute, user, env } = variant;
  const preload: string[] = [];
  if (substitute !== undefined) preload.push(join(built, "userfaultfd.so"));
  if (door === "preload")
    preload.push(join(...(sanitized ? [built, "checked_preload.so"] : [library, "libmapdirect_preload.so"])));
  // The preload library is checked in the ordinary program: the sanitizer's runtime interposes mmap itself.
  const file = sanitized && door === "library" ? `${program}-sanitized` : program;
  return run(join(built, file), [where.path, where.region, door], {
    timeoutMs: 40_000,
    ...(user === undefined ? {} : { user }),
    env: {
      ...substitute,
      ...(preload.length > 0 ? { LD_PRELOAD: preload.join(":") } : {}),
      ASAN_OPTIONS: "detect_leaks=0",
      MAPDIRECT_LEASE: "seal",
      ...env,
    },
  });
}

function expectAllOk({ code, stdout, stderr }: Result): void {
  const lines = stdout.split("\n").filter((line) => line !== "");
  for (const line of lines.filter((text) => text.startsWith("skip"))) process.stderr.write(`${line}\n`);
  const wrong = lines.filter((line) => line.startsWith("not ok"));
  expect({ code, wrong, stderr }, [...wrong, stderr].join("\n")).toEqual({ code: 0, wrong: [], stderr: "" });
  expect(lines.some((line) => line.startsWith("ok") || line.startsWith("skip"))).toBe(true);
}

const regions: { name: string; request: MountRequest }[] = [
  { name: "a page-cached region", request: {} },
  { name: "a region of cache-line granularity", request: { assumePmem: true } },
];

describe.skipIf(noCompiler !== undefined)(
  `C programs${noCompiler === undefined ? "" : `: ${noCompiler}`}`,
  () => {
    beforeAll(() => {
      execFileSync(process.execPath, [join(packageRoot, "scripts", "build-client.mjs")], {
        stdio: "inherit",
      });
      buildAll();
    }, 240_000);
    afterAll(() => {
      if (built !== "") rmSync(built, { recursive: true, force: true });
    });

    describe.skipIf(existing !== undefined || noUser !== undefined)(
      `on a mount of an ordinary user${noUser === undefined ? "" : `: ${noUser}`}`,
      () => {
        const where = useMount({ options: "break_time=2", user: OTHER_UID });
        for (const door of doors) {
          it(`breaking, by ${door}`, async () => {
            expectAllOk(await runProgram("breaking", door, where, { user: OTHER_UID }));
          });
        }
        it("automatic", async () => {
          expectAllOk(await runProgram("automatic", "preload", where, { user: OTHER_UID, ...automatic }));
        });
      },
    );

    describe.skipIf(existing !== undefined)(
      "on a region of cache-line granularity, with a short break time",
      () => {
        const where = useMount({ assumePmem: true, options: "break_time=2" });
        for (const door of doors) {
          it(`breaking, by ${door}`, async () => {
            expectAllOk(await runProgram("breaking", door, where));
          });
        }
        it.each(["relayed", "registered"])("%s, by library", async (program) => {
          expectAllOk(await runProgram(program, "library", where));
        });
      },
    );

    describe.skipIf(existing !== undefined)("on a mount with a short break time", () => {
      const where = useMount({ options: "break_time=2" });
      for (const door of doors) {
        it(`each call by which the ${door} gets memory or a descriptor fails once, and harms nothing`, async () => {
          const env = door === "library" ? {} : automatic.env;
          expectAllOk(await runProgram(`failures-${door}`, "library", where, { env }));
        });
        it(`breaking, by ${door}`, async () => {
          expectAllOk(await runProgram("breaking", door, where));
        });
        it(`breaking, by ${door}, with sanitizers and the table checked at each change`, async () => {
          expectAllOk(await runProgram("breaking", door, where, { sanitized: true }));
        });
        it.each(["relayed", "registered"])(`%s, by ${door}`, async (program) => {
          expectAllOk(await runProgram(program, door, where));
        });
        it(`relayed, by ${door}, with sanitizers and the table checked at each change`, async () => {
          expectAllOk(await runProgram("relayed", door, where, { sanitized: true }));
        });
      }
    });

    describe.skipIf(existing !== undefined)("on a mount whose files are in the page cache", () => {
      const where = useMount({ options: "cache=auto" });
      for (const door of doors) {
        it.each(["cache", "coherence", "sharing"])(`%s, by ${door}`, async (program) => {
          expectAllOk(await runProgram(program, door, where));
        });
      }
    });

    for (const { name, request } of existing === undefined ? regions : []) {
      describe(`calls without a system call, on ${name}`, () => {
        const where = useMount({ ...request, options: "break_time=5" });
        it("served", async () => {
          expectAllOk(await runProgram("served", "preload", where, { env: { MAPDIRECT: "io" } }));
        });
        it("served, beside mappings that are made direct ones", async () => {
          expectAllOk(await runProgram("served", "preload", where, { env: { MAPDIRECT: "auto,io" } }));
        });
      });
    }

    for (const { name, request } of existing === undefined ? regions : regions.slice(0, 1)) {
      describe(`on ${existing === undefined ? name : "the mount that is given"}`, () => {
        const where = existing ?? useMount({ sizeBytes: 256 * 1024 * 1024, ...request });

        for (const door of doors) {
          for (const program of programs.filter((one) => !special.includes(one))) {
            it(`${program}, by ${door}`, async () => {
              expectAllOk(await runProgram(program, door, where));
            });
          }
        }
        it("automatic", async () => {
          expectAllOk(await runProgram("automatic", "preload", where, automatic));
        });
        if (request.assumePmem === true) return;

        it("automatic, with sanitizers and the table checked at each change", async () => {
          expectAllOk(await runProgram("automatic", "preload", where, { sanitized: true, ...automatic }));
        });

        for (const door of doors) {
          for (const program of programs.filter((one) => !special.includes(one))) {
            it(`${program}, by ${door}, with sanitizers and the table checked at each change`, async () => {
              expectAllOk(await runProgram(program, door, where, { sanitized: true }));
            });
          }
          it(`faults, by ${door}, on a kernel that cannot protect unpopulated pages`, async () => {
            expectAllOk(
              await runProgram("faults", door, where, { substitute: { SUBSTITUTE: "unpopulated" } }),
            );
          });
          it(`lifetime, by ${door}, on a kernel that cannot protect unpopulated pages`, async () => {
            expectAllOk(
              await runProgram("lifetime", door, where, { substitute: { SUBSTITUTE: "unpopulated" } }),
            );
          });
          it(`uffd, by ${door}, on a kernel without userfaultfd`, async () => {
            expectAllOk(await runProgram("uffd", door, where, { substitute: { SUBSTITUTE: "none" } }));
          });
        }
      });
    }
  },
);
