/** `mapdirect doctor --program`: what it says of programs that are built here, beside what becomes of them under MAPDIRECT=auto. */
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Finding } from "../../src/daemon/doctor.ts";
import { examineProgram, type ProgramAnswer } from "../../src/daemon/program.ts";
import { addon, packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { useMount } from "../support/mount.ts";
import { cli, missing, notRoot, run, succeed } from "../support/run.ts";
import { randomOf } from "../support/volume.ts";

const preload = join(packageRoot, "dist/lib/libmapdirect_preload.so");

/** Maps the file that it is given, and stores into it. */
const MAPS = `
#include <fcntl.h>
#include <sys/mman.h>
int main(int argc, char **argv) {
  int fd = open(argv[argc - 1], O_RDWR);
  char *map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) return 1;
  map[0] = 'm';
  return munmap(map, 4096);
}`;
const MAPS_NOTHING = "int main(void) { return 0; }";
const GO_NOTE = `
__asm__(".pushsection .note.go.buildid, \\"a\\", %note\\n.long 4, 4, 4\\n.asciz \\"Go\\"\\n.balign 4\\n.ascii \\"abcd\\"\\n.popsection");
`;
const IN_GO = `package main
import ("os"; "syscall")
func main() {
	f, err := os.OpenFile(os.Args[len(os.Args)-1], os.O_RDWR, 0)
	if err != nil { panic(err) }
	m, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil { panic(err) }
	m[0] = 'm'
}
`;

const noCompiler = missing("cc");

describe.skipIf(noCompiler !== undefined)(
  `doctor --program${noCompiler === undefined ? "" : `: ${noCompiler}`}`,
  () => {
    const folder = mkdtempSync(folderPrefix(tmpdir()));
    afterAll(() => rmSync(folder, { recursive: true, force: true }));
    const at = (name: string): string => join(folder, name);

    async function build(name: string, source: string, ...flags: string[]): Promise<string> {
      writeFileSync(at(`${name}.c`), source);
      await succeed("cc", ["-O1", "-o", at(name), at(`${name}.c`), ...flags]);
      return at(name);
    }

    const verdicts = ({ findings }: ProgramAnswer): Record<string, string> =>
      Object.fromEntries(findings.map(({ what, verdict }) => [what, verdict]));
    const about = ({ findings }: ProgramAnswer, what: string): Finding | undefined =>
      findings.find((finding) => finding.what === what);

    describe("what is said is what happens", () => {
      const mount = useMount();

      /** How many direct mappings it made of ordinary ones; null if it has no library at all. */
      async function automaticOf(command: string, ...args: string[]): Promise<number | null> {
        const file = join(await mount.fresh(), "file");
        writeFileSync(file, Buffer.alloc(4096, "f"));
        const stats = join(mount.folder, "stats");
        rmSync(stats, { force: true });
        const env = { LD_PRELOAD: preload, MAPDIRECT: "auto", MAPDIRECT_STATS: stats };
        expect(await run(command, [...args, file], { env })).toMatchObject({ code: 0 });
        expect((await readFile(file, "latin1")).startsWith("mf")).toBe(true);
        const line = await readFile(stats, "utf8").catch(() => "");
        return line === "" ? null : Number(/automatic=(\d+)/.exec(line)?.[1]);
      }

      test("of a program that is linked dynamically", async () => {
        const program = await build("dynamic", MAPS);
        const answer = examineProgram(program);
        expect(answer).toMatchObject({ served: true, program });
        expect(verdicts(answer)).toEqual({ linking: "good", mmap: "good" });
        expect(await automaticOf(program)).toBe(1);
      });

      test("of one that is linked statically", async () => {
        const program = await build("static", MAPS, "-static");
        const answer = examineProgram(program);
        expect(answer.served).toBe(false);
        expect(about(answer, "linking")?.why).toContain("linked statically");
        expect(await automaticOf(program)).toBeNull();
      });

      test("of one whose mmap is called by a library of its own", async () => {
        await build("libmaps.so", MAPS.replace("main", "map_it"), "-shared", "-fPIC");
        const source =
          "int map_it(int, char **);\nint main(int argc, char **argv) { return map_it(argc, argv); }";
        const flags = [`-L${folder}`, "-l:libmaps.so", "-Wl,-rpath,$ORIGIN"];
        const program = await build("by-library", source, ...flags);
        const answer = examineProgram(program);
        expect(about(answer, "mmap")).toMatchObject({ verdict: "good" });
        expect(about(answer, "mmap")?.why).toContain("libmaps.so");
        expect(await automaticOf(program)).toBe(1);
      });

      test("of a script", async () => {
        writeFileSync(at("script"), `#!${at("dynamic")}\n`);
        chmodSync(at("script"), 0o755);
        await build("dynamic", MAPS);
        const answer = examineProgram(at("script"));
        expect(answer).toMatchObject({ served: true, program: at("dynamic") });
        expect(await automaticOf(at("script"))).toBe(1);
        writeFileSync(at("with-env"), "#!/usr/bin/env -S cc\n");
        expect(examineProgram(at("with-env")).findings[0]?.why).toMatch(
          /is run by \/.*\/cc, which is what maps$/,
        );
      });

      const noGo = missing("go");
      test.skipIf(noGo !== undefined)(`of one in Go${noGo === undefined ? "" : `: ${noGo}`}`, async () => {
        writeFileSync(at("in-go.go"), IN_GO);
        const env = { GOCACHE: at("go-cache"), GOFLAGS: "-modcacherw", HOME: folder };
        await succeed("go", ["build", "-o", at("in-go"), at("in-go.go")], { env });
        const answer = examineProgram(at("in-go"));
        expect(answer.found).toMatch(/^Go program/);
        expect(about(answer, "language")).toMatchObject({ verdict: "bad" });
        expect(await automaticOf(at("in-go"))).toBeNull();
      });
    });

    test("a Go program is known by its note, also where libc is linked dynamically", async () => {
      const answer = examineProgram(await build("go-like", GO_NOTE + MAPS));
      expect(answer.served).toBe(false);
      expect(verdicts(answer)).toEqual({ linking: "good", language: "bad", mmap: "good" });
      expect(about(answer, "language")?.todo).toContain("cgo");
    });

    test("one that never maps, or has an mmap of its own, is pointed out", async () => {
      expect(verdicts(examineProgram(await build("nothing", MAPS_NOTHING)))).toEqual({
        linking: "good",
        mmap: "fair",
      });
      const own = `#include <stddef.h>\nvoid *mmap(void *a, size_t b, int c, int d, int e, long f) { return a; }\n${MAPS_NOTHING}`;
      const answer = examineProgram(await build("own", own, "-rdynamic"));
      expect(about(answer, "mmap")).toMatchObject({ verdict: "fair" });
      expect(about(answer, "mmap")?.why).toContain("an mmap of its own");
    });

    test("one of another C library, of another machine or of 32 bits cannot be served", async () => {
      const musl = await build("musl", MAPS, "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1");
      expect(about(examineProgram(musl), "linking")).toMatchObject({ verdict: "bad" });
      expect(about(examineProgram(musl), "linking")?.why).toContain("musl");
      for (const [at32, value] of [
        [4, 1],
        [18, 0xf7],
      ] as const) {
        const changed = readFileSync(await build("dynamic", MAPS));
        changed[at32] = value;
        writeFileSync(at("changed"), changed);
        const answer = examineProgram(at("changed"));
        expect([answer.served, about(answer, "linking")?.why]).toEqual([
          false,
          "not of this machine's 64 bits: the preload library cannot be loaded",
        ]);
      }
    });

    test("io_uring is pointed out", async () => {
      await build("liburing.so.2", "int io_uring_queue_init(void) { return 0; }", "-shared", "-fPIC");
      const source = "int io_uring_queue_init(void);\nint main(void) { return io_uring_queue_init(); }";
      const flags = [`-L${folder}`, "-l:liburing.so.2", "-Wl,-rpath,$ORIGIN"];
      const answer = examineProgram(await build("rings", source, ...flags));
      expect(verdicts(answer)).toMatchObject({ io_uring: "fair" });
      expect(answer.served).toBe(true);
    });

    test.skipIf(notRoot !== undefined)(
      `more rights than the caller's are told of${notRoot === undefined ? "" : `: ${notRoot}`}`,
      async () => {
        const program = await build("rights", MAPS);
        for (const [mode, word] of [
          [0o4755, "setuid (user 0)"],
          [0o2755, "setgid (group 0)"],
        ] as const) {
          chmodSync(program, mode);
          const rights = about(examineProgram(program), "rights");
          expect(rights).toMatchObject({ verdict: "bad" });
          expect(rights?.why).toContain(word);
        }
        chmodSync(program, 0o755);
        expect(examineProgram(program).served).toBe(true);
        // cap_net_raw, effective: struct vfs_cap_data of revision 2.
        const capabilities = Buffer.alloc(20);
        capabilities.writeUInt32LE(0x02000001, 0);
        capabilities.writeUInt32LE(1 << 13, 4);
        addon().setxattr(program, "security.capability", capabilities, 0);
        expect(about(examineProgram(program), "rights")?.why).toContain("file capabilities");
      },
    );

    test("whatever bytes are in it, there is an answer", async () => {
      const whole = readFileSync(await build("dynamic", MAPS));
      const seed = Number(process.env.MAPDIRECT_SEED ?? Date.now() % 1_000_000);
      const random = randomOf(seed);
      const broken = at("broken");
      for (let run = 0; run < 300; run += 1) {
        let bytes = Buffer.from(whole);
        for (let changes = 1 + Math.floor(random() * 4); changes > 0; changes -= 1) {
          // Mostly in the headers, sometimes anywhere.
          const limit = random() < 0.8 ? 1024 : bytes.length;
          bytes[Math.floor(random() * limit)] = random() < 0.3 ? 0xff : Math.floor(random() * 256);
        }
        if (random() < 0.2) bytes = bytes.subarray(0, Math.floor(random() * bytes.length));
        writeFileSync(broken, bytes);
        const { findings, served } = examineProgram(broken);
        expect(findings.length, `seed ${seed}, run ${run}`).toBeGreaterThan(0);
        expect(served).toBe(findings.every(({ verdict }) => verdict !== "bad"));
        for (const { verdict, todo } of findings) expect(todo === null).toBe(verdict === "good");
      }
    });

    describe("on the command line", () => {
      beforeAll(() => build("dynamic", MAPS));

      test("words and JSON say the same", async () => {
        const json = await cli(["doctor", "--json", "--program", at("dynamic")]);
        expect(json).toMatchObject({ code: 0, stderr: "" });
        const answer = JSON.parse(json.stdout) as ProgramAnswer;
        expect(answer).toEqual(examineProgram(at("dynamic")));
        const { stdout } = await cli(["doctor", "--program", at("dynamic")]);
        expect(stdout).toContain(`${at("dynamic")}: ${answer.found}\n  can be served by MAPDIRECT=auto\n`);
        for (const { why } of answer.findings) expect(stdout).toContain(why);
      });

      test("what is no program is an answer, what is not there one line on stderr", async () => {
        writeFileSync(at("text"), "text\n");
        const text = await cli(["doctor", "--program", at("text")]);
        expect(text.stdout).toContain("cannot be served");
        expect(text.stdout).toContain("neither ELF nor a script");
        for (const path of [at("none"), folder]) {
          const { code, stdout, stderr } = await cli(["doctor", "--program", path]);
          expect([code, stdout]).toEqual([1, ""]);
          expect(stderr).toMatch(/^mapdirect: [^\n]+; [^\n]+\n$/);
        }
        writeFileSync(at("loop"), `#!${at("loop")}\n`);
        const loop = await cli(["doctor", "--program", at("loop")]);
        expect([loop.code, loop.stdout]).toEqual([1, ""]);
      });

      test("a region and a program at a time, or neither, is a wrong request", async () => {
        for (const args of [[], [folder, "--program", at("dynamic")]]) {
          const { code, stderr } = await cli(["doctor", ...args]);
          expect(code).toBe(2);
          expect(stderr).toMatch(/^mapdirect: doctor: /);
        }
      });
    });
  },
);
