/** The examples, run as their comments say, on real mounts: by root, and by an ordinary user through fusermount3. */
import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import {
  appendFile,
  link,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  rename,
  rm,
  stat,
  symlink,
  truncate,
  unlink,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { isRunning, readMounts } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { missing, notRoot, noUserMount, OTHER_UID, run, succeed } from "../support/run.ts";

interface Example {
  readonly folder: string;
  readonly mnt: string;
  readonly child: ChildProcess;
  /** Resolves when the example has printed this. */
  said(text: string): Promise<void>;
  /** Its exit code, when it has ended. */
  readonly exited: Promise<number | null>;
  /** SIGTERM: resolves with its exit code. */
  end(): Promise<number | null>;
}

const isMounted = (path: string): boolean => readMounts().some(({ mountpoint }) => mountpoint === path);

/** Start an example on a fresh folder. */
function start(
  name: string,
  user: number | undefined,
  argumentsFor: (folder: string) => string[],
): Promise<Example> {
  return startProcess(user, (folder, mnt) => [
    join(packageRoot, "examples", name),
    ...argumentsFor(folder),
    mnt,
  ]);
}

async function startProcess(
  user: number | undefined,
  argumentsFor: (folder: string, mnt: string) => string[],
): Promise<Example> {
  const folder = mkdtempSync(folderPrefix("/dev/shm"));
  const mnt = join(folder, "mnt");
  mkdirSync(mnt);
  chmodSync(folder, 0o755);
  if (user !== undefined) for (const path of [folder, mnt]) chownSync(path, user, user);
  const words = argumentsFor(folder, mnt);
  const identity = user === undefined ? {} : { uid: user, gid: user };
  const child = spawn(process.execPath, words, {
    cwd: packageRoot,
    stdio: ["ignore", "pipe", "inherit"],
    ...identity,
  });
  let output = "";
  const listeners = new Set<() => void>();
  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    output += text;
    for (const listener of listeners) listener();
  });
  const exited = new Promise<number | null>((resolve) => child.on("exit", resolve));
  onTestFinished(async () => {
    if (isMounted(mnt)) await run("umount", ["-l", mnt]).catch(() => {});
    if (child.pid !== undefined && isRunning(child.pid)) child.kill("SIGKILL");
    await exited;
    rmSync(folder, { recursive: true, force: true });
  });
  const said = (text: string): Promise<void> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        if (!output.includes(text)) return;
        listeners.delete(look);
        resolve();
      };
      listeners.add(look);
      look();
      void exited.then((code) => reject(new Error(`ended with ${code} before it said ${text}`)));
    });
  await said("mounted on");
  return {
    folder,
    mnt,
    child,
    said,
    exited,
    end: () => {
      child.kill("SIGTERM");
      return exited;
    },
  };
}

/** A user's mount is private: its files are looked at as that user. */
const as = (user: number | undefined, ...command: [string, ...string[]]): Promise<string> =>
  succeed(command[0], command.slice(1), user === undefined ? {} : { user });

const USERS = [
  { who: "root", user: undefined, reason: notRoot },
  { who: "an ordinary user", user: OTHER_UID, reason: noUserMount() },
];

for (const { who, user, reason } of USERS) {
  test.skipIf(reason !== undefined)(
    `the in-memory file system of ${who} keeps what a shell puts there${reason ? ` (${reason})` : ""}`,
    async () => {
      const { mnt, end } = await start("memory.mjs", user, () => []);
      const script = `
        set -e
        cd "$1"
        mkdir -p a/b && echo hello > a/b/file && cp -a a copy && ln a/b/file hard && ln -s a/b/file soft
        test "$(cat soft)" = hello && test "$(stat -c %h hard)" = 2
        mv copy moved && test "$(cat moved/b/file)" = hello
        dd if=/dev/urandom of=big bs=1M count=5 2>/dev/null && cp big big2 && cmp big big2
        exec 3< a/b/file && rm a/b/file hard && test "$(cat <&3)" = hello && exec 3<&-
        for i in $(seq 500); do echo $i > many$i; done && test "$(ls | grep -c many)" = 500
        test "$(cat many7)" = 7 && rm many* && rmdir a/b a && rm -r moved
        ls -A`;
      expect(await as(user, "sh", "-c", script, "sh", mnt)).toBe("big\nbig2\nsoft\n");
      expect(await end()).toBe(0);
      expect(isMounted(mnt)).toBe(false);
    },
  );

  test.skipIf(reason !== undefined)(
    `the view of a JSON document of ${who} shows it as files, and a new version when it is saved${reason ? ` (${reason})` : ""}`,
    async () => {
      const first = { name: "mapdirect", list: [1, { deep: true }], "a/b": null, empty: {} };
      const { mnt, folder, said, end } = await start("json-view.mjs", user, (folder) => {
        writeFileSync(join(folder, "document.json"), JSON.stringify(first));
        return [join(folder, "document.json")];
      });
      const look = `cd "$1" && find . -type f | sort | while read f; do echo "$f: $(cat "$f")"; done; find . -type d -empty`;
      expect(await as(user, "sh", "-c", look, "sh", mnt)).toBe(
        ["./a%2Fb: null", "./list/0: 1", "./list/1/deep: true", "./name: mapdirect", "./empty", ""].join(
          "\n",
        ),
      );
      await expect(as(user, "sh", "-c", 'echo x > "$1/new"', "sh", mnt)).rejects.toThrow(/Read-only/);
      await writeFile(join(folder, "document.json"), JSON.stringify({ name: { first: "ma" }, other: 2 }));
      await said("reloaded");
      expect(await as(user, "sh", "-c", look, "sh", mnt)).toBe("./name/first: ma\n./other: 2\n");
      expect(await end()).toBe(0);
    },
  );
}

test.skipIf(notRoot !== undefined)(
  "the in-memory file system passes rename, exchange, fallocate, seek, xattrs and readdir by the book",
  async () => {
    const { mnt, end } = await start("memory.mjs", undefined, () => []);
    const at = (name: string): string => join(mnt, name);
    await writeFile(at("one"), "1");
    await mkdir(at("two"));
    await writeFile(at("two/inside"), "2");
    await expect(rename(at("one"), at("two"))).rejects.toMatchObject({ code: "EISDIR" });
    await expect(rename(at("two"), at("one"))).rejects.toMatchObject({ code: "ENOTDIR" });
    await expect(unlink(at("two"))).rejects.toMatchObject({ code: "EISDIR" });
    await link(at("one"), at("uno"));
    await symlink("x".repeat(4000), at("long"));
    expect((await readlink(at("long"))).length).toBe(4000);
    await appendFile(at("uno"), "11");
    expect(await readFile(at("one"), "utf8")).toBe("111");
    await truncate(at("one"), 1);
    await truncate(at("one"), 3);
    expect(await readFile(at("one"))).toEqual(Buffer.from([0x31, 0, 0]));
    expect((await stat(at("one"))).nlink).toBe(2);
    expect((await lstat(at("long"))).isSymbolicLink()).toBe(true);
    const handle = await open(at("one"), "r+");
    await rm(at("one"));
    await rm(at("uno"));
    await handle.write("still there", 0);
    expect((await handle.stat()).size).toBe(11);
    await handle.close();
    expect((await readdir(mnt)).sort()).toEqual(["long", "two"]);
    const nasty = ["häßlich", "😀", "a\nb", "-"];
    for (const name of nasty) await writeFile(at(name), name);
    expect((await readdir(mnt)).sort()).toEqual(["long", "two", ...nasty].sort());
    if (missing("python3") === undefined) {
      await succeed("python3", ["-c", PYTHON, mnt]);
    }
    expect(await end()).toBe(0);
  },
);

test.skipIf(notRoot !== undefined)("the first example of docs/FUSE.md does what it says", async () => {
  const guide = readFileSync(join(packageRoot, "docs/FUSE.md"), "utf8");
  const code = /```js\n([\s\S]*?)```/.exec(guide)?.[1] ?? "";
  const { mnt, exited } = await startProcess(undefined, (_folder, mnt) => [
    "--input-type=module",
    "--eval",
    `${code.replace('"/mnt"', JSON.stringify(mnt)).replace("await mounted.ended", 'console.log("mounted on")')}`,
  ]);
  expect(await readFile(join(mnt, "hello"), "utf8")).toBe("Hello!\n");
  expect(await readdir(mnt)).toEqual(["hello"]);
  await expect(writeFile(join(mnt, "hello"), "x", { flag: "r+" })).rejects.toMatchObject({ code: "EROFS" });
  await succeed("umount", [mnt]);
  expect(await exited).toBe(0);
});

/** What Node has no calls for. */
const PYTHON = `
import os, sys, ctypes, errno
os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("f", os.O_RDWR | os.O_CREAT)
os.write(fd, b"abcdef")
os.posix_fallocate(fd, 0, 5000)
assert os.fstat(fd).st_size == 5000
assert libc.fallocate(fd, 3, ctypes.c_long(1), ctypes.c_long(2)) == 0
assert os.pread(fd, 7, 0) == b"a\\0\\0def\\0"
assert libc.fallocate(fd, 8, ctypes.c_long(0), ctypes.c_long(4096)) == -1 and ctypes.get_errno() == errno.EOPNOTSUPP
assert os.lseek(fd, 10, os.SEEK_DATA) == 10 and os.lseek(fd, 10, os.SEEK_HOLE) == 5000
os.setxattr("f", "user.a", b"value")
assert os.listxattr("f") == ["user.a"] and os.getxattr("f", "user.a") == b"value"
try: os.setxattr("f", "user.a", b"other", os.XATTR_CREATE); assert False
except FileExistsError: pass
os.removexattr("f", "user.a")
try: os.getxattr("f", "user.a"); assert False
except OSError as e: assert e.errno == errno.ENODATA
out = os.open("g", os.O_RDWR | os.O_CREAT)
assert os.copy_file_range(fd, out, 6, 0, 0) == 6 and os.pread(out, 9, 0) == b"a\\0\\0def"
assert libc.renameat2(-100, b"f", -100, b"g", 2) == 0
assert os.path.getsize("f") == 6 and os.path.getsize("g") == 5000
assert libc.renameat2(-100, b"f", -100, b"g", 1) == -1 and ctypes.get_errno() == errno.EEXIST
assert os.statvfs(".").f_bsize == 4096
`;
