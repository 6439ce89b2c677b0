/**
 * The same fio jobs on two devices of the same memory: ext4 with DAX on one, mapdirect on a character DAX device on the
 * other. In a machine that is emulated only their ratio means anything, and through the daemon not even that: JavaScript
 * suffers more from emulation than the kernel does.
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { automatic, check, exitCode, mapdirect, note, request, run, succeed } from "./support.mjs";

const EXT4 = "/tmp/ext4";
const OURS = "/tmp/mnt";
/** name, fio's arguments, whether it goes through a mapping. */
const JOBS = [
  [
    "4 KiB random store and flush, libpmem",
    ["--ioengine=libpmem", "--rw=randwrite", "--bs=4k", "--direct=1"],
    true,
  ],
  [
    "64 KiB sequential store and flush, libpmem",
    ["--ioengine=libpmem", "--rw=write", "--bs=64k", "--direct=1"],
    true,
  ],
  ["4 KiB random load, libpmem", ["--ioengine=libpmem", "--rw=randread", "--bs=4k", "--direct=1"], true],
  ["4 KiB random store, mmap", ["--ioengine=mmap", "--rw=randwrite", "--bs=4k"], true],
  ["4 KiB random write(2), psync", ["--ioengine=psync", "--rw=randwrite", "--bs=4k"], false],
  ["4 KiB random read(2), psync", ["--ioengine=psync", "--rw=randread", "--bs=4k"], false],
];
const COMMON = [
  "--name=job",
  "--size=32m",
  "--time_based",
  "--norandommap",
  "--randrepeat=0",
  "--output-format=json",
];

function fio(folder, args, direct) {
  const file = "/tmp/fio.json";
  const env = folder === OURS && direct ? { ...automatic, MAPDIRECT_STATS: "/tmp/stats" } : {};
  const more = [
    `--directory=${folder}`,
    `--runtime=${request.seconds}`,
    `--output=${file}`,
    "--fallocate=none",
  ];
  writeFileSync("/tmp/stats", "");
  const { code, stderr } = run("fio", [...COMMON, ...more, ...args], { env });
  if (code !== 0) throw new Error(stderr);
  if (folder === OURS && direct && !/automatic=[1-9]/.test(readFileSync("/tmp/stats", "utf8"))) {
    throw new Error(`no direct mapping: ${readFileSync("/tmp/stats", "utf8")}`);
  }
  const text = readFileSync(file, "utf8");
  const [{ read, write }] = JSON.parse(text.slice(text.indexOf("{"))).jobs;
  return Math.max(read.iops, write.iops);
}

await check("comparison", "set up", async () => {
  for (const folder of [EXT4, OURS]) mkdirSync(folder);
  succeed("mkfs.ext4", ["-q", "-b", "4096", "/dev/pmem0"]);
  succeed("mount", ["-o", "dax", "/dev/pmem0", EXT4]);
  succeed("ndctl", ["create-namespace", "-f", "-e", "namespace1.0", "-m", "devdax", "-M", "mem", "-a", 4096]);
  await mapdirect("mkfs", "--force", "/dev/dax1.0");
  await mapdirect("mount", "/dev/dax1.0", OURS);
  // What is measured is not the first touch: both files have all their blocks.
  for (const folder of [EXT4, OURS]) {
    succeed("dd", ["if=/dev/zero", `of=${folder}/job.0.0`, "bs=1M", "count=32", "conv=fsync", "status=none"]);
  }
});
for (const [name, args, direct] of JOBS) {
  await check("comparison", name, () => {
    const rounds = [];
    for (let round = 0; round < request.rounds; round += 1) {
      const order = round % 2 === 0 ? [EXT4, OURS] : [OURS, EXT4];
      const rates = new Map(order.map((folder) => [folder, fio(folder, args, direct)]));
      rounds.push(rates.get(OURS) / rates.get(EXT4));
    }
    note({ name, direct, ratios: rounds });
    return rounds.map((ratio) => ratio.toFixed(2)).join(" ");
  });
}
await check("comparison", "taken away", async () => {
  await mapdirect("unmount", OURS);
  await mapdirect("fsck", "/dev/dax1.0");
  succeed("umount", [EXT4]);
});
process.exit(exitCode());
