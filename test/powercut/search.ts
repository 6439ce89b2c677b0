/**
 * Runs a sequence of operations, and looks at every state that a power cut during its last one could leave: it is mounted,
 * checked against all invariants, and compared with the states that may be there: each operation whole or not at all.
 */

import { crc32c } from "../../src/media/checksum.ts";
import { SUPERBLOCK_OFFSETS, Superblock } from "../../src/media/format.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { difference, foreignBytes, Model } from "../namespace/model.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { onAnotherBoot, randomOf } from "../support/volume.ts";
import { OPERATIONS, Scene, STAGED, type Word } from "./operations.ts";
import { type Epoch, Recorder } from "./recorder.ts";
import { apply, type Saved, settle, statesOf } from "./states.ts";

export interface Figures {
  sequences: number;
  fences: number;
  epochs: number;
  states: number;
  /** Of these, states in which recovery itself was cut short. */
  recoveries: number;
}

export interface SearchOptions {
  readonly granularity: Granularity;
  /** States of one epoch at most. */
  readonly limit: number;
  /** In one of so many states recovery writes, and is cut short as well. */
  readonly recoverEvery: number;
  /** Choices depend on this and on the sequence alone: one that failed among many fails by itself as well. */
  readonly seed: number;
  /** A mistake made on purpose: changes the scene before the sequence. */
  readonly sabotage?: (scene: Scene) => void;
}

export class Violation extends Error {}

export class Search {
  readonly figures: Figures = { sequences: 0, fences: 0, epochs: 0, states: 0, recoveries: 0 };
  readonly #base: Uint8Array;
  readonly #options: SearchOptions;
  #random: () => number;

  constructor(base: Uint8Array, options: SearchOptions) {
    this.#base = base;
    this.#options = options;
    this.#random = randomOf(options.seed);
  }

  /** @throws Violation naming the sequence, the epoch and what is wrong. */
  async run(sequence: readonly string[]): Promise<void> {
    const { granularity, sabotage, seed } = this.#options;
    const name = Buffer.from(sequence.join());
    this.#random = randomOf(seed ^ crc32c(name, 0, name.length));
    const region = MemoryRegion.fromImage(this.#base, { granularity });
    const scene = await Scene.over(region);
    sabotage?.(scene);
    const recorder = new Recorder(region);
    const media = this.#base.slice();
    // What opening has stored is there.
    media.set(region.image());
    for (const name of sequence.slice(0, -1)) {
      await perform(scene, name);
      settle(media, recorder.take());
    }
    const before = allowedNow(scene, granularity);
    const known = new Set(scene.bench.history);
    const fences = recorder.fences;
    const loose = new Set(scene.unpersisted);
    await perform(scene, sequence.at(-1) as string);
    const epochs = recorder.take();
    this.figures.sequences += 1;
    this.figures.fences += recorder.fences - fences;
    const after = scene.bench.history.filter((model) => !known.has(model));
    for (const word of scene.unpersisted) loose.add(word);
    const allowed = withAndWithout([...before, ...after], loose).map((model) => model.withoutOrphans());
    for (const [number, epoch] of epochs.entries()) {
      this.figures.epochs += 1;
      await this.#look(
        media,
        epoch,
        allowed,
        `${sequence.join(", ")}: epoch ${number + 1} of ${epochs.length}`,
      );
      settle(media, [epoch]);
    }
    region.observer = null;
  }

  async #look(media: Uint8Array, epoch: Epoch, allowed: readonly Model[], where: string): Promise<void> {
    const { limit, recoverEvery, granularity } = this.#options;
    const random = this.#random;
    for (const choice of statesOf(epoch, limit, random)) {
      this.figures.states += 1;
      const undo = apply(media, epoch, choice);
      if (granularity === "page") undo.push(...reboot(media));
      try {
        await judge(media, granularity, allowed);
        if (random() * recoverEvery < 1) await this.#recover(media, allowed);
      } catch (error) {
        const units = epoch.units.filter((_, at) => choice[at] !== 0).length;
        const what = error instanceof Error ? error.message : String(error);
        throw new Violation(`${where}, ${units} of ${epoch.units.length} units on the media: ${what}`);
      } finally {
        for (const { at, bytes } of undo.reverse()) media.set(bytes, at);
      }
    }
  }

  /** Recovery itself, as a sequence of stores that can be cut short. */
  async #recover(media: Uint8Array, allowed: readonly Model[]): Promise<void> {
    const { granularity } = this.#options;
    const random = this.#random;
    const region = MemoryRegion.fromImage(media, { granularity });
    const recorder = new Recorder(region);
    const store = await Store.open(region, { readOnly: false });
    checkVolume(store);
    const inside = media.slice();
    for (const epoch of recorder.take()) {
      for (const choice of statesOf(epoch, 8, random)) {
        this.figures.recoveries += 1;
        this.figures.states += 1;
        const undo = apply(inside, epoch, choice);
        if (granularity === "page") undo.push(...reboot(inside));
        await judge(inside, granularity, allowed);
        for (const { at, bytes } of undo.reverse()) inside.set(bytes, at);
      }
      settle(inside, [epoch]);
    }
    await store.close();
    await judge(region.image(), granularity, allowed);
  }
}

async function perform(scene: Scene, name: string): Promise<void> {
  const operation = OPERATIONS[name] ?? STAGED[name];
  if (operation === undefined) throw new Error(`no operation is called ${name}`);
  await operation(scene);
}

/** What may be there if the power failed now. */
function allowedNow(scene: Scene, granularity: Granularity): Model[] {
  const { history } = scene.bench;
  return granularity === "page" ? [...history] : history.slice(-1);
}

/** What was stored through a mapping and is not durable may be there or not, word by word. */
function withAndWithout(models: readonly Model[], words: Iterable<Word>): Model[] {
  let all = [...models];
  for (const { ino, offset, before, after } of words) {
    all = all.flatMap((model) => {
      const node = model.nodes.get(ino);
      if (node === undefined || node.size < offset + BigInt(after.length)) return [model];
      return [before, after].map((bytes) => {
        const other = model.clone();
        other.write(ino, offset, bytes, bytes.length, false);
        return other;
      });
    });
  }
  return all;
}

async function judge(image: Uint8Array, granularity: Granularity, allowed: readonly Model[]): Promise<void> {
  const region = MemoryRegion.on(image, { granularity });
  const store = await Store.open(region, { readOnly: true });
  checkVolume(store);
  const seen = Model.of(store).withoutOrphans();
  let complaint: string | null = "nothing is allowed";
  for (const model of allowed) {
    complaint = difference(seen, model);
    if (complaint === null) break;
  }
  complaint ??= foreignBytes(seen, allowed);
  if (complaint !== null) throw new Violation(complaint);
}

/** After a power cut the machine boots again: that is how recovery knows that not everything has been kept. */
function reboot(media: Uint8Array): Saved[] {
  const undo = SUPERBLOCK_OFFSETS.map((at) => ({ at, bytes: media.slice(at, at + Superblock.size) }));
  onAnotherBoot(media);
  return undo;
}
