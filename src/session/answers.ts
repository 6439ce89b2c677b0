/**
 * Answers to CONTROL questions that are longer than one ioctl: kept for a while, fetched slice by slice.
 *
 * Invariants: an answer is read by who asked, on the open file on which it was asked for, and by nobody else; what one
 * user asks for takes nobody else's answers away.
 */
import { FsError } from "../base/errors.ts";

/** For each user. */
const KEPT_MAX = 16;

/** Whose answer it is: an open file, and the user who asked on it. */
export interface Asker {
  readonly fh: number;
  readonly uid: number;
}

interface Kept extends Asker {
  readonly bytes: Buffer;
}

export class Answers {
  readonly #kept = new Map<number, Kept>();
  #next = 1;

  keep({ fh, uid }: Asker, value: unknown): { token: number; bytes: Buffer } {
    const bytes = Buffer.from(JSON.stringify(value), "utf8");
    const token = this.#next;
    this.#next = (this.#next % 0xffff_ffff) + 1;
    this.#kept.set(token, { fh, uid, bytes });
    // The oldest goes: whoever still wants it is told to ask again.
    const own = [...this.#kept].filter(([, kept]) => kept.uid === uid);
    for (const [old] of own.slice(0, Math.max(0, own.length - KEPT_MAX))) this.#kept.delete(old);
    return { token, bytes };
  }

  /** @throws FsError ESTALE: ask the question again. */
  get({ fh, uid }: Asker, token: number): Buffer {
    const kept = this.#kept.get(token);
    if (kept === undefined || kept.fh !== fh || kept.uid !== uid)
      throw new FsError("ESTALE", "the answer is not kept any more");
    return kept.bytes;
  }

  /** Nobody can read on there any more. */
  closed(fh: number): void {
    for (const [token, kept] of this.#kept) if (kept.fh === fh) this.#kept.delete(token);
  }

  drop(token: number): void {
    this.#kept.delete(token);
  }
}
