/**
 * The image parser under fuzzing: a small volume whose metadata say something else than they did, mounted, checked, used and
 * repaired.
 *
 * What has to hold, whatever the image says:
 * - a mount refuses with a CorruptionError or FsError, or shows a state in which no invariant is violated;
 * - a volume that was mounted can be used like any other, and is the same after it was unmounted and mounted again;
 * - fsck writes nothing unasked, finds something exactly when a mount refuses or warns, and after a repair nothing;
 * - all of it takes bounded time and memory.
 */
import { CorruptionError, FsError } from "../../src/base/errors.ts";
import { retrying } from "../../src/base/wait.ts";
import { type FsckReport, fsck } from "../../src/fsck/fsck.ts";
import type { StructField } from "../../src/layout/struct.ts";
import { GroupHeader, RecordHeader, SegmentHeader, Superblock } from "../../src/media/format.ts";
import { setXattr } from "../../src/namespace/attributes.ts";
import { checkVolume } from "../../src/namespace/check.ts";
import { cloneRange } from "../../src/namespace/clone.ts";
import { prepareSome, read, truncate, write } from "../../src/namespace/data.ts";
import { defragSome } from "../../src/namespace/defrag.ts";
import { fallocate } from "../../src/namespace/fallocate.ts";
import { type Inode, S_IFDIR, S_IFREG } from "../../src/namespace/inode.ts";
import { setInodeFlags } from "../../src/namespace/inode-flags.ts";
import { create, link, rename, rmdir, unlink } from "../../src/namespace/names.ts";
import { Store } from "../../src/namespace/store.ts";
import type { Granularity } from "../../src/region/region.ts";
import { pattern } from "../namespace/bench.ts";
import { difference, foreignBytes, Model } from "../namespace/model.ts";
import { MemoryRegion } from "../support/memory-region.ts";
import { makeSpecimen } from "../support/specimen.ts";
import { MIB, makeVolume, owner } from "../support/volume.ts";
import { bodyOf, Document, type GroupParts, type RecordBytes, typeOf } from "./document.ts";
import { Finding, type Target, wordsOf } from "./fuzzer.ts";

/** Numbers name things modulo how many there are: a step does something wherever it stands. Values are decimal, or hexadecimal bytes. */
export type Step =
  | { do: "superblock"; copies: number; field: string; value: string }
  | { do: "segment"; segment: number; field: string; value: string }
  | { do: "group"; group: number; field: string; value: string }
  | { do: "record"; group: number; record: number; field: string; value: string }
  | { do: "header"; group: number; record: number; field: string; value: string }
  | { do: "tail"; group: number; record: number; at: number; value: number }
  | { do: "resize"; group: number; record: number; bytes: number }
  | { do: "drop"; group: number; record: number }
  | { do: "copy" | "swap"; group: number; record: number; toGroup: number; toRecord: number }
  | { do: "drop group"; group: number }
  | { do: "copy group" | "swap groups"; group: number; toGroup: number }
  | { do: "splice"; base: number; group: number; toGroup: number }
  | { do: "renumber" }
  | { do: "bytes"; segment: number; at: number; value: string };

export interface ImageInput {
  readonly base: number;
  readonly steps: readonly Step[];
}

interface Base {
  readonly name: string;
  readonly granularity: Granularity;
  readonly image: Uint8Array;
  readonly segments: readonly number[];
  readonly segmentBytes: number;
  readonly seed: number;
}

const S64 = 1n << 63n;
const INTERESTING = [
  ...[0n, 1n, 2n, 3n, 4n, 7n, 8n, 63n, 64n, 255n, 256n, 511n, 512n, 513n, 1023n, 1024n, 1025n],
  ...[
    4095n,
    4096n,
    4097n,
    65535n,
    65536n,
    65537n,
    131072n,
    262144n,
    1n << 20n,
    4n << 20n,
    (4n << 20n) - 4096n,
  ],
  ...[
    0xffff_fffen,
    0xffff_ffffn,
    1n << 31n,
    1n << 32n,
    (1n << 32n) + 1n,
    1n << 44n,
    1n << 51n,
    (1n << 51n) - 1n,
  ],
  ...[(1n << 53n) - 2n, (1n << 53n) - 1n, 1n << 53n, S64 - 4097n, S64 - 4096n, S64 - 1n, S64, 2n * S64 - 1n],
  ...[0o100644n, 0o40755n, 0o120777n, 0o10644n, 0o60600n, 0o140755n, 0o104755n, 999_999_999n, 1_000_000_000n],
];

/** Ends of what numbers on the media can be: of a byte, a block, an inode number, a cookie, a file, an exact double. */
const EXTREMES = [
  ...[0n, 1n, 0xffffn, 0xffff_ffffn, 1n << 32n, (1n << 51n) - 1n, 1n << 51n, (1n << 52n) - 1n],
  ...[(1n << 53n) - 1n, 1n << 53n, S64 - 1n, S64, 2n * S64 - 1n],
];

export class ImageTarget implements Target<ImageInput> {
  readonly name = "image";
  readonly #bases: readonly Base[];

  private constructor(bases: readonly Base[]) {
    this.#bases = bases;
  }

  /** The clock has to stand still meanwhile, or the volumes differ from run to run. */
  static async make(): Promise<ImageTarget> {
    const bases: Base[] = [];
    for (const granularity of ["cacheline", "page"] as const) {
      for (const clean of [false, true]) {
        const { image } = await makeSpecimen(granularity, clean);
        bases.push(await baseOf(`${granularity}, ${clean ? "unmounted" : "killed"}`, granularity, image));
      }
      bases.push(await baseOf(`${granularity}, long`, granularity, await longImage(granularity)));
    }
    return new ImageTarget(bases);
  }

  seeds(): ImageInput[] {
    return this.#bases.map((_, base) => ({ base, steps: [] }));
  }

  image(input: ImageInput): { image: Uint8Array; granularity: Granularity } {
    const base = this.#base(input.base);
    const document = documentOf(base);
    const bytes: Extract<Step, { do: "bytes" }>[] = [];
    for (const step of input.steps) {
      if (step.do === "bytes") bytes.push(step);
      else this.#apply(document, step);
    }
    const image = document.image();
    // Last of all: under these no checksum is right.
    for (const { segment, at, value } of bytes) {
      const places = [0, 4096, ...base.segments];
      const place = (places[segment % places.length] as number) + (at % base.segmentBytes);
      const data = Buffer.from(value, "hex");
      for (let index = 0; index < data.length && place + index < image.length; index += 1)
        image[place + index] = (image[place + index] as number) ^ (data[index] as number);
    }
    return { image, granularity: base.granularity };
  }

  async run(input: ImageInput): Promise<readonly string[]> {
    const { image, granularity } = this.image(input);
    return judge(image, granularity);
  }

  /**
   * Each number of the superblocks, of each segment's header and of one record of each kind in the checkpoint and in the log, at
   * either end of what it can be, and of what something else can be.
   */
  *extremes(base: number): Iterable<ImageInput> {
    const document = documentOf(this.#base(base));
    const values = function* (
      fields: readonly StructField[],
      at: Buffer,
      from: number,
    ): Iterable<{ field: string; value: string }> {
      for (const { name, offset, size, field } of fields) {
        if (name === "crc" || field.as === "bytes" || field.as === "text") continue;
        if (from + offset + size > at.length) continue;
        const old = readField(at, from + offset, size);
        const width = size * 8;
        const ends = [old - 1n, old + 1n, ...EXTREMES].map((value) => BigInt.asUintN(width, value));
        for (const value of new Set(ends)) if (value !== old) yield { field: name, value: `${value}` };
      }
    };
    for (const each of values(Superblock.fields, document.superblocks[0] as Buffer, 0))
      yield { base, steps: [{ do: "superblock", copies: 3, ...each }] };
    const seen = new Set<string>();
    let group = 0;
    for (const [segment, { header, groups }] of document.segments.entries()) {
      for (const each of values(SegmentHeader.fields, header, 0))
        yield { base, steps: [{ do: "segment", segment, ...each }] };
      const role = header.readUInt32LE(SegmentHeader.at.role);
      for (const { records } of groups) {
        for (const [record, bytes] of records.entries()) {
          const body = bodyOf(bytes);
          const kind = `${role} ${typeOf(bytes)}`;
          if (body === undefined || seen.has(kind)) continue;
          seen.add(kind);
          for (const each of values(body.fields, bytes, RecordHeader.size))
            yield { base, steps: [{ do: "record", group, record, ...each }] };
        }
        group += 1;
      }
    }
  }

  *smaller({ base, steps }: ImageInput): Iterable<ImageInput> {
    if (steps.length > 3) {
      const half = Math.floor(steps.length / 2);
      yield { base, steps: steps.slice(0, half) };
      yield { base, steps: steps.slice(half) };
    }
    for (let index = steps.length - 1; index >= 0; index -= 1)
      yield { base, steps: steps.filter((_, other) => other !== index) };
  }

  mutate(input: ImageInput, random: () => number, other: () => ImageInput): ImageInput {
    const below = (limit: number): number => Math.floor(random() * limit);
    let base = input.base;
    let steps = [...input.steps];
    if (steps.length > 0 && random() < 0.15) steps.splice(below(steps.length), 1);
    if (random() < 0.1) {
      const donor = other();
      steps = [
        ...steps.slice(0, below(steps.length + 1)),
        ...donor.steps.slice(below(donor.steps.length + 1)),
      ];
    }
    if (random() < 0.05) base = below(this.#bases.length);
    for (let left = 1 + below(random() < 0.2 ? 6 : 2); left > 0; left -= 1) {
      const step = this.#anyStep(base, random);
      steps.splice(random() < 0.8 ? steps.length : below(steps.length + 1), 0, step);
      const moves = /drop|copy|swap|splice|resize/.test(step.do);
      if (moves && random() < 0.85) steps.push({ do: "renumber" });
    }
    // One is enough.
    const last = steps.findLastIndex(({ do: what }) => what === "renumber");
    steps = steps.filter(({ do: what }, index) => what !== "renumber" || index === last);
    return { base, steps: steps.slice(-24) };
  }

  #base(index: number): Base {
    return this.#bases[index % this.#bases.length] as Base;
  }

  #anyStep(base: number, random: () => number): Step {
    const below = (limit: number): number => Math.floor(random() * limit);
    const document = documentOf(this.#base(base));
    const groups = document.groups();
    const group = below(groups.length);
    const toGroup = below(groups.length + 1);
    const record = below((groups[group] as GroupParts).records.length);
    const toRecord = below(8);
    const fieldOf = (
      fields: readonly StructField[],
      at: Buffer,
      from: number,
    ): { field: string; value: string } => {
      const usable = fields.filter(
        ({ name, offset, size }) => name !== "crc" && from + offset + size <= at.length,
      );
      const field = usable[below(usable.length)] as StructField;
      return { field: field.name, value: this.#value(field, at, from, groups, random) };
    };
    const what = random();
    if (what < 0.07) {
      const copy = document.superblocks[below(2)] as Buffer;
      return {
        do: "superblock",
        copies: random() < 0.7 ? 3 : 1 + below(2),
        ...fieldOf(Superblock.fields, copy, 0),
      };
    }
    if (what < 0.12) {
      const segment = below(document.segments.length);
      const { header } = document.segments[segment] as (typeof document.segments)[0];
      return { do: "segment", segment, ...fieldOf(SegmentHeader.fields, header, 0) };
    }
    if (what < 0.18) {
      const { header } = groups[group] as GroupParts;
      const fields = GroupHeader.fields.filter(({ name }) => name !== "magic");
      return { do: "group", group, ...fieldOf(fields, header, 0) };
    }
    const bytes = groups[group]?.records[record];
    if (what < 0.62 && bytes !== undefined) {
      const body = bodyOf(bytes);
      if (body !== undefined)
        return { do: "record", group, record, ...fieldOf(body.fields, bytes, RecordHeader.size) };
    }
    if (what < 0.65 && bytes !== undefined)
      return { do: "header", group, record, ...fieldOf(RecordHeader.fields, bytes, 0) };
    if (what < 0.69) return { do: "tail", group, record, at: below(64), value: below(256) };
    if (what < 0.71) return { do: "resize", group, record, bytes: (below(64) - 16) * 8 };
    if (what < 0.76) return { do: "drop", group, record };
    if (what < 0.84)
      return { do: random() < 0.7 ? "copy" : "swap", group, record, toGroup: below(groups.length), toRecord };
    if (what < 0.87) return { do: "drop group", group };
    if (what < 0.92) return { do: random() < 0.6 ? "copy group" : "swap groups", group, toGroup };
    if (what < 0.95) return { do: "splice", base: below(this.#bases.length), group: below(40), toGroup };
    const length = 1 + below(random() < 0.8 ? 4 : 64);
    const value = Buffer.from(Array.from({ length }, () => below(256))).toString("hex");
    return { do: "bytes", segment: below(8), at: random() < 0.7 ? below(3000) : below(131072), value };
  }

  /** Near what it was, extreme, or what another field of that name says. */
  #value(
    { name, offset, size, field }: StructField,
    at: Buffer,
    from: number,
    groups: readonly GroupParts[],
    random: () => number,
  ): string {
    const below = (limit: number): number => Math.floor(random() * limit);
    const place = from + offset;
    if (field.as === "bytes" || field.as === "text") {
      const fill = random();
      const bytes = Buffer.from(at.subarray(place, place + size));
      if (fill < 0.3) bytes.fill(0);
      else if (fill < 0.5) bytes.fill(0xb0);
      else bytes[below(size)] = below(256);
      return bytes.toString("hex");
    }
    const width = size * 8;
    const old = readField(at, place, size);
    const how = random();
    if (how < 0.25) return `${BigInt.asUintN(width, old + BigInt(below(7) - 3))}`;
    if (how < 0.3) return `${BigInt.asUintN(width, old ^ (1n << BigInt(below(width))))}`;
    if (how < 0.6) return `${BigInt.asUintN(width, INTERESTING[below(INTERESTING.length)] as bigint)}`;
    if (how < 0.7) return `${BigInt.asUintN(width, BigInt(below(40)))}`;
    if (how < 0.75) return `${BigInt.asUintN(width, BigInt(below(40)) * 131072n)}`;
    const others: bigint[] = [];
    for (const { records } of groups) {
      for (const bytes of records) {
        for (const each of bodyOf(bytes)?.fields ?? []) {
          const alike =
            each.name === name || (/^(ino|parent)$/.test(name) && /^(ino|parent)$/.test(each.name));
          if (alike && each.size === size && RecordHeader.size + each.offset + size <= bytes.length)
            others.push(readField(bytes, RecordHeader.size + each.offset, size));
        }
      }
    }
    const found = others[below(others.length)];
    return `${found === undefined ? BigInt(below(2 ** 31)) % (1n << BigInt(width)) : BigInt.asUintN(width, found + (random() < 0.3 ? 1n : 0n))}`;
  }

  #apply(document: Document, step: Exclude<Step, { do: "bytes" }>): void {
    const groups = document.groups();
    const at = <T>(list: readonly T[], index: number): T | undefined =>
      list.length === 0 ? undefined : list[index % list.length];
    const recordAt = (group: number, record: number): RecordBytes | undefined =>
      at(at(groups, group)?.records ?? [], record);
    switch (step.do) {
      case "superblock":
        for (const [copy, bytes] of document.superblocks.entries())
          if ((step.copies & (1 << copy)) !== 0) set(bytes, 0, Superblock.fields, step);
        return;
      case "segment": {
        const segment = at(document.segments, step.segment);
        if (segment !== undefined) set(segment.header, 0, SegmentHeader.fields, step);
        return;
      }
      case "group": {
        const group = at(groups, step.group);
        if (group === undefined) return;
        set(group.header, 0, GroupHeader.fields, step);
        if (step.field === "length" || step.field === "count") group.keeps.add(step.field);
        return;
      }
      case "record": {
        const record = recordAt(step.group, step.record);
        const body = record === undefined ? undefined : bodyOf(record);
        if (record !== undefined && body !== undefined) set(record, RecordHeader.size, body.fields, step);
        return;
      }
      case "header": {
        const record = recordAt(step.group, step.record);
        if (record !== undefined) set(record, 0, RecordHeader.fields, step);
        return;
      }
      case "tail": {
        const record = recordAt(step.group, step.record);
        const body = record === undefined ? undefined : bodyOf(record);
        const from = RecordHeader.size + (body?.size ?? 0);
        if (record !== undefined && record.length > from)
          record[from + (step.at % (record.length - from))] = step.value;
        return;
      }
      case "resize": {
        const records = at(groups, step.group)?.records ?? [];
        const index = records.length === 0 ? 0 : step.record % records.length;
        const record = records[index];
        if (record === undefined) return;
        const bytes = Buffer.alloc(Math.max(RecordHeader.size, record.length + step.bytes));
        record.copy(bytes);
        bytes.writeUInt32LE(bytes.length, RecordHeader.at.length);
        records[index] = bytes;
        return;
      }
      case "drop": {
        const records = at(groups, step.group)?.records ?? [];
        if (records.length > 0) records.splice(step.record % records.length, 1);
        return;
      }
      case "copy":
      case "swap": {
        const record = recordAt(step.group, step.record);
        const target = at(groups, step.toGroup)?.records;
        if (record === undefined || target === undefined) return;
        const place = step.toRecord % (target.length + 1);
        const there = target[place];
        if (step.do === "copy" || there === undefined) {
          target.splice(place, 0, Buffer.from(record));
          return;
        }
        const source = (at(groups, step.group) as GroupParts).records;
        target[place] = record;
        source[source.indexOf(record)] = there;
        return;
      }
      case "drop group": {
        const group = at(groups, step.group);
        for (const segment of document.segments)
          segment.groups = segment.groups.filter((one) => one !== group);
        return;
      }
      case "copy group":
      case "swap groups":
      case "splice": {
        const from = step.do === "splice" ? documentOf(this.#base(step.base)).groups() : groups;
        const group = at(from, step.group);
        const target = at(groups, step.toGroup);
        if (group === undefined || target === undefined) return;
        const home = document.segments.find((segment) => segment.groups.includes(target));
        if (home === undefined) return;
        const place = home.groups.indexOf(target);
        if (step.do !== "swap groups") {
          home.groups.splice(place, 0, copyOf(group));
          return;
        }
        const source = document.segments.find((segment) => segment.groups.includes(group));
        if (source === undefined) return;
        const other = source.groups.indexOf(group);
        source.groups[other] = target;
        home.groups[place] = group;
        return;
      }
      case "renumber":
        document.renumber();
    }
  }
}

const copyOf = ({ header, records, keeps }: GroupParts): GroupParts => ({
  ...{
    header: Buffer.from(header),
    records: records.map((each) => Buffer.from(each)),
    keeps: new Set(keeps),
  },
});

const documentOf = ({ image, segments, segmentBytes, seed }: Base): Document =>
  new Document(image, segments, segmentBytes, seed);

function readField(at: Buffer, place: number, size: number): bigint {
  let value = 0n;
  for (let byte = size - 1; byte >= 0; byte -= 1) value = value * 256n + BigInt(at[place + byte] as number);
  return value;
}

function set(
  bytes: Buffer,
  from: number,
  fields: readonly StructField[],
  { field, value }: { field: string; value: string },
): void {
  const found = fields.find(({ name }) => name === field);
  if (found === undefined || from + found.offset + found.size > bytes.length) return;
  const place = from + found.offset;
  if (found.field.as === "bytes" || found.field.as === "text") {
    Buffer.from(value, "hex").copy(bytes, place, 0, found.size);
    return;
  }
  let rest = BigInt.asUintN(64, BigInt(value));
  for (let byte = 0; byte < found.size; byte += 1) {
    bytes[place + byte] = Number(rest & 0xffn);
    rest >>= 8n;
  }
}

async function baseOf(name: string, granularity: Granularity, image: Uint8Array): Promise<Base> {
  const { recovery } = await Store.open(MemoryRegion.fromImage(image, { granularity }), { readOnly: true });
  const { segmentBytes, seed } = recovery.geometry;
  const segments = [...recovery.checkpoint.segments, ...recovery.log.segments];
  const base = { name, granularity, image, segments, segmentBytes, seed };
  if (Buffer.compare(documentOf(base).image(), image) !== 0)
    throw new Error(`${name}: taken apart and put together it is not the same`);
  return base;
}

/** A log and a checkpoint of several segments each. */
async function longImage(granularity: Granularity): Promise<Uint8Array> {
  const region = await makeVolume(8 * MIB, granularity);
  const store = await Store.open(region, { readOnly: false });
  const directory = create(store, store.root, "d", S_IFDIR | 0o755, 0, owner, null);
  const file = create(store, directory, "f", S_IFREG | 0o644, 0, owner, null);
  write(store, file, 0n, pattern(5000, 1), 0, 5000, false);
  for (const name of ["user.a", "user.b", "user.c", "user.d"])
    setXattr(store, file, name, pattern(50_000, 7), 0);
  await store.sync();
  await store.checkpoint();
  for (let index = 0; index < 4; index += 1) {
    setXattr(store, directory, `user.${index}`, pattern(40_000, index), 0);
    create(store, directory, `n${index}`, S_IFREG | 0o644, 0, owner, null);
    if (index === 2) await store.sync();
  }
  return region.image();
}

// ------------------------------------------------------------------------------------------------ what has to hold

const honest = (error: unknown): error is Error =>
  (error instanceof CorruptionError || error instanceof FsError) && error.message.length > 8;

async function open(image: Uint8Array, granularity: Granularity, readOnly: boolean): Promise<Store | Error> {
  try {
    return await Store.open(MemoryRegion.on(image, { granularity }), { readOnly });
  } catch (error) {
    if (honest(error)) return error;
    throw error;
  }
}

function hold(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Finding(what);
}

export async function judge(image: Uint8Array, granularity: Granularity): Promise<string[]> {
  const words: string[] = [];
  const looked = image.slice();
  const seen = await open(looked, granularity, true);
  if (seen instanceof Error) words.push(`refused: ${wordsOf(seen.message)}`);
  else {
    words.push(`mounted: ${seen.recovery.label}, ${seen.recovery.warnings.map(wordsOf).join()}`);
    checkVolume(seen);
    walk(seen);
  }
  const report = await checkOnly(looked, granularity);
  hold(Buffer.compare(looked, image) === 0, "a mount for reading or fsck without --repair has written");
  if (report instanceof Error) {
    words.push(`fsck: ${wordsOf(report.message)}`);
    hold(seen instanceof Error, `fsck fails (${report.message}), and a mount does not`);
  } else {
    const wrong = seen instanceof Error || seen.recovery.warnings.length > 0;
    // At second copies of what is whole itself, a mount does not look.
    const copiesAlone = report.problems.every(({ code }) => code === "copy");
    hold(
      report.problemCount > 0 === wrong || (copiesAlone && !wrong),
      `fsck finds ${report.problemCount} problems; a mount: ${words[0]}`,
    );
    for (const { code, repair } of report.problems) words.push(`problem: ${code}, ${repair === null}`);
    words.push(`repairable: ${report.repairable}`);
    if (report.problemCount > 0) await repair(image.slice(), granularity, report, words);
  }
  const used = image.slice();
  const store = await open(used, granularity, false);
  if (store instanceof Error) {
    words.push(`not for writing: ${wordsOf(store.message)}`);
    // Only the lack of room may keep from writing what can be read.
    const noRoom = store instanceof FsError && store.code === "ENOSPC";
    hold(seen instanceof Error || noRoom, `readable but not writable: ${store.message}`);
    return words;
  }
  hold(!(seen instanceof Error), "writable, but not readable");
  compare(store, Model.of(seen).withoutOrphans(), "mounted for writing");
  // A feature that we can only read.
  if (store.journal === null) return words;
  await use(store, words);
  return words;
}

async function checkOnly(image: Uint8Array, granularity: Granularity): Promise<FsckReport | Error> {
  try {
    return await fsck(MemoryRegion.on(image, { granularity }), { repair: false });
  } catch (error) {
    if (error instanceof FsError) return error;
    throw error;
  }
}

async function repair(
  image: Uint8Array,
  granularity: Granularity,
  report: FsckReport,
  words: string[],
): Promise<void> {
  const before = image.slice();
  const region = MemoryRegion.on(image, { granularity });
  let done: FsckReport;
  try {
    done = await fsck(region, { repair: true });
  } catch (error) {
    if (!(error instanceof FsError && error.code === "ENOSPC")) throw error;
    words.push("no room to repair");
    return;
  }
  hold(done.repaired === report.repairable, `repairable: ${report.repairable}, repaired: ${done.repaired}`);
  hold(done.problemCount === report.problemCount, "other problems when repairing than when looking");
  if (!done.repaired) {
    hold(Buffer.compare(before, image) === 0, "fsck could not repair, and has written");
    return;
  }
  const again = await fsck(region, { repair: false });
  hold(again.problemCount === 0, `after the repair: ${JSON.stringify(again.problems.slice(0, 3))}`);
  const store = await Store.open(region, { readOnly: false });
  hold(store.recovery.label === "clean", `after the repair: ${store.recovery.label}`);
  await use(store, words);
}

function compare(store: Store, expected: Model, when: string): void {
  const found = Model.of(store).withoutOrphans();
  const complaint = difference(found, expected) ?? foreignBytes(found, [expected]);
  hold(complaint === null, `${when}: ${complaint}`);
}

/** Reads what a program would: names, attributes, both ends of every file. */
function walk(store: Store): void {
  const data = Buffer.alloc(8192);
  for (const inode of store.state.inodes.values()) {
    if (inode.extents === null) continue;
    const places = new Set([0n, inode.size - 4096n, inode.size - 1n, inode.size]);
    for (const { block, count } of inode.extents) {
      places.add(BigInt(block) << store.blockShift);
      places.add((BigInt(block + count) << store.blockShift) - 1n);
      if (places.size > 200) break;
    }
    for (const place of places) if (place >= 0n) read(store, inode, place, data, 0, data.length);
  }
}

/** Answers that are no mistake in a volume of any content. */
const ORDINARY = new Set([
  "ENOSPC",
  "EFBIG",
  "EMLINK",
  "ENOTEMPTY",
  "EEXIST",
  "EISDIR",
  "ENOTDIR",
  "EINVAL",
  "EROFS",
  "EOPNOTSUPP",
  "EPERM",
]);

/** Whatever was mounted is used, unmounted, mounted, emptied. */
async function use(store: Store, words: string[]): Promise<void> {
  checkVolume(store);
  const attempt = async <T>(name: string, action: () => T): Promise<T | null> => {
    try {
      return await retrying(action);
    } catch (error) {
      if (!(error instanceof FsError) || !ORDINARY.has(error.code)) throw error;
      words.push(`${name}: ${error.code}`);
      return null;
    }
  };
  const { root } = store;
  const made = await attempt("create", () =>
    create(store, root, "new file", S_IFREG | 0o644, 0, owner, null),
  );
  if (made !== null) {
    await attempt("write", () => write(store, made, 5n, pattern(5000, 9), 0, 5000, false));
    await attempt("fallocate", () => fallocate(store, made, 0, 8192n, 20_000n, false));
    await attempt("rename", () => rename(store, root, "new file", root, "other name", 0));
  }
  const files = [...store.state.inodes.values()].filter(
    ({ extents, nlink }) => extents !== null && nlink > 0,
  );
  const [file, second] = files as [Inode?, Inode?];
  if (file !== undefined) {
    await attempt("append", () => write(store, file, file.size, pattern(5000, 3), 0, 5000, false));
    await attempt("overwrite", () => write(store, file, 100n, pattern(300, 4), 0, 300, false));
    await attempt("prepare", () => prepareSome(store, file, 0, 8, 4));
    await attempt("xattr", () => setXattr(store, file, "user.fuzz", pattern(100, 5), 0));
    await attempt("link", () => link(store, file, root, "hard link"));
    await attempt("defrag", () => defragSome(store, file, 0, 16));
  }
  if (file !== undefined && second !== undefined) {
    await attempt("clone", () =>
      cloneRange(store, {
        ...{ source: file, sourceOffset: 0n, target: second, targetOffset: 0n },
        ...{ length: file.size < 65536n ? file.size : 65536n, killPrivileges: false },
      }),
    );
    await attempt("punch", () => fallocate(store, second, 3, 0n, 4096n, false));
    await attempt("truncate", () => truncate(store, second, 1000n, false));
  }
  checkVolume(store);
  const before = Model.of(store);
  await store.close();
  const { granularity } = store.region.facts;
  const image = (store.region as MemoryRegion).image();
  const again = await open(image, granularity, false);
  hold(
    !(again instanceof Error),
    `after use it cannot be mounted: ${again instanceof Error ? again.message : ""}`,
  );
  hold(again.recovery.label === "clean", `after use: ${again.recovery.label}`);
  compare(again, before.withoutOrphans(), "after use");
  const clear = async (directory: Inode): Promise<void> => {
    await retrying(() => setInodeFlags(again, directory, 0));
    for (const [name, entry] of [...(directory.directory?.names ?? [])]) {
      const target = again.inode(entry.ino);
      if (target.isDirectory) {
        await clear(target);
        await retrying(() => rmdir(again, directory, name));
      } else {
        await retrying(() => setInodeFlags(again, target, 0));
        await retrying(() => unlink(again, directory, name));
      }
    }
  };
  await clear(again.root);
  checkVolume(again);
  hold(again.state.inodes.size === 1, `${again.state.inodes.size - 1} inodes cannot be removed`);
  await again.close();
}
