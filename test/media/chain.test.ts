import { describe, expect, test } from "vitest";
import { CorruptionError } from "../../src/base/errors.ts";
import {
  type ChainEnd,
  ChainWriter,
  groupCapacity,
  type SegmentSource,
  walkChain,
} from "../../src/media/chain.ts";
import { GroupKind, SegmentHeader, SegmentRole } from "../../src/media/format.ts";
import { GroupBuilder } from "../../src/media/group.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, resealGroup } from "../support/volume.ts";

const geometry = { segmentBytes: 131072, regionBytes: 4 * MIB, seed: 77 };
const start = { index: 5, incarnation: 2, lsn: 100 };

function source(): SegmentSource & { taken: number[]; given: number[] } {
  let next = 131072;
  const taken: number[] = [];
  const given: number[] = [];
  return {
    taken,
    given,
    take() {
      next += 131072;
      taken.push(next);
      return next;
    },
    give(segment) {
      given.push(segment);
    },
  };
}

function record(bytes: number, marker: number): GroupBuilder {
  const group = new GroupBuilder(groupCapacity(geometry));
  group.xattr(marker, "n", new Uint8Array(bytes));
  return group;
}

function barrier(lsn: number): GroupBuilder {
  const group = new GroupBuilder(4096);
  group.barrier(lsn);
  return group;
}

interface Chain {
  readonly region: MemoryRegion;
  readonly writer: ChainWriter;
  readonly first: number;
  readonly places: number[];
  readonly from: ReturnType<typeof source>;
}

function makeChain(groups: number, bytes = 40_000): Chain {
  const region = MemoryRegion.blank(4 * MIB);
  const from = source();
  const writer = ChainWriter.begin(region, geometry, SegmentRole.LOG, from, start);
  const first = writer.segments[0] as number;
  for (let round = 0; round < groups; round += 1) writer.append(record(bytes, round), GroupKind.RECORDS);
  const places: number[] = [];
  walk(region, first, (place) => places.push(place));
  return { region, writer, first, places, from };
}

function walk(
  region: MemoryRegion,
  segment: number,
  onGroup: (place: number, lsn: number) => void = () => {},
): ChainEnd {
  return walkChain(region, geometry, SegmentRole.LOG, { segment, ...start }, (group) =>
    onGroup(group.place, group.lsn),
  );
}

function spoil(region: MemoryRegion, at: number, length = 1): void {
  const bytes = new Uint8Array(length);
  region.read(at, bytes, 0, length);
  region.write(
    at,
    bytes.map((byte) => byte ^ 0xff),
    0,
    length,
  );
}

describe("a chain", () => {
  test("is walked as it was written, over as many segments as it took", () => {
    const { region, writer, first, places } = makeChain(20);
    const lsns: number[] = [];
    const end = walk(region, first, (_, lsn) => lsns.push(lsn));
    expect(places).toHaveLength(20);
    expect(end.segments).toEqual(writer.segments);
    expect(end.segments.length).toBeGreaterThan(5);
    expect(end.lsn).toBe(writer.nextLsn);
    expect(end.spare).toBe(writer.spare);
    expect(end.index).toBe(start.index + end.segments.length - 1);
    expect(end.beyond).toEqual({ groups: false, barrierLsn: -1 });
    // Links take numbers of their own.
    expect(lsns.every((lsn, index) => index === 0 || lsn > (lsns[index - 1] as number))).toBe(true);
  });

  test("goes on where it was resumed, and from a rotation on it can be walked alone", () => {
    const { region, writer, first } = makeChain(3);
    const place = writer.rotate();
    expect(writer.rotate()).toEqual(place);
    writer.append(record(10, 1), GroupKind.RECORDS);
    let alone = 0;
    const end = walkChain(region, geometry, SegmentRole.LOG, place, () => {
      alone += 1;
    });
    expect([alone, end.lsn]).toEqual([1, writer.nextLsn]);
    expect(walk(region, first).lsn).toBe(writer.nextLsn);
    const old = writer.segments.slice(0, -1);
    expect(writer.dropBefore(place.segment)).toEqual(old);
    expect(writer.dropBefore(place.segment)).toEqual([]);
  });

  test("that is torn in its last group ends before it", () => {
    const { region, writer, first, places } = makeChain(5);
    spoil(region, (places.at(-1) as number) + 50);
    const end = walk(region, first);
    expect(end.lsn).toBe(writer.nextLsn - 1);
    expect(end.beyond.groups).toBe(false);
  });

  test("with a hole tells of the groups behind it, also in later segments, and of what a barrier vouches for", () => {
    const { region, writer, first, places } = makeChain(4);
    writer.append(barrier(103), GroupKind.BARRIER);
    for (let round = 0; round < 6; round += 1) writer.append(record(40_000, round), GroupKind.RECORDS);
    const lsns: number[] = [];
    walk(region, first, (_, lsn) => lsns.push(lsn));
    const damaged = lsns.indexOf(lsns[1] as number);
    spoil(region, (places[damaged] as number) + 60);
    const end = walk(region, first);
    expect(end.lsn).toBe(lsns[1]);
    expect(end.beyond).toEqual({ groups: true, barrierLsn: 103 });
  });

  test("ends at a link whose segment is not there, says that it went on, and finds a barrier behind", () => {
    const { region, writer, first } = makeChain(7);
    const lost = writer.segments[1] as number;
    const before = walk(region, first);
    spoil(region, lost + 8, 4);
    const end = walk(region, first);
    expect(end.segments).toEqual([first]);
    expect(end.beyond).toEqual({ groups: true, barrierLsn: -1 });
    // The same with a barrier two segments on, to which only the lost header would lead.
    writer.append(barrier(before.lsn - 1), GroupKind.BARRIER);
    expect(walk(region, first).beyond).toEqual({ groups: true, barrierLsn: before.lsn - 1 });
  });

  test("refuses a first segment that is not there, another one's, or of another volume", () => {
    const { region, first } = makeChain(2);
    expect(() => walk(region, first + 131072 * 9)).toThrow(/no segment header/);
    expect(() => walk(region, first + 4096)).toThrow(/aligned place/);
    expect(() =>
      walkChain(region, { ...geometry, seed: 78 }, SegmentRole.LOG, { segment: first, ...start }, () => {}),
    ).toThrow(CorruptionError);
    for (const other of [{ index: 6 }, { incarnation: 3 }, { lsn: 101 }]) {
      const from = { segment: first, ...start, ...other };
      expect(() => walkChain(region, geometry, SegmentRole.LOG, from, () => {})).toThrow(CorruptionError);
    }
    expect(() =>
      walkChain(region, geometry, SegmentRole.CHECKPOINT, { segment: first, ...start }, () => {}),
    ).toThrow(CorruptionError);
  });

  test("does not take the groups of an earlier use of a segment for its own", () => {
    const { region, writer, first } = makeChain(4);
    const kept = region.image();
    const reused = writer.segments.at(-1) as number;
    // A chain of the same incarnation, further on, begins in a segment that still holds old groups.
    const again = ChainWriter.begin(
      region,
      geometry,
      SegmentRole.LOG,
      {
        take: (() => {
          let next = reused - 131072;
          return () => (next += 131072);
        })(),
        give: () => {},
      },
      { ...start, lsn: 500 },
    );
    const end = walkChain(region, geometry, SegmentRole.LOG, { segment: reused, ...start, lsn: 500 }, () => {
      throw new Error("an old group");
    });
    expect([end.lsn, end.beyond.groups]).toEqual([500, false]);
    expect(again.nextLsn).toBe(500);
    expect(walk(MemoryRegion.fromImage(kept), first).lsn).toBe(writer.nextLsn);
  });

  test("refuses a kind of group that has no place in it, and a link into nowhere", () => {
    const { region, first, places } = makeChain(2);
    const image = region.image();
    image[(places[1] as number) + 12] = GroupKind.END;
    resealGroup(image, places[1] as number, geometry.seed);
    expect(() => walk(MemoryRegion.fromImage(image), first)).toThrow(/kind of the group/);
    const link = new GroupBuilder(4096);
    link.link(first, 6, 2);
    link.finish(GroupKind.LINK, 102, 2, geometry.seed);
    const cycle = makeChain(2);
    cycle.region.write(
      (cycle.places[1] as number) + (cycle.places[1] as number) - (cycle.places[0] as number),
      link.data,
      0,
      link.length,
    );
    expect(() => walk(cycle.region, cycle.first)).toThrow(CorruptionError);
  });

  test("changes nothing when no segment is free", () => {
    const region = MemoryRegion.blank(4 * MIB);
    let left = 2;
    const from = source();
    const scarce = {
      take: () => {
        if (left === 0) throw Object.assign(new Error("full"), { code: "ENOSPC" });
        left -= 1;
        return from.take();
      },
      give: from.give,
    };
    const writer = ChainWriter.begin(region, geometry, SegmentRole.LOG, scarce, start);
    writer.append(record(60_000, 1), GroupKind.RECORDS);
    writer.append(record(60_000, 2), GroupKind.RECORDS);
    const image = Buffer.from(region.image());
    expect(() => writer.append(record(60_000, 3), GroupKind.RECORDS)).toThrow("full");
    expect(image.equals(region.image())).toBe(true);
    // What fits still goes.
    writer.append(record(10, 4), GroupKind.RECORDS);
    expect(walk(region, writer.segments[0] as number).lsn).toBe(103);
    expect(groupCapacity(geometry)).toBeLessThan(geometry.segmentBytes - SegmentHeader.size);
  });

  test("gives back what it has taken when it cannot begin", () => {
    const from = source();
    let calls = 0;
    const failing = {
      take: () => {
        calls += 1;
        if (calls === 2) throw new Error("full");
        return from.take();
      },
      give: from.give,
    };
    expect(() =>
      ChainWriter.begin(MemoryRegion.blank(4 * MIB), geometry, SegmentRole.LOG, failing, start),
    ).toThrow();
    expect(from.given).toEqual(from.taken);
  });
});
