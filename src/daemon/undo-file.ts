/**
 * What a repair overwrites and what it was concluded from, kept in a sparse file: each byte at its own place, and behind the
 * end of the region, as JSON, which ranges were kept.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readSync,
  writeSync,
} from "node:fs";
import { basename, dirname, resolve } from "node:path";
import type { Undo } from "../fsck/fsck.ts";
import { readSome } from "../media/reading.ts";
import { syncDirectory } from "../region/create.ts";
import type { Region } from "../region/region.ts";
import { Failure, reason } from "./failure.ts";

const CHUNK_BYTES = 1024 * 1024;
const HOLE_BYTES = 4096;

export class UndoFile implements Undo {
  readonly path: string;
  readonly #file: number;
  readonly #sizeBytes: number;
  readonly #ranges: [offset: number, length: number][] = [];

  /** @throws Failure */
  constructor(path: string, sizeBytes: number) {
    this.path = path;
    this.#sizeBytes = sizeBytes;
    try {
      this.#file = openSync(path, "wx", 0o600);
      ftruncateSync(this.#file, sizeBytes);
    } catch (error) {
      throw new Failure(
        path,
        `what the repair overwrites is kept here: ${reason(error)}`,
        "name another file with --keep",
      );
    }
  }

  keep(region: Region, offset: number, length: number): void {
    this.#ranges.push([offset, length]);
    for (let at = 0; at < length; at += CHUNK_BYTES) {
      const data = readSome(region, offset + at, Math.min(CHUNK_BYTES, length - at));
      for (let from = 0; from < data.length; from += HOLE_BYTES) {
        const part = data.subarray(from, from + HOLE_BYTES);
        if (part.some((byte) => byte !== 0)) this.#write(part, offset + at + from);
      }
    }
  }

  finish(): void {
    const list: Kept = { mapdirect_undo: 1, region_bytes: this.#sizeBytes, ranges: this.#ranges };
    this.#write(Buffer.from(`${JSON.stringify(list)}\n`), this.#sizeBytes);
    fsyncSync(this.#file);
    closeSync(this.#file);
    syncDirectory(dirname(this.path));
  }

  #write(data: Uint8Array, at: number): void {
    try {
      for (let done = 0; done < data.length; )
        done += writeSync(this.#file, data, done, data.length - done, at + done);
    } catch (error) {
      throw new Failure(
        this.path,
        `what the repair overwrites is kept here: ${reason(error)}`,
        "make room, or name another file with --keep; nothing was repaired",
      );
    }
  }
}

interface Kept {
  readonly mapdirect_undo: 1;
  readonly region_bytes: number;
  readonly ranges: readonly (readonly [offset: number, length: number])[];
}

/** Put back what was kept, the superblocks last. @throws Failure; FsError EIO */
export async function takeBack(path: string, region: Region): Promise<void> {
  const file = openSync(path, "r");
  try {
    const { ranges } = keptIn(file, path, region.facts.sizeBytes);
    const superblocksLast = [...ranges].sort(([a], [b]) => b - a);
    for (const [offset, length] of superblocksLast) {
      if (offset === 0) await region.sync();
      for (let at = 0; at < length; at += CHUNK_BYTES) {
        const data = Buffer.alloc(Math.min(CHUNK_BYTES, length - at));
        readSync(file, data, 0, data.length, offset + at);
        region.write(offset + at, data, 0, data.length);
      }
      region.drain();
    }
    await region.sync();
  } finally {
    closeSync(file);
  }
}

function keptIn(file: number, path: string, regionBytes: number): Kept {
  const bytes = fstatSync(file).size - regionBytes;
  const text = Buffer.alloc(Math.max(0, Math.min(bytes, LIST_BYTES_MAX)));
  readSync(file, text, 0, text.length, regionBytes);
  try {
    const kept = JSON.parse(text.toString("utf8")) as Kept;
    const fits = ([offset, length]: readonly [number, number]): boolean =>
      Number.isSafeInteger(offset) &&
      Number.isSafeInteger(length) &&
      offset >= 0 &&
      offset + length <= regionBytes;
    if (kept.mapdirect_undo === 1 && kept.region_bytes === regionBytes && kept.ranges.every(fits))
      return kept;
  } catch {
    // Said below.
  }
  throw new Failure(
    path,
    "it is not what a repair of this region has kept",
    "name the file that the repair named",
  );
}

/** A list of as many ranges as there can be segments is shorter. */
const LIST_BYTES_MAX = 64 * 1024 * 1024;

/** Beside a file; for a device in the working directory. One that does not exist. */
export function undoPathFor(region: string, isFile: boolean): string {
  const base = `${isFile ? resolve(region) : resolve(basename(region))}.before-repair`;
  for (let number = 1; ; number += 1) {
    const path = number === 1 ? base : `${base}.${number}`;
    if (!existsSync(path)) return path;
  }
}
