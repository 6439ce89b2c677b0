/** The packages as users get them: built from this tree, installed, used, and removed again. */
import { existsSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { missing, notRoot, run, succeed } from "../support/run.ts";
import { CleanRoot, cleanRootUnavailable } from "./clean-root.ts";

const PATIENCE_MS = 900_000;

function scratch(): string {
  const folder = mkdtempSync(folderPrefix("/dev/shm"));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

async function cleanRoot(): Promise<CleanRoot> {
  const root = new CleanRoot();
  onTestFinished(() => root.dispose());
  await root.begin();
  return root;
}

/** `npm pack` of this tree, with or without what is built in advance; what was there of that is put back. */
async function pack(folder: string, prebuilt: boolean): Promise<string> {
  const prebuilds = join(packageRoot, "prebuilds");
  const aside = join(packageRoot, ".cache", `prebuilds-${process.pid}`);
  const found = existsSync(prebuilds);
  if (found) renameSync(prebuilds, aside);
  const options = { cwd: packageRoot, timeoutMs: 500_000 };
  try {
    if (prebuilt) await succeed("npm", ["run", "prebuilds"], options);
    const packed = await succeed("npm", ["pack", "--ignore-scripts", "--pack-destination", folder], options);
    return join(folder, packed.trim().split("\n").at(-1) ?? "");
  } finally {
    rmSync(prebuilds, { recursive: true, force: true });
    if (found) renameSync(aside, prebuilds);
  }
}

/** What is done with every installation: a volume, a file, its blocks. `mapdirect` is on PATH. */
const USE = `
  mapdirect --version
  mapdirect mkfs --size 32M /tmp/volume
  mkdir -p /tmp/mnt
  mapdirect mount /tmp/volume /tmp/mnt
  echo content > /tmp/mnt/file
  mapdirect prepare --length 8192 /tmp/mnt/file
  mapdirect extents /tmp/mnt/file | grep -q written
  mapdirect unmount /tmp/mnt
  mapdirect fsck /tmp/volume`;

/** The package used from a program: the API, a direct mapping, and the FUSE binding. */
const PROGRAM = `
import { mapDirect, mkfs, mount, open } from "mapdirect";
import { FsError, mount as mountOwn } from "mapdirect/fuse";
import { mkdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
mkdirSync("/tmp/api");
await mkfs("/tmp/api-volume", { sizeBytes: 32 << 20 });
const mounted = await mount("/tmp/api-volume", "/tmp/api");
const file = await open("/tmp/api/file", "w+");
await file.handle.truncate(8192);
const mapping = await mapDirect(file);
mapping.buffer.write("mapped");
console.log((await readFile("/tmp/api/file")).toString("latin1", 0, 6));
await mapping.release();
await file.close();
await mounted.unmount();
const own = await mountOwn({
  lookup() { throw new FsError("ENOENT"); },
  getattr: ({ nodeid }) => ({ ino: nodeid, mode: 0o040755 }),
}, "/tmp/api");
await own.unmount();
console.log("done");
`;

test.skipIf(notRoot !== undefined)(
  `the npm package compiles itself where there is a compiler, and its types are those of its programs${notRoot ? ` (${notRoot})` : ""}`,
  async () => {
    const folder = scratch();
    const tarball = await pack(folder, false);
    await writeFile(join(folder, "package.json"), '{"type": "module"}');
    const install = ["install", "--no-audit", "--no-fund", "--omit=optional", "--prefer-offline", tarball];
    await succeed("npm", install, { cwd: folder, timeoutMs: 600_000 });
    await writeFile(
      join(folder, "program.mts"),
      `${PROGRAM}\nconst text: string = file.handle.constructor.name;\nvoid text;\n`,
    );
    const tsc = join(packageRoot, "node_modules/.bin/tsc");
    const flags = [
      "--noEmit",
      "--strict",
      "--target",
      "es2023",
      "--module",
      "nodenext",
      "--skipLibCheck",
      "--types",
      "node",
    ];
    await succeed(tsc, [...flags, "--typeRoots", join(packageRoot, "node_modules/@types"), "program.mts"], {
      cwd: folder,
    });
    await writeFile(join(folder, "program.mjs"), PROGRAM.replaceAll("/tmp/api", join(folder, "api")));
    const said = await succeed(process.execPath, ["program.mjs"], { cwd: folder });
    expect(said).toBe("mapped\ndone\n");
  },
  PATIENCE_MS,
);

test(
  "the npm package installs and works without a compiler where a prebuilt addon matches, and says what is missing where none does",
  async ({ skip }) => {
    const reason = await cleanRootUnavailable();
    if (reason !== null) skip(reason);
    const folder = scratch();
    const cache = join(folder, "cache");
    await writeFile(join(folder, "package.json"), "{}");
    // What it depends on, for a machine that may have no way to the registry.
    const { dependencies } = JSON.parse(await readFile(join(packageRoot, "package.json"), "utf8")) as {
      dependencies: Record<string, string>;
    };
    const wanted = Object.entries(dependencies).map(([name, version]) => `${name}@${version}`);
    const fill = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", cache, ...wanted];
    await succeed("npm", fill, { cwd: folder, timeoutMs: 300_000 });
    const root = await cleanRoot();
    await root.addNode();
    expect((await root.run("command -v cc gcc g++ make python3")).code).not.toBe(0);
    await mkdir(root.at("app"));
    await succeed("cp", ["-a", cache, root.at("cache")]);
    await writeFile(root.at("app/package.json"), '{"type": "module"}');
    await writeFile(root.at("app/program.mjs"), PROGRAM);
    const install =
      "cd /app && npm install --offline --no-audit --no-fund --omit=optional --cache /cache /package.tgz";

    await copyFile(await pack(folder, false), root.at("package.tgz"));
    const refused = await root.run(install);
    expect(refused.code).not.toBe(0);
    expect(refused.stderr).toMatch(
      /nothing is prebuilt for linux-\w+, and to compile it g\+\+, make, python3 are missing/,
    );

    await copyFile(await pack(folder, true), root.at("package.tgz"));
    const done =
      await root.run(`${install}\nexport PATH=/app/node_modules/.bin:$PATH\n${USE}\ncd /app && node program.mjs
    ls node_modules/mapdirect/dist/lib`);
    expect(done, done.stdout + done.stderr).toMatchObject({ code: 0 });
    expect(done.stdout).toMatch(
      /mapped\ndone\nlibmapdirect.so\nlibmapdirect.so.0\nlibmapdirect_preload.so\n$/,
    );
  },
  PATIENCE_MS,
);

const C_PROGRAM = `
#include <mapdirect.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv) {
  int fd = open(argv[argc - 1], O_RDWR | O_CREAT, 0644);
  if (fd < 0 || ftruncate(fd, 8192) != 0 || mapdirect_prepare(fd, 0, 8192) != 0) return perror("prepare"), 1;
  char *data = mapdirect_map(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE, fd, 0, MAPDIRECT_SEAL);
  if (data == MAP_FAILED) return perror("map"), 1;
  strcpy(data, "from C");
  if (ftruncate(fd, 0) == 0) return 2;
  return mapdirect_unmap(data, 8192) != 0;
}`;

const PYTHON_PROGRAM = `
import errno, os, sys
import mapdirect
with open(sys.argv[1], "w+b") as file:
    file.truncate(8192)
    with mapdirect.map(file, lease="seal") as mapping:
        mapping.buffer[:11] = b"from Python"
        try:
            os.truncate(sys.argv[1], 0)
        except OSError as error:
            assert error.errno == errno.ETXTBSY
        else:
            raise AssertionError("not sealed")
`;

test(
  "the Debian packages install, are used through command, library, mount(8), unit and Python, and leave nothing when they are removed",
  async ({ skip }) => {
    const reason =
      (await cleanRootUnavailable()) ?? missing("dpkg-shlibdeps", "dpkg-deb", "cc", "pkg-config");
    if (reason !== null && reason !== undefined) skip(reason);
    const packages = join(packageRoot, "dist-packages");
    const before = existsSync(packages);
    onTestFinished(() => {
      if (!before) rmSync(packages, { recursive: true, force: true });
    });
    const built = await run("npm", ["run", "package:deb"], { cwd: packageRoot, timeoutMs: 500_000 });
    expect(built, built.stdout + built.stderr).toMatchObject({ code: 0 });
    const named = (start: string): string =>
      readdirSync(packages).find((name) => name.startsWith(start)) ?? "";
    const file = named("mapdirect_");
    const folder = scratch();
    await succeed("dpkg-deb", ["-x", join(packages, file), folder]);
    await writeFile(join(folder, "program.c"), C_PROGRAM);
    const triplet = (await succeed("dpkg-architecture", ["-qDEB_HOST_MULTIARCH"])).trim();
    const found = await succeed("pkg-config", ["--cflags", "--libs", "mapdirect"], {
      env: {
        PKG_CONFIG_PATH: join(folder, "usr/lib", triplet, "pkgconfig"),
        PKG_CONFIG_SYSROOT_DIR: folder,
        PKG_CONFIG_ALLOW_SYSTEM_CFLAGS: "1",
        PKG_CONFIG_ALLOW_SYSTEM_LIBS: "1",
      },
    });
    await succeed("cc", [
      join(folder, "program.c"),
      ...found.trim().split(/\s+/),
      "-o",
      join(folder, "program"),
    ]);

    const root = await cleanRoot();
    await copyFile(join(packages, file), root.at("package.deb"));
    await copyFile(join(folder, "program"), root.at("usr/local/bin/program"));
    const list =
      "find / -xdev \\( -path /proc -o -path /dev -o -path /tmp -o -path '/var/*' -o -path '/etc/ld.so.cache' \\) -prune -o -print | sort";
    const clean = (await root.run(list)).stdout;

    const early = await root.run("dpkg -i /package.deb && mapdirect --version");
    expect(early.code).toBe(1);
    expect(early.stderr).toMatch(/no Node.js 20 or newer was found/);
    expect(early.stderr).toMatch(/Node.js 20 or newer is needed, none was found; install one/);

    await copyFile(process.execPath, root.at("usr/local/bin/node"));
    const used = await root.run(`${USE}
    mount -t fuse.mapdirect -o noatime /tmp/volume /tmp/mnt
    program /tmp/mnt/from-c && grep -c 'from C' /tmp/mnt/from-c
    umount /tmp/mnt
    grep -q ExecStart /usr/lib/systemd/system/mapdirect@.service
    test -f /usr/share/doc/mapdirect/examples/60-mapdirect.rules
    gzip -dc /usr/share/man/man1/mapdirect.1.gz | grep -q SYNOPSIS
    gzip -dc /usr/share/man/man8/mount.fuse.mapdirect.8.gz | grep -q break_time
    test -s /usr/share/bash-completion/completions/mapdirect
    dpkg --verify mapdirect`);
    expect(used, used.stdout + used.stderr).toMatchObject({ code: 0 });
    expect(used.stdout).toMatch(/\n1\n$/);

    rmSync(root.at("usr/local/bin/node"));
    // Mounts of this machine's other tests can be seen from there, too.
    const alone = { MAPDIRECT_MOUNTS: "/dev/null" };
    const removed = await root.run("dpkg --purge mapdirect", alone);
    expect(removed, removed.stderr).toMatchObject({ code: 0 });
    expect((await root.run(list)).stdout).toBe(clean);

    // The module for Python: in a root that has one by now.
    const fetched = await root.run(
      "apt-get update -q && apt-get install -qy --no-install-recommends python3",
    );
    expect(fetched, fetched.stderr).toMatchObject({ code: 0 });
    const cleanWithPython = (await root.run(list)).stdout;
    await copyFile(process.execPath, root.at("usr/local/bin/node"));
    await copyFile(join(packages, named("python3-mapdirect_")), root.at("python.deb"));
    await writeFile(root.at("tmp/program.py"), PYTHON_PROGRAM);
    const module = await root.run(`dpkg -i /package.deb /python.deb
    mapdirect mkfs --size 32M /tmp/volume-of-python
    mapdirect mount /tmp/volume-of-python /tmp/mnt
    python3 /tmp/program.py /tmp/mnt/from-python && grep -c 'from Python' /tmp/mnt/from-python
    mapdirect unmount /tmp/mnt
    ls /usr/lib/python3/dist-packages/mapdirect/__pycache__
    dpkg --verify python3-mapdirect`);
    expect(module, module.stdout + module.stderr).toMatchObject({ code: 0 });
    expect(module.stdout).toMatch(/\n1\n__init__\.cpython-\d+\.pyc\n$/);
    rmSync(root.at("usr/local/bin/node"));
    const purged = await root.run("dpkg --purge python3-mapdirect mapdirect", alone);
    expect(purged, purged.stderr).toMatchObject({ code: 0 });
    rmSync(root.at("python.deb"));
    expect((await root.run(list)).stdout).toBe(cleanWithPython);
    expect(statSync(join(packages, file)).size).toBeLessThan(20 << 20);
  },
  PATIENCE_MS,
);
