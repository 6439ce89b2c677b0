/** `mapdirect doctor`: what it finds here, and that each finding says what to do. Devices of other kinds: test/vm. */
import { chmodSync, mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Finding } from "../../src/daemon/doctor.ts";
import { fileSystemOf } from "../../src/region/backing.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { loopUnavailable, makeLoopDevice } from "../support/loop-device.ts";
import { withMount } from "../support/mount.ts";
import { cli, missing, run } from "../support/run.ts";

interface Answer {
  region: string;
  found: string;
  means: string;
  findings: Finding[];
}

async function doctor(path: string): Promise<Answer> {
  const { code, stdout, stderr } = await cli(["doctor", "--json", path]);
  expect(code, stderr).toBe(0);
  return JSON.parse(stdout) as Answer;
}

const about = ({ findings }: Answer, what: string): Finding | undefined =>
  findings.find((finding) => finding.what === what);

describe("doctor", () => {
  const memory = mkdtempSync(folderPrefix("/dev/shm"));
  const disk = mkdtempSync(folderPrefix(tmpdir()));
  const inMemory = join(memory, "region");
  const onDisk = join(disk, "region");
  beforeAll(async () => {
    for (const region of [inMemory, onDisk]) {
      expect(await cli(["mkfs", "--size", "64M", region])).toMatchObject({ code: 0 });
    }
  });
  afterAll(async () => {
    for (const folder of [memory, disk]) await rm(folder, { recursive: true, force: true });
  });

  test("every finding that is not good says what to do, in words and in JSON", async () => {
    for (const region of [inMemory, onDisk]) {
      const answer = await doctor(region);
      expect(answer).toMatchObject({ region });
      for (const { verdict, todo, why } of answer.findings) {
        expect(["good", "fair", "bad"]).toContain(verdict);
        expect(todo === null, why).toBe(verdict === "good");
      }
      const { stdout } = await cli(["doctor", region]);
      expect(stdout).toContain(`${region}: ${answer.found}\n`);
      for (const { why, todo } of answer.findings) {
        expect(stdout).toContain(why);
        if (todo !== null) expect(stdout).toContain(`-> ${todo}`);
      }
    }
  });

  test("a region in memory is gone with the power, and that is said first", async () => {
    const answer = await doctor(inMemory);
    expect(answer.found).toBe("file in memory (tmpfs)");
    expect(answer.findings[0]).toMatchObject({ what: "region", verdict: "bad" });
    expect(answer.findings[0]?.why).toContain("lost when the machine is switched off");
  });

  test("a sparse region file on a disk can be given its blocks with the command that is named", async ({
    skip,
  }) => {
    if (fileSystemOf(disk) === "tmpfs") skip(`${disk} is no disk`);
    const before = about(await doctor(onDisk), "allocation");
    expect(before).toMatchObject({ verdict: "fair", todo: `fallocate --length ${64 * 1024 ** 2} ${onDisk}` });
    const lacking = missing("fallocate");
    if (lacking !== undefined) skip(lacking);
    const [command, ...args] = (before?.todo ?? "").split(" ");
    expect(await run(command as string, args)).toMatchObject({ code: 0 });
    expect(about(await doctor(onDisk), "allocation")).toMatchObject({ verdict: "good", todo: null });
  });

  test("a region that everybody may write is pointed out", async () => {
    expect(about(await doctor(inMemory), "rights")).toMatchObject({ verdict: "good" });
    chmodSync(inMemory, 0o666);
    const rights = about(await doctor(inMemory), "rights");
    expect(rights).toMatchObject({ verdict: "bad" });
    expect(rights?.todo).toContain(`chmod o-rwx ${inMemory}`);
    chmodSync(inMemory, 0o600);
  });

  test("of a mount tells about its region, and that assumed persistent memory is none", async () => {
    await withMount({ assumePmem: true, on: "disk" }, async (mount) => {
      for (const path of [mount.path, mount.region]) {
        const answer = await doctor(path);
        expect(answer.region).toBe(mount.region);
        if (fileSystemOf(mount.region) !== "tmpfs") {
          expect(about(answer, "durability")).toMatchObject({
            verdict: "bad",
            todo: "mount it without assume_pmem",
          });
        }
      }
    });
  });

  test.skipIf(loopUnavailable() !== null)(
    `a block device is named, with what its write cache means${loopUnavailable() === null ? "" : `: ${loopUnavailable()}`}`,
    async () => {
      const device = makeLoopDevice(64 * 1024 * 1024);
      try {
        const answer = await doctor(device.path);
        expect(answer.found).toMatch(/^block device \(loop\d+\)$/);
        expect(about(answer, "write cache")).toBeDefined();
      } finally {
        device.remove();
      }
    },
  );

  test("what is not there, or no region, is one line on stderr", async () => {
    for (const path of [join(memory, "none"), memory]) {
      const { code, stdout, stderr } = await cli(["doctor", path]);
      expect([code, stdout]).toEqual([1, ""]);
      expect(stderr).toMatch(/^mapdirect: [^\n]+; [^\n]+\n$/);
    }
  });
});
