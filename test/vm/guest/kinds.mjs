/**
 * Every kind of region, in one guest: made, mounted, mapped, and what Linux says of its bytes compared with what the file
 * system says.
 */
import { spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { release } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ENABLE_URING } from "../../../dist/region/fuse-ring.js";
import { crowd } from "../../support/crowd.mjs";
import {
  automatic,
  check,
  equal,
  exitCode,
  mapdirect,
  note,
  preload,
  programs,
  project,
  request,
  run,
  succeed,
} from "./support.mjs";

const MIB = 1 << 20;
const MNT = "/tmp/mnt";
/** Everything takes its time here. */
const PATIENCE_MS = 60_000;
mkdirSync(MNT, { recursive: true });

/** The /dev/pmemN of so many MiB: each that the host gave this guest has another size. */
function pmemOf(mebibytes) {
  const names = readdirSync("/sys/class/block").filter((name) => /^pmem\d+$/.test(name));
  const name = names.find(
    (one) => Math.round(Number(readFileSync(`/sys/class/block/${one}/size`, "utf8")) / 2048) === mebibytes,
  );
  if (name === undefined) throw new Error(`no persistent memory of ${mebibytes} MiB: ${names.join(" ")}`);
  return name;
}

const namespaceOf = (pmem) =>
  /namespace\d+\.\d+/.exec(realpathSync(`/sys/class/block/${pmem}`))?.[0] ??
  (() => {
    throw new Error(`${pmem} has no namespace`);
  })();

function devdax(mebibytes, unitBytes) {
  const namespace = namespaceOf(pmemOf(mebibytes));
  const made = JSON.parse(
    succeed("ndctl", [
      "create-namespace",
      "-f",
      "-e",
      namespace,
      "-m",
      "devdax",
      "-M",
      "mem",
      "-a",
      unitBytes,
    ]),
  );
  const device = made.daxregion?.devices?.[0]?.chardev ?? made.chardev;
  if (device === undefined) throw new Error(`ndctl made no device: ${JSON.stringify(made)}`);
  return { region: `/dev/${device}` };
}

/** A region file on a file system with DAX. */
function onDax(device, system, regionBytes) {
  const folder = `/tmp/${basename(device)}`;
  mkdirSync(folder);
  const make = { ext4: ["-q", "-b", "4096"], xfs: ["-q", "-f", "-m", "reflink=0"] }[system];
  succeed(`mkfs.${system}`, [...make, device]);
  succeed("mount", ["-t", system, "-o", "dax", device, folder]);
  const region = join(folder, "region");
  writeFileSync(region, "");
  succeed("fallocate", ["--length", regionBytes, region]);
  return { region, device, done: () => succeed("umount", [folder]) };
}

/** As the manual says: the namespace of an NVDIMM is raw until it is given a mode. */
function nvdimm(mebibytes) {
  const namespace = namespaceOf(pmemOf(mebibytes));
  const made = JSON.parse(
    succeed("ndctl", ["create-namespace", "-f", "-e", namespace, "-m", "fsdax", "-M", "mem"]),
  );
  return `/dev/${made.blockdev}`;
}

function hugetlbfs() {
  writeFileSync("/proc/sys/vm/nr_hugepages", "48");
  mkdirSync("/tmp/huge");
  succeed("mount", ["-t", "hugetlbfs", "-o", "pagesize=2M", "none", "/tmp/huge"]);
  return {
    region: "/tmp/huge/region",
    make: ["--size", "80M"],
    done: () => succeed("umount", ["/tmp/huge"]),
  };
}

function nbd() {
  const image = "/dev/shm/nbd.img";
  succeed("truncate", ["-s", "96M", image]);
  writeFileSync(
    "/tmp/nbd.conf",
    `[generic]\nport = 10809\nlistenaddr = 127.0.0.1\n[export]\nexportname = ${image}\nflush = true\nfua = true\n`,
  );
  succeed("nbd-server", ["-C", "/tmp/nbd.conf"]);
  succeed("nbd-client", ["127.0.0.1", "-N", "export", "/dev/nbd0"]);
  return { region: "/dev/nbd0", done: () => succeed("nbd-client", ["-d", "/dev/nbd0"]) };
}

/**
 * name       as tests and documents call it
 * setUp      → { region, make?: more for mkfs, device?: of a region file, done?: take it away }
 * found      what `mapdirect info` must name
 * unit       bytes that mappings are made of
 * sync       MAP_SYNC: true granted, false refused
 * uring      try FUSE over io_uring as well
 * outlived   a holder outlives the daemon
 * pins       io_uring registered buffers over a direct mapping: as the kernel must answer; undefined: measured alone
 * programs   the client's C programs to run
 */
const KINDS = [
  {
    name: "/dev/daxX.Y, 4 KiB",
    setUp: () => devdax(208, 4096),
    found: /^character DAX device dax\d+\.\d+, mapped in units of 4 KiB$/,
    unit: 4096,
    sync: true,
    pins: true,
    outlived: true,
    programs: ["arguments", "faults", "coherence", "lifetime"],
  },
  {
    name: "/dev/daxX.Y, 2 MiB",
    setUp: () => devdax(256, 2 * MIB),
    found: /^character DAX device dax\d+\.\d+, mapped in units of 2 MiB$/,
    unit: 2 * MIB,
    sync: true,
    pins: true,
    programs: [],
  },
  {
    name: "file on ext4 -o dax",
    setUp: () => onDax(`/dev/${pmemOf(200)}`, "ext4", 128 * MIB),
    found: /^file on ext4 with DAX and MAP_SYNC$/,
    unit: 4096,
    sync: true,
    pins: false,
    programs: [],
  },
  {
    name: "file on xfs -o dax",
    setUp: () => onDax(`/dev/${pmemOf(320)}`, "xfs", 128 * MIB),
    found: /^file on xfs with DAX and MAP_SYNC$/,
    unit: 4096,
    sync: true,
    pins: false,
    programs: [],
  },
  {
    name: "file on ext4 -o dax, NVDIMM",
    setUp: () => onDax(nvdimm(224), "ext4", 128 * MIB),
    found: /^file on ext4 with DAX and MAP_SYNC$/,
    unit: 4096,
    sync: true,
    pins: false,
    programs: [],
  },
  {
    name: "file on ext4 -o dax, virtio-pmem",
    setUp: () => onDax(`/dev/${pmemOf(192)}`, "ext4", 128 * MIB),
    found: /^file on ext4 with DAX, without MAP_SYNC$/,
    unit: 4096,
    sync: false,
    pins: false,
    programs: [],
  },
  {
    name: "/dev/pmemN",
    setUp: () => ({ region: `/dev/${pmemOf(96)}` }),
    found: /^persistent memory as a block device \(pmem\d+\)$/,
    unit: 4096,
    sync: false,
    pins: undefined,
    programs: [],
  },
  {
    name: "/dev/nbdN",
    setUp: nbd,
    found: /^block device over a network \(nbd0\)$/,
    unit: 4096,
    sync: false,
    pins: undefined,
    programs: [],
  },
  {
    name: "file on hugetlbfs",
    setUp: hugetlbfs,
    found: /^file of huge pages of 2 MiB \(hugetlbfs\)$/,
    unit: 2 * MIB,
    sync: false,
    pins: true,
    programs: [],
  },
  {
    name: "file on tmpfs",
    setUp: () => ({ region: "/dev/shm/region", make: ["--size", "96M"] }),
    found: /^file in memory \(tmpfs\)$/,
    unit: 4096,
    sync: false,
    pins: true,
    uring: true,
    programs: [],
  },
];

/** Before 6.5 io_uring refused every mapping of a file but those of tmpfs and hugetlbfs. */
const [major, minor] = release().split(".").map(Number);
const pinsDax = major > 6 || (major === 6 && minor >= 5);

const direct = (...args) => succeed(join(programs, "direct"), args);

/** The bytes of the region at a physical offset, by a way that the daemon has no part in. */
function bytesAt({ region, device }, unit, offset, length) {
  if (region.startsWith("/dev/dax")) return direct("peek", region, offset, length, unit).trim();
  // A file on DAX: where its file system says that it lies on the device, read past the page cache.
  const source = device ?? region;
  const at = device === undefined ? offset : Number(direct("extent", region, offset));
  const memory = /^\/(dev\/shm|tmp\/huge)/.test(region);
  const block = succeed("dd", [
    `if=${source}`,
    ...(memory ? [] : ["iflag=direct"]),
    "bs=4096",
    `skip=${Math.floor(at / 4096)}`,
    "count=2",
    "status=none",
  ]);
  return Buffer.from(block, "utf8").toString("latin1", at % 4096, (at % 4096) + length);
}

const FIO = ["--name=job", `--directory=${MNT}`, "--size=2m", "--verify=crc32c", "--verify_fatal=1"];
const FIO_MORE = ["--verify_state_save=0", "--do_verify=1", "--randrepeat=1", "--output=/tmp/fio.log"];

function fio(engine, ...more) {
  const { code } = run("fio", [...FIO, ...FIO_MORE, `--ioengine=${engine}`, ...more], {
    env: engine === "psync" ? {} : { ...automatic, MAPDIRECT_STATS: "/tmp/stats" },
  });
  const said = readFileSync("/tmp/fio.log", "utf8");
  if (code !== 0 || /verify:|err= *[1-9]/.test(said)) throw new Error(said.slice(-2000));
  if (engine === "psync") return;
  const stats = readFileSync("/tmp/stats", "utf8");
  writeFileSync("/tmp/stats", "");
  if (!/automatic=[1-9]/.test(stats)) throw new Error(`no direct mapping: ${stats}`);
}

async function examine(kind, set) {
  const { name, unit, sync, pins } = kind;
  const bytes = Math.max(unit, 256 * 1024);
  const { region } = set;
  const cacheline = region.startsWith("/dev/dax") || sync;
  const on = (what, body) => check(name, what, body);

  const mounted = await on("mkfs and mount", async () => {
    await mapdirect("mkfs", ...(set.make ?? []), "--force", region);
    await mapdirect("mount", region, MNT);
    writeFileSync(join(MNT, "file"), "x".repeat(100_000));
    equal(readFileSync(join(MNT, "file"), "utf8").length, 100_000, "what was written");
  });
  if (!mounted) return;
  await on("info names it", async () => {
    const { region: said, block_size } = JSON.parse(await mapdirect("info", "--json", MNT));
    if (!kind.found.test(said.found)) throw new Error(`info says '${said.found}'`);
    equal(said.map_sync, region.startsWith("/dev/dax") ? said.map_sync : sync, "map_sync");
    equal(said.granularity, cacheline ? "cacheline" : "page", "granularity");
    equal(said.map_alignment, unit, "map_alignment");
    equal(block_size, unit, "block_size");
  });
  await on("doctor knows what to do", async () => {
    const { findings } = JSON.parse(await mapdirect("doctor", "--json", MNT));
    const about = findings.find(({ what }) => what === "region");
    const best = cacheline && unit === 4096;
    equal(about.verdict === "good", best, `the verdict on the region (${about.why})`);
    if (
      region.startsWith("/dev/pmem") &&
      !/ndctl create-namespace -f -e namespace\d+\.\d+ -m devdax/.test(about.todo)
    ) {
      throw new Error(`doctor says '${about.todo}'`);
    }
  });
  await on("stores are in the region at once", () => {
    const text = `stored directly, ${name}`;
    const lines = direct("store", join(MNT, "direct"), bytes, text).trim().split("\n");
    const said = Object.fromEntries(
      lines.map((line) => [line.split(" ")[0], line.slice(line.indexOf(" ") + 1)]),
    );
    equal(said.truncate, "ETXTBSY", "ftruncate of a sealed range");
    equal(said.read, text, "what read(2) sees");
    equal(said.mapping, "written by pwrite", "what the mapping sees of a pwrite");
    equal(bytesAt(set, unit, Number(said.physical), text.length), text, `the region at ${said.physical}`);
  });
  await on("MAP_SYNC", () => {
    const said = direct("sync", join(MNT, "sync"), bytes).trim();
    equal(said, cacheline ? "granted" : "EOPNOTSUPP", "MAP_SYNC");
    return said === "granted" ? "yes" : "refused";
  });
  if (unit > 4096) {
    await on("mappings in whole units only", () => {
      equal(
        direct("misaligned", join(MNT, "misaligned"), unit),
        "length EINVAL\noffset EINVAL\n",
        "what is no whole unit",
      );
    });
  }
  await on("io_uring registered buffers", () => {
    const said = direct("register", join(MNT, "register"), bytes).trim();
    const must = region.startsWith("/dev/dax") ? pinsDax : pins;
    if (must !== undefined) equal(said.startsWith("registered"), must, `io_uring (${said})`);
    return said.startsWith("registered") ? "yes" : said;
  });
  for (const program of kind.programs) {
    if (request.clientPrograms === false) continue;
    for (const door of program === "arguments" ? ["library", "preload"] : ["library"]) {
      await on(`${program}.c, by ${door}`, () => {
        const env = { MAPDIRECT_LEASE: "seal", ...(door === "preload" ? { LD_PRELOAD: preload } : {}) };
        const { code, stdout, stderr } = run(join(programs, program), [MNT, region, door], { env });
        const wrong = stdout.split("\n").filter((line) => line.startsWith("not ok"));
        if (code !== 0 || wrong.length > 0)
          throw new Error(`exit code ${code}: ${wrong.join("; ")} ${stderr}`);
      });
    }
  }
  await on("fio psync, verified", () => fio("psync", "--rw=randwrite", "--bs=16k", "--fsync=32"));
  await on("fio mmap, direct and verified", () => fio("mmap", "--rw=randwrite", "--bs=4k"));
  if (cacheline) {
    await on("fio libpmem, direct and verified", () =>
      fio("libpmem", "--rw=write", "--bs=64k", "--direct=1"),
    );
    await on("PMDK", () => {
      if (!existsSync(join(programs, "bank"))) return { skipped: "libpmemobj-dev is not installed" };
      const pool = join(MNT, "pool");
      if (unit > 4096) {
        // libpmemobj maps the first 4 KiB of a pool by themselves, which no mapping here can be.
        const { code, stderr } = run(join(programs, "bank"), ["create", pool], { env: automatic });
        if (code === 0)
          return run(join(programs, "bank"), ["check", pool], { env: automatic }).code === 0 ? "yes" : "no";
        if (!/MAP_SYNC|Invalid argument/.test(stderr)) throw new Error(stderr);
        return "refused";
      }
      succeed(join(programs, "bank"), ["create", pool], { env: automatic });
      equal(
        succeed(join(programs, "bank"), ["check", pool], { env: automatic }),
        "counter 0, sum 512000, pmem 1\n",
        "libpmem",
      );
    });
  }
  await on("unmount, fsck, mount again", async () => {
    await mapdirect("unmount", MNT);
    await mapdirect("fsck", region);
    await mapdirect("mount", "-o", "ro", region, MNT);
    equal(readFileSync(join(MNT, "file"), "utf8").length, 100_000, "what was written");
    const text = readFileSync(join(MNT, "direct")).toString("latin1", bytes / 2 + 128, bytes / 2 + 128 + 15);
    equal(text, "stored directly", "what was stored");
    await mapdirect("unmount", MNT);
  });
  letGo();
  if (kind.uring) await on("FUSE over io_uring", () => overUring(region));
  letGo();
  if (kind.outlived) await on("a holder that outlives the daemon", () => outlived(region));
  letGo();
}

/** What a check that failed has left mounted. */
function letGo() {
  if (run("mountpoint", ["-q", MNT]).code === 0) run("umount", ["-l", MNT]);
}

const infoOf = async (path) => JSON.parse(await mapdirect("info", "--json", path));

async function until(holds, what) {
  const end = Date.now() + PATIENCE_MS;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`${what}: not so after ${PATIENCE_MS} ms`);
    await sleep(100);
  }
}

/** A program that has a file mapped, once it says so. */
async function holding(program, args) {
  const said = "/tmp/holder";
  const holder = spawn(program, args, {
    stdio: ["ignore", openSync(said, "w"), "inherit"],
    env: { ...process.env, LD_LIBRARY_PATH: join(project, "dist/lib") },
  });
  try {
    await until(() => readFileSync(said, "utf8").includes("\n"), "the holder has the file mapped");
  } catch (error) {
    holder.kill("SIGKILL");
    throw error;
  }
  return holder;
}

/** What it can still reach is kept from everybody until it is gone (R23). */
async function outlived(region) {
  await mapdirect("mount", region, MNT);
  const file = join(MNT, "outlived");
  const holder = await holding(join(programs, "direct"), ["load", file, `${256 * 1024}`, "breakable"]);
  const gone = new Promise((resolve) => holder.once("close", resolve));
  try {
    const { mount } = await infoOf(MNT);
    process.kill(mount.pid, "SIGKILL");
    await until(() => !existsSync(`/proc/${mount.pid}`), "the daemon is gone");
    run("umount", ["-l", MNT]);
    await mapdirect("mount", region, MNT);
    rmSync(file);
    const { quarantined } = await infoOf(MNT);
    if (quarantined < 256 * 1024) throw new Error(`${quarantined} bytes are in quarantine`);
    holder.kill("SIGKILL");
    await gone;
    await until(async () => (await infoOf(MNT)).quarantined === 0, "the quarantine ends with it");
    await mapdirect("check", MNT);
  } finally {
    holder.kill("SIGKILL");
  }
  await mapdirect("unmount", MNT);
  await mapdirect("fsck", region);
}

/** Maps the file that it is given, and says so. */
const HOLDER = `
  import { mapDirect, open } from "${join(project, "dist/api/index.js")}";
  await mapDirect(await open(process.argv[1]), { lease: "breakable" });
  console.log("mapped");
  setInterval(() => {}, 1000);
`;

/** Callers that wait have every buffer of a processor's queue, and who comes then is served all the same. */
async function beyondTheBuffers() {
  const leased = join(MNT, "leased");
  writeFileSync(leased, Buffer.alloc(MIB, 1));
  writeFileSync(join(MNT, "other"), "other");
  const holder = await holding(process.execPath, ["--input-type=module", "-e", HOLDER, leased]);
  holder.kill("SIGSTOP");
  const { waiting, reader } = await crowd({
    daemon: (await infoOf(MNT)).mount.pid,
    leased,
    callers: 12,
    other: join(MNT, "other"),
    pauseMs: 2000,
  });
  try {
    await until(() => reader.exitCode !== null, "the reader is served");
    const served = waiting.filter(({ exitCode }) => exitCode !== null).length;
    if (served > 0) throw new Error(`${served} of those that wait did not`);
    holder.kill("SIGKILL");
    await until(() => waiting.every(({ exitCode }) => exitCode === 0), "those that wait go on");
  } finally {
    holder.kill("SIGKILL");
    for (const child of [...waiting, reader]) child.kill("SIGKILL");
  }
}

/** Where the kernel has it; elsewhere it has to be refused, with the reason. */
async function overUring(region) {
  if (!existsSync(ENABLE_URING)) {
    const said = await mapdirect("mount", "-o", "transport=io_uring", region, MNT).catch(
      ({ message }) => message,
    );
    if (!/no FUSE over io_uring/.test(said)) throw new Error(`mounted, or: ${said}`);
    return "refused";
  }
  writeFileSync(ENABLE_URING, "Y");
  await mapdirect("mount", "-o", "transport=io_uring,break_time=120", region, MNT);
  equal(JSON.parse(await mapdirect("info", "--json", MNT)).fuse.transport, "io_uring", "transport");
  fio("psync", "--rw=randrw", "--bs=16k", "--fsync=32", "--numjobs=3");
  fio("mmap", "--rw=randwrite", "--bs=4k");
  await beyondTheBuffers();
  await mapdirect("check", MNT);
  await mapdirect("unmount", MNT);
  await mapdirect("fsck", region);
  return "yes";
}

for (const kind of KINDS) {
  if (request.kinds !== undefined && !request.kinds.includes(kind.name)) continue;
  let set;
  const ready = await check(kind.name, "set up", () => {
    set = kind.setUp();
  });
  if (!ready) continue;
  const begin = Date.now();
  await examine(kind, set);
  note({ kind: kind.name, seconds: Math.round((Date.now() - begin) / 100) / 10 });
  if (set.done !== undefined) await check(kind.name, "taken away", () => void set.done());
}
process.exit(exitCode());
