/** Answers to CONTROL questions that are longer than one ioctl: kept for a while, fetched slice by slice. */
import { FsError } from "../base/errors.ts";

const KEPT_MAX = 16;

export class Answers {
  readonly #kept = new Map<number, Buffer>();
  #next = 1;

  keep(value: unknown): { token: number; bytes: Buffer } {
    const bytes = Buffer.from(JSON.stringify(value), "utf8");
    const token = this.#next;
    this.#next = (this.#next % 0xffff_ffff) + 1;
    this.#kept.set(token, bytes);
    // The oldest goes: whoever still wants it is told to ask again.
    for (const old of this.#kept.keys()) {
      if (this.#kept.size <= KEPT_MAX) break;
      this.#kept.delete(old);
    }
    return { token, bytes };
  }

  /** @throws FsError ESTALE: ask the question again. */
  get(token: number): Buffer {
    const bytes = this.#kept.get(token);
    if (bytes === undefined) throw new FsError("ESTALE", "the answer is not kept any more");
    return bytes;
  }

  drop(token: number): void {
    this.#kept.delete(token);
  }
}
