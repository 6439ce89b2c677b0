/**
 * What is done before and while the power fails: the volume that every sequence begins with, and the operations, each by a
 * name that a report can be read by.
 */
import { vi } from "vitest";
import { type Lease, LeaseTable } from "../../src/lease/table.ts";
import { LeaseKind } from "../../src/lease/wire.ts";
import { makeFileSystem } from "../../src/media/mkfs.ts";
import { type Inode, S_IFREG } from "../../src/namespace/inode.ts";
import type { Granularity } from "../../src/region/region.ts";
import { Bench, type Command, pattern } from "../namespace/bench.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { MIB, owner } from "../support/volume.ts";

const REGION_BYTES = 4 * MIB;
const WORD = 8;
/** The capture of a checkpoint looks at the clock once in 64 items: with so many it takes more than one slice. */
const SLICED_ITEMS = 80;

export interface Word {
  readonly ino: number;
  readonly offset: bigint;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

/** A volume in use, with a lease on one of its files now and then. */
export class Scene {
  readonly bench: Bench;
  /** Words that were stored through the mapping and not made durable yet. */
  readonly unpersisted: Word[] = [];
  readonly #leases = new LeaseTable({
    direct: "seal",
    breakTimeSeconds: 1,
    maxLeases: 10,
    maxLeasedBytes: 1e9,
    administratorUid: 0,
  });
  #lease: Lease | null = null;
  #stores = 0;

  private constructor(bench: Bench) {
    this.bench = bench;
    bench.store.guard = this.#leases;
    this.#leases.events = {
      onBreak: () => {},
      onRefusal: () => {},
      onRevoked: (lease) => bench.store.quarantine.claim(lease.id, lease.runs),
      onEnded: (lease) => bench.store.releaseQuarantine(lease.id),
    };
  }

  static async over(region: MemoryRegion): Promise<Scene> {
    return new Scene(await Bench.over(region));
  }

  get region(): MemoryRegion {
    return this.bench.region;
  }

  ino(...path: string[]): number {
    let ino = 1;
    for (const name of path) ino = this.bench.model.node(ino).entries.get(name) ?? 0;
    return ino;
  }

  async run(command: Command): Promise<void> {
    await this.bench.run(command);
  }

  /** The bench picks by position. */
  file(name: string): number {
    const files = [...this.bench.model.nodes.values()].filter((node) => (node.mode & 0o170000) === S_IFREG);
    return files.findIndex((node) => node.ino === this.ino(name));
  }

  directory(...path: string[]): number {
    const directories = [...this.bench.model.nodes.values()].filter(
      (node) => node.entries.size > 0 || (node.mode & 0o170000) === 0o040000,
    );
    return directories.findIndex((node) => node.ino === this.ino(...path));
  }

  anything(name: string): number {
    return [...this.bench.model.nodes.keys()].indexOf(this.ino(name));
  }

  async map(name: string): Promise<Lease | null> {
    if (this.#lease !== null) return this.#lease;
    const inode = this.bench.store.state.inodes.get(this.ino(name));
    if (inode === undefined || inode.extents === null) return null;
    // The mapping keeps the file open; an inode that is not is freed with its last name.
    await this.run({ do: "open", inode: this.anything(name) });
    // R6 and R8: blocks of its own, and what locates them is durable before there is a mapping.
    await this.run({ ...{ do: "prepare", inode: this.file(name), block: 0, count: 2, limit: 2 } });
    await this.run({ do: "sync" });
    const blockBytes = this.bench.store.blockBytes;
    this.#lease = this.#leases.grant({
      ...{ inode, kind: LeaseKind.SEAL, flags: 0, offset: 0n, length: BigInt(2 * blockBytes) },
      ...{ block: 0, count: 2, blockBytes, holder: { pid: 1, uid: 0, command: "test" } },
    });
    return this.#lease;
  }

  /** A store of one word through the mapping. */
  async store(name: string): Promise<void> {
    const lease = await this.map(name);
    const extent = (lease?.inode as Inode | undefined)?.extents?.next(0) ?? null;
    if (lease === null || extent === null || extent.block > 0) return;
    this.#stores += 1;
    const at = WORD * (3 + this.#stores);
    const bytes = pattern(WORD, 100 + this.#stores);
    const { ino } = lease.inode;
    const place = extent.physical * this.bench.store.blockBytes + at;
    const offset = BigInt(at);
    this.unpersisted.push({ ino, offset, before: this.region.peek(place, WORD), after: bytes });
    this.region.storeFromOutside(place, bytes);
    this.bench.model.write(ino, offset, bytes, WORD, false);
    this.bench.noteStore();
  }

  async persist(): Promise<void> {
    const lease = this.#lease;
    for (const run of lease?.runs ?? []) {
      const blockBytes = this.bench.store.blockBytes;
      this.region.flush(run.start * blockBytes, run.count * blockBytes);
    }
    if (this.region.facts.granularity === "cacheline") this.region.drain();
    else await this.run({ do: "sync" });
    this.unpersisted.length = 0;
  }

  /** All that is free, as fstrim does; without the sync that comes first there. */
  async discard(): Promise<void> {
    const { store } = this.bench;
    const range = { start: 0, end: store.allocator.blockCount, least: 1 };
    await store.discards.trim(range, async () => {});
  }

  async endLease(): Promise<void> {
    const lease = this.#lease;
    if (lease === null) return;
    this.#lease = null;
    this.#leases.end(lease);
    await this.#release(lease.inode.ino);
  }

  /**
   * A checkpoint is being captured in slices, the metadata reserve is low, and a change has the capture completed at once
   * to have room for its record; that record is behind the end of the capture when the checkpoint is finished. Wants "many
   * names" before it.
   */
  async changeBesideCheckpoint(): Promise<void> {
    const { store } = this.bench;
    const { now } = performance;
    let milliseconds = now.call(performance);
    performance.now = () => (milliseconds += 1000);
    try {
      await this.run({ do: "startCheckpoint" });
    } finally {
      performance.now = now;
    }
    // The volume is as full as it can be: a segment for the log, and none for the rest of the checkpoint.
    const low = vi.spyOn(store.pool, "available", "get").mockReturnValue(3);
    try {
      // A change that frees something needs no complete reserve.
      const name = [...this.bench.model.node(1).entries.keys()].find((one) => one.startsWith("item"));
      await this.run({ do: "unlink", dir: 0, name: name as string });
    } finally {
      low.mockRestore();
    }
    await store.checkpoint();
  }

  /** One that is open, and not by a mapping alone. */
  async releaseAny(): Promise<void> {
    for (const { ino, opens } of this.bench.model.nodes.values()) {
      if (opens > (ino === this.#lease?.inode.ino ? 1 : 0)) return this.#release(ino);
    }
  }

  /** The bench picks by position among those that are open. */
  async #release(ino: number): Promise<void> {
    const opened = [...this.bench.model.nodes.values()].filter(({ opens }) => opens > 0);
    await this.run({ do: "release", inode: opened.findIndex((node) => node.ino === ino) });
  }
}

/** What every sequence begins with. Free space holds bytes of nobody's: whoever reads them has been given foreign ones. */
export async function baseImage(granularity: Granularity): Promise<Uint8Array> {
  const garbage = Uint8Array.from({ length: REGION_BYTES }, (_, at) => 0xa0 + (at % 7));
  const region = MemoryRegion.fromImage(garbage, { granularity });
  const uuid = Uint8Array.from({ length: 16 }, (_, index) => index + 1);
  await makeFileSystem(region, { label: "base", blockSizeBytes: 4096, uuid, ...owner });
  const scene = await Scene.over(region);
  for (const name of ["a", "b", "c", "f"]) await scene.run(create(scene, 0, name, 0));
  await scene.run(create(scene, 0, "d", 1));
  await scene.run(create(scene, scene.directory("d"), "e", 0));
  await scene.run(create(scene, 0, "s", 2));
  await scene.run(write(scene, "a", 0, 3 * 4096 + 100, 1));
  await scene.run(write(scene, "b", 4096, 4096, 2));
  await scene.run(copy(scene, "b", "c"));
  // The last block first: three extents.
  for (const block of [2, 1, 0]) await scene.run(write(scene, "f", block * 4096, 4096, 4));
  await scene.run({
    do: "setXattr",
    inode: scene.anything("a"),
    name: "user.a",
    length: 40,
    fill: 3,
    flags: 0,
  });
  await scene.run({ do: "sync" });
  await scene.bench.store.close();
  return region.image();
}

const create = (_scene: Scene, dir: number, name: string, kind: number): Command => ({
  ...{ do: "create", dir, name, kind, mode: 0o644 },
});
const write = (scene: Scene, name: string, offset: number, length: number, fill: number): Command => ({
  ...{ do: "write", inode: scene.file(name), offset: BigInt(offset), length, fill, kill: false },
});
const copy = (scene: Scene, source: string, target: string): Command => ({
  ...{ do: "clone", source: scene.file(source), sourceOffset: 0n, target: scene.file(target) },
  ...{ targetOffset: 0n, length: -1n, kill: false },
});
const fallocate = (scene: Scene, name: string, mode: number, offset: number, length: number): Command => ({
  ...{ do: "fallocate", inode: scene.file(name), mode, offset: BigInt(offset), length: BigInt(length) },
});
const rename = (name: string, toName: string, flags = 0): Command => ({
  ...{ do: "rename", dir: 0, name, toDir: 0, toName, flags },
});

/** Each is done on what the ones before have left; where its file is gone by then, it does nothing. */
export type Operation = (scene: Scene) => Promise<void>;

/** If the name is a regular file's. */
const when =
  (name: string, command: (scene: Scene) => Command): Operation =>
  async (scene) => {
    if (scene.file(name) >= 0) await scene.run(command(scene));
  };

/** If the name is there. */
const whenThere =
  (name: string, command: (scene: Scene) => Command): Operation =>
  async (scene) => {
    if (scene.ino(name) !== 0) await scene.run(command(scene));
  };

export const OPERATIONS: Readonly<Record<string, Operation>> = {
  create: (scene) => scene.run(create(scene, 0, `new${scene.bench.model.nodes.size}`, 0)),
  mkdir: (scene) => scene.run(create(scene, 0, `sub${scene.bench.model.nodes.size}`, 1)),
  symlink: async (scene) => {
    if (scene.directory("d") >= 0)
      await scene.run(create(scene, scene.directory("d"), `link${scene.bench.model.nodes.size}`, 2));
  },
  link: when("a", (scene) => ({
    do: "link",
    inode: scene.file("a"),
    dir: 0,
    name: `l${scene.bench.model.nodes.size}`,
  })),
  write: when("b", (scene) => write(scene, "b", 0, 4096, 11)),
  "write within": when("b", (scene) => write(scene, "b", 8192 + 10, 100, 16)),
  append: when("a", (scene) =>
    write(scene, "a", Number(scene.bench.model.node(scene.ino("a")).size), 5000, 12),
  ),
  overwrite: when("a", (scene) => write(scene, "a", 4000, 300, 13)),
  "write to shared": when("c", (scene) => write(scene, "c", 4096 + 10, 100, 14)),
  truncate: when("a", (scene) => ({
    ...{ do: "truncate", inode: scene.file("a"), size: 5000n, kill: false },
  })),
  "truncate to nothing": when("b", (scene) => ({
    ...{ do: "truncate", inode: scene.file("b"), size: 0n, kill: false },
  })),
  grow: when("b", (scene) => ({ ...{ do: "truncate", inode: scene.file("b"), size: 40000n, kill: false } })),
  fallocate: when("b", (scene) => fallocate(scene, "b", 0, 0, 30000)),
  punch: when("a", (scene) => fallocate(scene, "a", 3, 4096, 4096)),
  "zero range": when("a", (scene) => fallocate(scene, "a", 0x10, 100, 9000)),
  prepare: when("b", (scene) => ({
    ...{ do: "prepare", inode: scene.file("b"), block: 0, count: 3, limit: 2 },
  })),
  rename: whenThere("a", () => rename("a", "renamed")),
  "rename over": whenThere("a", () => rename("a", "b")),
  exchange: whenThere("a", () => rename("a", "d", 2)),
  unlink: whenThere("a", () => ({ do: "unlink", dir: 0, name: "a" })),
  "unlink while open": async (scene) => {
    if (scene.ino("c") === 0) return;
    await scene.run({ do: "open", inode: scene.anything("c") });
    await scene.run({ do: "unlink", dir: 0, name: "c" });
  },
  release: (scene) => scene.releaseAny(),
  rmdir: async (scene) => {
    if (scene.directory("d") < 0) return;
    if (scene.ino("d", "e") !== 0) await scene.run({ do: "unlink", dir: scene.directory("d"), name: "e" });
    await scene.run({ do: "rmdir", dir: 0, name: "d" });
  },
  chmod: whenThere("a", (scene) => ({
    ...{ do: "setattr", inode: scene.anything("a"), mode: 0o600, gid: undefined, kill: false },
  })),
  setxattr: whenThere("a", (scene) => ({
    ...{ do: "setXattr", inode: scene.anything("a"), name: "user.b", length: 100, fill: 15, flags: 0 },
  })),
  removexattr: whenThere("a", (scene) => ({
    ...{ do: "removeXattr", inode: scene.anything("a"), name: "user.a" },
  })),
  reflink: async (scene) => {
    if (scene.file("a") >= 0 && scene.file("b") >= 0) await scene.run(copy(scene, "a", "b"));
  },
  defrag: async (scene) => {
    if (scene.file("f") >= 0) await scene.run({ do: "defrag", inode: scene.file("f") });
  },
  fsync: (scene) => scene.run({ do: "sync" }),
  checkpoint: (scene) => scene.run({ do: "checkpoint" }),
  discard: (scene) => scene.discard(),
  "direct store": (scene) => scene.store("a"),
  persist: (scene) => scene.persist(),
  "lease end": (scene) => scene.endLease(),
};

/** What only makes sense in a certain order, and so is no part of the pairs. */
export const STAGED: Readonly<Record<string, Operation>> = {
  "many names": async (scene) => {
    for (let count = scene.bench.store.state.inodes.size; count < SLICED_ITEMS; count += 1)
      await scene.run(create(scene, 0, `item${count}`, 0));
  },
  "checkpoint beside a change": (scene) => scene.changeBesideCheckpoint(),
};

/** A checkpoint whose capture has ended before the last record: during it, and after what an fsync has said is durable. */
export function* checkpointSequences(): IterableIterator<string[]> {
  const before = ["many names", "fsync", "checkpoint beside a change"];
  yield before;
  for (const last of Object.keys(OPERATIONS)) yield [...before, "fsync", last];
}
