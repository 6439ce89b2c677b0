import { describe, expect, test } from "vitest";
import { FsError } from "../../src/base/errors.ts";
import { retrying } from "../../src/base/wait.ts";
import { fsck } from "../../src/fsck/fsck.ts";
import { type CopyTableValue, readCopyTable } from "../../src/media/copy-table.ts";
import { SegmentRole, SUPERBLOCK_OFFSETS } from "../../src/media/format.ts";
import type { GroupBuilder } from "../../src/media/group.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { read, write } from "../../src/namespace/data.ts";
import { fieldsOf, type Inode, LINK_MAX, S_IFDIR, S_IFREG } from "../../src/namespace/inode.ts";
import { FLAGS_ATTRIBUTE, setInodeFlags } from "../../src/namespace/inode-flags.ts";
import { create, lookup } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { pattern } from "../namespace/bench.ts";
import { difference, foreignBytes, Model } from "../namespace/model.ts";
import { Recorder } from "../powercut/recorder.ts";
import { apply, settle, statesOf } from "../powercut/states.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { damage, makeSpecimen, withLies } from "../support/specimen.ts";
import {
  MIB,
  makeVolume,
  onAnotherBoot,
  owner,
  patchSuperblock,
  randomOf,
  withoutCopies,
} from "../support/volume.ts";

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));
const runs = Number(process.env.MAPDIRECT_RUNS ?? 150);

/** Is it refused by a mount, or told by it that something is wrong? */
async function isWrong(image: Uint8Array, granularity: Granularity): Promise<boolean> {
  try {
    const store = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: true });
    return store.recovery.warnings.length > 0;
  } catch {
    return true;
  }
}

/** Check, repair, check again; returns the repaired image, or null if there is no repair. */
async function repaired(image: Uint8Array, granularity: Granularity): Promise<Uint8Array | null> {
  const region = MemoryRegion.fromImage(image, { granularity });
  let report: Awaited<ReturnType<typeof fsck>>;
  try {
    report = await fsck(region, { repair: false });
  } catch (error) {
    // Another version, say, or no volume at all.
    if (error instanceof FsError) return null;
    throw error;
  }
  expect(Buffer.compare(region.image(), image)).toBe(0);
  expect(report.problemCount > 0).toBe(await isWrong(image, granularity));
  if (report.problemCount === 0) return image;
  if (!report.repairable) {
    await fsck(region, { repair: true });
    expect(Buffer.compare(region.image(), image)).toBe(0);
    return null;
  }
  const again = await fsck(region, { repair: true });
  // Without a superblock the volume gets a uuid at random.
  const named = (one: object): object => ({ ...one, superblock: null });
  expect(named(again)).toEqual(named({ ...report, repaired: true }));
  const after = await fsck(region, { repair: false });
  expect(after).toMatchObject({ problems: [], problemCount: 0, refusal: null });
  const store = await Store.open(region, { readOnly: false });
  expect(store.recovery.label).toBe("clean");
  checkVolume(store);
  // Whoever has written the image may have made the root immutable.
  await retrying(() => setInodeFlags(store, store.root, 0));
  const file = await retrying(() => create(store, store.root, "after", S_IFREG | 0o600, 0, owner, null));
  await retrying(() => write(store, file, 0n, pattern(9000, 1), 0, 9000, false));
  checkVolume(store);
  await store.close();
  return region.image();
}

describe(`fsck (seed ${seed})`, () => {
  for (const granularity of ["cacheline", "page"] as const) {
    for (const clean of [true, false]) {
      const how = `${granularity}, ${clean ? "unmounted" : "killed"}`;
      test(`finds nothing wrong with a whole volume (${how})`, async () => {
        const { image, states } = await makeSpecimen(granularity, clean);
        for (const one of granularity === "page" ? [image, onAnotherBoot(image.slice())] : [image]) {
          const region = MemoryRegion.fromImage(one, { granularity });
          const report = await fsck(region, { repair: true });
          expect(report).toMatchObject({ problems: [], problemCount: 0, refusal: null, repaired: false });
          expect(Buffer.compare(region.image(), one)).toBe(0);
          if (one === image) expect(report.inodes).toBe(states.at(-1)?.nodes.size);
        }
      });

      test(`repairs whatever byte of its metadata is damaged, and loses nothing else (${how})`, async () => {
        const { image, places, states } = await makeSpecimen(granularity, clean);
        const last = states.at(-1) as Model;
        // What was lost with a record is a hole; nothing else may be where it never was.
        const lost = last.clone();
        for (const node of lost.nodes.values()) node.content.clear();
        let whole = 0;
        let touched = 0;
        for (const { at, length } of places) {
          for (let byte = at; byte < at + length; byte += 5) {
            touched += 1;
            const damaged = image.slice();
            damaged[byte] = (damaged[byte] as number) ^ (byte % 2 === 0 ? 0x01 : 0xff);
            const good = await repaired(damaged, granularity);
            if (good === null) continue; // the version in a superblock
            const store = await Store.open(MemoryRegion.fromImage(good, { granularity }), { readOnly: true });
            const seen = Model.of(store);
            expect(foreignBytes(withoutNew(seen, last), [...states, lost])).toBeNull();
            if (difference(withoutAfter(seen), last.withoutOrphans()) === null) whole += 1;
          }
        }
        // One group lost is one step of one of the files, no more.
        expect(whole / touched).toBeGreaterThan(0.3);
      }, 240_000);
    }
  }

  test("repairs random damage to many bytes", async () => {
    const random = randomOf(seed);
    for (const granularity of ["cacheline", "page"] as const) {
      const specimen = await makeSpecimen(granularity, false);
      for (let run = 0; run < runs; run += 1) {
        const region = MemoryRegion.fromImage(specimen.image, { granularity });
        damage(specimen, region, random);
        await repaired(region.image(), granularity);
      }
    }
  }, 120_000);

  test("repairs records that lie under right checksums", async () => {
    const random = randomOf(seed + 1);
    const specimens = [
      { granularity: "cacheline" as const, ...(await makeSpecimen("cacheline", false)) },
      { granularity: "page" as const, ...(await makeSpecimen("page", false)) },
      { granularity: "page" as const, ...(await makeSpecimen("page", true)) },
    ];
    for (let run = 0; run < runs * 2; run += 1) {
      const specimen = specimens[run % 3] as (typeof specimens)[0];
      const image = withLies(specimen, random);
      try {
        await repaired(image, specimen.granularity);
      } catch (error) {
        throw new Error(`run ${run}: ${error instanceof Error ? error.stack : error}`);
      }
    }
  }, 120_000);

  test("a repair that is cut short has changed nothing, or is done", async () => {
    const random = randomOf(seed + 2);
    for (const granularity of ["cacheline", "page"] as const) {
      const specimen = await makeSpecimen(granularity, false);
      const damaged = specimen.image.slice();
      // A group in the middle of the checkpoint.
      damaged.fill(0xaa, (specimen.groups[0] as number) + 40, (specimen.groups[0] as number) + 60);
      const region = MemoryRegion.fromImage(damaged, { granularity });
      const recorder = new Recorder(region);
      await fsck(region, { repair: true });
      const wanted = Model.of(await Store.open(region, { readOnly: true }));
      const media = damaged.slice();
      for (const epoch of recorder.take()) {
        for (const choice of statesOf(epoch, 24, random)) {
          const image = media.slice();
          apply(image, epoch, choice);
          const good = (await repaired(image, granularity)) as Uint8Array;
          const store = await Store.open(MemoryRegion.fromImage(good, { granularity }), { readOnly: true });
          expect(difference(withoutAfter(Model.of(store)), wanted)).toBeNull();
        }
        settle(media, [epoch]);
      }
    }
  }, 120_000);
});

/** Without the file that shows that the volume can be used again. */
function withoutAfter(model: Model): Model {
  const ino = model.nodes.get(1)?.entries.get("after") ?? 0;
  model.nodes.get(1)?.entries.delete("after");
  model.nodes.delete(ino);
  return model;
}

/** Of those inodes alone that were there before. */
function withoutNew(model: Model, before: Model): Model {
  for (const ino of model.nodes.keys()) if (!before.nodes.has(ino)) model.nodes.delete(ino);
  return model;
}

/** A volume of a few files, and a record that its daemon would never have written. */
async function withRecord(record: (group: GroupBuilder, store: Store) => void): Promise<Uint8Array> {
  const region = await makeVolume(4 * MIB, "cacheline");
  const store = await Store.open(region, { readOnly: false });
  const directory = create(store, store.root, "directory", S_IFDIR | 0o755, 0, owner, null);
  for (const [name, parent] of [
    ["one", store.root],
    ["two", directory],
  ] as const) {
    const file = create(store, parent, name, S_IFREG | 0o644, 0, owner, null);
    write(store, file, 0n, pattern(9000, name.length + file.ino), 0, 9000, false);
  }
  create(store, directory, "below", S_IFDIR | 0o755, 0, owner, null);
  const group = store.begin(true);
  record(group, store);
  store.journal?.commit(group);
  return region.image();
}

const at = (store: Store, ...path: string[]): Inode =>
  path.reduce((inode, name) => lookup(store, inode, name), store.root);

function content(store: Store, inode: Inode): Uint8Array {
  const data = Buffer.alloc(Number(inode.size));
  read(store, inode, 0n, data, 0, data.length);
  return Uint8Array.from(data);
}

describe("fsck finds, and a repair mends", () => {
  const cases: {
    what: string;
    record: (group: GroupBuilder, store: Store) => void;
    problems: RegExp[];
    left: (store: Store) => void;
  }[] = [
    {
      what: "a wrong link count",
      record: (group, store) => group.inode({ ...fieldsOf(at(store, "one")), nlink: 7 }),
      problems: [/inode 3: link count: expected 1, found 7/],
      left: (store) => expect(at(store, "one").nlink).toBe(1),
    },
    {
      what: "inode flags of another length",
      record: (group, store) => {
        group.xattr(3, "user.kept", pattern(5, 1));
        group.xattr(at(store, "one").ino, FLAGS_ATTRIBUTE, pattern(3, 1));
      },
      problems: [/inode 3: inode flags: expected 4 bytes, found 3/],
      left: (store) => {
        expect(at(store, "one").flags).toBe(0);
        expect([...(at(store, "one").xattrs?.keys() ?? [])]).toEqual(["user.kept"]);
      },
    },
    {
      what: "a name that means nothing",
      record: (group, store) => group.dentry(1, "ghost", 999, 8, store.root.directory?.nextCookie ?? 0),
      problems: [/entry "ghost" of directory 1: expected inode 999, found no such inode/],
      left: (store) =>
        expect([...(store.root.directory?.names.keys() ?? [])]).toEqual(["directory", "one", "after"]),
    },
    {
      what: "a file without a name",
      record: (group) => group.dentryGone(1, "one"),
      problems: [/inode 3: expected a name, found none that leads to the root/],
      left: (store) => {
        const found = at(store, "lost+found", "#3");
        expect(content(store, found)).toEqual(pattern(9000, 6));
        expect(at(store, "lost+found").mode & 0o777).toBe(0o700);
      },
    },
    {
      what: "a tree without a name",
      record: (group) => group.dentryGone(1, "directory"),
      problems: [/inode 2: expected a name/, /inode 1: link count: expected 3, found 3/],
      left: (store) => {
        expect(content(store, at(store, "lost+found", "#2", "two"))).toEqual(pattern(9000, 7));
        expect(at(store, "lost+found", "#2", "below").isDirectory).toBe(true);
      },
    },
    {
      what: "a tree whose lower directory has the lower number",
      record: (group, store) => {
        // 2 is moved into 5, and 5 loses its own name.
        const fields = { ...fieldsOf(at(store, "directory")), parent: 5 };
        group.dentryGone(1, "directory");
        group.dentryGone(2, "below");
        group.dentry(5, "photos", 2, 4, 3);
        group.inode(fields);
      },
      problems: [/inode 5: expected a name/],
      left: (store) =>
        expect(content(store, at(store, "lost+found", "#5", "photos", "two"))).toEqual(pattern(9000, 7)),
    },
    {
      what: "directories that contain each other",
      record: (group, store) => {
        group.dentryGone(1, "directory");
        group.dentry(5, "loop", 2, 4, 3);
        group.inode({ ...fieldsOf(at(store, "directory")), parent: 5 });
      },
      problems: [/inode 2: expected a name/],
      left: (store) => expect(at(store, "lost+found", "#2", "below").directory?.names.size).toBe(0),
    },
    {
      what: "a directory with two names",
      record: (group, store) => group.dentry(1, "again", 5, 4, store.root.directory?.nextCookie ?? 0),
      problems: [/entry "again" of directory 1: expected directory 5 in its parent, 2, found a second name/],
      left: (store) => expect(at(store, "directory", "below").parent).toBe(2),
    },
    {
      what: "an entry of the wrong type",
      record: (group, store) => group.dentry(1, "one", 3, 4, store.root.directory?.nextCookie ?? 0),
      problems: [/entry "one" of directory 1: expected type 8, found 4/],
      left: (store) => expect(content(store, at(store, "one"))).toEqual(pattern(9000, 6)),
    },
    {
      what: "two files with the same blocks",
      record: (group, store) => {
        const [extent] = at(store, "one").extents ?? [];
        group.extent(4, 0, extent?.physical ?? 0, 2, 2);
      },
      problems: [
        /inode 3: extent at file block 0: expected blocks \d+ to \d+ to be its own, found others have them, too/,
        /inode 4: extent at file block 0/,
      ],
      left: (store) => {
        expect(content(store, at(store, "one"))).toEqual(pattern(9000, 6));
        expect(content(store, at(store, "directory", "two")).subarray(0, 8192)).toEqual(
          pattern(9000, 6).subarray(0, 8192),
        );
        const two = at(store, "directory", "two");
        write(store, two, 0n, pattern(10, 99), 0, 10, false);
        expect(content(store, at(store, "one"))).toEqual(pattern(9000, 6));
      },
    },
    {
      what: "blocks outside the volume",
      record: (group) => group.extent(3, 1, 5000, 1, 2),
      problems: [/inode 3: extent at file block 1: expected blocks below 1024, found 1 at 5000/],
      left: (store) => {
        const expected = pattern(9000, 6);
        expected.fill(0, 4096, 8192);
        expect(content(store, at(store, "one"))).toEqual(expected);
      },
    },
    {
      what: "blocks at the last number that there is",
      record: (group) => group.extent(3, 1, Number.MAX_SAFE_INTEGER, 2, 2),
      problems: [
        /inode 3: extent at file block 1: expected blocks below 4503599627370496, found 2 at 9007199254740991/,
      ],
      left: (store) => {
        const expected = pattern(9000, 6);
        expected.fill(0, 4096);
        expect(content(store, at(store, "one"))).toEqual(expected);
      },
    },
    {
      what: "blocks that are metadata",
      record: (group, store) => group.extent(3, 0, store.superblock.logSegment / 4096, 1, 2),
      problems: [/inode 3: extent at file block 0: expected blocks outside the metadata/],
      left: (store) =>
        expect(content(store, at(store, "one")).subarray(0, 4096)).toEqual(new Uint8Array(4096)),
    },
    {
      what: "a root that is gone",
      record: (group) => group.inodeGone(1),
      problems: [
        /root directory: expected inode 1 to be a directory, found none/,
        /inode 2: expected a name/,
      ],
      left: (store) => {
        expect(content(store, at(store, "lost+found", "#3"))).toEqual(pattern(9000, 6));
        expect(content(store, at(store, "lost+found", "#2", "two"))).toEqual(pattern(9000, 7));
      },
    },
    {
      what: "an inode whose record is lost",
      record: (group) => group.extent(77, 0, 900, 1, 2),
      problems: [/inode 77: expected its record, found none/, /inode 77: expected a name/],
      left: (store) => expect(at(store, "lost+found", "#77").size).toBe(4096n),
    },
    {
      what: "impossible times, sizes and types",
      record: (group, store) => {
        group.inode({ ...fieldsOf(at(store, "one")), mtimeNsec: 2_000_000_000, size: 2n ** 63n });
        group.inode({ ...fieldsOf(at(store, "directory", "two")), mode: 0o170644 });
      },
      problems: [/inode 3: size/, /inode 3: mtime/, /inode 4: mode: expected a file type, found 170644/],
      left: (store) => {
        expect(at(store, "one").size).toBe(12288n);
        expect(at(store, "directory", "two").mode).toBe(S_IFREG | 0o600);
      },
    },
  ];

  test.each(cases)("$what", async ({ record, problems, left }) => {
    const image = await withRecord(record);
    const region = MemoryRegion.fromImage(image);
    const report = await fsck(region, { repair: false });
    const lines = report.problems.map(
      ({ place, expected, found }) => `${place}: expected ${expected}, found ${found}`,
    );
    for (const problem of problems.slice(0, 1)) expect(lines.join("\n")).toMatch(problem);
    expect(report.refusal).toMatch(/damaged/);
    const good = (await repaired(image, "cacheline")) as Uint8Array;
    const store = await Store.open(MemoryRegion.fromImage(good), { readOnly: false });
    left(store);
    checkVolume(store);
  });

  test("nothing without being told to, if something would be lost; and says how much before", async () => {
    const cases = [
      { record: (group: GroupBuilder) => group.dentryGone(1, "one"), loss: { inodes: 1, bytes: 0 } },
      { record: (group: GroupBuilder) => group.extent(3, 1, 5000, 1, 2), loss: { inodes: 1, bytes: 4096 } },
      { record: (group: GroupBuilder) => group.inodeGone(1), loss: { inodes: 2, bytes: 0 } },
    ];
    for (const { record, loss } of cases) {
      const image = await withRecord(record);
      const region = MemoryRegion.fromImage(image);
      const asked: unknown[] = [];
      const report = await fsck(region, {
        repair: true,
        mayLose: (what) => {
          asked.push(what);
          return false;
        },
      });
      expect(report).toMatchObject({ repairable: true, repaired: false, loss: { ...loss, atLeast: false } });
      expect(asked).toEqual([report.loss]);
      expect(Buffer.compare(region.image(), image)).toBe(0);
    }
    const image = await withRecord((group, store) =>
      group.inode({ ...fieldsOf(at(store, "one")), nlink: 7 }),
    );
    const mayLose = (): boolean => false;
    const report = await fsck(MemoryRegion.fromImage(image), { repair: true, mayLose });
    expect(report).toMatchObject({ loss: null, repaired: true });
  });

  test("two superblocks that are damaged in different places", async () => {
    const region = await makeVolume(4 * MIB, "page");
    const image = region.image();
    image[SUPERBLOCK_OFFSETS[0] + 200] = 0xee;
    image[SUPERBLOCK_OFFSETS[1] + 150] = 0xee;
    const report = await fsck(MemoryRegion.fromImage(image), { repair: false });
    expect(report.problems).toMatchObject([{ code: "superblock-copy", found: "both damaged, in 2 words" }]);
    expect(await repaired(image, "page")).not.toBeNull();
  });

  test("no superblock at all, and no whole metadata: it cannot", async () => {
    const image = withoutCopies((await makeVolume(4 * MIB, "page")).image());
    const { recovery } = await Store.open(MemoryRegion.fromImage(image), { readOnly: true });
    image[recovery.checkpoint.segment + 100] = 0xee;
    for (const offset of [...SUPERBLOCK_OFFSETS, 4 * MIB - 4096])
      image.fill(offset % 251, offset + 8, offset + 512);
    const report = await fsck(MemoryRegion.fromImage(image), { repair: true });
    expect(report).toMatchObject({ superblock: null, repairable: false, repaired: false });
    expect(report.problems[0]?.repair).toBeNull();
  });

  for (const [how, sizeBytes, blockSizeBytes, clean, endToo] of [
    ["unmounted, with the one at the end", 16 * MIB, 4096, true, false],
    ["killed, with the one at the end", 16 * MIB, 4096, false, false],
    ["larger blocks, with the one at the end", 64 * MIB, 65_536, true, false],
    ["unmounted", 16 * MIB, 4096, true, true],
    ["killed", 16 * MIB, 4096, false, true],
    ["larger blocks", 64 * MIB, 65_536, true, true],
    ["larger segments", 1024 * MIB, 4096, true, true],
  ] as const) {
    test(`both superblocks gone: the segments tell what they are (${how})`, async () => {
      const region = await makeVolume(sizeBytes, "cacheline", { blockSizeBytes });
      const store = await Store.open(region, { readOnly: false });
      const directory = create(store, store.root, "directory", S_IFDIR | 0o755, 0, owner, null);
      for (let index = 0; index < 30; index += 1) {
        const bytes = 1000 + index * 7000;
        const file = create(store, directory, `file-${index}`, S_IFREG | 0o644, 0, owner, null);
        write(store, file, 0n, pattern(bytes, index), 0, bytes, false);
      }
      if (clean) await store.close();
      const zeros = new Uint8Array(128 * 1024);
      region.write(0, zeros, 0, zeros.length);
      if (endToo) region.write(sizeBytes - 4096, zeros, 0, 4096);
      const refusal = await Store.open(region, { readOnly: true }).catch((error: Error) => error.message);
      expect(refusal).toMatch(/damaged superblocks: .*none, but metadata/);
      expect(refusal).not.toContain("mkfs");
      // What is found may have been put there by anybody.
      expect(await fsck(region, { repair: true, mayLose: () => false })).toMatchObject({ repaired: false });
      const report = await fsck(region, { repair: true });
      expect(report).toMatchObject({ repaired: true, loss: { inodes: 0, ofInodes: 32, bytes: 0 } });
      expect(report.problems).toMatchObject([{ code: "superblock" }]);
      expect(report.superblock?.label).toBe(endToo ? "" : "test");
      expect(report.superblock?.blockBytes).toBe(blockSizeBytes);
      expect(await fsck(region, { repair: false })).toMatchObject({ problemCount: 0 });
      const again = await Store.open(region, { readOnly: false });
      for (let index = 0; index < 30; index += 1) {
        const found = content(again, at(again, "directory", `file-${index}`));
        expect(Buffer.compare(found, pattern(1000 + index * 7000, index))).toBe(0);
      }
      checkVolume(again);
      await again.close();
    }, 120_000);
  }

  for (const granularity of ["cacheline", "page"] as const) {
    test(`a checkpoint and its copy: the one before and the log since are there (${granularity})`, async () => {
      const region = await makeVolume(16 * MIB, granularity);
      const store = await Store.open(region, { readOnly: false });
      for (let index = 0; index < 40; index += 1) {
        const file = create(store, store.root, `file-${index}`, S_IFREG | 0o644, 0, owner, null);
        write(store, file, 0n, pattern(5000, index), 0, 5000, false);
        if (index % 10 === 9) await store.checkpoint();
      }
      await store.close();
      const { checkpoint, geometry } = (await Store.open(region, { readOnly: true })).recovery;
      const { copies } = readCopyTable(region, SegmentRole.CHECKPOINT, geometry.seed) as CopyTableValue;
      for (const at of [...checkpoint.segments, ...copies])
        region.write(at + 64, new Uint8Array(4000), 0, 4000);
      await expect(Store.open(region, { readOnly: true })).rejects.toThrow("damaged");
      const report = await fsck(region, { repair: true, mayLose: () => false });
      expect(report).toMatchObject({ repaired: true, loss: null, problems: [{ code: "superblock-old" }] });
      const again = await Store.open(region, { readOnly: false });
      for (let index = 0; index < 40; index += 1)
        expect(content(again, at(again, `file-${index}`))).toEqual(pattern(5000, index));
      checkVolume(again);
      await again.close();
    });
  }

  test("a superblock from two mounts ago: it is named, and nobody goes by it", async () => {
    const region = await makeVolume(16 * MIB, "page");
    const mountOnce = async (name: string): Promise<void> => {
      const store = await Store.open(region, { readOnly: false });
      const file = create(store, store.root, name, S_IFREG | 0o644, 0, owner, null);
      write(store, file, 0n, pattern(9000, name.length), 0, 9000, false);
      await store.close();
    };
    await mountOnce("a");
    const [first, second] = SUPERBLOCK_OFFSETS;
    const old = region.image().slice(second, second + 512);
    await mountOnce("bb");
    await mountOnce("ccc");
    region.write(second, old, 0, old.length);
    const report = await fsck(region, { repair: false });
    expect(report).toMatchObject({ refusal: null, loss: null, problemCount: 1 });
    expect(report.problems[0]).toMatchObject({
      code: "superblock-copy",
      found: expect.stringMatching(/byte 65536: an older one, number \d+ and not \d+/),
    });
    const lost = MemoryRegion.fromImage(region.image(), { granularity: "page" });
    expect(await fsck(region, { repair: true })).toMatchObject({ repaired: true });
    expect(await fsck(region, { repair: false })).toMatchObject({ problemCount: 0 });
    // The newer one is gone as well.
    lost.write(first, new Uint8Array(512), 0, 512);
    expect(await fsck(lost, { repair: true, mayLose: () => false })).toMatchObject({
      repaired: true,
      loss: null,
    });
    for (const one of [region, lost]) {
      const store = await Store.open(one, { readOnly: true });
      for (const name of ["a", "bb", "ccc"])
        expect(Buffer.compare(content(store, at(store, name)), pattern(9000, name.length))).toBe(0);
    }
  });

  test("a region that was cut short", async () => {
    const region = await makeVolume(8 * MIB, "cacheline");
    const store = await Store.open(region, { readOnly: false });
    const files = ["near", "far"].map((name) =>
      create(store, store.root, name, S_IFREG | 0o644, 0, owner, null),
    );
    for (const [index, file] of files.entries())
      write(store, file, 0n, pattern(1 << 20, index), 0, 1 << 20, false);
    const physical = [...(files[1]?.extents ?? [])][0]?.physical as number;
    await store.close();
    const cut = Math.max(physical * 4096 + 8192, 4 * MIB);
    const image = region.image().slice(0, cut);
    const report = await fsck(MemoryRegion.fromImage(image), { repair: false });
    expect(report.problems[0]).toMatchObject({ code: "region-short" });
    const good = (await repaired(image, "cacheline")) as Uint8Array;
    const again = await Store.open(MemoryRegion.fromImage(good), { readOnly: true });
    expect(Buffer.compare(content(again, at(again, "near")), pattern(1 << 20, 0))).toBe(0);
  });

  test("an extent that a cut of the region reaches into: the rest of it stays", async () => {
    const region = await makeVolume(8 * MIB, "cacheline");
    const store = await Store.open(region, { readOnly: false });
    const file = create(store, store.root, "file", S_IFREG | 0o644, 0, owner, null);
    write(store, file, 0n, pattern(6 * MIB, 5), 0, 6 * MIB, false);
    const extents = [...(file.extents ?? [])].map((extent) => ({ ...extent }));
    await store.close();
    const end = (7 * MIB) / 4096;
    const cut = region.image().slice(0, end * 4096);
    expect(extents.some(({ physical, count }) => physical < end && physical + count > end)).toBe(true);
    const cutRegion = MemoryRegion.fromImage(cut);
    await fsck(cutRegion, { repair: true });
    const again = await Store.open(cutRegion, { readOnly: true });
    const expected = pattern(6 * MIB, 5);
    for (const { block, count, physical } of extents) {
      const kept = Math.min(count, Math.max(0, end - physical));
      expected.fill(0, (block + kept) * 4096, (block + count) * 4096);
    }
    expect(Buffer.compare(content(again, at(again, "file")), expected)).toBe(0);
  });

  test("the last cookie is used up, and by two entries: others get one that is free", async () => {
    const last = 2 ** 52 - 1;
    const image = await withRecord((group) => {
      group.dentryGone(1, "one");
      group.dentry(1, "directory", 2, 4, last);
      group.dentry(2, "two", 4, 8, last);
      group.dentry(2, "below", 5, 4, last);
    });
    const region = MemoryRegion.fromImage(image);
    expect(await fsck(region, { repair: true })).toMatchObject({ repaired: true });
    expect(await fsck(region, { repair: false })).toMatchObject({ problemCount: 0 });
    const store = await Store.open(region, { readOnly: false });
    expect(content(store, at(store, "lost+found", "#3"))).toEqual(pattern(9000, 6));
    expect([...(at(store, "directory").directory?.names.keys() ?? [])].sort()).toEqual(["below", "two"]);
    checkVolume(store);
  });

  test("an inode with the last number there is: what repair makes gets another", async () => {
    const last = 2 ** 52 - 1;
    const image = await withRecord((group, store) => {
      group.inode({ ...fieldsOf(at(store, "one")), ino: last });
    });
    const region = MemoryRegion.fromImage(image);
    expect(await fsck(region, { repair: true })).toMatchObject({ repaired: true });
    expect(await fsck(region, { repair: false })).toMatchObject({ problemCount: 0 });
    const store = await Store.open(region, { readOnly: false });
    expect(at(store, "lost+found", `#${last}`).ino).toBe(last);
    checkVolume(store);
  });

  test("a superblock that names the wrong segments: it finds the right ones", async () => {
    const { image, states } = await makeSpecimen("cacheline", false);
    patchSuperblock(image, ({ segmentBytes }) => ({
      checkpointSegment: 5 * segmentBytes,
      logSegment: 131072 + 8,
    }));
    const good = (await repaired(image, "cacheline")) as Uint8Array;
    const store = await Store.open(MemoryRegion.fromImage(good), { readOnly: true });
    expect(difference(withoutAfter(Model.of(store)), (states.at(-1) as Model).withoutOrphans())).toBeNull();
  });

  test("media that cannot be read in places", async () => {
    const { image, groups, states } = await makeSpecimen("cacheline", false);
    const region = MemoryRegion.fromImage(image);
    const last = groups.at(-1) as number;
    region.failReads(last - (last % 512), 512);
    const report = await fsck(region, { repair: false });
    expect(report.refusal).toContain("EIO");
    expect(report.problemCount).toBeGreaterThan(0);
    const fixed = await fsck(region, { repair: true });
    expect(fixed.repaired).toBe(true);
    const store = await Store.open(region, { readOnly: true });
    expect(Model.of(store).nodes.size).toBeGreaterThan((states.at(-1) as Model).nodes.size - 2);
  });

  test("takes the names from a file that it has more of than it may", async () => {
    const region = await makeVolume(32 * MIB, "cacheline");
    const store = await Store.open(region, { readOnly: false });
    const file = create(store, store.root, "file", S_IFREG | 0o644, 0, owner, null);
    const names = LINK_MAX + 5;
    for (let done = 1; done < names; ) {
      await retrying(() => {
        const group = store.begin(true);
        for (const end = Math.min(names, done + 500); done < end; done += 1)
          group.dentry(store.root.ino, `name-${done}`, file.ino, 8, 1000 + done);
        store.commit();
      });
    }
    const image = region.image();
    const report = await fsck(MemoryRegion.fromImage(image), { repair: false });
    expect(report.problems.filter(({ code }) => code === "entry")).toHaveLength(5);
    const left = await repaired(image, "cacheline");
    const again = await Store.open(MemoryRegion.fromImage(left as Uint8Array), { readOnly: true });
    expect(again.inode(file.ino).nlink).toBe(LINK_MAX);
    const named = [...(again.root.directory?.names.values() ?? [])].filter(({ ino }) => ino === file.ino);
    expect(named).toHaveLength(LINK_MAX);
    checkVolume(again);
  });
});
