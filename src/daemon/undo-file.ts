/**
 * What a repair overwrites and what it was concluded from, kept in a sparse file as large as the region, each byte at its
 * own place: `dd conv=notrunc,sparse` from this file onto the region takes the repair back.
 */
import { closeSync, existsSync, fsyncSync, ftruncateSync, openSync, writeSync } from "node:fs";
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

  /** @throws Failure */
  constructor(path: string, sizeBytes: number) {
    this.path = path;
    try {
      this.#file = openSync(path, "wx", 0o600);
      ftruncateSync(this.#file, sizeBytes);
    } catch (error) {
      throw new Failure(
        path,
        `what the repair overwrites is kept here: ${reason(error)}`,
        "name another file with --undo",
      );
    }
  }

  keep(region: Region, offset: number, length: number): void {
    for (let at = 0; at < length; at += CHUNK_BYTES) {
      const data = readSome(region, offset + at, Math.min(CHUNK_BYTES, length - at));
      for (let from = 0; from < data.length; from += HOLE_BYTES) {
        const part = data.subarray(from, from + HOLE_BYTES);
        if (part.some((byte) => byte !== 0)) this.#write(part, offset + at + from);
      }
    }
  }

  finish(): void {
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
        "make room, or name another file with --undo; nothing was repaired",
      );
    }
  }
}

/** Beside a file; for a device in the working directory. One that does not exist. */
export function undoPathFor(region: string, isFile: boolean): string {
  const base = `${isFile ? resolve(region) : resolve(basename(region))}.before-repair`;
  for (let number = 1; ; number += 1) {
    const path = number === 1 ? base : `${base}.${number}`;
    if (!existsSync(path)) return path;
  }
}
