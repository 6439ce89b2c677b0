/**
 * A mapped region as the floors above see it: the addon's object, with ranges checked and errors made ours.
 *
 * Invariants:
 * - a range outside the region or outside the given array is an InvariantError and never reaches native code;
 * - what the mapping answers (EIO for a bus error, EROFS for a read-only one) is an FsError;
 * - once a sync has failed, `syncError` is set and every later sync rejects with that same error, without asking the
 *   kernel again: it reports a lost page once, and a second fsync that succeeds means nothing.
 */
import { Errno, type ErrnoName } from "../base/errno.ts";
import { FsError, InvariantError, MediaError } from "../base/errors.ts";
import type { NativeRegion } from "./addon.ts";
import { checkDisjoint, checkRange, checkSlice } from "./bounds.ts";
import type { NativeBacked, Region, RegionFacts, RegionMappings, RoomBelow } from "./region.ts";

/** How long reading the mappings of one process may take: it waits for that process's memory lock. */
const MAPS_PATIENCE_MS = 500;

export class MappedRegion implements Region, NativeBacked {
  facts: RegionFacts;
  readonly native: NativeRegion;
  readonly discard?: (offset: number, length: number) => Promise<void>;
  beforeStore: Region["beforeStore"] = null;
  isFullBelow = false;
  #syncError: Error | null = null;

  constructor(native: NativeRegion, facts: RegionFacts) {
    this.native = native;
    this.facts = facts;
    if (native.info.discards) this.discard = (offset, length) => this.#discard(offset, length);
  }

  get syncError(): Error | null {
    return this.#syncError;
  }

  /** Send a descriptor of the region, of an open file description of its own, over a connected unix socket. */
  handOut(socket: number): void {
    this.native.handOut(socket);
  }

  read(offset: number, target: Uint8Array, targetStart: number, length: number): void {
    checkRange(this.facts.sizeBytes, offset, length);
    checkSlice(target, targetStart, length);
    try {
      this.native.read(offset, target, targetStart, length);
    } catch (error) {
      throw translate(error);
    }
  }

  write(offset: number, source: Uint8Array, sourceStart: number, length: number): void {
    checkRange(this.facts.sizeBytes, offset, length);
    checkSlice(source, sourceStart, length);
    if (this.beforeStore !== null) this.beforeStore(offset, length);
    try {
      this.native.write(offset, source, sourceStart, length);
    } catch (error) {
      throw this.#storeFailed(error);
    }
  }

  zero(offset: number, length: number): void {
    checkRange(this.facts.sizeBytes, offset, length);
    if (this.beforeStore !== null) this.beforeStore(offset, length);
    try {
      this.native.zero(offset, length);
    } catch (error) {
      throw this.#storeFailed(error);
    }
  }

  copy(sourceOffset: number, targetOffset: number, length: number): void {
    checkRange(this.facts.sizeBytes, sourceOffset, length);
    checkRange(this.facts.sizeBytes, targetOffset, length);
    checkDisjoint(sourceOffset, targetOffset, length);
    if (this.beforeStore !== null) this.beforeStore(targetOffset, length);
    try {
      this.native.copy(sourceOffset, targetOffset, length);
    } catch (error) {
      throw this.#storeFailed(error);
    }
  }

  flush(offset: number, length: number): void {
    checkRange(this.facts.sizeBytes, offset, length);
    try {
      this.native.flush(offset, length);
    } catch (error) {
      throw translate(error);
    }
  }

  unload(offset: number, length: number): void {
    checkRange(this.facts.sizeBytes, offset, length);
    this.native.unload(offset, length);
  }

  drain(): void {
    // Nothing to order on page granularity: not even the call.
    if (this.facts.granularity === "cacheline") this.native.drain();
  }

  async sync(): Promise<void> {
    if (this.#syncError !== null) throw this.#syncError;
    try {
      await this.native.sync();
    } catch (error) {
      this.#syncError ??= translate(error);
    }
    // Also for a sync that succeeded while another one, started before it, failed.
    if (this.#syncError !== null) throw this.#syncError;
  }

  allocate(offset: number, length: number): void {
    checkRange(this.facts.sizeBytes, offset, length);
    try {
      this.native.allocate(offset, length);
    } catch (error) {
      throw this.#storeFailed(error);
    }
  }

  async #discard(offset: number, length: number): Promise<void> {
    checkRange(this.facts.sizeBytes, offset, length);
    if (this.beforeStore !== null)
      throw new InvariantError("a discard while somebody wants the bytes of before");
    try {
      await this.native.discard(offset, length);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EOPNOTSUPP") throw translate(error);
      throw new FsError("EOPNOTSUPP", `what ${this.facts.path} lies on takes no discards`);
    }
  }

  below(): RoomBelow | null {
    return this.native.below();
  }

  #storeFailed(error: unknown): Error {
    if ((error as { errno?: number }).errno !== Errno.ENOSPC) return translate(error);
    this.isFullBelow = true;
    return new FsError("ENOSPC", `what ${this.facts.path} lies on is full`);
  }

  measure(): number {
    try {
      return this.native.measure();
    } catch (error) {
      throw translate(error);
    }
  }

  async grow(sizeBytes: number): Promise<void> {
    if (this.#syncError !== null) throw this.#syncError;
    const { path } = this.facts;
    try {
      await this.native.grow(sizeBytes);
    } catch (error) {
      const { code, step, message } = error as NodeJS.ErrnoException & { step?: string };
      if (step === "fsync") {
        this.#syncError ??= translate(error);
        throw this.#syncError;
      }
      if (code === "ENOMEM") {
        const todo = "unmount it first (a limit of address space, ulimit -v, leaves no room for more)";
        throw new FsError("ENOMEM", `${path} cannot become so large while it is mounted; ${todo}`);
      }
      if (code === "EINVAL") throw new FsError("EINVAL", `${path} is not that large`);
      if (["EFBIG", "EPERM", "EACCES", "ENOSPC", "EROFS"].includes(code ?? ""))
        throw new FsError(code as ErrnoName, message);
      throw translate(error);
    }
    if (sizeBytes > this.facts.sizeBytes) this.facts = Object.freeze({ ...this.facts, sizeBytes });
  }

  async findMappings(proc = "/proc", patienceMs = MAPS_PATIENCE_MS): Promise<RegionMappings> {
    return await this.native.findMappings(proc, patienceMs);
  }

  close(): void {
    this.native.close();
  }
}

function translate(error: unknown): Error {
  const { errno, message } = error as { errno?: number; message: string };
  if (errno === Errno.EROFS) return new FsError("EROFS", message);
  if (errno === Errno.EBADF || errno === Errno.EINVAL) return new InvariantError(message);
  return new MediaError(message);
}
