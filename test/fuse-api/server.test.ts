/** mapdirect/fuse on real mounts, served by this process: what handlers do wrong, interrupts, notifications, the end. */
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import {
  access,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  stat,
  symlink,
  truncate,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { readMounts } from "../../src/daemon/mounts.ts";
import {
  type Attributes,
  type DirectoryEntry,
  type Entry,
  type FileSystem,
  Fopen,
  FsError,
  type HandlerFailure,
  type Mount,
  type MountOptions,
  mount,
  PollEvent,
} from "../../src/fuse-api/index.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { missing, notRoot, run, succeed } from "../support/run.ts";

const FILE = 2;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const content = Buffer.from("content");

const attributes = (ino: number): Attributes =>
  ino === 1 ? { ino, mode: S_IFDIR | 0o755, nlink: 2 } : { ino, mode: S_IFREG | 0o644, size: content.length };
const entry = (nodeid: number): Entry => ({ nodeid, attributes: attributes(nodeid) });

/** A root directory with the one file "file". */
const plain: FileSystem = {
  lookup: ({ name }) => (name === "file" ? entry(FILE) : null),
  getattr: ({ nodeid }) => attributes(nodeid),
  read: ({ offset, size }) => content.subarray(offset, offset + size),
  readdir: ({ offset }) => [{ name: "file", ino: FILE, mode: S_IFREG }].slice(offset),
};

interface Served {
  readonly mounted: Mount;
  readonly file: string;
  readonly mnt: string;
  readonly failures: HandlerFailure[];
}

/** Mount it for one test; afterwards it is gone, whatever its handlers do. */
async function serve(fileSystem: Partial<FileSystem>, options: MountOptions = {}): Promise<Served> {
  const folder = mkdtempSync(folderPrefix("/dev/shm"));
  const mnt = join(folder, "mnt");
  mkdirSync(mnt);
  const failures: HandlerFailure[] = [];
  const merged = { ...plain, ...fileSystem };
  const mounting = mount(merged, mnt, {
    attributesTtlMs: 0,
    entryTtlMs: 0,
    onError: (failure) => failures.push(failure),
    ...options,
  });
  onTestFinished(async () => {
    await mounting.then((mounted) => mounted.unmount({ force: true })).catch(() => {});
    expect(readMounts().some(({ mountpoint }) => mountpoint === mnt)).toBe(false);
    rmSync(folder, { recursive: true });
  });
  const mounted = await mounting;
  return { mounted, mnt, file: join(mnt, "file"), failures };
}

/** Anything, to a handler that should return something else. */
// biome-ignore lint/suspicious/noExplicitAny: what plain JavaScript could return.
const wrong = (value: unknown): any => value;

describe.skipIf(notRoot !== undefined)("mapdirect/fuse", () => {
  test("a file system of four handlers can be listed, read and unmounted", async () => {
    let destroyed = 0;
    const { mnt, file, mounted } = await serve({
      destroy: () => {
        destroyed += 1;
      },
    });
    expect(await readdir(mnt)).toEqual(["file"]);
    expect(await readFile(file, "utf8")).toBe("content");
    expect(mounted.connection.protocol.minor).toBeGreaterThanOrEqual(31);
    await expect(writeFile(file, "x")).rejects.toMatchObject({ code: "ENOSYS" });
    await expect(stat(join(mnt, "other"))).rejects.toMatchObject({ code: "ENOENT" });
    await mounted.unmount();
    await mounted.ended;
    expect(destroyed).toBe(1);
    await mounted.unmount();
  });

  test("what a handler throws is an errno if it says so, and EIO with a report if it does not", async () => {
    const throwing: unknown[] = [];
    const { file, failures } = await serve({
      getattr(request) {
        if (request.nodeid === 1) return attributes(1);
        throw throwing.shift();
      },
      open() {
        return Promise.reject(throwing.shift());
      },
    });
    const answers: [unknown, string, number][] = [
      [new FsError("ENOSPC"), "ENOSPC", 0],
      [new FsError(75), "EOVERFLOW", 0],
      [Object.assign(new Error("from node:fs"), { errno: -13, code: "EACCES" }), "EACCES", 0],
      [new TypeError("a bug"), "EIO", 1],
      [undefined, "EIO", 1],
      ["text", "EIO", 1],
      [Object.assign(new Error("no errno"), { errno: 99_999 }), "EIO", 1],
    ];
    for (const [thrown, code, reports] of answers) {
      for (const use of [() => stat(file), () => open(file)]) {
        failures.length = 0;
        throwing.push(thrown);
        await expect(use()).rejects.toMatchObject({ code });
        expect(failures.length).toBe(reports);
        if (reports > 0) expect(failures[0]?.error).toBe(thrown);
      }
    }
  });

  test("an errno that the kernel takes in no reply is EIO to the caller, and reported", async () => {
    const throwing: unknown[] = [];
    const { file, failures } = await serve({
      getattr(request) {
        if (request.nodeid === 1) return attributes(1);
        throw throwing.shift();
      },
      open: () => Promise.reject(throwing.shift()),
    });
    const trap = new Proxy(new Error("trap"), {
      get() {
        throw new Error("an error that throws when it is looked at");
      },
    });
    const thrown = [
      Object.assign(new Error("getaddrinfo ENOTFOUND"), { errno: -3008, code: "ENOTFOUND" }),
      Object.assign(new Error("end of file"), { errno: -4095, code: "EOF" }),
      Object.assign(new Error("the first that is refused"), { errno: 512 }),
      new FsError(524),
      Object.assign(new FsError("ENOENT"), { errno: 0 }),
      trap,
    ];
    for (const error of thrown) {
      for (const use of [() => stat(file), () => open(file)]) {
        failures.length = 0;
        throwing.push(error);
        await expect(use()).rejects.toMatchObject({ code: "EIO" });
        expect(failures.length).toBe(1);
        expect(failures[0]?.error === error).toBe(true);
      }
    }
    throwing.push(Object.assign(new Error("the last that is taken"), { errno: 511 }));
    await expect(stat(file)).rejects.toMatchObject({ errno: -511 });
  });

  test("an onError that fails later does not end the process, nor hang the caller", async () => {
    const unhandled: unknown[] = [];
    const listener = (error: unknown) => unhandled.push(error);
    process.on("unhandledRejection", listener);
    onTestFinished(() => {
      process.off("unhandledRejection", listener);
    });
    const { file } = await serve(
      { getattr: ({ nodeid }) => (nodeid === 1 ? attributes(1) : wrong(undefined)) },
      { onError: wrong(() => Promise.reject(new Error("later"))) },
    );
    await expect(stat(file)).rejects.toMatchObject({ code: "EIO" });
    await sleep(20);
    expect(unhandled).toEqual([]);
  });

  test("a late reply that throws when it is undone does not end the process", async () => {
    const unhandled: unknown[] = [];
    const listener = (error: unknown) => unhandled.push(error);
    process.on("unhandledRejection", listener);
    onTestFinished(() => {
      process.off("unhandledRejection", listener);
    });
    let come: () => void = () => {};
    let looks = 0;
    const { file, mounted, failures } = await serve(
      {
        open: () =>
          new Promise((resolve) => {
            come = () =>
              resolve({
                get handle() {
                  looks += 1;
                  if (looks > 1) throw new Error("a second look");
                  return 7;
                },
              });
          }),
        release: () => {},
      },
      { interruptGraceMs: 50 },
    );
    const reader = spawn("cat", [file], { stdio: "ignore" });
    const exited = new Promise((resolve) => reader.on("exit", resolve));
    while (mounted.pending === 0) await sleep(5);
    reader.kill("SIGKILL");
    await exited;
    come();
    await sleep(20);
    expect(unhandled).toEqual([]);
    expect(looks).toBe(2);
    expect(failures).toMatchObject([{ operation: "open", error: { message: "a second look" } }]);
  });

  test("entries that were listed before one of the wrong form are forgotten", async () => {
    const forgotten: [number, number][] = [];
    const { mnt, failures } = await serve({
      readdir: wrong(undefined),
      *readdirplus() {
        yield { name: ".", ino: 1, mode: S_IFDIR, entry: entry(1) };
        for (const nodeid of [11, 12]) {
          yield { name: `name-${nodeid}`, ino: nodeid, mode: S_IFREG, entry: entry(nodeid) };
        }
        yield { name: "a/b", ino: 13, mode: S_IFREG, entry: entry(13) };
      },
      forget(nodeid, references) {
        forgotten.push([nodeid, references]);
      },
    });
    await expect(readdir(mnt)).rejects.toMatchObject({ code: "EIO" });
    expect(failures.length).toBe(1);
    expect(forgotten).toEqual([
      [11, 1],
      [12, 1],
    ]);
  });

  test("an errno that does not exist cannot be thrown: it would mean success", () => {
    expect(() => new FsError(wrong("ENOTHING"))).toThrow(TypeError);
    expect(() => new FsError(0)).toThrow(TypeError);
  });

  test("a reply of the wrong form is EIO, and the report says what is wrong with it", async () => {
    let reply: unknown;
    const link = { ino: 3, mode: 0o120777 };
    const { mnt, file, failures } = await serve({
      getattr: ({ nodeid }) => (nodeid === 1 ? attributes(1) : wrong(reply)),
      read: () => wrong(reply),
      readdir: () => wrong(reply),
      getxattr: () => wrong(reply),
      lookup: ({ name }) => (name === "file" ? entry(FILE) : { ...entry(3), attributes: link }),
      readlink: () => wrong(reply),
    });
    const check = async (
      use: () => Promise<unknown>,
      replies: unknown[],
      expected: RegExp,
    ): Promise<void> => {
      for (const each of replies) {
        failures.length = 0;
        reply = each;
        await expect(use()).rejects.toMatchObject({ code: "EIO" });
        expect(String(failures[0]?.error)).toMatch(expected);
      }
    };
    await check(
      () => stat(file),
      [
        undefined,
        null,
        7,
        "attributes",
        {},
        { ino: 2, mode: -1 },
        { ino: 2, mode: 0o644 },
        { ino: 2, mode: S_IFREG + 0x1_0000 },
        { ino: 2, mode: 0o030644 },
        { ino: 2, mode: "0644" },
        { ino: 1.5, mode: 0 },
        { ino: 2, mode: S_IFREG, size: 2n },
        { ino: 2, mode: S_IFREG, mtime: 12 },
        { ino: 2, mode: S_IFREG, mtime: new Date(Number.NaN) },
        { ino: 2, mode: S_IFREG, atime: { seconds: 1, nanoseconds: 1e9 } },
      ],
      /expected/,
    );
    await check(
      () => readdir(mnt),
      [
        undefined,
        5,
        [7],
        [{}],
        [{ name: "a/b", ino: 1, mode: 0 }],
        [{ name: "", ino: 1, mode: 0 }],
        [{ name: "\ud83d", ino: 1, mode: 0 }],
        [{ name: "a", ino: 1, mode: 0x1_0000 }],
        [{ name: "x".repeat(256), ino: 1, mode: 0 }],
        [{ name: "a", ino: "1", mode: 0 }],
        [{ name: "a", ino: 1, mode: 0, offset: 0 }],
      ],
      /expected|cannot|no Unicode/,
    );
    reply = { ...attributes(FILE), size: 10 };
    const handle = await open(file);
    await check(
      () => readlink(join(mnt, "link")),
      [undefined, "", "a\0b", "x".repeat(5000)],
      /expected|cannot/,
    );
    await check(() => handle.read(), [undefined, "content", [1, 2], Buffer.alloc(5000)], /expected|at most/);
    await handle.close();
  });

  test("numbers of 64 bits are taken as they are or refused, and the report names the field", async () => {
    let reply: unknown;
    const { file, failures } = await serve({ statx: () => wrong(reply) });
    for (const field of ["attributes", "attributesMask"]) {
      for (const value of [-1n, 2n ** 64n, "7", true, 7, {}]) {
        failures.length = 0;
        reply = { ...attributes(FILE), [field]: value };
        await expect(stat(file)).rejects.toMatchObject({ code: "EIO" });
        expect(String(failures[0]?.error)).toMatch(`TypeError: ${field}: expected a bigint`);
      }
      reply = { ...attributes(FILE), [field]: 2n ** 64n - 1n };
      await stat(file);
    }
  });

  test.skipIf(missing("python3") !== undefined)(
    "a lock that the kernel would not take is refused, and the report names the field",
    async () => {
      let reply: unknown;
      const { file, failures } = await serve({ getlk: () => wrong(reply), setlk: () => {} });
      const code = `
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
try: fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)); print("taken")
except OSError as error: print(error.errno)
`;
      const ask = async (change: object) => {
        failures.length = 0;
        reply = { start: 5n, end: 7n, type: 1, pid: 1, ...change };
        return `${(await succeed("python3", ["-c", code, file])).trim()} ${failures.map(({ error }) => error)}`;
      };
      expect(await ask({})).toBe("taken ");
      expect(await ask({ end: 2n ** 63n - 1n })).toBe("taken ");
      for (const [field, value] of Object.entries({ start: -1n, end: 4n, type: 3, pid: 2 ** 31 }))
        expect(await ask({ [field]: value })).toMatch(`5 TypeError: ${field}: expected`);
      expect(await ask({ end: 2n ** 63n })).toMatch("5 TypeError: end: expected");
      expect(await ask({ start: "5" })).toMatch("5 TypeError: start: expected");
    },
  );

  test("what was made is of the type that was asked for, and not the root directory, or the report says so", async () => {
    let reply: unknown;
    const { mnt, failures } = await serve({
      mkdir: () => wrong(reply),
      symlink: () => wrong(reply),
      create: () => wrong(reply),
      mknod: () => wrong(reply),
    });
    const folder = { nodeid: 9, attributes: { ino: 9, mode: S_IFDIR | 0o755 } };
    const uses: [() => Promise<unknown>, unknown[]][] = [
      [() => mkdir(join(mnt, "new")), [entry(FILE), { ...folder, nodeid: 1 }]],
      [() => symlink("target", join(mnt, "new")), [folder, entry(FILE)]],
      [() => open(join(mnt, "new"), "wx"), [folder, { ...entry(FILE), nodeid: 1 }]],
      [() => succeed("mkfifo", [join(mnt, "new")]), [folder, entry(FILE)]],
    ];
    for (const [use, replies] of uses) {
      for (const each of replies) {
        failures.length = 0;
        reply = each;
        await expect(use()).rejects.toThrow(/EIO|Input\/output error/);
        expect(String(failures[0]?.error)).toMatch(/TypeError: (mode|nodeid): expected/);
      }
    }
  });

  test("a thenable that settles twice, or throws when it is looked at, gets one answer", async () => {
    const twice = {
      // biome-ignore lint/suspicious/noThenProperty: that is the case.
      then(resolve: (value: unknown) => void, reject: (error: unknown) => void) {
        resolve(attributes(FILE));
        resolve({ ...attributes(FILE), size: 1 });
        reject(new Error("and fails"));
        throw new Error("and throws");
      },
    };
    // biome-ignore lint/suspicious/noThenProperty: that, too.
    const trap = Object.defineProperty({}, "then", {
      get() {
        throw new Error("trap");
      },
    });
    let reply: unknown = twice;
    const { file } = await serve({ getattr: ({ nodeid }) => (nodeid === 1 ? attributes(1) : wrong(reply)) });
    expect((await stat(file)).size).toBe(content.length);
    reply = trap;
    await expect(stat(file)).rejects.toMatchObject({ code: "EIO" });
    reply = attributes(FILE);
    expect((await stat(file)).size).toBe(content.length);
  });

  test("a directory without end is read as far as the reader goes", async () => {
    const { mnt } = await serve({
      *readdir({ offset }): Iterable<DirectoryEntry> {
        for (let index = offset; ; index += 1) yield { name: `name-${index}`, ino: 3 + index, mode: S_IFREG };
      },
    });
    const names = await succeed("sh", ["-c", `ls -U "$1" | head -n 1000 | tail -n 1`, "sh", mnt]).catch(
      String,
    );
    expect(names).toBe("name-999\n");
  }, 20_000);

  test("a caller that is killed is let go when its handler does not come back, and the late reply is undone", async () => {
    const closed: number[] = [];
    let aborted = 0;
    let come: () => void = () => {};
    const late = new Promise<void>((resolve) => {
      come = resolve;
    });
    const { file, mounted } = await serve(
      {
        async open({ signal }) {
          signal.addEventListener("abort", () => {
            aborted += 1;
          });
          await late;
          return { handle: 77 };
        },
        release({ handle }) {
          closed.push(handle);
        },
      },
      { interruptGraceMs: 100 },
    );
    const reader = spawn("cat", [file], { stdio: "ignore" });
    const exited = new Promise((resolve) => reader.on("exit", (_code, signal) => resolve(signal)));
    while (mounted.pending === 0) await sleep(5);
    reader.kill("SIGKILL");
    expect(await exited).toBe("SIGKILL");
    expect(aborted).toBe(1);
    expect(mounted.pending).toBe(0);
    come();
    await sleep(20);
    expect(closed).toEqual([77]);
    await mounted.unmount();
  });

  test("a handler that looks at its signal answers EINTR by itself", async () => {
    const { file, mounted, failures } = await serve({
      // What goes through the page cache is read in the background, where nobody can be interrupted.
      open: () => ({ flags: Fopen.DIRECT_IO }),
      read: ({ signal }) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener("abort", () => reject(new FsError("EINTR")));
        }),
    });
    const reader = spawn("timeout", ["-s", "INT", "0.2", "cat", file], { stdio: "ignore" });
    const code = await new Promise((resolve) => reader.on("exit", resolve));
    expect(code).toBe(124);
    expect(mounted.pending).toBe(0);
    expect(failures).toEqual([]);
  });

  test("a handler that never comes back does not keep the file system from being unmounted by force", async () => {
    const { file, mounted } = await serve({
      getattr: ({ nodeid }) => (nodeid === 1 ? attributes(1) : new Promise(() => {})),
    });
    const asked = stat(file).catch((error: NodeJS.ErrnoException) => error.code);
    while (mounted.pending === 0) await sleep(5);
    await expect(mounted.unmount()).rejects.toMatchObject({ code: "EBUSY" });
    await mounted.unmount({ force: true });
    expect(await asked).toMatch(/ENOTCONN|ECONNABORTED/);
    await mounted.ended;
  });

  test("an unmount whose write-back is never answered ends after the grace time", async () => {
    const { file, mounted } = await serve(
      {
        setattr: ({ nodeid }) => attributes(nodeid),
        write: () => new Promise(() => {}),
        flush: () => {},
      },
      { features: ["WRITEBACK_CACHE"], attributesTtlMs: 60_000, entryTtlMs: 60_000 },
    );
    const writer = spawn("dd", [`of=${file}`, "bs=4k", "count=1", "if=/dev/zero", "conv=notrunc"], {
      stdio: "ignore",
    });
    await new Promise((resolve) => {
      writer.on("exit", resolve);
      // close(2) may wait for the write-back, which is what never ends.
      setTimeout(resolve, 500);
    });
    const begun = Date.now();
    await mounted.unmount({ graceMs: 200 }).catch((error) => {
      expect(error).toMatchObject({ code: "EBUSY" });
      return mounted.unmount({ force: true });
    });
    expect(Date.now() - begun).toBeLessThan(20_000);
    await mounted.ended;
  });

  test("a mount can be mounted at, inside and over a mount of the same process", async () => {
    const script = `
      import { mount } from "mapdirect/fuse";
      const attributes = (ino) => ({ ino, mode: ino > 2 ? 0o100644 : 0o040755 });
      const plain = {
        lookup: ({ name }) => (name === "sub" ? { nodeid: 2, attributes: attributes(2) } : null),
        getattr: ({ nodeid }) => attributes(nodeid),
      };
      const options = { attributesTtlMs: 0, entryTtlMs: 0 };
      const mnt = process.argv[1];
      const outer = await mount(plain, mnt, options);
      const inner = await mount(plain, mnt + "/sub", options);
      await inner.unmount();
      const upper = await mount(plain, mnt, options);
      await upper.unmount();
      await outer.unmount();
      console.log("unmounted");`;
    const folder = mkdtempSync(folderPrefix("/dev/shm"));
    onTestFinished(async () => {
      for (const { mountpoint } of readMounts()
        .filter((each) => each.mountpoint.startsWith(folder))
        .reverse())
        await run("umount", ["-l", mountpoint]);
      rmSync(folder, { recursive: true });
    });
    const args = ["--input-type=module", "-e", script, folder];
    const done = run(process.execPath, args, { cwd: packageRoot, timeoutMs: 15_000 });
    expect(await done).toMatchObject({ code: 0, stdout: "unmounted\n" });
  }, 30_000);

  test("unmounts at the same time end one mount, and take neither what lies beneath nor what lies on top", async () => {
    const mnt = mkdtempSync(folderPrefix("/dev/shm"));
    const shown = () => readMounts().filter(({ mountpoint }) => mountpoint === mnt);
    onTestFinished(async () => {
      for (const _ of shown()) await run("umount", ["-l", mnt]);
      rmSync(mnt, { recursive: true });
    });
    await succeed("mount", ["-t", "tmpfs", "beneath", mnt]);
    const mounted = await mount(plain, mnt, { attributesTtlMs: 0, entryTtlMs: 0 });
    await succeed("mount", ["-t", "tmpfs", "on-top", mnt]);
    await expect(mounted.unmount()).rejects.toMatchObject({ code: "EBUSY" });
    expect(shown().map(({ source }) => source)).toEqual(["beneath", "mapdirect-fuse", "on-top"]);
    await succeed("umount", [mnt]);
    const force = { force: true };
    await Promise.all([mounted.unmount(), mounted.unmount(), mounted.unmount(force), mounted.unmount(force)]);
    await mounted.unmount(force);
    expect(shown().map(({ source }) => source)).toEqual(["beneath"]);
  });

  test("a grace time that is no time is refused", async () => {
    const { mounted } = await serve({});
    for (const graceMs of [Number.POSITIVE_INFINITY, Number.NaN, -1, 2 ** 31, wrong("5")])
      await expect(mounted.unmount({ graceMs })).rejects.toThrow(TypeError);
    expect(mounted.connection.protocol.major).toBe(7);
    await mounted.unmount({ graceMs: 0x7fff_ffff });
  });

  test("init that throws fails the mount with its own error, and leaves nothing mounted", async () => {
    await expect(
      serve({
        init() {
          throw new Error("not today");
        },
      }),
    ).rejects.toThrow("not today");
    await expect(serve({ init: async () => Promise.reject(new FsError("EPROTO")) })).rejects.toMatchObject({
      code: "EPROTO",
    });
  });

  test("options and file systems that cannot be are refused before anything is mounted", async () => {
    const options: [MountOptions, RegExp][] = [
      [{ type: "a b" }, /type/],
      [wrong({ names: "latin1" }), /names/],
      [{ transferBytesMax: 100 }, /transferBytesMax/],
      [{ entryTtlMs: -1 }, /entryTtlMs/],
      [{ options: ["a,b"] }, /commas/],
    ];
    for (const [option, expected] of options) await expect(serve({}, option)).rejects.toThrow(expected);
    await expect(mount(wrong({}), "/nowhere")).rejects.toThrow(/lookup/);
    await expect(mount(wrong(undefined), "/nowhere")).rejects.toThrow(/lookup/);
    await expect(mount(plain, "/nowhere")).rejects.toThrow(/does not exist/);
  });

  test("names are UTF-8 or refused, and bytes if bytes were asked for", async () => {
    const seen: string[] = [];
    const lookup: FileSystem["lookup"] = ({ name }) => {
      seen.push(name);
      return entry(FILE);
    };
    const utf8 = await serve({ lookup });
    await stat(join(utf8.mnt, "größe-😀"));
    await expect(
      stat(Buffer.concat([Buffer.from(`${utf8.mnt}/`), Buffer.from([0xff, 0x41])])),
    ).rejects.toMatchObject({
      code: "EILSEQ",
    });
    expect(seen).toEqual(["größe-😀"]);
    const bytes = await serve({ lookup }, { names: "bytes" });
    await stat(Buffer.concat([Buffer.from(`${bytes.mnt}/`), Buffer.from([0xff, 0x41])]));
    expect(seen.at(-1)).toBe("\xffA");
  });

  test("what is asked beyond 2^53 - 1 bytes is EFBIG, and no handler sees it", async () => {
    let seen = 0;
    const { file } = await serve({
      setattr: ({ nodeid }) => {
        seen += 1;
        return attributes(nodeid);
      },
    });
    if (missing("python3") !== undefined) return;
    const code = `import os,sys,errno
try: os.truncate(sys.argv[1], 2**53); sys.exit(1)
except OSError as e: sys.exit(0 if e.errno == errno.EFBIG else 2)`;
    expect((await run("python3", ["-c", code, file])).code).toBe(0);
    expect(seen).toBe(0);
  });

  test("after a notification the kernel asks anew, and is told from nodes and names that it does not know", async () => {
    let lookups = 0;
    let size = content.length;
    const { file, mounted } = await serve(
      {
        lookup: ({ name }) => {
          lookups += 1;
          return name === "file" ? { ...entry(FILE), attributes: { ...attributes(FILE), size } } : null;
        },
        getattr: ({ nodeid }) => ({ ...attributes(nodeid), ...(nodeid === FILE ? { size } : {}) }),
      },
      { entryTtlMs: 1e9, attributesTtlMs: 1e9 },
    );
    expect((await stat(file)).size).toBe(size);
    size = 3;
    expect((await stat(file)).size).toBe(content.length);
    expect(await mounted.invalidateNode(FILE, -1)).toBe(true);
    expect((await stat(file)).size).toBe(3);
    const before = lookups;
    await stat(file);
    expect(lookups).toBe(before);
    expect(await mounted.invalidateEntry(1, "file")).toBe(true);
    await stat(file);
    expect(lookups).toBe(before + 1);
    expect(await mounted.invalidateNode(99)).toBe(false);
    expect(await mounted.invalidateEntry(1, "other")).toBe(false);
    expect(await mounted.notifyDelete(1, FILE, "file")).toBe(true);
    await mounted.unmount();
    await expect(mounted.invalidateNode(FILE)).rejects.toMatchObject({ code: "ENOTCONN" });
  });

  test.skipIf(missing("python3") !== undefined)(
    "ioctl, poll, locks and statx reach their handlers with all that was asked",
    async () => {
      let wake: (() => void) | null = null;
      let readable = false;
      const held: string[] = [];
      const { file } = await serve({
        ioctl({ command, input, outputBytes }) {
          if (command !== 0xc008_4d01) throw new FsError("ENOTTY");
          expect(outputBytes).toBe(8);
          return { result: 5, output: Buffer.from(input).reverse() };
        },
        poll({ events, wake: again }) {
          wake = again;
          return readable ? events & PollEvent.IN : 0;
        },
        getlk: ({ lock }) => ({ ...lock, type: 1, pid: process.pid }),
        setlk({ lock, wait }) {
          held.push(`${lock.type} ${lock.start} ${lock.end} ${wait}`);
          if (lock.start === 10n) throw new FsError("EAGAIN");
        },
        statx: ({ nodeid }) => ({ ...attributes(nodeid), btime: new Date(86_400_000) }),
      });
      const waker = setInterval(() => {
        if (wake === null) return;
        readable = true;
        wake();
      }, 50);
      onTestFinished(() => clearInterval(waker));
      const code = `
import fcntl, os, select, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
buffer = bytearray(b"12345678")
assert fcntl.ioctl(fd, 0xc0084d01, buffer, True) == 5 and buffer == b"87654321"
try: fcntl.ioctl(fd, 0xc0084d02, buffer, True); assert False
except OSError as e: assert e.errno == 25
p = select.poll(); p.register(fd, select.POLLIN)
assert p.poll(10000) == [(fd, select.POLLIN)]
fcntl.lockf(fd, fcntl.LOCK_EX, 5, 3)
try: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10); assert False
except BlockingIOError: pass
asked = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
assert struct.unpack("hhqqi4x", asked)[4] == int(sys.argv[2])
`;
      await succeed("python3", ["-c", code, file, `${process.pid}`]);
      expect((await stat(file)).birthtimeMs).toBe(86_400_000);
      expect(held.slice(0, 2)).toEqual(["1 3 7 true", "1 10 14 false"]);
    },
  );

  test("two file systems in one process do not know of each other", async () => {
    const one = await serve({ read: () => Buffer.from("one") });
    const two = await serve({ read: () => Buffer.from("two") });
    expect(await Promise.all([readFile(one.file, "utf8"), readFile(two.file, "utf8")])).toEqual([
      "one",
      "two",
    ]);
    await one.mounted.unmount();
    expect(await readFile(two.file, "utf8")).toBe("two");
  });

  test("a handler has what it was given for itself: the next request does not write over it", async () => {
    const kept: Buffer[] = [];
    const { file } = await serve({
      setattr: ({ nodeid }) => attributes(nodeid),
      async write({ data }) {
        kept.push(data);
        await sleep(5);
        return data.length;
      },
    });
    await Promise.all(
      ["a", "b", "c"].map((letter) =>
        open(file, "r+").then(async (handle) => {
          await handle.write(letter.repeat(1000));
          await handle.close();
        }),
      ),
    );
    expect(kept.map((data) => `${data}`).sort()).toEqual(
      ["a", "b", "c"].map((letter) => letter.repeat(1000)),
    );
    await truncate(file);
    await access(file);
  });
});
