import { describe, expect, test } from "vitest";
import { CorruptionError } from "../../src/base/errors.ts";
import { crc32c } from "../../src/media/checksum.ts";
import { BLOCK_BYTES_MAX, SUPERBLOCK_OFFSETS, Superblock, VolumeState } from "../../src/media/format.ts";
import { formatUuid, identifyContent, makeFileSystem } from "../../src/media/mkfs.ts";
import { currentBootId, readSuperblock, writeSuperblock } from "../../src/media/superblock.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { Store } from "../../src/namespace/store.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, makeVolume, owner, patchSuperblock } from "../support/volume.ts";

const [A, B] = SUPERBLOCK_OFFSETS;

async function image(): Promise<Uint8Array> {
  return (await makeVolume(4 * MIB, "cacheline")).image();
}

const read = (bytes: Uint8Array) => readSuperblock(MemoryRegion.fromImage(bytes));

describe("the superblock", () => {
  test("is the one with the higher sequence, whichever copy that is", async () => {
    for (const newer of [A, B]) {
      const bytes = await image();
      patchSuperblock(bytes, ({ sequence }) => ({ sequence: sequence + 1, label: "newer" }), [newer]);
      const { value, warnings } = read(bytes);
      expect([value.label, warnings.length]).toEqual(["newer", 0]);
    }
  });

  test("is the other copy when one is damaged, unreadable or gone, and a warning says which", async () => {
    for (const [bad, name] of [
      [A, "byte 0"],
      [B, "byte 65536"],
    ] as const) {
      const flipped = await image();
      flipped[bad + 100] = (flipped[bad + 100] as number) ^ 4;
      expect(read(flipped).warnings.join()).toContain(name);
      const gone = await image();
      gone.fill(0, bad, bad + 512);
      expect(read(gone).warnings.join()).toContain(`${name}: no magic`);
      const region = MemoryRegion.fromImage(await image());
      region.failReads(bad, 1);
      expect(readSuperblock(region).warnings.join()).toContain(name);
      expect(read(flipped).value.label).toBe("test");
    }
  });

  test("with both copies damaged is damage, with both gone no volume at all", async () => {
    const bytes = await image();
    bytes[A + 50] = (bytes[A + 50] as number) ^ 1;
    bytes[B + 51] = (bytes[B + 51] as number) ^ 1;
    expect(() => read(bytes)).toThrow(CorruptionError);
    expect(() => read(new Uint8Array(4 * MIB))).toThrow(/mapdirect mkfs/);
    expect(() => read(new Uint8Array(4096))).toThrow(/too small/);
  });

  test("of another version is refused by its number, whatever that version did with the reserved bytes", async () => {
    const bytes = await image();
    const view = new DataView(bytes.buffer);
    view.setUint32(A + Superblock.at.version, 2, true);
    bytes[A + Superblock.at.reserved] = 9;
    view.setUint32(A + Superblock.at.crc, 0, true);
    view.setUint32(A + Superblock.at.crc, crc32c(bytes, A, 512), true);
    expect(() => read(bytes)).toThrow(/format version 2/);
    expect(identifyContent(MemoryRegion.fromImage(bytes))).toMatch(/version 2/);
  });

  test("with unknown features: incompatible ones refuse, read-only ones allow reading, others do not matter", async () => {
    const bytes = await image();
    patchSuperblock(bytes, () => ({ featuresCompatible: 0x8000_0000 }));
    expect((await Store.open(MemoryRegion.fromImage(bytes), { readOnly: false })).readOnlyReason).toBeNull();
    patchSuperblock(bytes, () => ({ featuresReadOnly: 4 }));
    expect((await Store.open(MemoryRegion.fromImage(bytes), { readOnly: false })).readOnlyReason).toContain(
      "0x4",
    );
    patchSuperblock(bytes, () => ({ featuresIncompatible: 2 }));
    await expect(Store.open(MemoryRegion.fromImage(bytes), { readOnly: true })).rejects.toThrow("0x2");
  });

  test.each([
    [{ blockBytes: 4095 }, /block size/],
    [{ blockBytes: 2048 }, /block size/],
    [{ blockBytes: BLOCK_BYTES_MAX * 2 }, /block size/],
    [{ segmentBytes: 65536 }, /segment size/],
    [{ segmentBytes: 4 * MIB }, /segment size/],
    [{ regionBytes: 4096 }, /volume size/],
    [{ regionBytes: 4 * MIB + 1 }, /volume size/],
    [{ regionBytes: 8 * MIB }, /cut short/],
    [{ state: 3 }, /state 3/],
    [{ logSegment: 0 }, /log segment/],
    [{ logSegment: 131072 * 2 + 4096 }, /log segment/],
    [{ checkpointSegment: 4 * MIB }, /checkpoint segment/],
    [{ incarnations: 2 ** 52 }, /incarnations/],
    [{ sequence: 2 ** 53 - 1 }, /sequence/],
  ])("that says %o is refused", async (change, message) => {
    const bytes = await image();
    patchSuperblock(bytes, () => change);
    expect(() => read(bytes)).toThrow(message);
  });

  test("is written one copy after the other: at every store one of them is whole", async () => {
    const region = MemoryRegion.fromImage(await image(), { granularity: "page", recording: true });
    const before = readSuperblock(region).value;
    const seen = new Set<string>();
    const look = (): void => {
      for (const kept of [() => true, () => false]) {
        const { value, warnings } = readSuperblock(MemoryRegion.fromImage(region.afterPowerCut(kept)));
        seen.add(`${value.label} ${warnings.length}`);
      }
    };
    region.onStore = look;
    await writeSuperblock(region, {
      ...before,
      sequence: before.sequence + 1,
      label: "next",
      state: VolumeState.MOUNTED,
    });
    look();
    expect([...seen].sort()).toEqual(["next 0", "test 0"]);
    expect(currentBootId()).toHaveLength(16);
  });
});

test("the copy that a reader would choose is written last: when the other one is damaged or older, too", async () => {
  for (const [first, second] of [
    [0, 1],
    [1, 0],
  ] as const) {
    for (const hurt of ["damaged", "older"] as const) {
      const bytes = await makeVolume(4 * MIB, "cacheline").then((region) => region.image());
      const weak = SUPERBLOCK_OFFSETS[first];
      if (hurt === "damaged") bytes.fill(0xff, weak + 100, weak + 108);
      else
        patchSuperblock(bytes, ({ sequence }) => ({ sequence: sequence + 1 }), [SUPERBLOCK_OFFSETS[second]]);
      const region = MemoryRegion.fromImage(bytes);
      const order: number[] = [];
      region.observer = {
        ...{ stored: (begin) => order.push(begin), storedFromOutside() {}, flushed() {} },
        ...{ discarded() {}, drained() {}, syncBegun: () => () => {} },
      };
      const { value } = readSuperblock(region);
      await writeSuperblock(region, { ...value, sequence: value.sequence + 1 });
      expect(order, hurt).toEqual([weak, SUPERBLOCK_OFFSETS[second]]);
      expect(readSuperblock(region).warnings).toEqual([]);
    }
  }
});

describe("mkfs", () => {
  test.each([
    [4 * MIB, 4096],
    [4 * MIB + 4096, 4096],
    [4 * MIB + 5000, 4096],
    [4 * MIB, 131072],
    [8 * MIB, 262144],
    [16 * MIB, 65536],
    [64 * MIB, 2 * MIB],
    [129 * MIB + 12345, 4096],
    [160 * MIB, 4096],
  ])(
    "makes a volume of %d bytes in blocks of %d that can be mounted, twice",
    async (size, blockSizeBytes) => {
      const region = MemoryRegion.blank(size);
      await makeFileSystem(region, { label: "née", blockSizeBytes, ...owner });
      for (let mount = 0; mount < 2; mount += 1) {
        const store = await Store.open(region, { readOnly: false });
        expect(store.recovery.label).toBe("clean");
        expect(store.recovery.warnings).toEqual([]);
        expect([store.blockBytes, store.root.uid, store.root.gid]).toEqual([
          blockSizeBytes,
          owner.uid,
          owner.gid,
        ]);
        checkVolume(store);
        await store.close();
      }
      expect(identifyContent(region)).toMatch(/^mapdirect file system \(uuid [0-9a-f-]{36}, label née\)$/);
    },
  );

  test.each([
    [4 * MIB - 1, 4096, /too small/],
    [8 * MIB, 2 * MIB, /too small/],
    [4 * MIB, 1024, /power of two/],
    [4 * MIB, 4097, /power of two/],
    [512 * MIB, 4 * MIB, /power of two/],
    [4 * MIB, 0, /power of two/],
  ])("refuses %d bytes in blocks of %d", async (size, blockSizeBytes, message) => {
    const region = MemoryRegion.blank(size);
    await expect(makeFileSystem(region, { label: "", blockSizeBytes, ...owner })).rejects.toThrow(message);
    expect(identifyContent(region)).toBeNull();
  });

  test("refuses a long label, and blocks that the region cannot map one by one", async () => {
    const options = { blockSizeBytes: 4096, ...owner };
    const label = "é".repeat(33);
    await expect(makeFileSystem(MemoryRegion.blank(4 * MIB), { ...options, label })).rejects.toThrow(
      /64 bytes/,
    );
    const region = MemoryRegion.blank(64 * MIB, { mapAlignmentBytes: 2 * MIB });
    await expect(makeFileSystem(region, { ...options, label: "" })).rejects.toThrow(/--block-size 2097152/);
    const wider = MemoryRegion.blank(64 * MIB, { mapAlignmentBytes: 1024 * MIB });
    await expect(makeFileSystem(wider, { ...owner, label: "" })).rejects.toThrow(
      /alignment of 2 MiB or 4 KiB/,
    );
  });

  test("takes blocks that the region can map one by one, if it is not told which", async () => {
    const owned = { ...owner, label: "" };
    expect(await makeFileSystem(MemoryRegion.blank(4 * MIB), owned)).toBe(4096);
    const region = MemoryRegion.blank(64 * MIB, { mapAlignmentBytes: 2 * MIB });
    expect(await makeFileSystem(region, owned)).toBe(2 * MIB);
  });

  test("that is interrupted leaves no volume rather than half of one", async () => {
    const region = MemoryRegion.fromImage(await image(), { recording: true, granularity: "page" });
    const found = new Set<string>();
    region.onStore = () => {
      for (const kept of [() => true, () => false, () => Math.random() < 0.5]) {
        const left = MemoryRegion.fromImage(region.afterPowerCut(kept));
        found.add(identifyContent(left)?.replace(/\(.*/, "") ?? "nothing");
        try {
          readSuperblock(left);
        } catch {}
      }
    };
    await makeFileSystem(region, { label: "again", blockSizeBytes: 4096, ...owner });
    expect([...found].every((one) => one !== "damaged mapdirect file system")).toBe(true);
    expect(found).toContain("mapdirect file system without a superblock ");
    expect((await Store.open(region, { readOnly: false })).superblock.label).toBe("again");
  });

  test("recognises what others keep on a region", () => {
    const put = (at: number, bytes: string): string | null => {
      const region = MemoryRegion.blank(4 * MIB);
      region.write(at, Buffer.from(bytes, "latin1"), 0, bytes.length);
      return identifyContent(region);
    };
    expect(put(1080, "\x53\xef")).toBe("ext2/3/4 file system");
    expect(put(0, "XFSB")).toBe("xfs file system");
    expect(put(65600, "_BHRfS_M")).toBe("btrfs file system");
    expect(put(4086, "SWAPSPACE2")).toBe("swap area");
    expect(put(512, "EFI PART")).toBe("GPT partition table");
    expect(put(3000, "nothing")).toBeNull();
    expect(formatUuid(Uint8Array.from({ length: 16 }, (_, at) => at))).toBe(
      "00010203-0405-0607-0809-0a0b0c0d0e0f",
    );
  });
});
