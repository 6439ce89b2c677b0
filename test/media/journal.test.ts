import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { ChainWriter, walkChain } from "../../src/media/chain.ts";
import { GroupKind, SegmentRole } from "../../src/media/format.ts";
import { GroupBuilder, readRecords, refusingSink } from "../../src/media/group.ts";
import { Journal } from "../../src/media/journal.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB } from "../support/volume.ts";

const geometry = { segmentBytes: 131072, regionBytes: 4 * MIB, seed: 1 };
const start = { index: 0, incarnation: 1, lsn: 10 };

function makeJournal(granularity: "cacheline" | "page"): {
  region: MemoryRegion;
  journal: Journal;
  first: number;
  durable: number[];
} {
  const region = MemoryRegion.blank(4 * MIB, { granularity, recording: true });
  let next = 131072;
  const take = (): number => (next += 131072);
  const chain = ChainWriter.begin(region, geometry, SegmentRole.LOG, { take, give() {} }, start);
  const journal = new Journal(region, chain);
  const durable: number[] = [];
  journal.onDurable = (lsn) => durable.push(lsn);
  return { region, journal, first: chain.segments[0] as number, durable };
}

function group(): GroupBuilder {
  const builder = new GroupBuilder(4096);
  builder.inodeGone(5);
  return builder;
}

/** Kinds of the groups on the media, and what the barriers among them vouch for. */
function log(region: MemoryRegion, segment: number): (string | number)[] {
  const found: (string | number)[] = [];
  walkChain(region, geometry, SegmentRole.LOG, { segment, ...start }, (one) => {
    if (one.kind === GroupKind.RECORDS) found.push("records");
    else
      readRecords(one.data, one.view, one.at, one.length, one.place, {
        ...refusingSink("barrier"),
        barrier: (lsn) => found.push(lsn),
      });
  });
  return found;
}

describe("the journal", () => {
  test("on cache lines is durable with each commit, and needs no barrier", async () => {
    const { region, journal, first, durable } = makeJournal("cacheline");
    expect(journal.commit(group())).toBe(10);
    expect(journal.commit(group())).toBe(11);
    expect([journal.durableLsn, ...durable]).toEqual([11, 10, 11]);
    await journal.sync();
    expect(log(region, first)).toEqual(["records", "records"]);
    expect(log(MemoryRegion.fromImage(region.afterPowerCut(() => false)), first)).toEqual([
      "records",
      "records",
    ]);
  });

  test("on pages is durable with a sync, which leaves a barrier for exactly what was stored before it", async () => {
    const { region, journal, first, durable } = makeJournal("page");
    journal.commit(group());
    expect(journal.durableLsn).toBe(9);
    const sync = journal.sync();
    journal.commit(group());
    await sync;
    // The second group came after the sync had begun: the barrier does not speak of it.
    expect(journal.durableLsn).toBe(10);
    expect(durable).toEqual([10]);
    expect(log(region, first)).toEqual(["records", "records", 10]);
    await journal.sync();
    expect(log(region, first)).toEqual(["records", "records", 10, 11]);
    expect(journal.durableLsn).toBe(11);
  });

  test("writes no barrier when nothing was logged since the last one, but still syncs the data", async () => {
    const { region, journal, first } = makeJournal("page");
    journal.commit(group());
    await journal.sync();
    await journal.sync();
    region.write(3 * MIB, Uint8Array.of(1, 2, 3), 0, 3);
    await journal.sync();
    expect(log(region, first)).toEqual(["records", 10]);
    const after = region.afterPowerCut(() => false);
    expect([...after.subarray(3 * MIB, 3 * MIB + 3)]).toEqual([1, 2, 3]);
  });

  test("lets all who call during a sync share the next one, and that one covers them all", async () => {
    const { region, journal, first } = makeJournal("page");
    journal.commit(group());
    const running = journal.sync();
    journal.commit(group());
    const [second, third] = [journal.sync(), journal.sync()];
    expect(third).toBe(second);
    expect(second).not.toBe(running);
    await running;
    expect(journal.durableLsn).toBe(10);
    await second;
    expect(journal.durableLsn).toBe(11);
    expect(log(region, first)).toEqual(["records", "records", 10, 11]);
  });

  test("after a power cut holds every group that a resolved sync covered, and its barrier", async () => {
    const { region, journal, first } = makeJournal("page");
    journal.commit(group());
    await journal.sync();
    journal.commit(group());
    const left = MemoryRegion.fromImage(
      region.afterPowerCut(() => false),
      { granularity: "page" },
    );
    expect(log(left, first)).toEqual(["records", 10]);
  });

  test("never writes again after a failed sync, and says why", async () => {
    const { region, journal } = makeJournal("page");
    journal.commit(group());
    region.failSync();
    await expect(journal.sync()).rejects.toMatchObject({ code: "EIO" });
    expect(journal.failure).not.toBeNull();
    expect(() => journal.commit(group())).toThrow(expect.objectContaining({ code: "EROFS" }));
    await expect(journal.sync()).rejects.toMatchObject({ code: "EIO" });
    expect(journal.durableLsn).toBe(9);
  });

  test.each(["cacheline", "page"] as const)(
    "takes back the group that was committed last, and none of the others (%s)",
    async (granularity) => {
      const { region, journal, first } = makeJournal(granularity);
      const failures: Error[] = [];
      journal.onFailure = (error) => failures.push(error);
      journal.commit(group());
      await journal.sync();
      const kept = log(region, first);
      const running = journal.sync();
      const before = journal.lastLsn;
      const last = group();
      journal.commit(last);
      journal.retract(last, before, new RangeError("a bug"));
      await running;
      expect(log(region, first)).toEqual(kept);
      expect([journal.lastLsn, journal.durableLsn]).toEqual([before, before]);
      expect(() => journal.commit(group())).toThrow(expect.objectContaining({ code: "EROFS" }));
      if (granularity === "page")
        await expect(journal.sync()).rejects.toEqual(new FsError("EIO", "the log has failed: a bug"));
      expect(failures).toEqual([new RangeError("a bug")]);
    },
  );

  test("never writes again after a failed store", () => {
    const { region, journal, first } = makeJournal("cacheline");
    journal.commit(group());
    region.failWrites(first, 131072);
    expect(() => journal.commit(group())).toThrow(expect.objectContaining({ code: "EIO" }));
    region.heal();
    expect(() => journal.commit(group())).toThrow(expect.objectContaining({ code: "EROFS" }));
    expect(log(region, first)).toEqual(["records"]);
  });
});
