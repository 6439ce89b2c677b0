/** Copies of volumes in use. test/space/copy-before-write.test.ts has what is set aside, and when. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, onTestFinished, test } from "vitest";
import { mapDirect } from "../../src/api/index.ts";
import { viewOf } from "../../src/layout/struct.ts";
import * as wire from "../../src/lease/wire.ts";
import { addon } from "../../src/region/addon.ts";
import { type TestMount, withMount } from "../support/mount.ts";
import { cli, OTHER_UID, programPath, run, succeed } from "../support/run.ts";

const MIB = 1 << 20;
const FILES = 8;
const isRoot = process.getuid?.() === 0;

/**
 * Writes generation after generation into files of its own, file by file, renaming and making others on the way, until its
 * input ends: at every moment there is one file up to which the newer generation has come.
 */
const writer = `
  const fs = require("node:fs");
  const folder = process.argv[1];
  const at = (name) => folder + "/" + name;
  const open = Array.from({ length: ${FILES} }, (_, index) => fs.openSync(at("file-" + index), "w+"));
  let going = true;
  process.stdin.resume().on("end", () => (going = false));
  const round = (generation) => {
    const bytes = Buffer.alloc(256 * 1024, String(generation).padStart(8, "0"));
    for (const descriptor of open) fs.writeSync(descriptor, bytes, 0, bytes.length, 0);
    fs.writeFileSync(at("new"), String(generation));
    fs.renameSync(at("new"), at("last"));
    if (generation === 3) process.stdout.write("going\\n");
    if (going) setImmediate(round, generation + 1);
    else process.stdout.write(String(generation));
  };
  round(1);
`;

async function startWriter(folder: string): Promise<{ child: ChildProcess; stop: () => Promise<number> }> {
  const child = spawn(process.execPath, ["-e", writer, folder], { stdio: ["pipe", "pipe", "inherit"] });
  onTestFinished(() => void child.kill("SIGKILL"));
  child.stdout.setEncoding("utf8");
  let said = "";
  child.stdout.on("data", (part: string) => {
    said += part;
  });
  while (!said.includes("going\n")) await once(child.stdout, "data");
  return {
    child,
    stop: async () => {
      child.stdin.end();
      await once(child, "close");
      return Number(said.split("\n")[1]);
    },
  };
}

/** Mount another region beside the first, look at it, and put it away. */
async function withCopy(
  mount: TestMount,
  region: string,
  look: (path: string) => void | Promise<void>,
): Promise<void> {
  const path = join(mount.folder, "copy-mnt");
  mkdirSync(path, { recursive: true });
  expect(await mount.cli("fsck", region)).toMatchObject({ code: 0 });
  const mounted = await mount.cli("mount", "--log", "none", "-o", "nouuid", region, path);
  expect(mounted, mounted.stderr).toMatchObject({ code: 0 });
  try {
    await mount.cli("check", path).then((result) => expect(result, result.stderr).toMatchObject({ code: 0 }));
    await look(path);
  } finally {
    await mount.cli("unmount", path);
  }
}

/** What the writer had done at one moment: the newest generation, and how far it had come. */
function momentOf(folder: string): { newest: number; last: number } {
  const generations = Array.from({ length: FILES }, (_, index) => {
    const bytes = readFileSync(join(folder, `file-${index}`));
    expect(bytes.length).toBe(256 * 1024);
    const generation = Number(bytes.subarray(0, 8).toString());
    expect(bytes.equals(Buffer.alloc(bytes.length, String(generation).padStart(8, "0")))).toBe(true);
    return generation;
  });
  const newest = generations[0] as number;
  const come = generations.findIndex((generation) => generation !== newest);
  if (come >= 0) for (const older of generations.slice(come)) expect(older).toBe(newest - 1);
  const last = Number(readFileSync(join(folder, "last"), "utf8"));
  expect(newest - last).toBeLessThanOrEqual(1);
  if (come >= 0) expect(last).toBe(newest - 1);
  return { newest, last };
}

for (const assumePmem of [false, true]) {
  test(`a volume in use is copied as it was at one moment (${assumePmem ? "pmem" : "page cache"})`, async () => {
    await withMount({ sizeBytes: 512 * MIB, assumePmem }, async (mount) => {
      const ballast = Buffer.alloc(4 * MIB, "ballast ");
      for (let index = 0; index < 20; index += 1) writeFileSync(mount.at(`ballast-${index}`), ballast);
      const folder = await mount.fresh();
      const running = await startWriter(folder);
      const copies = [1, 2].map((number) => join(mount.folder, `copy-${number}`));
      for (const copy of copies) {
        const taken = await mount.cli("snapshot", mount.path, copy);
        expect(taken, taken.stderr).toMatchObject({ code: 0 });
        expect(taken.stdout).toMatch(/copy-\d: 512 MiB, of which [89]\d(\.\d)? MiB were copied\n$/);
        expect(statSync(copy).mode & 0o777).toBe(0o600);
        // Free space takes none.
        expect(statSync(copy).blocks * 512).toBeLessThan(120 * MIB);
      }
      const end = await running.stop();
      await mount.check();
      let before = 3;
      for (const copy of copies) {
        await withCopy(mount, copy, (path) => {
          const { newest, last } = momentOf(join(path, folder.slice(mount.path.length)));
          expect(newest).toBeGreaterThanOrEqual(before);
          expect(last).toBeLessThanOrEqual(end);
          before = newest;
          for (let index = 0; index < 20; index += 1)
            expect(readFileSync(join(path, `ballast-${index}`)).equals(ballast)).toBe(true);
        });
      }
      // What went on all the while came to no harm.
      expect(momentOf(folder)).toEqual({ newest: end, last: end });
    });
  });
}

test("a volume that is not mounted is copied, and what stands in the way is named", async () => {
  await withMount({}, async (mount) => {
    writeFileSync(mount.at("file"), "content");
    const copy = join(mount.folder, "copy");
    const within = await mount.cli("snapshot", mount.path, mount.at("copy"));
    expect(within.code).toBe(2);
    expect(within.stderr).toContain("a copy of itself");
    const none = await mount.cli("snapshot", mount.folder, copy);
    expect(none.stderr).toContain("no volume is mounted there");
    await mount.unmount();
    expect(await mount.cli("snapshot", mount.region, copy)).toMatchObject({ code: 0 });
    const again = await mount.cli("snapshot", mount.region, copy);
    expect(again).toMatchObject({ code: 1, stdout: "" });
    expect(again.stderr).toBe(`mapdirect: ${copy}: it exists already; name a file that does not\n`);
    await withCopy(mount, copy, (path) => expect(readFileSync(join(path, "file"), "utf8")).toBe("content"));
    await mount.mount();
    // By its region it is found as well when it is mounted.
    const other = join(mount.folder, "other");
    expect(await mount.cli("snapshot", mount.region, other)).toMatchObject({ code: 0 });
    await withCopy(mount, other, (path) => expect(readdirSync(path)).toEqual(["file"]));
  });
});

test("a copy that is interrupted leaves no file, and the volume as it was", async () => {
  await withMount({ sizeBytes: 1024 * MIB }, async (mount) => {
    for (let index = 0; index < 64; index += 1)
      writeFileSync(mount.at(`file-${index}`), Buffer.alloc(8 * MIB, 1 + index));
    const copy = join(mount.folder, "copy");
    const child = spawn(process.execPath, [programPath, "snapshot", mount.path, copy], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    onTestFinished(() => void child.kill("SIGKILL"));
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (part: string) => {
      said += part;
    });
    while (!readdirSync(mount.folder).some((name) => name.startsWith("copy.partial-"))) await sleep(1);
    child.kill("SIGINT");
    const [code] = await once(child, "close");
    expect(said).toContain("interrupted");
    expect(code).toBe(1);
    expect(readdirSync(mount.folder).sort()).toEqual(["mnt", "region"]);
    await mount.check();
    expect(await mount.cli("snapshot", mount.path, copy)).toMatchObject({ code: 0 });
  });
});

/** One step of a snapshot as its client takes it. */
function step(descriptor: number, number: number): ReturnType<typeof wire.WireSnapshot.decode> {
  const buffer = new Uint8Array(wire.WIRE_SNAPSHOT_BYTES);
  wire.WireSnapshot.encode(viewOf(buffer), 0, { version: wire.WIRE_VERSION, step: number });
  addon().ioctl(descriptor, wire.Ioctl.SNAPSHOT, buffer);
  return wire.WireSnapshot.decode(viewOf(buffer), 0);
}

test("what is mapped directly is copied only by wish, and what is copied is mapped only afterwards", async () => {
  await withMount({}, async (mount) => {
    const path = mount.at("file");
    writeFileSync(path, Buffer.alloc(MIB, 1));
    const copy = join(mount.folder, "copy");
    const mapping = await mapDirect(path, { lease: "seal" });
    const refused = await mount.cli("snapshot", mount.path, copy);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(
      /files are mapped directly.*; end that \(see 'mapdirect leases .*--mapped\n$/,
    );
    expect(existsSync(copy)).toBe(false);
    mapping.buffer.fill(2);
    expect(await mount.cli("snapshot", "--mapped", mount.path, copy)).toMatchObject({ code: 0 });
    await mapping.release();
    await withCopy(mount, copy, (at) =>
      expect(readFileSync(join(at, "file")).equals(Buffer.alloc(MIB, 2))).toBe(true),
    );

    const descriptor = openSync(mount.path, "r");
    let open = true;
    onTestFinished(() => {
      if (open) closeSync(descriptor);
    });
    step(descriptor, wire.SnapshotStep.BEGIN);
    const second = await mount.cli("snapshot", mount.path, join(mount.folder, "second"));
    expect(second.stderr).toContain("another snapshot of it is being taken");
    // Nobody copies: a grant waits for a while, and no longer.
    await expect(mapDirect(path, { lease: "seal" })).rejects.toMatchObject({ code: "EAGAIN" });
    const waiting = mapDirect(path, { lease: "seal" });
    while ((step(descriptor, wire.SnapshotStep.NEXT).flags & wire.SnapshotFlag.DONE) === 0) await sleep(1);
    await (await waiting).release();

    // Whoever took it is gone: nobody waits any more.
    const other = openSync(mount.path, "r");
    try {
      step(other, wire.SnapshotStep.BEGIN);
    } finally {
      closeSync(other);
    }
    await (await mapDirect(path, { lease: "seal" })).release();
    closeSync(descriptor);
    open = false;
  });
});

test.skipIf(!isRoot)("a snapshot is for root and whoever mounted (skipped unless root)", async () => {
  await withMount({}, async (mount) => {
    const refused = await cli(["snapshot", mount.path, join(mount.folder, "copy")], { user: OTHER_UID });
    expect(refused.code).toBe(1);
    // The region is not theirs to read in the first place.
    expect(refused.stderr).toMatch(/may not be opened|for root and whoever mounted/);
  });
  await withMount({ user: OTHER_UID }, async (mount) => {
    writeFileSync(join(mount.folder, "outside"), "");
    await succeed("sh", ["-c", `echo content > ${mount.at("file")}`], { user: OTHER_UID });
    const copy = join(mount.folder, "copy");
    expect(await mount.cli("snapshot", mount.path, copy)).toMatchObject({ code: 0 });
    expect(statSync(copy).uid).toBe(OTHER_UID);
    expect(await mount.cli("fsck", copy)).toMatchObject({ code: 0 });
  });
});

test.skipIf(!isRoot)(
  "a full disk is told from other trouble, and no file is left (skipped unless root)",
  async () => {
    await withMount({}, async (mount) => {
      writeFileSync(mount.at("file"), Buffer.alloc(16 * MIB, 1));
      const small = join(mount.folder, "small");
      mkdirSync(small);
      await succeed("mount", ["-t", "tmpfs", "-o", "size=8m", "tmpfs", small]);
      try {
        const refused = await mount.cli("snapshot", mount.path, join(small, "copy"));
        expect(refused.code).toBe(1);
        expect(refused.stderr).toBe(`mapdirect: copy: no space left for the copy; make room in ${small}\n`);
        expect(readdirSync(small)).toEqual([]);
      } finally {
        await run("umount", [small]);
      }
    });
  },
);
