/** The command line as a program: exit codes, where messages go, and their form. */
import { mkdtempSync } from "node:fs";
import { mkdir, open, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { folderPrefix } from "../support/leftovers.ts";
import { cli, missing, run } from "../support/run.ts";

const folder = mkdtempSync(folderPrefix("/dev/shm"));
afterAll(() => rm(folder, { recursive: true, force: true }));

const COMMANDS = [
  "mkfs",
  "mount",
  "unmount",
  "info",
  "doctor",
  "extents",
  "leases",
  "prepare",
  "clone",
  "fsck",
  "tune",
  "probe",
  "superblock",
  "snapshot",
  "check",
  "resize",
  "dump",
  "defrag",
  "stats",
  "map",
  "dashboard",
  "top",
  "completion",
];
const MESSAGE = /^mapdirect: [^\n]+: [^\n]+; [^\n]+\n$/;

describe("help", () => {
  test("names every command and exits 0", async () => {
    const { code, stdout, stderr } = await cli(["--help"]);
    expect(code).toBe(0);
    expect(stderr).toBe("");
    for (const command of COMMANDS) expect(stdout).toContain(command);
  });

  test.each(COMMANDS)("of %s has examples and exits 0", async (command) => {
    for (const args of [
      [command, "--help"],
      ["help", command],
    ]) {
      const { code, stdout } = await cli(args);
      expect(code).toBe(0);
      expect(stdout).toContain("Examples:");
      expect(stdout).toContain(`mapdirect ${command} `);
    }
  });

  test("of a command below another is that one's", async () => {
    const { code, stdout } = await cli(["help", "leases", "break"]);
    expect({ code, stdout }).toEqual({
      code: 0,
      stdout: (await cli(["leases", "break", "--help"])).stdout,
    });
    expect(stdout).toContain("Usage: mapdirect leases break ");
  });

  test.each([
    [["help", "nosuch"], "usage: unknown command 'nosuch'; see 'mapdirect --help'"],
    [["help", "mout"], "usage: unknown command 'mout' (Did you mean mount?); see 'mapdirect --help'"],
    [
      ["help", "leases", "brek"],
      "leases: unknown command 'brek' (Did you mean break?); see 'mapdirect leases --help'",
    ],
  ])("of what is no command is wrong usage: %s", async (args, message) => {
    expect(await cli(args)).toEqual({ code: 2, stdout: "", stderr: `mapdirect: ${message}\n` });
  });

  test("--version is the version of the package", async () => {
    const { version } = JSON.parse(await readFile("package.json", "utf8")) as { version: string };
    expect(await cli(["--version"])).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });
});

describe("wrong usage exits 2, says one line on stderr and nothing on stdout", () => {
  test.each([
    ["no command", []],
    ["an unknown command", ["frobnicate"]],
    ["an unknown option", ["mkfs", "--frobnicate", "/x"]],
    ["a missing argument", ["mkfs"]],
    ["a missing second argument", ["mount", "/x"]],
    ["an excess argument", ["unmount", "/x", "/y"]],
    ["a size that is none", ["mkfs", "--size", "1GB", "/x"]],
    ["an offset that is negative", ["prepare", "--offset=-1", "/x"]],
    ["an unknown mount option", ["mount", "-o", "ro,frobnicate", "/x", "/y"]],
    ["a mount option with a wrong value", ["mount", "-o", "direct=perhaps", "/x", "/y"]],
    ["an unknown option of a command below another", ["leases", "break", "--fil", "/x"]],
    ["nothing to tune", ["tune", "/x"]],
    ["a uuid that is none", ["tune", "--uuid", "1234", "/x"]],
    ["a label that is too long", ["tune", "--label", "x".repeat(65), "/x"]],
    ["properties for udev of all devices", ["probe", "--udev"]],
    ["no lease to break", ["leases", "break"]],
    ["a lease that is no number", ["leases", "break", "seven"]],
    ["a block size that is no power of two", ["mkfs", "--block-size", "5000", "/x"]],
  ])("%s", async (_, args) => {
    const { code, stdout, stderr } = await cli(args);
    expect(stderr).toMatch(MESSAGE);
    expect(stdout).toBe("");
    expect(code).toBe(2);
  });

  test.each([
    ["an unknown option", ["fsck", "--frobnicate", "/x"]],
    ["a missing argument", ["fsck"]],
    ["a dry run of nothing", ["fsck", "--dry-run", "/x"]],
  ])("fsck, as fsck(8), 16: %s", async (_, args) => {
    const { code, stdout, stderr } = await cli(args);
    expect(stderr).toMatch(MESSAGE);
    expect(stdout).toBe("");
    expect(code).toBe(16);
  });

  test("what was meant is guessed for commands, options, commands below others and mount options", async () => {
    for (const [args, meant] of [
      [["mout", "/x", "/y"], "Did you mean mount?"],
      [["mkfs", "--blocksize", "4096", "/x"], "Did you mean --block-size?"],
      [["leases", "break", "--fil", "/x"], "Did you mean --file?"],
      [["mount", "-o", "noatmie", "/x", "/y"], "Did you mean noatime?"],
      [["mount", "-o", "direct_grup=disk", "/x", "/y"], "Did you mean direct_group?"],
    ] as const) {
      expect((await cli(args)).stderr).toContain(meant);
    }
    expect((await cli(["mount", "-o", "frobnicate", "/x", "/y"])).stderr).not.toContain("Did you mean");
  });

  test("an unknown mount option is named", async () => {
    expect((await cli(["mount", "-o", "ro,frobnicate=7", "/x", "/y"])).stderr).toContain("'frobnicate=7'");
  });
});

describe("failures exit 1 and say what to do", () => {
  test.each([
    ["mount of a region that does not exist", ["mount", "/no/such/region", "/mnt"], "mkfs"],
    ["unmount where nothing is mounted", ["unmount", "/"], "findmnt"],
    ["info of nothing", ["info", "/no/such/path"], "region"],
    ["extents of a file elsewhere", ["extents", "/etc/passwd"], "not on a mapdirect mount"],
    ["leases of a place elsewhere", ["leases", "/"], "not on a mapdirect mount"],
    ["prepare of a file elsewhere", ["prepare", "/dev/null"], "not on a mapdirect mount"],
    ["mkfs in a directory that does not exist", ["mkfs", "/no/such/dir/region"], "/no/such/dir"],
  ])("%s", async (_, args, hint) => {
    const { code, stdout, stderr } = await cli(args);
    expect(stderr).toMatch(MESSAGE);
    expect(stderr).toContain(hint);
    expect(stdout).toBe("");
    expect(code).toBe(1);
  });

  test("mount on a missing directory, on a file, or of a region without a file system", async () => {
    const region = join(folder, "blank");
    await writeFile(region, "");
    await truncate(region, 16 * 1024 * 1024);
    const mountpoint = join(folder, "mountpoint");
    const missingPoint = await cli(["mount", region, mountpoint]);
    expect(missingPoint).toMatchObject({ code: 1, stderr: expect.stringContaining("mkdir") });
    const onFile = await cli(["mount", region, region]);
    expect(onFile).toMatchObject({ code: 1, stderr: expect.stringContaining("not a directory") });
    await mkdir(mountpoint);
    const blank = await cli(["mount", region, mountpoint]);
    expect(blank).toMatchObject({ code: 1, stderr: expect.stringContaining("mapdirect mkfs") });
    expect(blank.stderr).toMatch(MESSAGE);
  });
});

describe("mkfs", () => {
  test("creates a sparse file that only its owner may open, of the size asked for", async () => {
    const region = join(folder, "new");
    const { code, stdout } = await cli(["mkfs", "--size", "256M", "--label", "scratch", region]);
    expect(code).toBe(0);
    expect(stdout).toContain("256 MiB");
    const { size, blocks, mode } = await stat(region);
    expect(size).toBe(256 * 1024 ** 2);
    expect(blocks * 512).toBeLessThan(16 * 1024 ** 2);
    expect(mode & 0o777).toBe(0o600);
    const info = await cli(["info", "--json", region]);
    expect(JSON.parse(info.stdout)).toMatchObject({ label: "scratch", block_size: 4096, mountpoint: null });
  });

  test("refuses to overwrite its own file system without --force, and names it", async () => {
    const region = join(folder, "own");
    expect((await cli(["mkfs", "--size", "16M", "--label", "precious", region])).code).toBe(0);
    const before = await readFile(region);
    const refused = await cli(["mkfs", region]);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(MESSAGE);
    expect(refused.stderr).toMatch(/precious.*--force/);
    expect(before.equals(await readFile(region))).toBe(true);
    expect((await cli(["mkfs", "--force", region])).code).toBe(0);
  });

  test("refuses to overwrite an ext4 file system without --force", async ({ skip }) => {
    const lacking = missing("mkfs.ext4");
    if (lacking !== undefined) skip(lacking);
    const region = join(folder, "ext4");
    await writeFile(region, "");
    await truncate(region, 16 * 1024 ** 2);
    expect((await run("mkfs.ext4", ["-q", region])).code).toBe(0);
    const refused = await cli(["mkfs", region]);
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringMatching(/ext.*--force/) });
    expect((await cli(["mkfs", "--force", region])).code).toBe(0);
  });

  test("refuses what only blkid knows", async ({ skip }) => {
    const lacking = missing("blkid");
    if (lacking !== undefined) skip(lacking);
    const region = join(folder, "minix");
    await writeFile(region, "");
    await truncate(region, 16 * 1024 ** 2);
    if (missing("mkfs.minix") !== undefined) skip("mkfs.minix is not installed");
    expect((await run("mkfs.minix", [region])).code).toBe(0);
    expect(await cli(["mkfs", region])).toMatchObject({ code: 1, stderr: expect.stringContaining("minix") });
  });

  test("an existing file keeps its size; with --force it grows; it is never cut", async () => {
    const region = join(folder, "grow");
    await writeFile(region, "");
    await truncate(region, 16 * 1024 ** 2);
    expect((await cli(["mkfs", region])).code).toBe(0);
    expect((await stat(region)).size).toBe(16 * 1024 ** 2);
    expect(await cli(["mkfs", "--size", "32M", region])).toMatchObject({ code: 1 });
    expect((await cli(["mkfs", "--size", "32M", "--force", region])).code).toBe(0);
    expect((await stat(region)).size).toBe(32 * 1024 ** 2);
    expect(await cli(["mkfs", "--size", "16M", "--force", region])).toMatchObject({ code: 1 });
    expect((await stat(region)).size).toBe(32 * 1024 ** 2);
  });

  test.each([
    ["a block size that is no power of two", ["--block-size", "5000"]],
    ["a block size below a page", ["--block-size", "512"]],
    ["a region that is too small", ["--size", "64K"]],
    ["a label that is too long", ["--label", "x".repeat(65)]],
  ])("%s fails and leaves no file", async (_, args) => {
    const region = join(folder, "never");
    const { code, stderr } = await cli(["mkfs", ...args, region]);
    expect(code).toBe(2);
    expect(stderr).toMatch(MESSAGE);
    await expect(stat(region)).rejects.toMatchObject({ code: "ENOENT" });
  });

  test("a file that is too small for a region is said to be one, and stays as it is", async () => {
    const file = join(folder, "letter");
    await writeFile(file, "not a region at all");
    for (const args of [[], ["--force"]]) {
      const { code, stderr } = await cli(["mkfs", ...args, file]);
      expect(stderr).toMatch(MESSAGE);
      expect(stderr).toContain("a file of 19 bytes, too small for a region");
      expect(code).toBe(1);
    }
    expect(await readFile(file, "utf8")).toBe("not a region at all");
    expect((await cli(["info", file])).stderr).toContain("fewer than any region");
  });

  test("a region that another process has locked is refused", async ({ skip }) => {
    const lacking = missing("flock");
    if (lacking !== undefined) skip(lacking);
    const region = join(folder, "locked");
    expect((await cli(["mkfs", "--size", "16M", region])).code).toBe(0);
    const nested = ["-x", region, process.execPath, "dist/bin/mapdirect.js", "mkfs", "--force", region];
    expect(await run("flock", nested)).toMatchObject({ code: 1, stderr: expect.stringContaining("in use") });
  });

  test("a damaged volume is told from none", async () => {
    const region = join(folder, "damaged");
    expect((await cli(["mkfs", "--size", "16M", region])).code).toBe(0);
    const file = await open(region, "r+");
    for (const offset of [0, 65536]) await file.write(Buffer.from([0xff]), 0, 1, offset + 100);
    await file.close();
    const { code, stderr } = await cli(["info", region]);
    expect(code).toBe(1);
    expect(stderr).toMatch(MESSAGE);
    expect(stderr).toContain("damaged");
  });
});
