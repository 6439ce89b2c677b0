/** A region on tmpfs is kept in huge pages where the kernel does that: only what is there, and nobody sees a difference. */
import { readFileSync } from "node:fs";
import { open, readFile, stat, writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { mapDirect, open as openDirect } from "../../src/api/index.ts";
import { HUGE_PAGE_BYTES, HugePages } from "../../src/session/huge-pages.ts";
import { withMount } from "../support/mount.ts";
import { until } from "../support/until.ts";

const MIB = 1024 * 1024;
const LIMIT_MS = 20_000;

/** Kilobytes of shared memory that a process has mapped with huge pages. */
function hugeKilobytes(pid: number): number {
  const text = readFileSync(`/proc/${pid}/smaps`, "latin1");
  const found = [...text.matchAll(/^ShmemPmdMapped:\s+(\d+) kB$/gm)];
  return found.reduce((sum, [, count]) => sum + Number(count), 0);
}

const canHave = (): boolean => {
  try {
    const [major = 0, minor = 0] = readFileSync("/proc/sys/kernel/osrelease", "latin1")
      .split(".")
      .map(Number);
    readFileSync("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    return major > 6 || (major === 6 && minor >= 1);
  } catch {
    return false;
  }
};

test("what is full becomes huge pages, holes stay, and every byte is seen by everybody as before", async ({
  skip,
}) => {
  if (!canHave()) skip("this kernel does not put pages of tmpfs together (Linux 6.1, huge pages)");
  await withMount({ sizeBytes: 64 * MIB }, async (mount) => {
    const bytes = Buffer.from(Array.from({ length: 12 * MIB }, (_, index) => (index * 7) >> 8));
    await writeFile(mount.at("file"), bytes);
    const file = await openDirect(mount.at("file"));
    const mapping = await mapDirect(file);
    mapping.buffer.write("stored before", 5 * MIB);
    const before = (await stat(mount.region)).blocks;
    await until(async () => {
      // The daemon maps what it uses.
      await readFile(mount.at("file"));
      return hugeKilobytes(mount.daemonPid()) >= (8 * MIB) / 1024;
    }, LIMIT_MS);
    mapping.buffer.write("stored after", 7 * MIB);
    bytes.write("stored before", 5 * MIB);
    bytes.write("stored after", 7 * MIB);
    expect((await readFile(mount.at("file"))).equals(bytes)).toBe(true);
    expect(mapping.buffer.equals(bytes)).toBe(true);
    const writer = await open(mount.at("file"), "r+");
    await writer.write("by write(2)", 3 * MIB);
    await writer.close();
    expect(mapping.buffer.toString("latin1", 3 * MIB, 3 * MIB + 11)).toBe("by write(2)");
    // The log may have grown by a segment meanwhile; 52 MiB of holes have not been filled.
    expect((await stat(mount.region)).blocks - before).toBeLessThan((4 * MIB) / 512);
    await mapping.release();
    await file.close();
    await mount.check();
  });
});

test("a page that the kernel refuses is tried again a few times; where it cannot be had at all, it is left alone", async () => {
  const asked: number[] = [];
  const refusing = {
    gather: async (offset: number, length: number) => {
      asked.push(offset);
      return new Uint8Array(length / HUGE_PAGE_BYTES).map((_, index) => (index === 0 ? 2 : 1));
    },
  };
  const pages = new HugePages(refusing, () => 5 * HUGE_PAGE_BYTES + 1, { roundMs: 1, pauseMs: 1 });
  await until(() => asked.length >= 3, LIMIT_MS);
  await sleep(50);
  await pages.close();
  expect(asked).toEqual([0, 0, 0]);
  expect(pages.bytes).toBe(4 * HUGE_PAGE_BYTES);

  // What was discarded may be filled again.
  const gathered = new HugePages(refusing, () => 3 * HUGE_PAGE_BYTES, { roundMs: 1, pauseMs: 1 });
  await until(() => gathered.bytes === 2 * HUGE_PAGE_BYTES, LIMIT_MS);
  await until(() => asked.length >= 6, LIMIT_MS);
  asked.length = 0;
  gathered.forget(HUGE_PAGE_BYTES + 4096, HUGE_PAGE_BYTES);
  expect(gathered.bytes).toBe(0);
  await until(() => gathered.bytes === 2 * HUGE_PAGE_BYTES, LIMIT_MS);
  await gathered.close();
  expect(asked.length).toBeGreaterThan(0);

  let calls = 0;
  const without = {
    gather: async () => {
      calls += 1;
      throw Object.assign(new Error("gather"), { code: "EOPNOTSUPP" });
    },
  };
  const none = new HugePages(without, () => 5 * HUGE_PAGE_BYTES, { roundMs: 1, pauseMs: 1 });
  await until(() => calls > 0, LIMIT_MS);
  await sleep(50);
  await none.close();
  expect(calls).toBe(1);
});
