/** Programs that know nothing of mapdirect, each with a check of its own of what it did. */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { useMount } from "../support/mount.ts";
import { missing, run, succeed } from "../support/run.ts";

const mount = useMount({ sizeBytes: 256 * 1024 * 1024 });

/** A tree with everything that copying tools must keep: modes, times, links, holes, empty and odd names. */
async function sampleTree(folder: string): Promise<string> {
  const tree = join(folder, "tree");
  const script = `
    mkdir -p "$1/sub/deep" && cd "$1" && cp -r "$2/src" "$2/docs" . &&
    echo text > a && ln a b && ln -s ../a sub/link && ln -s /nowhere dangling && truncate -s 10M sparse &&
    printf x | dd of=sparse bs=1 seek=5000000 conv=notrunc status=none && : > empty && mkdir void &&
    chmod 640 a && chmod 2750 sub && touch -d '2001-02-03 04:05:06.789' empty sub/deep &&
    seq 200000 > numbers && echo odd > 'name with
newline'`;
  await succeed("sh", ["-c", script, "sh", tree, packageRoot]);
  return tree;
}

const picture = (folder: string): Promise<string> =>
  succeed("sh", [
    "-c",
    `cd "$1" && find . ! -type d -printf '%P %m %n %s %l %T@\\0' -o -printf '%P %m %T@\\0' | sort -z | tr '\\0' '\\n' &&
     find . -type f -print0 | sort -z | xargs -0 md5sum`,
    "sh",
    folder,
  ]);

describe("copying tools", () => {
  test.for([
    ["cp -a", ["cp"], (from: string, to: string) => ["cp", "-a", "--sparse=auto", from, to]],
    [
      "rsync",
      ["rsync"],
      (from: string, to: string) => ["rsync", "-aHAX", "--modify-window=-1", `${from}/`, `${to}/`],
    ],
    [
      "tar",
      ["tar"],
      (from: string, to: string) => [
        "sh",
        "-c",
        'mkdir "$2" && tar -C "$1" --format=posix -cSpf "$2.tar" . && tar -C "$2" -xSpf "$2.tar" && rm "$2.tar"',
        "sh",
        from,
        to,
      ],
    ],
  ] as [string, string[], (from: string, to: string) => string[]][])(
    "%s copies a tree that compares equal, there and back",
    async ([_, tools, command], { skip }) => {
      const lacking = missing(...tools);
      if (lacking !== undefined) skip(lacking);
      const folder = await mount.fresh();
      const outside = await sampleTree(mount.folder + folder.slice(mount.path.length));
      const expected = await picture(outside);
      for (const [from, to] of [
        [outside, join(folder, "in")],
        [join(folder, "in"), join(folder, "within")],
        [join(folder, "within"), `${outside}-back`],
      ] as const) {
        const [file, ...args] = command(from, to);
        await succeed(file as string, args);
        expect(await picture(to)).toBe(expected);
      }
      await mount.remount();
      expect(await picture(join(folder, "within"))).toBe(expected);
    },
  );

  test("find and du agree with what is there", async () => {
    const folder = await mount.fresh();
    await sampleTree(folder);
    const found = (await succeed("find", [folder])).split("\n").length;
    expect(found).toBeGreaterThan(20);
    const used = Number((await succeed("du", ["-s", "--block-size=1", folder])).split("\t")[0]);
    expect(used).toBeLessThan(9 * 1024 * 1024);
    await succeed("rm", ["-r", folder]);
  });
});

describe("git", () => {
  test("clones, commits, repacks, and fsck finds nothing", async ({ skip }) => {
    const lacking = missing("git");
    if (lacking !== undefined) skip(lacking);
    const folder = await mount.fresh();
    const script = `
      set -e; cd "$1"; export HOME="$1" GIT_CONFIG_NOSYSTEM=1
      git config --global user.email t@example.org; git config --global user.name t
      git init -q origin; cd origin; cp -r "$2/src" .; git add -A; git commit -qm one
      for i in $(seq 20); do echo $i >> src/base/errno.ts; git commit -qam "change $i"; done
      cd ..; git clone -q origin copy; cd copy; git checkout -q -b branch HEAD~5; git merge -q master 2>/dev/null || git merge -q main
      git gc -q; git fsck --full --strict; test -z "$(git status --porcelain)"; git log --oneline | wc -l`;
    const { code, stdout, stderr } = await run("bash", ["-c", script, "bash", folder, packageRoot]);
    expect(code, stderr).toBe(0);
    expect(stdout.trim()).toBe("21");
  });
});

describe("npm", () => {
  test("packs and installs a package, offline", async () => {
    const folder = await mount.fresh();
    for (const name of ["tool", "user"]) await mkdir(join(folder, name));
    const write = (path: string, value: unknown) => writeFile(join(folder, path), JSON.stringify(value));
    await write("tool/package.json", {
      name: "tool",
      version: "1.0.0",
      main: "index.js",
      bin: { tool: "index.js" },
    });
    await writeFile(join(folder, "tool/index.js"), "#!/usr/bin/env node\nconsole.log('tool runs');\n");
    await write("user/package.json", { name: "user", version: "1.0.0" });
    const env = {
      npm_config_cache: join(folder, "cache"),
      npm_config_offline: "true",
      npm_config_loglevel: "error",
    };
    await succeed("npm", ["pack", "../tool"], { cwd: join(folder, "user"), env });
    await succeed("npm", ["install", "./tool-1.0.0.tgz"], { cwd: join(folder, "user"), env });
    expect(await succeed(join(folder, "user/node_modules/.bin/tool"), [])).toBe("tool runs\n");
  });
});

describe("SQLite", () => {
  test.for(["WAL", "DELETE"])(
    "in %s mode, two writers at once, keeps its integrity over a remount",
    async (mode, { skip }) => {
      const lacking = missing("python3");
      if (lacking !== undefined) skip(lacking);
      const folder = await mount.fresh();
      const database = join(folder, "test.db");
      const writer = [
        "import sqlite3, sys",
        "c = sqlite3.connect(sys.argv[1], timeout=30)",
        `c.execute("pragma journal_mode=${mode}")`,
        'c.execute("create table if not exists t(id integer primary key, who, v)")',
        "for i in range(200):",
        '  c.execute("insert into t(who, v) values(?, ?)", (sys.argv[2], "x" * (i * 13 % 2000))); c.commit()',
        "c.close()",
      ].join("\n");
      await succeed("python3", [
        "-c",
        `import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute("pragma journal_mode=${mode}"); c.execute("create table t(id integer primary key, who, v)"); c.commit()`,
        database,
      ]);
      await Promise.all(["a", "b"].map((who) => succeed("python3", ["-c", writer, database, who])));
      await mount.remount();
      const check = [
        "import sqlite3, sys",
        "c = sqlite3.connect(sys.argv[1])",
        'print(c.execute("pragma integrity_check").fetchone()[0], c.execute("select count(*) from t").fetchone()[0])',
      ].join("\n");
      expect((await succeed("python3", ["-c", check, database])).trim()).toBe("ok 400");
    },
  );
});

describe("fio", () => {
  test.for(["psync", "libaio", "mmap"])(
    "%s: what it wrote at random, it reads with the right checksums",
    async (engine, { skip }) => {
      const lacking = missing("fio");
      if (lacking !== undefined) skip(lacking);
      const folder = await mount.fresh();
      const { code, stdout, stderr } = await run("fio", [
        `--name=verify`,
        `--directory=${folder}`,
        `--ioengine=${engine}`,
        ...(engine === "libaio" ? ["--iodepth=8", "--direct=1"] : []),
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--blockalign=4k",
        "--size=16m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--do_verify=1",
        "--randseed=7",
        "--output-format=json",
      ]);
      expect(code, stderr + stdout).toBe(0);
      const report = JSON.parse(stdout.slice(stdout.indexOf("{"))) as {
        jobs: { error: number; read: { io_bytes: number } }[];
      };
      expect(report.jobs[0]?.error).toBe(0);
      expect(report.jobs[0]?.read.io_bytes).toBeGreaterThan(8 * 1024 * 1024);
    },
  );
});

test("locks of two processes exclude each other", async ({ skip }) => {
  const lacking = missing("flock", "python3");
  if (lacking !== undefined) skip(lacking);
  const folder = await mount.fresh();
  const path = join(folder, "counter");
  await writeFile(path, "0");
  const script = `for i in $(seq 25); do flock "$1" sh -c 'n=$(cat "$1"); echo $((n + 1)) > "$1"' sh "$1"; done`;
  await Promise.all([1, 2, 3].map(() => succeed("bash", ["-c", script, "bash", path])));
  expect((await readFile(path, "utf8")).trim()).toBe("75");
});
