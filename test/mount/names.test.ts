/** Names through ordinary system calls on a real mount: files, directories, links, renames. */
import { constants, mkdirSync } from "node:fs";
import {
  chmod,
  link,
  lstat,
  mkdir,
  open,
  opendir,
  readdir,
  readFile,
  readlink,
  realpath,
  rename,
  rm,
  rmdir,
  stat,
  symlink,
  unlink,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { addon } from "../../src/region/addon.ts";
import { useMount } from "../support/mount.ts";
import { missing, OTHER_UID, programPath, run } from "../support/run.ts";

const mount = useMount();

const RENAME_NOREPLACE = 1;
const RENAME_EXCHANGE = 2;

const failing = (code: string) => expect.objectContaining({ code });

describe("files", () => {
  test("a file that was created holds what was written", async () => {
    const folder = await mount.fresh();
    await writeFile(join(folder, "a"), "hello");
    expect(await readFile(join(folder, "a"), "utf8")).toBe("hello");
    expect(await stat(join(folder, "a"))).toMatchObject({ size: 5, nlink: 1 });
    await writeFile(join(folder, "a"), " world", { flag: "a" });
    expect(await readFile(join(folder, "a"), "utf8")).toBe("hello world");
  });

  test("O_EXCL refuses a name that exists, O_CREAT alone opens it", async () => {
    const folder = await mount.fresh();
    await writeFile(join(folder, "a"), "1");
    await expect(open(join(folder, "a"), "wx")).rejects.toMatchObject({ code: "EEXIST" });
    const file = await open(join(folder, "a"), constants.O_RDWR | constants.O_CREAT);
    expect((await file.readFile()).toString()).toBe("1");
    await file.close();
  });

  test("O_TRUNC empties a file", async () => {
    const folder = await mount.fresh();
    await writeFile(join(folder, "a"), Buffer.alloc(100_000, 1));
    await (await open(join(folder, "a"), "w")).close();
    expect((await stat(join(folder, "a"))).size).toBe(0);
  });

  test("appends by several writers never overwrite each other", async () => {
    const folder = await mount.fresh();
    const path = join(folder, "log");
    const writers = await Promise.all([0, 1, 2, 3].map(() => open(path, "a")));
    await Promise.all(
      writers.map(async (file, id) => {
        for (let line = 0; line < 50; line += 1) await file.write(`${id} ${String(line).padStart(3, "0")}\n`);
        await file.close();
      }),
    );
    const lines = (await readFile(path, "utf8")).trim().split("\n");
    expect(lines).toHaveLength(200);
    for (const id of [0, 1, 2, 3]) {
      const own = lines.filter((line) => line.startsWith(`${id} `));
      expect(own).toEqual(own.toSorted());
      expect(own).toHaveLength(50);
    }
  });

  test("an unlinked file lives on for those who have it open", async () => {
    const folder = await mount.fresh();
    const file = await open(join(folder, "a"), "w+");
    await file.writeFile("still here");
    await unlink(join(folder, "a"));
    await expect(stat(join(folder, "a"))).rejects.toMatchObject({ code: "ENOENT" });
    await file.write(" and growing", 10);
    expect((await file.stat()).nlink).toBe(0);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(100), 0, 100, 0);
    expect(buffer.toString("utf8", 0, bytesRead)).toBe("still here and growing");
    await file.close();
    expect(await readdir(folder)).toEqual([]);
  });

  test("a missing name is ENOENT, a file used as a directory ENOTDIR, a directory read as a file EISDIR", async () => {
    const folder = await mount.fresh();
    await writeFile(join(folder, "a"), "");
    await expect(readFile(join(folder, "none"))).rejects.toMatchObject({ code: "ENOENT" });
    await expect(readFile(join(folder, "a", "b"))).rejects.toMatchObject({ code: "ENOTDIR" });
    await expect(readFile(folder)).rejects.toMatchObject({ code: "EISDIR" });
    await expect(open(folder, "r+")).rejects.toMatchObject({ code: "EISDIR" });
  });
});

describe("directories", () => {
  test("link counts follow subdirectories", async () => {
    const folder = await mount.fresh();
    expect((await stat(folder)).nlink).toBe(2);
    await mkdir(join(folder, "sub"));
    expect((await stat(folder)).nlink).toBe(3);
    await rmdir(join(folder, "sub"));
    expect((await stat(folder)).nlink).toBe(2);
  });

  test("only an empty directory can be removed", async () => {
    const folder = await mount.fresh();
    await mkdir(join(folder, "sub"));
    await writeFile(join(folder, "sub", "a"), "");
    await expect(rmdir(join(folder, "sub"))).rejects.toMatchObject({ code: "ENOTEMPTY" });
    await expect(unlink(join(folder, "sub"))).rejects.toMatchObject({
      code: expect.stringMatching(/EISDIR|EPERM/),
    });
    await expect(rmdir(join(folder, "sub", "a"))).rejects.toMatchObject({ code: "ENOTDIR" });
    await rm(join(folder, "sub"), { recursive: true });
    expect(await readdir(folder)).toEqual([]);
  });

  test("a thousand entries are listed once each, with their types", async () => {
    const folder = await mount.fresh();
    const names = Array.from({ length: 1000 }, (_, index) => `entry-${index}`);
    for (const name of names) mkdirSync(join(folder, name));
    const entries = await readdir(folder, { withFileTypes: true });
    expect(entries.map(({ name }) => name).toSorted()).toEqual(names.toSorted());
    expect(entries.every((entry) => entry.isDirectory())).toBe(true);
  });

  test("while entries come and go, listing shows each of the others exactly once", async () => {
    const folder = await mount.fresh();
    const steady = Array.from({ length: 300 }, (_, index) => `steady-${index}`);
    const doomed = Array.from({ length: 300 }, (_, index) => `doomed-${index}`);
    for (let index = 0; index < 300; index += 1) {
      await writeFile(join(folder, steady[index]!), "");
      await writeFile(join(folder, doomed[index]!), "");
    }
    const seen: string[] = [];
    let removed = 0;
    const directory = await opendir(folder, { bufferSize: 8 });
    for await (const { name } of directory) {
      seen.push(name);
      if (seen.length % 2 === 0 && removed < doomed.length) await unlink(join(folder, doomed[removed++]!));
      if (seen.length % 7 === 0) await writeFile(join(folder, `new-${seen.length}`), "");
    }
    expect(new Set(seen).size).toBe(seen.length);
    expect(seen.filter((name) => name.startsWith("steady")).toSorted()).toEqual(steady.toSorted());
  });

  test("a directory that was removed while open lists nothing and takes no new names", async () => {
    const folder = await mount.fresh();
    const sub = join(folder, "sub");
    await mkdir(sub);
    const handle = await open(sub, constants.O_RDONLY | constants.O_DIRECTORY);
    await rmdir(sub);
    await expect(writeFile(`/proc/self/fd/${handle.fd}/a`, "")).rejects.toMatchObject({ code: "ENOENT" });
    expect(await readdir(`/proc/self/fd/${handle.fd}`)).toEqual([]);
    await handle.close();
  });
});

describe("names", () => {
  test("a name has up to 255 bytes", async () => {
    const folder = await mount.fresh();
    const longest = "n".repeat(255);
    await writeFile(join(folder, longest), "x");
    expect(await readdir(folder)).toEqual([longest]);
    await expect(writeFile(join(folder, `${longest}n`), "x")).rejects.toMatchObject({ code: "ENAMETOOLONG" });
    const umlauts = "ü".repeat(127);
    await writeFile(join(folder, `${umlauts}x`), "x");
    await expect(writeFile(join(folder, `${umlauts}xx`), "x")).rejects.toMatchObject({
      code: "ENAMETOOLONG",
    });
  });

  test("a name is bytes, not text: what is no UTF-8 comes back as it went in", async () => {
    const folder = await mount.fresh();
    const names = [
      Buffer.from([0xff, 0xfe]),
      Buffer.from([0xc3]),
      Buffer.from([0xc3, 0xa9]),
      Buffer.from("\u0001\n \\"),
    ];
    const pathOf = (name: Buffer): Buffer => Buffer.concat([Buffer.from(`${folder}/`), name]);
    for (const name of names) await writeFile(pathOf(name), name);
    const listed = await readdir(folder, { encoding: "buffer" });
    expect(listed.toSorted(Buffer.compare)).toEqual(names.toSorted(Buffer.compare));
    for (const name of names) expect(await readFile(pathOf(name))).toEqual(name);
    // The replacement character is a name of its own.
    await expect(stat(join(folder, "\ufffd"))).rejects.toMatchObject({ code: "ENOENT" });
    await mount.remount();
    expect((await readdir(folder, { encoding: "buffer" })).toSorted(Buffer.compare)).toEqual(
      names.toSorted(Buffer.compare),
    );
  });

  test("paths go through dozens of levels", async () => {
    const folder = await mount.fresh();
    const deep = join(folder, ...Array.from({ length: 60 }, (_, index) => `level-${index}`));
    await mkdir(deep, { recursive: true });
    await writeFile(join(deep, "a"), "deep");
    expect(await readFile(join(deep, "a"), "utf8")).toBe("deep");
    expect(await realpath(join(deep, "..", "..", "level-58"))).toBe(join(deep, ".."));
  });
});

describe("links", () => {
  test("hard links are one file with several names", async () => {
    const folder = await mount.fresh();
    await writeFile(join(folder, "a"), "one");
    await link(join(folder, "a"), join(folder, "b"));
    const [a, b] = await Promise.all([stat(join(folder, "a")), stat(join(folder, "b"))]);
    expect(a.ino).toBe(b.ino);
    expect([a.nlink, b.nlink]).toEqual([2, 2]);
    await writeFile(join(folder, "b"), "two");
    expect(await readFile(join(folder, "a"), "utf8")).toBe("two");
    await unlink(join(folder, "a"));
    expect((await stat(join(folder, "b"))).nlink).toBe(1);
    await expect(link(folder, join(folder, "c"))).rejects.toMatchObject({ code: "EPERM" });
    await expect(link(join(folder, "b"), join(folder, "b"))).rejects.toMatchObject({ code: "EEXIST" });
  });

  test("symbolic links keep their text, up to 4095 bytes", async () => {
    const folder = await mount.fresh();
    for (const target of ["a", "../x/y", "/absolute", "t".repeat(4095)]) {
      const path = join(folder, `link-${target.length}`);
      await symlink(target, path);
      expect(await readlink(path)).toBe(target);
      expect(await lstat(path)).toMatchObject({ size: target.length });
    }
    await writeFile(join(folder, "a"), "followed");
    expect(await readFile(join(folder, "link-1"), "utf8")).toBe("followed");
    await symlink("loop", join(folder, "loop"));
    await expect(readFile(join(folder, "loop"))).rejects.toMatchObject({ code: "ELOOP" });
  });

  test("fifos and sockets are names like others", async ({ skip }) => {
    const lacking = missing("mkfifo");
    if (lacking !== undefined) skip(lacking);
    const folder = await mount.fresh();
    expect((await run("mkfifo", [join(folder, "fifo")])).code).toBe(0);
    expect((await stat(join(folder, "fifo"))).isFIFO()).toBe(true);
  });
});

describe("rename", () => {
  test("takes the place of what was there, in one step", async () => {
    const folder = await mount.fresh();
    await writeFile(join(folder, "a"), "new");
    await writeFile(join(folder, "b"), "old");
    const old = await open(join(folder, "b"), "r");
    await rename(join(folder, "a"), join(folder, "b"));
    expect(await readdir(folder)).toEqual(["b"]);
    expect(await readFile(join(folder, "b"), "utf8")).toBe("new");
    expect((await old.readFile()).toString()).toBe("old");
    await old.close();
  });

  test("a listing under way names each file once that others are renamed over, or exchanged with, meanwhile", async () => {
    const folder = await mount.fresh();
    const [listed, beside] = [join(folder, "listed"), join(folder, "beside")];
    await mkdir(listed);
    await mkdir(beside);
    const names = Array.from({ length: 3000 }, (_, index) => `name-${index}`);
    for (const name of names) {
      await writeFile(join(listed, name), "");
      await writeFile(join(beside, name), "");
    }
    const directory = await opendir(listed, { bufferSize: 32 });
    const seen = [(await directory.read())?.name];
    for (const [index, name] of names.entries()) {
      const pair = [join(beside, name), join(listed, name)] as const;
      if (index % 3 === 0) await rename(...pair);
      else if (index % 3 === 1) addon().renameat2(...pair, RENAME_EXCHANGE);
      else if (index > 3)
        addon().renameat2(join(listed, names[index - 3] as string), pair[1], RENAME_EXCHANGE);
    }
    for await (const { name } of directory) seen.push(name);
    expect(seen).toHaveLength(names.length);
    expect(seen.sort()).toEqual(names.sort());
    await mount.remount();
    expect((await readdir(listed)).sort()).toEqual(names);
  });

  test("RENAME_NOREPLACE refuses, RENAME_EXCHANGE swaps, files and directories alike", async () => {
    const folder = await mount.fresh();
    await writeFile(join(folder, "a"), "file");
    await mkdir(join(folder, "d"));
    await writeFile(join(folder, "d", "inside"), "");
    expect(() => addon().renameat2(join(folder, "a"), join(folder, "d"), RENAME_NOREPLACE)).toThrow(
      failing("EEXIST"),
    );
    addon().renameat2(join(folder, "a"), join(folder, "d"), RENAME_EXCHANGE);
    expect(await readFile(join(folder, "d"), "utf8")).toBe("file");
    expect(await readdir(join(folder, "a"))).toEqual(["inside"]);
    expect(() => addon().renameat2(join(folder, "a"), join(folder, "none"), RENAME_EXCHANGE)).toThrow(
      failing("ENOENT"),
    );
    addon().renameat2(join(folder, "a"), join(folder, "c"), RENAME_NOREPLACE);
    expect((await readdir(folder)).toSorted()).toEqual(["c", "d"]);
  });

  test("directories: only over an empty one, never into themselves, and '..' follows", async () => {
    const folder = await mount.fresh();
    for (const name of ["a", "a/inner", "b", "full"]) await mkdir(join(folder, name));
    await writeFile(join(folder, "full", "x"), "");
    await expect(rename(join(folder, "a"), join(folder, "full"))).rejects.toMatchObject({
      code: expect.stringMatching(/ENOTEMPTY|EEXIST/),
    });
    await expect(rename(join(folder, "a"), join(folder, "a", "inner", "x"))).rejects.toMatchObject({
      code: "EINVAL",
    });
    await rename(join(folder, "a"), join(folder, "b"));
    await rename(join(folder, "b", "inner"), join(folder, "full", "inner"));
    expect(await realpath(join(folder, "full", "inner", ".."))).toBe(join(folder, "full"));
    expect((await stat(join(folder, "b"))).nlink).toBe(2);
    expect((await stat(join(folder, "full"))).nlink).toBe(3);
    await writeFile(join(folder, "file"), "");
    await expect(rename(join(folder, "b"), join(folder, "file"))).rejects.toMatchObject({ code: "ENOTDIR" });
    await expect(rename(join(folder, "file"), join(folder, "b"))).rejects.toMatchObject({ code: "EISDIR" });
  });

  test("an open file keeps working under its new name", async () => {
    const folder = await mount.fresh();
    await mkdir(join(folder, "sub"));
    const file = await open(join(folder, "a"), "w+");
    await file.write("before ");
    await rename(join(folder, "a"), join(folder, "sub", "b"));
    await file.write("after");
    await file.close();
    expect(await readFile(join(folder, "sub", "b"), "utf8")).toBe("before after");
  });

  test("two names of one file: rename does nothing", async () => {
    const folder = await mount.fresh();
    await writeFile(join(folder, "a"), "x");
    await link(join(folder, "a"), join(folder, "b"));
    await rename(join(folder, "a"), join(folder, "b"));
    expect((await readdir(folder)).toSorted()).toEqual(["a", "b"]);
  });
});

describe("permissions", () => {
  const asOther = (command: string, ...args: string[]) => run(command, args, { user: OTHER_UID });

  test("another user is held to the mode bits", async ({ skip }) => {
    const lacking = missing("setpriv", "cat", "touch");
    if (lacking !== undefined) skip(lacking);
    if (process.getuid?.() !== 0) skip("needs root");
    const folder = await mount.fresh();
    await writeFile(join(folder, "private"), "secret", { mode: 0o600 });
    await writeFile(join(folder, "public"), "open", { mode: 0o644 });
    expect((await asOther("cat", join(folder, "private"))).stderr).toContain("Permission denied");
    expect((await asOther("cat", join(folder, "public"))).stdout).toBe("open");
    expect((await asOther("touch", join(folder, "new"))).stderr).toContain("Permission denied");
    await chmod(folder, 0o777);
    expect((await asOther("touch", join(folder, "new"))).code).toBe(0);
    expect(await stat(join(folder, "new"))).toMatchObject({ uid: OTHER_UID, gid: OTHER_UID });
    expect((await asOther("chmod", "644", join(folder, "private"))).stderr).toContain("not permitted");
  });

  test("in a sticky directory only the owner removes or renames a name", async ({ skip }) => {
    if (process.getuid?.() !== 0) skip("needs root");
    const lacking = missing("setpriv", "rm", "mv");
    if (lacking !== undefined) skip(lacking);
    const folder = await mount.fresh();
    await chmod(folder, 0o1777);
    await writeFile(join(folder, "root"), "");
    expect((await asOther("rm", "-f", join(folder, "root"))).stderr).toContain("not permitted");
    expect((await asOther("mv", join(folder, "root"), join(folder, "x"))).stderr).toContain("not permitted");
    expect((await asOther("touch", join(folder, "own"))).code).toBe(0);
    expect((await asOther("rm", join(folder, "own"))).code).toBe(0);
  });

  test("below a setgid directory names inherit the group, and directories the bit", async ({ skip }) => {
    if (process.getuid?.() !== 0) skip("needs root");
    const folder = await mount.fresh();
    const shared = join(folder, "shared");
    await mkdir(shared);
    expect((await run("chown", ["0:100", shared])).code).toBe(0);
    await chmod(shared, 0o2777);
    await writeFile(join(shared, "a"), "");
    await mkdir(join(shared, "d"));
    expect((await stat(join(shared, "a"))).gid).toBe(100);
    expect(await stat(join(shared, "d"))).toMatchObject({ gid: 100, mode: 0o42755 });
  });

  test("a write by another user takes away setuid and setgid", async ({ skip }) => {
    if (process.getuid?.() !== 0) skip("needs root");
    const lacking = missing("setpriv", "sh");
    if (lacking !== undefined) skip(lacking);
    const folder = await mount.fresh();
    const path = join(folder, "a");
    await writeFile(path, "x");
    await chmod(path, 0o6777);
    expect((await asOther("sh", "-c", `echo y >> ${path}`)).code).toBe(0);
    expect((await stat(path)).mode & 0o7777).toBe(0o777);
  });

  test("what takes setuid and setgid away is the lack of CAP_FSETID, and not who somebody is", async ({
    skip,
  }) => {
    if (process.getuid?.() !== 0) skip("needs root");
    const lacking = missing("setpriv", "fallocate", "cp");
    if (lacking !== undefined) skip(lacking);
    const folder = await mount.fresh();
    const source = join(folder, "source");
    await writeFile(source, "y".repeat(8192));
    const lowly = ["--bounding-set=-fsetid", "--inh-caps=-fsetid"];
    const other = ["--reuid", `${OTHER_UID}`, "--clear-groups"];
    const able = [...other, "--inh-caps=+fsetid", "--ambient-caps=+fsetid"];
    const changes = (path: string) => [
      ["fallocate", "-l", "8192", path],
      ["fallocate", "-z", "-l", "100", path],
      ["cp", "--reflink=never", source, path],
      [programPath, "clone", source, path],
    ];
    for (const [who, left] of [
      [[], 0o6777],
      [lowly, 0o777],
      [other, 0o777],
      [able, 0o6777],
    ] as const) {
      for (const index of changes("").keys()) {
        const path = join(folder, "target");
        await writeFile(path, "x");
        await chmod(path, 0o6777);
        const command = changes(path)[index] as string[];
        const { code, stderr } = await run("setpriv", [...who, ...command]);
        expect([command[0], who, code, stderr]).toEqual([command[0], who, 0, ""]);
        const { mode } = await stat(path);
        expect([command.slice(0, 2), who, (mode & 0o7777).toString(8)]).toEqual([
          command.slice(0, 2),
          who,
          left.toString(8),
        ]);
      }
    }
  });
});
