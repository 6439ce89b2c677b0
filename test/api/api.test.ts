/** `import … from "mapdirect"`: mapping files from JavaScript, making and mounting volumes. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import fs, { closeSync, existsSync, openSync, readSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import {
  type BreakNotice,
  type DirectMapping,
  mapDirect,
  mkfs,
  mount as mountRegion,
  open,
} from "../../src/api/index.ts";
import { client } from "../../src/api/native.ts";
import { ask, asLeases, withOpen } from "../../src/daemon/client.ts";
import { mountAt } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { useMount } from "../support/mount.ts";
import { cli, noUserMount, OTHER_UID, run } from "../support/run.ts";

const PAGE = 4096;

const regions = [
  { name: "a page-cached region", assumePmem: false },
  { name: "a region of cache-line granularity", assumePmem: true },
];

test("a descriptor that is no number of 32 bits is refused, and not taken for another one", () => {
  for (const descriptor of [Number.NaN, 0.5, 2 ** 32, -(2 ** 31) - 1, Number.POSITIVE_INFINITY]) {
    expect(() => client().prepare(descriptor, 0, 0)).toThrow("EINVAL: descriptor");
  }
});

for (const { name, assumePmem } of regions) {
  describe(`mapDirect on ${name}`, () => {
    const mount = useMount({ options: "break_time=5", assumePmem });
    const leases = () => withOpen(mount.path, (descriptor) => asLeases(ask(descriptor, "LEASES")));

    async function fileOf(pages: number): Promise<string> {
      const path = join(await mount.fresh(), "file");
      await writeFile(path, Buffer.alloc(pages * PAGE, "a"));
      return path;
    }

    test("what is stored in the buffer is in the file and in the region at once, and durable after persist", async () => {
      const path = await fileOf(4);
      const file = await open(path);
      const mapping = await mapDirect(file, { lease: "seal" });
      await file.close();
      expect(mapping.buffer.length).toBe(4 * PAGE);
      expect(mapping.buffer.toString("latin1", 0, 4)).toBe("aaaa");
      mapping.buffer.write("stored", PAGE + 10);
      expect((await readFile(path)).toString("latin1", PAGE + 10, PAGE + 16)).toBe("stored");
      const { state, physical, leaseId, length } = mapping.locate(PAGE + 10);
      expect({ state, leaseId }).toEqual({ state: "written", leaseId: mapping.leaseId });
      expect(length).toBeGreaterThanOrEqual(PAGE - 10);
      const region = openSync(mount.region, "r");
      const seen = Buffer.alloc(6);
      readSync(region, seen, 0, 6, Number(physical));
      closeSync(region);
      expect(seen.toString()).toBe("stored");
      await mapping.persist(PAGE + 10, 6);
      await mapping.persist();
      mapping.persistSync(0, 1);
      expect(mapping.granularity).toBe(assumePmem ? "cacheline" : "page");
      expect(mapping.kind).toBe("seal");
      await expect(truncate(path, 0)).rejects.toMatchObject({ code: "ETXTBSY" });
      expect(leases().map(({ id }) => BigInt(id))).toEqual([mapping.leaseId]);
      await mapping.release();
      await truncate(path, 0);
    });

    test("a file that is cut before it is mapped is refused, and no page raises SIGBUS", async () => {
      const path = await fileOf(2);
      const looked = fs.fstat;
      onTestFinished(() => {
        fs.fstat = looked;
        syncBuiltinESMExports();
      });
      const before: unknown = { size: 4 * PAGE };
      fs.fstat = ((_fd: number, done: (error: null, status: unknown) => void) =>
        done(null, before)) as unknown as typeof fs.fstat;
      syncBuiltinESMExports();
      await expect(mapDirect(path, { prepare: false })).rejects.toThrow("a file that became smaller");
      expect(leases()).toEqual([]);
    });

    test("release empties the buffer and all its views, and may be called again", async () => {
      const path = await fileOf(2);
      const mapping = await mapDirect(path, { lease: "seal" });
      const view = mapping.buffer.subarray(10, 20);
      let released = 0;
      mapping.on("release", () => {
        released += 1;
      });
      const first = mapping.release();
      expect(mapping.buffer.length).toBe(0);
      expect(view.length).toBe(0);
      expect(mapping.released).toBe(true);
      await Promise.all([first, mapping.release()]);
      expect(released).toBe(1);
      expect(leases()).toEqual([]);
      await expect(mapping.persist()).rejects.toMatchObject({ code: "EBADF" });
      expect(() => mapping.locate(0)).toThrow("EBADF");
    });

    test("a conflict tells the mapping, which may still store, and then takes it away", async () => {
      const path = await fileOf(4);
      const mapping = await mapDirect(path, { lease: "breakable", offset: PAGE, length: 2 * PAGE });
      const notices: BreakNotice[] = [];
      mapping.on("break", (notice) => {
        notices.push(notice);
        mapping.buffer.write("last words");
        mapping.persistSync();
      });
      await truncate(path, 2 * PAGE);
      await mapping.release();
      expect(mapping.released).toBe(true);
      expect(mapping.buffer.length).toBe(0);
      expect(notices).toMatchObject([
        { reason: "conflict", offset: BigInt(2 * PAGE), length: BigInt(PAGE), leaseId: mapping.leaseId },
      ]);
      expect(notices[0]?.remainingMs).toBeGreaterThan(2000);
      expect((await readFile(path)).toString("latin1", PAGE, PAGE + 10)).toBe("last words");
    });

    test("a program that is busy through the whole break time is not struck by a signal", async () => {
      const path = await fileOf(2);
      const script = `
        import { mapDirect } from "mapdirect";
        import { spawn } from "node:child_process";
        const mapping = await mapDirect(process.argv[1], { lease: "breakable" });
        spawn("python3", ["-S", "-c", "import os, sys; os.truncate(sys.argv[1], 0)", process.argv[1]]);
        const until = Date.now() + 2500;
        let sum = 0;
        while (Date.now() < until) { mapping.buffer[5] = 7; sum += mapping.buffer[5]; }
        await new Promise((done) => mapping.on("release", done));
        console.log("alive", mapping.buffer.length);`;
      await cli(["unmount", mount.path]);
      await mount.mount("break_time=1");
      const { code, stdout, stderr } = await run(
        process.execPath,
        ["--input-type=module", "-e", script, path],
        { cwd: packageRoot },
      );
      expect({ code, stdout }, stderr).toEqual({ code: 0, stdout: "alive 0\n" });
      await mount.remount();
      expect((await stat(path)).size).toBe(0);
    });

    test("several mappings are broken one after the other, and one that is made during a break is refused", async () => {
      const path = await fileOf(8);
      const mappings = await Promise.all(
        [0, 2, 4].map((page) =>
          mapDirect(path, { lease: "breakable", offset: page * PAGE, length: 2 * PAGE }),
        ),
      );
      const told: number[] = [];
      for (const mapping of mappings) mapping.on("break", () => told.push(mapping.offset / PAGE));
      await truncate(path, 3 * PAGE);
      for (let tries = 0; tries < 500 && told.length < 2; tries += 1) await sleep(5);
      expect(told.sort()).toEqual([2, 4]);
      expect(mappings.map(({ released }) => released)).toEqual([false, true, true]);
      await expect(mapDirect(path, { lease: "breakable", length: PAGE })).rejects.toMatchObject({
        code: "EAGAIN",
      });
      await mappings[0]?.release();
    });

    test("the administrator may break a seal", async () => {
      const path = await fileOf(1);
      const mapping = await mapDirect(path, { lease: "seal" });
      const told = once(mapping, "break") as Promise<[BreakNotice]>;
      expect((await cli(["leases", "break", "--file", path])).code).toBe(0);
      expect((await told)[0].reason).toBe("administrator");
    });

    test("holes are prepared unless told otherwise, and then they can be told", async () => {
      const path = join(await mount.fresh(), "sparse");
      const file = await open(path, "w+");
      await file.handle.truncate(4 * PAGE);
      const bare = await file.map({ prepare: false });
      expect(bare.locate(PAGE)).toMatchObject({ state: "hole", physical: null });
      expect(bare.buffer[PAGE]).toBe(0);
      await bare.release();
      expect(file.extents().extents.every(({ state }) => state === "hole")).toBe(true);
      await file.prepare(0, PAGE);
      expect(file.extents().extents[0]).toMatchObject({ state: "written", length: BigInt(PAGE) });
      const mapping = await file.map({ lease: "seal" });
      mapping.buffer.fill(3);
      expect((await readFile(path)).every((byte) => byte === 3)).toBe(true);
      await mapping.release();
      await file.close();
    });

    test("says what is wrong", async () => {
      const path = await fileOf(2);
      await expect(mapDirect(path, { offset: 100 })).rejects.toMatchObject({ code: "EINVAL" });
      await expect(mapDirect(path, { offset: PAGE, length: 2 * PAGE })).rejects.toThrow(RangeError);
      await expect(mapDirect(path, { offset: -PAGE })).rejects.toThrow(RangeError);
      await expect(mapDirect(path, { lease: "fast" as "seal" })).rejects.toThrow(TypeError);
      const reader = await open(path, "r");
      await expect(reader.map()).rejects.toMatchObject({ code: "EACCES" });
      await reader.close();
      await expect(mapDirect(join(packageRoot, "package.json"))).rejects.toMatchObject({
        code: "EOPNOTSUPP",
      });
      await expect(mapDirect(`${path}-none`)).rejects.toMatchObject({ code: "ENOENT" });
      await expect(mapDirect(12345)).rejects.toMatchObject({ code: "EBADF" });
      const synced = mapDirect(path, { sync: true });
      if (assumePmem) await (await synced).release();
      else await expect(synced).rejects.toMatchObject({ code: "EOPNOTSUPP" });
      const empty = join(await mount.fresh(), "empty");
      await writeFile(empty, "");
      await expect(mapDirect(empty)).rejects.toThrow(RangeError);
      const mapping = await mapDirect(path);
      await expect(mapping.persist(0, 3 * PAGE)).rejects.toThrow(RangeError);
      expect(() => mapping.persistSync(-1, 1)).toThrow(RangeError);
      await mapping.release();
    });

    test("a mapping that nobody refers to any more ends, and one of a worker thread ends with it", async () => {
      const path = await fileOf(2);
      const script = `
        import { mapDirect } from "mapdirect";
        import { Worker } from "node:worker_threads";
        import { setTimeout as sleep } from "node:timers/promises";
        import { execFileSync } from "node:child_process";
        const path = process.argv[1];
        const held = () => JSON.parse(execFileSync(process.execPath, ["dist/bin/mapdirect.js", "leases", "--json", path])).length;
        await (async () => { (await mapDirect(path)).buffer[0] = 1; })();
        for (let tries = 0; tries < 200 && held() > 0; tries++) { globalThis.gc(); await sleep(10); }
        console.log("collected", held());
        const code = 'import { parentPort, workerData } from "node:worker_threads"; import { mapDirect } from "mapdirect"; globalThis.kept = await mapDirect(workerData); parentPort.postMessage("mapped"); setInterval(() => {}, 1000);';
        const worker = new Worker(code, { eval: true, workerData: path });
        await new Promise((done) => worker.once("message", done));
        console.log("in a worker", held());
        await worker.terminate();
        for (let tries = 0; tries < 200 && held() > 0; tries++) await sleep(10);
        console.log("after it", held());`;
      const { code, stdout, stderr } = await run(
        process.execPath,
        ["--expose-gc", "--input-type=module", "-e", script, path],
        { cwd: packageRoot },
      );
      expect({ code, stdout }, stderr).toEqual({
        code: 0,
        stdout: "collected 0\nin a worker 1\nafter it 0\n",
      });
    });

    test("a read into the buffer that outlasts the release stores into nobody else's memory", async () => {
      const path = await fileOf(16);
      const fifo = join(await mount.fresh(), "fifo");
      const script = `
        import { mapDirect } from "mapdirect";
        import { execFileSync } from "node:child_process";
        import { open, read, truncate, writeSync, openSync, readFileSync, constants } from "node:fs";
        import { promisify } from "node:util";
        const [, path, fifo] = process.argv;
        execFileSync("mkfifo", [fifo]);
        const fd = openSync(fifo, constants.O_RDWR);
        const mapped = () => readFileSync("/proc/self/maps", "latin1").split("\\n").length;
        for (const end of [(mapping) => mapping.release(), async () => promisify(truncate)(path, 4096)]) {
          const mapping = await mapDirect(path, { lease: "breakable" });
          const reading = promisify(read)(fd, mapping.buffer, 0, 8, null);
          await end(mapping);
          await mapping.release();
          const others = Array.from({ length: 64 }, () => new ArrayBuffer(16 * 4096));
          for (let index = 0; index < 8; index++) globalThis.gc();
          writeSync(fd, "12345678");
          const { bytesRead } = await reading;
          const stored = others.filter((each) => new Uint8Array(each).some((byte) => byte !== 0)).length;
          console.log(bytesRead, stored, mapping.buffer.length);
        }`;
      const { code, stdout, stderr } = await run(
        process.execPath,
        ["--expose-gc", "--input-type=module", "-e", script, path, fifo],
        { cwd: packageRoot, timeoutMs: 20_000 },
      );
      expect({ code, stdout }, stderr).toEqual({ code: 0, stdout: "8 0 0\n8 0 0\n" });
    });

    test("released memory is given back when no buffer can lead to it, also if it was moved to another buffer", async () => {
      const path = await fileOf(256);
      const script = `
        import { mapDirect } from "mapdirect";
        import { readFileSync } from "node:fs";
        import { setTimeout as sleep } from "node:timers/promises";
        const bytes = () => Number(/VmSize:\\s*(\\d+)/.exec(readFileSync("/proc/self/status", "latin1"))[1]) * 1024;
        const path = process.argv[1];
        const collect = async () => { for (let index = 0; index < 5; index++) { globalThis.gc(); await sleep(5); } };
        const some = async (count) => {
          for (let index = 0; index < count; index++) await (await mapDirect(path)).release();
        };
        await some(10);
        await collect();
        const before = bytes();
        await some(200);
        await collect();
        // Half of what would be lost, and more than a thread that was started meanwhile takes with its heap.
        console.log(bytes() - before < 100 * 256 * 4096);
        const mapping = await mapDirect(path);
        const moved = mapping.buffer.buffer.transfer();
        await mapping.release();
        await collect();
        const view = new Uint8Array(moved);
        view[0] = 1;
        console.log(view[0], readFileSync(path, "latin1", 0, 1)[0]);`;
      const { code, stdout, stderr } = await run(
        process.execPath,
        ["--expose-gc", "--harmony-rab-gsab-transfer", "--input-type=module", "-e", script, path],
        { cwd: packageRoot, timeoutMs: 20_000 },
      );
      expect({ code, stdout }, stderr).toEqual({ code: 0, stdout: "true\n1 a\n" });
    });

    test("a worker that is terminated while it maps ends neither the process nor leaves a lease", async () => {
      const path = await fileOf(16);
      const script = `
        import { Worker } from "node:worker_threads";
        import { setTimeout as sleep } from "node:timers/promises";
        import { execFileSync } from "node:child_process";
        const held = () => JSON.parse(execFileSync(process.execPath, ["dist/bin/mapdirect.js", "leases", "--json", process.argv[1]])).length;
        const code = 'import { parentPort, workerData } from "node:worker_threads"; import { mapDirect } from "mapdirect"; parentPort.postMessage("ready"); for (;;) await Promise.all(Array.from({ length: 8 }, () => mapDirect(workerData).then((mapping) => mapping.release())));';
        for (let round = 0; round < 20; round++) {
          const worker = new Worker(code, { eval: true, workerData: process.argv[1] });
          worker.on("error", (error) => console.log(String(error)));
          if (round > 4) await new Promise((done) => worker.once("message", done));
          await sleep(round);
          await worker.terminate();
        }
        for (let tries = 0; tries < 20 && held() > 0; tries++) await sleep(100);
        console.log("held", held());`;
      const { code, stdout, stderr } = await run(
        process.execPath,
        ["--input-type=module", "-e", script, path],
        { cwd: packageRoot, timeoutMs: 40_000 },
      );
      expect({ code, stdout }, stderr).toEqual({ code: 0, stdout: "held 0\n" });
    }, 60_000);

    test("a program that ends without a release leaves no lease", async () => {
      const path = await fileOf(2);
      const script = `
        import { mapDirect } from "mapdirect";
        const mapping = await mapDirect(process.argv[1], { lease: "seal" });
        mapping.buffer[0] = 9;`;
      const { code, stderr } = await run(process.execPath, ["--input-type=module", "-e", script, path], {
        cwd: packageRoot,
      });
      expect(code, stderr).toBe(0);
      await truncate(path, 0);
    });

    test("many mappings at a time, made and released in any order", async () => {
      const path = await fileOf(64);
      const mappings: DirectMapping[] = await Promise.all(
        Array.from({ length: 64 }, (_, page) => mapDirect(path, { offset: page * PAGE, length: PAGE })),
      );
      await Promise.all(
        mappings.map(async (mapping, page) => {
          mapping.buffer.fill(page);
          await mapping.persist();
          if (page % 2 === 0) await mapping.release();
        }),
      );
      const content = await readFile(path);
      for (let page = 0; page < 64; page += 1) expect(content[page * PAGE + 77]).toBe(page);
      await Promise.all(mappings.map((mapping) => mapping.release()));
      expect(leases()).toEqual([]);
    });
  });
}

describe("mkfs and mount", () => {
  async function withFolder(use: (folder: string) => Promise<void>): Promise<void> {
    const folder = await mkdtemp(folderPrefix(tmpdir()));
    try {
      await use(folder);
    } finally {
      if (mountAt(join(folder, "mnt")) !== undefined) await cli(["unmount", "--lazy", join(folder, "mnt")]);
      await rm(folder, { recursive: true, force: true });
    }
  }

  test("make a volume, mount it, use it, unmount it", async () => {
    await withFolder(async (folder) => {
      const region = join(folder, "region");
      const made = await mkfs(region, { sizeBytes: 32 * 1024 * 1024, label: "embedded" });
      expect(made).toEqual({ region, sizeBytes: 32 * 1024 * 1024, blockSizeBytes: 4096 });
      await expect(mkfs(region)).rejects.toThrow("use --force to overwrite it");
      await mkdir(join(folder, "mnt"));
      const mounted = await mountRegion(region, join(folder, "mnt"), {
        options: ["noatime", "break_time=3"],
      });
      expect(mounted).toMatchObject({ region, path: join(folder, "mnt") });
      await expect(mountRegion(region, join(folder, "mnt"))).rejects.toThrow("mounted");
      await writeFile(join(mounted.path, "file"), Buffer.alloc(PAGE, 1));
      const mapping = await mapDirect(join(mounted.path, "file"));
      await expect(mounted.unmount()).rejects.toThrow("in use");
      await mapping.release();
      await mounted.unmount();
      expect(mountAt(join(folder, "mnt"))).toBeUndefined();
      await expect(mountRegion(region, join(folder, "mnt"), { options: ["fast"] })).rejects.toThrow(
        "unknown",
      );
      await expect(mountRegion(`${region}-none`, join(folder, "mnt"))).rejects.toThrow("mapdirect mkfs");
    });
  });

  test.for([false, true])(
    "a mount ends with the program that made it, unless detached: %s",
    async (detached) => {
      await withFolder(async (folder) => {
        const region = join(folder, "region");
        const mountpoint = join(folder, "mnt");
        await mkfs(region, { sizeBytes: 32 * 1024 * 1024 });
        await mkdir(mountpoint);
        const script = `
        import { mount } from "mapdirect";
        const { pid } = await mount(process.argv[1], process.argv[2], { detached: process.argv[3] === "true" });
        console.log(pid);
        setInterval(() => {}, 1000);`;
        const child = spawn(
          process.execPath,
          ["--input-type=module", "-e", script, region, mountpoint, `${detached}`],
          { cwd: packageRoot, stdio: ["ignore", "pipe", "inherit"] },
        );
        const [line] = (await once(child.stdout, "data")) as [Buffer];
        child.kill("SIGKILL");
        for (let tries = 0; tries < 300 && existsSync(`/proc/${Number(line)}`); tries += 1) {
          if (detached && tries > 30) break;
          await sleep(10);
        }
        expect(mountAt(mountpoint) !== undefined).toBe(detached);
        if (detached) expect((await cli(["unmount", mountpoint])).code).toBe(0);
      });
    },
  );

  test("by an ordinary user", async ({ skip }) => {
    const reason = noUserMount();
    if (reason !== undefined) skip(reason);
    const folder = await mkdtemp(folderPrefix("/dev/shm"));
    try {
      const script = `
        import { mapDirect, mkfs, mount } from "mapdirect";
        import { mkdir, writeFile, readFile } from "node:fs/promises";
        const [, folder] = process.argv;
        await mkfs(folder + "/region", { sizeBytes: 32 << 20 });
        await mkdir(folder + "/mnt");
        const mounted = await mount(folder + "/region", folder + "/mnt");
        await writeFile(mounted.path + "/file", Buffer.alloc(4096));
        const mapping = await mapDirect(mounted.path + "/file", { lease: "seal" });
        mapping.buffer.write("mine");
        console.log((await readFile(mounted.path + "/file", "latin1")).slice(0, 4));
        await mapping.release();
        await mounted.unmount();`;
      await run("chown", [`${OTHER_UID}`, folder]);
      const { code, stdout, stderr } = await run(
        process.execPath,
        ["--input-type=module", "-e", script, folder],
        { cwd: packageRoot, user: OTHER_UID },
      );
      expect({ code, stdout }, stderr).toEqual({ code: 0, stdout: "mine\n" });
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});
