/** A dump of a volume that changes while it is read. */
import { describe, expect, test, vi } from "vitest";
import type { FsError } from "../../src/base/errors.ts";
import { listenToFaults } from "../../src/base/faults.ts";
import { retrying } from "../../src/base/wait.ts";
import { truncate, write } from "../../src/namespace/data.ts";
import { dumpLines } from "../../src/namespace/dump.ts";
import { type Inode, S_IFDIR, S_IFREG } from "../../src/namespace/inode.ts";
import { create, rename, unlink } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import { Dump } from "../../src/session/dumps.ts";
import { MIB, makeVolume, owner, randomOf } from "../support/volume.ts";

const seed = Number(process.env.MAPDIRECT_SEED ?? Math.floor(Math.random() * 2 ** 31));

async function volume(): Promise<Store> {
  const store = await Store.open(await makeVolume(16 * MIB, "cacheline"), { readOnly: false });
  const folder = create(store, store.root, "folder", S_IFDIR | 0o755, 0, owner, null);
  for (let index = 0; index < 200; index += 1) {
    const parent = index % 2 === 0 ? store.root : folder;
    const file = create(store, parent, `file-${index}`, S_IFREG | 0o644, 0, owner, null);
    for (let block = 0; block < index % 5; block += 1)
      await retrying(() => write(store, file, BigInt(block * 8192), Buffer.alloc(4096), 0, 4096, false));
  }
  return store;
}

/** In any order; what belongs to an inode says which. */
const sorted = (text: string): string[] => text.trimEnd().split("\n").sort();

describe(`a dump (seed ${seed})`, () => {
  test("is as of the moment when it began, whatever changes while it is read", async () => {
    const random = randomOf(seed);
    const store = await volume();
    const root = store.root;
    for (let round = 0; round < 10; round += 1) {
      const expected = [...dumpLines(store.state, store.superblock)].join("");
      const dump = new Dump(store);
      const slices: Buffer[] = [];
      let offset = 0;
      for (let more = true; more; ) {
        const slice = dump.next(offset, 1 + Math.floor(random() * 3000));
        slices.push(slice.bytes);
        offset += slice.bytes.length;
        more = slice.more;
        const names = [...(root.directory?.names.keys() ?? [])].filter((name) => name !== "folder");
        const name = names[Math.floor(random() * names.length)] as string;
        const file = store.inode(root.directory?.names.get(name)?.ino ?? 0);
        await retrying(() => {
          const kind = Math.floor(random() * 5);
          if (kind === 0) {
            unlink(store, root, name);
            store.reap(file);
          } else if (kind === 1)
            create(store, root, `new-${offset}-${round}`, S_IFREG | 0o600, 0, owner, null);
          else if (kind === 2) rename(store, root, name, root, `other-${offset}-${round}`, 0);
          else if (kind === 3) truncate(store, file, BigInt(Math.floor(random() * 50_000)), false);
          else write(store, file, file.size, Buffer.alloc(5000), 0, 5000, false);
        });
      }
      dump.close();
      expect(sorted(Buffer.concat(slices).toString())).toEqual(sorted(expected));
    }
  });

  test("is one at a time, read in order, and gives up before it takes all memory", async () => {
    const store = await volume();
    const dump = new Dump(store, 2000);
    expect(() => new Dump(store)).toThrow("EBUSY");
    expect(dump.next(0, 100).bytes.length).toBe(100);
    expect(() => dump.next(0, 100)).toThrow("ESTALE");
    const files = [...store.state.inodes.values()].filter((inode: Inode) => inode.extents !== null);
    for (const file of files) await retrying(() => truncate(store, file, 1n, false));
    let failure: FsError | null = null;
    try {
      dump.next(100, 100);
    } catch (error) {
      failure = error as FsError;
    }
    expect(failure?.code).toBe("EAGAIN");
    dump.close();
    const again = new Dump(store);
    expect(again.next(0, 1 << 20).more).toBe(false);
    again.close();
  });

  test("that fails while others change what it has to tell gives up; the changes are none the worse for it", async () => {
    const store = await volume();
    const dump = new Dump(store);
    const faults: unknown[] = [];
    listenToFaults((_, error) => faults.push(error));
    try {
      const [file] = [...store.state.inodes.values()].filter((inode: Inode) => inode.extents !== null);
      const told = vi.spyOn(file!, "extents", "get").mockImplementationOnce(() => {
        throw new RangeError("injected");
      });
      rename(store, store.root, "file-0", store.root, "renamed", 0);
      told.mockRestore();
      expect(faults).toEqual([new RangeError("injected")]);
      expect(store.root.directory?.names.has("renamed")).toBe(true);
      expect(store.journal?.failure).toBeNull();
      expect(() => dump.next(0, 100)).toThrow("EAGAIN");
    } finally {
      listenToFaults(null);
      dump.close();
    }
    await store.close();
  });
});
