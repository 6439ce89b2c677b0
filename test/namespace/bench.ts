/**
 * A volume beside its model: each command goes to both, answers are compared, and at chosen moments the machine or the
 * daemon dies and what recovery finds is compared with what may be there.
 */

import { Errno, errnoName } from "../../src/base/errno.ts";
import { FsError } from "../../src/base/errors.ts";
import { retrying } from "../../src/base/wait.ts";
import * as attributes from "../../src/namespace/attributes.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { cloneRange, copyRange } from "../../src/namespace/clone.ts";
import * as data from "../../src/namespace/data.ts";
import { defragSome } from "../../src/namespace/defrag.ts";
import { fallocate } from "../../src/namespace/fallocate.ts";
import { FILE_BYTES_MAX, type Inode, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG } from "../../src/namespace/inode.ts";
import * as names from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { makeVolume, onAnotherBoot, owner, randomOf } from "../support/volume.ts";
import { contentOf, difference, foreignBytes, Model, ModelError } from "./model.ts";

export const KINDS = [S_IFREG, S_IFDIR, S_IFLNK, S_IFIFO] as const;

export type Command =
  | { do: "create"; dir: number; name: string; kind: number; mode: number }
  | { do: "link"; inode: number; dir: number; name: string }
  | { do: "unlink" | "rmdir"; dir: number; name: string }
  | { do: "rename"; dir: number; name: string; toDir: number; toName: string; flags: number }
  | { do: "write"; inode: number; offset: bigint; length: number; fill: number; kill: boolean }
  | {
      do: "copy" | "clone";
      source: number;
      sourceOffset: bigint;
      target: number;
      targetOffset: bigint;
      length: bigint;
      kill: boolean;
    }
  | { do: "truncate"; inode: number; size: bigint; kill: boolean }
  | { do: "fallocate"; inode: number; mode: number; offset: bigint; length: bigint }
  | { do: "prepare"; inode: number; block: number; count: number; limit: number }
  | { do: "setattr"; inode: number; mode: number | undefined; gid: number | undefined; kill: boolean }
  | { do: "setXattr"; inode: number; name: string; length: number; fill: number; flags: number }
  | { do: "flood"; inode: number; count: number; fill: number }
  | { do: "removeXattr"; inode: number; name: string }
  | { do: "open" | "release" | "defrag"; inode: number }
  | { do: "sync" | "startSync" | "checkpoint" | "startCheckpoint" | "tick" | "remount" | "writeBack" }
  | { do: "die" };

/** When and how the machine goes down: after the n-th store from the start of the run. */
export interface Cut {
  readonly afterStores: number;
  /** kill: the daemon dies, every store is kept. power: some since the last drain or sync are lost. */
  readonly kind: "kill" | "power";
  readonly seed: number;
}

export class Bench {
  region: MemoryRegion;
  store: Store;
  model: Model;
  #history: Model[];
  #cut: Cut | null = null;
  #stores = 0;
  /** The image at the cut, and which states it may show. */
  #image: Uint8Array | null = null;
  #candidates: Model[] = [];
  #inFlight = false;
  #random: () => number;
  readonly #granularity: Granularity;
  /** Room is withheld by the test: writes may be short though there is some. */
  mayLackRoom = false;

  private constructor(region: MemoryRegion, store: Store, granularity: Granularity, seed: number) {
    this.region = region;
    this.store = store;
    this.#granularity = granularity;
    this.#random = randomOf(seed);
    this.model = Model.of(store);
    this.#history = [this.model.clone()];
    this.#watch();
  }

  /** On a volume that is there, from now on. */
  static async over(region: MemoryRegion, seed = 1): Promise<Bench> {
    return new Bench(region, await Store.open(region, { readOnly: false }), region.facts.granularity, seed);
  }

  static async begin(
    sizeBytes: number,
    granularity: Granularity,
    cut: Cut | null,
    blockSizeBytes = 4096,
  ): Promise<Bench> {
    const made = await makeVolume(sizeBytes, granularity, { blockSizeBytes });
    const region = MemoryRegion.fromImage(made.image(), { granularity, recording: true });
    const bench = new Bench(
      region,
      await Store.open(region, { readOnly: false }),
      granularity,
      cut?.seed ?? 1,
    );
    bench.#cut = cut;
    return bench;
  }

  #watch(): void {
    this.region.onStore = () => {
      this.#stores += 1;
      if (this.#cut === null || this.#image !== null || this.#stores < this.#cut.afterStores) return;
      this.takeImage(this.#cut.kind);
    };
  }

  /** The bytes as death now would leave them, and the states that they may show. */
  takeImage(kind: Cut["kind"]): void {
    const chance = this.#random() < 0.3 ? 0 : this.#random();
    this.#image =
      kind === "kill" ? this.region.image() : this.region.afterPowerCut(() => this.#random() < chance);
    const powerOnPages = kind === "power" && this.#granularity === "page";
    if (powerOnPages) onAnotherBoot(this.#image);
    // On page granularity power takes everything back to the last sync at worst.
    this.#candidates = powerOnPages ? [...this.#history] : this.#history.slice(-1);
  }

  /** The model after each command since the last completed sync; the last one is now. */
  get history(): readonly Model[] {
    return this.#history;
  }

  get cutTaken(): boolean {
    return this.#image !== null;
  }

  /** Somebody has stored through a mapping, and the model has it. */
  noteStore(): void {
    this.#remember();
  }

  #remember(): void {
    const now = this.model.clone();
    this.#history.push(now);
    // The command during which the machine went down may be there, too.
    if (this.#image !== null && this.#inFlight) this.#candidates.push(now);
  }

  /** What the image shows after recovery must be one of the candidates. */
  async judgeImage(): Promise<void> {
    const image = this.#image;
    if (image === null) throw new Error("no image was taken");
    const region = MemoryRegion.fromImage(image, { granularity: this.#granularity });
    const store = await Store.open(region, { readOnly: false });
    checkVolume(store);
    const seen = Model.of(store);
    const complaints: string[] = [];
    let matched = false;
    for (const candidate of this.#candidates) {
      const complaint = difference(seen, candidate.withoutOrphans());
      if (complaint === null) matched = true;
      else complaints.push(complaint);
    }
    const label = `after recovery (${store.recovery.label}, ${store.recovery.groupsApplied} groups applied)`;
    if (!matched) throw new Error(`${label}: no state fits: ${complaints.join("; ")}`);
    const foreign = foreignBytes(seen, this.#candidates);
    if (foreign !== null) throw new Error(`${label}: ${foreign}`);
    // It is a volume like any other: in use, unmounted, and mounted clean.
    await retrying(() => names.create(store, store.root, "after", S_IFREG | 0o600, 0, owner, null));
    checkVolume(store);
    await store.close();
    const again = await Store.open(region, { readOnly: false });
    if (again.recovery.label !== "clean") throw new Error(`unmounted cleanly, then ${again.recovery.label}`);
    checkVolume(again);
  }

  /** The daemon dies and is started again; the run goes on with what is there. */
  async #die(): Promise<void> {
    const region = MemoryRegion.fromImage(this.region.image(), {
      granularity: this.#granularity,
      recording: true,
    });
    this.region.onStore = () => {};
    await this.#reopen(region);
  }

  async #reopen(region: MemoryRegion): Promise<void> {
    this.region = region;
    this.#watch();
    const before = this.model.withoutOrphans();
    // A cut during recovery may show all that was there before, and on pages it is durable only when all is done.
    this.#history.push(before.clone());
    this.store = await Store.open(region, { readOnly: false });
    this.model = before;
    this.#compareAll();
    this.#history = [this.model.clone()];
  }

  #compareAll(): void {
    const seen = Model.of(this.store);
    const complaint = difference(seen, this.model) ?? foreignBytes(seen, [this.model]);
    if (complaint !== null) throw new Error(complaint);
  }

  /** Compare the whole tree, and of contents those of one inode. */
  compare(ino: number | null): void {
    checkVolume(this.store);
    const complaint = difference(Model.of(this.store, false), this.model);
    if (complaint !== null) throw new Error(complaint);
    const inode = ino === null ? undefined : this.store.state.inodes.get(ino);
    const node = ino === null ? undefined : this.model.nodes.get(ino);
    if (inode === undefined || node === undefined || inode.extents === null) return;
    const seen = new Model(new Map([[node.ino, { ...node, content: contentOf(this.store, inode) }]]));
    const foreign = foreignBytes(seen, [this.model]);
    if (foreign !== null) throw new Error(foreign);
  }

  async end(): Promise<void> {
    for (const node of [...this.model.nodes.values()]) {
      while (node.opens > 0) {
        await this.#both(
          () => this.model.release(node.ino),
          () => this.#release(this.store.inode(node.ino)),
        );
      }
    }
    this.#compareAll();
    if (this.#image !== null) await this.judgeImage();
    await this.store.close();
    const again = await Store.open(
      MemoryRegion.fromImage(this.region.image(), { granularity: this.#granularity }),
      {
        readOnly: true,
      },
    );
    checkVolume(again);
    const seen = Model.of(again);
    const complaint = difference(seen, this.model) ?? foreignBytes(seen, [this.model]);
    if (complaint !== null) throw new Error(`after a clean unmount: ${complaint}`);
    // Of times the model knows nothing; what was seen before is there again, those changed in memory alone as well.
    for (const inode of this.store.state.inodes.values()) {
      const twin = again.inode(inode.ino);
      for (const time of ["atime", "mtime", "ctime", "btime"] as const) {
        if (inode[`${time}Sec`] !== twin[`${time}Sec`] || inode[`${time}Nsec`] !== twin[`${time}Nsec`])
          throw new Error(`after a clean unmount: inode ${inode.ino} has another ${time}`);
      }
      if (inode.generation !== twin.generation) throw new Error(`inode ${inode.ino} has another generation`);
    }
  }

  #release(inode: Inode): void {
    inode.opens -= 1;
    this.store.reapSoon(inode);
  }

  /** Run it on both, and expect the same answer. Only lack of space, and seals, are the real one's own affair. */
  async #both<T>(onModel: (result: T | undefined) => void, onStore: () => T): Promise<void> {
    const before = this.model.clone();
    let result: T | undefined;
    let storeErrno = 0;
    this.#inFlight = true;
    try {
      result = await retrying(onStore);
    } catch (error) {
      if (!(error instanceof FsError)) throw error;
      storeErrno = error.errno;
    }
    // Of leases the model knows nothing, either.
    if (storeErrno !== Errno.ENOSPC && storeErrno !== Errno.ETXTBSY) {
      let modelErrno = 0;
      try {
        onModel(result);
      } catch (error) {
        if (!(error instanceof ModelError)) throw error;
        modelErrno = error.errno;
      }
      if (modelErrno !== storeErrno) {
        const name = (errno: number): string => (errno === 0 ? "success" : errnoName(errno));
        throw new Error(`answered ${name(storeErrno)}, the model ${name(modelErrno)}`);
      }
      if (storeErrno !== 0) this.model = before;
    }
    this.#remember();
    this.#inFlight = false;
  }

  #pick(index: number, from: readonly number[]): number {
    return from[index % from.length] as number;
  }
  #directories(): number[] {
    return [...this.model.nodes.values()].filter((node) => Model.isDirectory(node)).map((node) => node.ino);
  }
  #all(): number[] {
    return [...this.model.nodes.keys()];
  }
  /** Mostly regular files, which have more to tell. */
  #file(index: number): number {
    const files = [...this.model.nodes.values()].filter((node) => (node.mode & 0o170000) === S_IFREG);
    if (files.length === 0 || index % 16 === 15) return this.#pick(index, this.#all());
    return this.#pick(
      index,
      files.map((node) => node.ino),
    );
  }

  async run(command: Command): Promise<void> {
    const { model, store } = this;
    let touched: number | null = null;
    switch (command.do) {
      case "create": {
        const dir = this.#pick(command.dir, this.#directories());
        const kind = KINDS[command.kind % KINDS.length] as number;
        const mode = kind | (command.mode & 0o7777);
        const target = kind === S_IFLNK ? "t".repeat(1 + (command.mode % 4095)) : null;
        const rdev = kind === S_IFIFO ? command.mode : 0;
        await this.#both<Inode>(
          (made) => this.model.create(dir, command.name, mode, rdev, owner, target, () => made?.ino ?? 0),
          () => names.create(store, store.inode(dir), command.name, mode, rdev, owner, target),
        );
        break;
      }
      case "link": {
        const ino = this.#file(command.inode);
        if (model.node(ino).nlink === 0) break; // The kernel does not offer that.
        const dir = this.#pick(command.dir, this.#directories());
        await this.#both(
          () => this.model.link(ino, dir, command.name),
          () => names.link(store, store.inode(ino), store.inode(dir), command.name),
        );
        break;
      }
      case "unlink":
      case "rmdir": {
        const dir = this.#pick(command.dir, this.#directories());
        await this.#both(
          () => this.model[command.do as "unlink"](dir, command.name),
          () =>
            command.do === "unlink"
              ? names.unlink(store, store.inode(dir), command.name)
              : names.rmdir(store, store.inode(dir), command.name),
        );
        break;
      }
      case "rename": {
        const dir = this.#pick(command.dir, this.#directories());
        const toDir = this.#pick(command.toDir, this.#directories());
        await this.#both(
          () => this.model.rename(dir, command.name, toDir, command.toName, command.flags),
          () =>
            names.rename(
              store,
              store.inode(dir),
              command.name,
              store.inode(toDir),
              command.toName,
              command.flags,
            ),
        );
        break;
      }
      case "write": {
        touched = this.#file(command.inode);
        const ino = touched;
        const bytes = pattern(command.length, command.fill);
        await this.#both<number>(
          (taken) => {
            this.model.write(ino, command.offset, bytes, taken ?? null, command.kill);
            // All that fits below the largest size; less only when not one block is left.
            const room = FILE_BYTES_MAX - command.offset;
            const fits = room < BigInt(bytes.length) ? Number(room) : bytes.length;
            if (taken !== undefined && taken !== fits && store.allocator.freeBlocks > 0 && !this.mayLackRoom)
              throw new Error(`${taken} of ${fits} bytes written, ${store.allocator.freeBlocks} blocks free`);
          },
          () => data.write(store, store.inode(ino), command.offset, bytes, 0, bytes.length, command.kill),
        );
        break;
      }
      case "copy":
      case "clone": {
        const source = this.#file(command.source);
        touched = this.#file(command.target);
        const target = touched;
        const { sourceOffset, targetOffset, kill } = command;
        // To the end, as far as whole blocks go, as cp and FICLONE ask.
        const size = this.model.node(source).size;
        const length = command.length >= 0n ? command.length : size > sourceOffset ? size - sourceOffset : 0n;
        const unit = BigInt(store.blockBytes);
        const limited = length > 1n << 20n ? 1n << 20n : length;
        const range = { sourceOffset, targetOffset, length: limited };
        await this.#both<number>(
          (done) => this.model.copy(command.do, { source, target, ...range }, done ?? null, kill, unit),
          () =>
            (command.do === "copy" ? copyRange : cloneRange)(store, {
              source: store.inode(source),
              target: store.inode(target),
              ...range,
              killPrivileges: kill,
            }),
        );
        break;
      }
      case "truncate": {
        touched = this.#file(command.inode);
        const ino = touched;
        await this.#both(
          () => this.model.truncate(ino, command.size, command.kill),
          () => data.truncate(store, store.inode(ino), command.size, command.kill),
        );
        break;
      }
      case "fallocate": {
        touched = this.#file(command.inode);
        const ino = touched;
        await this.#both(
          () => this.model.fallocate(ino, command.mode, command.offset, command.length, false),
          () => fallocate(store, store.inode(ino), command.mode, command.offset, command.length, false),
        );
        break;
      }
      case "prepare": {
        touched = this.#file(command.inode);
        const ino = touched;
        const end = command.block + command.count;
        for (let at = command.block; at < end; ) {
          let reached = end;
          await this.#both<number>(
            () => this.model.prepare(ino),
            () => {
              reached = data.prepareSome(store, store.inode(ino), at, end - at, command.limit);
              return reached;
            },
          );
          if (reached <= at) throw new Error(`prepareSome came no further than ${reached}`);
          at = reached;
        }
        break;
      }
      case "defrag": {
        touched = this.#file(command.inode);
        const ino = touched;
        const end = store.inode(ino).extents?.end ?? 0;
        for (let at = 0; at < end; ) {
          await this.#both<number>(
            () => {},
            () => {
              at = defragSome(store, store.inode(ino), at, end);
              return at;
            },
          );
        }
        break;
      }
      case "setattr": {
        const ino = this.#pick(command.inode, this.#all());
        const { mode, gid, kill } = command;
        await this.#both(
          () => this.model.setattr(ino, mode, undefined, gid, kill),
          () =>
            attributes.changeAttributes(store, store.inode(ino), {
              ...(mode === undefined ? {} : { mode }),
              ...(gid === undefined ? {} : { gid }),
              killPrivileges: kill,
            }),
        );
        break;
      }
      case "setXattr": {
        const ino = this.#pick(command.inode, this.#all());
        const value = pattern(command.length, command.fill);
        await this.#both(
          () => this.model.setXattr(ino, command.name, value, command.flags),
          () => attributes.setXattr(store, store.inode(ino), command.name, value, command.flags),
        );
        break;
      }
      case "flood": {
        // Large records: a few of them fill a segment of the log, many start a checkpoint.
        const ino = this.#pick(command.inode, this.#all());
        for (let round = 0; round < command.count; round += 1) {
          const value = pattern(30_000 + 1000 * (round % 16), command.fill + round);
          await this.#both(
            () => this.model.setXattr(ino, "user.flood", value, 0),
            () => attributes.setXattr(this.store, this.store.inode(ino), "user.flood", value, 0),
          );
        }
        break;
      }
      case "removeXattr": {
        const ino = this.#pick(command.inode, this.#all());
        await this.#both(
          () => this.model.removeXattr(ino, command.name),
          () => attributes.removeXattr(store, store.inode(ino), command.name),
        );
        break;
      }
      case "open": {
        const ino = this.#pick(command.inode, this.#all());
        model.open(ino);
        store.inode(ino).opens += 1;
        break;
      }
      case "release": {
        const opened = [...model.nodes.values()].filter((node) => node.opens > 0).map((node) => node.ino);
        if (opened.length === 0) break;
        const ino = this.#pick(command.inode, opened);
        await this.#both(
          () => this.model.release(ino),
          () => this.#release(store.inode(ino)),
        );
        break;
      }
      case "sync":
        await store.sync();
        this.#history = this.#history.slice(-1);
        break;
      case "startSync":
        void store.sync();
        break;
      case "checkpoint":
        await store.checkpoint();
        break;
      case "startCheckpoint":
        void store.checkpoint();
        break;
      case "tick":
        await new Promise((resolve) => setImmediate(resolve));
        break;
      case "writeBack":
        this.region.writeBack(() => this.#random() < 0.5);
        break;
      case "remount":
        for (const node of model.nodes.values()) node.opens = 0;
        await store.close();
        await this.#reopen(this.region);
        break;
      case "die":
        await this.#die();
        break;
    }
    this.compare(touched);
  }
}

/** Bytes that tell one write from another, and are never zero. */
export function pattern(length: number, fill: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at += 1) bytes[at] = 1 + ((at * 7 + fill * 31) % 251);
  return bytes;
}
