/**
 * The same fio jobs on two devices of the same memory: ext4 with DAX on one, mapdirect on a character DAX device on the
 * other. In a machine that is emulated only their ratio means anything, and through the daemon not even that: JavaScript
 * suffers more from emulation than the kernel does.
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { automatic, check, exitCode, mapdirect, note, request, run, succeed } from "./support.mjs";

const EXT4 = "/tmp/ext4";
const OURS = "/tmp/mnt";
/** A run of fio for each: most of the time that it takes in an emulated machine is its start. [name, arguments] */
const RUNS = [
  {
    name: "through mappings",
    direct: true,
    jobs: [
      [
        "4 KiB random store and flush, libpmem",
        ["--ioengine=libpmem", "--rw=randwrite", "--bs=4k", "--direct=1"],
      ],
      [
        "64 KiB sequential store and flush, libpmem",
        ["--ioengine=libpmem", "--rw=write", "--bs=64k", "--direct=1"],
      ],
      ["4 KiB random load, libpmem", ["--ioengine=libpmem", "--rw=randread", "--bs=4k", "--direct=1"]],
      ["4 KiB random store, mmap", ["--ioengine=mmap", "--rw=randwrite", "--bs=4k"]],
    ],
  },
  {
    name: "through the kernel",
    direct: false,
    jobs: [
      ["4 KiB random write(2), psync", ["--ioengine=psync", "--rw=randwrite", "--bs=4k"]],
      ["4 KiB random read(2), psync", ["--ioengine=psync", "--rw=randread", "--bs=4k"]],
    ],
  },
];
const FILE = "job";

/** Operations per second of each job, one after the other on the same file. */
function fio(folder, { direct, jobs }) {
  const output = "/tmp/fio.json";
  const env = folder === OURS && direct ? { ...automatic, MAPDIRECT_STATS: "/tmp/stats" } : {};
  const common = [
    ...[`--filename=${folder}/${FILE}`, "--size=32m", "--time_based", `--runtime=${request.seconds}`],
    ...["--norandommap", "--randrepeat=0", "--fallocate=none", "--stonewall"],
    ...["--output-format=json", `--output=${output}`],
  ];
  writeFileSync("/tmp/stats", "");
  const each = jobs.flatMap(([name, args]) => [`--name=${name}`, ...args]);
  const { code, stderr } = run("fio", [...common, ...each], { env });
  if (code !== 0) throw new Error(stderr);
  const stats = readFileSync("/tmp/stats", "utf8");
  const mappings = [...stats.matchAll(/automatic=(\d+)/g)].reduce((sum, [, count]) => sum + Number(count), 0);
  if (folder === OURS && direct && mappings < jobs.length) {
    throw new Error(`${mappings} direct mappings in ${jobs.length} jobs: ${stats}`);
  }
  const text = readFileSync(output, "utf8");
  const done = JSON.parse(text.slice(text.indexOf("{"))).jobs;
  return done.map(({ read, write }) => Math.max(read.iops, write.iops));
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
    succeed("dd", ["if=/dev/zero", `of=${folder}/${FILE}`, "bs=1M", "count=32", "conv=fsync", "status=none"]);
  }
});
for (const one of RUNS) {
  await check("comparison", one.name, () => {
    const rounds = [];
    for (let round = 0; round < request.rounds; round += 1) {
      const order = round % 2 === 0 ? [EXT4, OURS] : [OURS, EXT4];
      const rates = new Map(order.map((folder) => [folder, fio(folder, one)]));
      rounds.push(one.jobs.map((_, index) => rates.get(OURS)[index] / rates.get(EXT4)[index]));
    }
    const said = one.jobs.map(([name], index) => {
      const ratios = rounds.map((round) => round[index]);
      note({ name, direct: one.direct, ratios });
      return ratios.map((ratio) => ratio.toFixed(2)).join(" ");
    });
    return said.join(", ");
  });
}
await check("comparison", "taken away", async () => {
  await mapdirect("unmount", OURS);
  await mapdirect("fsck", "/dev/dax1.0");
  succeed("umount", [EXT4]);
});
process.exit(exitCode());
