/**
 * Every kind of region on one kernel: a guest with persistent memory of each kind runs guest/kinds.mjs, and each kind is a
 * test here, of everything that was checked on it.
 */
import { rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { bootToScript, keep, kernelNamed, type Result, readLines, workFolder } from "./machine.ts";
import type { GuestEnd } from "./qemu.ts";

/** As guest/kinds.mjs calls them. */
const KINDS = [
  "/dev/daxX.Y, 4 KiB",
  "/dev/daxX.Y, 2 MiB",
  "file on ext4 -o dax",
  "file on xfs -o dax",
  "file on ext4 -o dax, NVDIMM",
  "file on ext4 -o dax, virtio-pmem",
  "/dev/pmemN",
  "/dev/nbdN",
  "file on hugetlbfs",
  "file on tmpfs",
] as const;

/** Physical ranges that the kernel is told are persistent memory, with gaps between them, MiB. Told apart by size. */
const MEMMAP = [
  [96, 1024],
  [200, 1152],
  [256, 1408],
  [208, 1728],
  [320, 2048],
] as const;
const NVDIMM_MIB = 224;
const VIRTIO_PMEM_MIB = 192;

/** On a machine where others work as well; alone it takes a third of that. */
const LIMIT_MS = Number(process.env.MAPDIRECT_VM_LIMIT_S ?? 900) * 1000;

function backed(folder: string, name: string, mebibytes: number): string[] {
  const file = join(folder, name);
  writeFileSync(file, "");
  truncateSync(file, mebibytes << 20);
  return ["-object", `memory-backend-file,id=${name},share=on,mem-path=${file},size=${mebibytes}M`];
}

export function kindsOn(name: string, options: { clientPrograms: boolean }): void {
  const kernel = kernelNamed(name);
  const missing = typeof kernel === "string" ? kernel : undefined;
  describe.skipIf(missing !== undefined)(
    `regions on the kernel ${name}${missing === undefined ? "" : `: ${missing}`}`,
    () => {
      let results: Result[] = [];
      let ended: GuestEnd | undefined;
      let console = "";
      const folder = workFolder();
      afterAll(() => rmSync(folder, { recursive: true, force: true }));

      beforeAll(async () => {
        if (typeof kernel === "string") return;
        const request = {
          kernel,
          folder,
          name: "kinds",
          script: "kinds.mjs",
          request: {
            ...options,
            kinds: process.env.MAPDIRECT_VM_KINDS?.split(";"),
            only: process.env.MAPDIRECT_VM_ONLY,
          },
          modules: ["nfit", "nd_virtio", "virtio_pmem", "ext4", "xfs", "nbd"],
          memory: "3G,slots=4,maxmem=8G",
          machine: "pc,nvdimm=on",
          commands: MEMMAP.map(([size, at]) => `memmap=${size}M!${at}M`),
          devices: [
            ...backed(folder, "nvdimm", NVDIMM_MIB),
            ...["-device", "nvdimm,id=nvdimm0,memdev=nvdimm"],
            ...backed(folder, "virtio", VIRTIO_PMEM_MIB),
            ...["-device", "virtio-pmem-pci,id=virtio0,memdev=virtio"],
          ],
        };
        const { guest, out, ended: end } = await bootToScript(request, LIMIT_MS);
        ended = await end;
        results = readLines<Result>(join(out, "results.jsonl"));
        console = guest.console();
        keep(`kinds-${name}`, {
          kernel: kernel.version,
          ...ended,
          results,
          notes: readLines(join(out, "notes.jsonl")),
        });
      }, LIMIT_MS + 60_000);

      for (const kind of process.env.MAPDIRECT_VM_KINDS?.split(";") ?? KINDS) {
        test(`${kind}: all that is promised holds, and what is not is refused`, () => {
          const own = results.filter((result) => result.kind === kind);
          const wrong = own.filter(({ verdict }) => verdict === "not ok");
          for (const { what, why } of own.filter(({ verdict }) => verdict === "skip"))
            process.stderr.write(`skipped on ${kind}: ${what}: ${why}\n`);
          expect(wrong.map(({ what, why }) => `${what}: ${why}`)).toEqual([]);
          expect(own.length, `the guest did not come so far\n${console}`).toBeGreaterThan(2);
        });
      }

      test("the guest came to its end", () => {
        expect(ended?.code, console).toBe(0);
      });
    },
  );
}
