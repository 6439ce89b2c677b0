/**
 * Mistakes made on purpose, to see that the search finds them. Each is put into the one volume under test, from outside: the
 * code itself has no switch for it.
 */
import { GROUP_MAGIC, SEGMENT_MAGIC, SUPERBLOCK_OFFSETS } from "../../src/media/format.ts";
import type { Scene } from "./operations.ts";

const magicOf = (bytes: Uint8Array, at: number): number =>
  bytes.length >= at + 4 ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true) : 0;

/** Nothing is ever flushed or fenced. */
export function noFence({ region }: Scene): void {
  region.drain = () => {};
}

/** The fence between the data and the record that makes it visible is missing: of two in a row the first. */
export function noFenceBeforeRecords({ region }: Scene): void {
  const drain = region.drain.bind(region);
  const write = region.write.bind(region);
  let recordIsNext = true;
  region.drain = () => {
    if (recordIsNext) return;
    drain();
    recordIsNext = true;
  };
  region.write = (offset, source, start, length) => {
    recordIsNext = magicOf(source, start) !== GROUP_MAGIC;
    write(offset, source, start, length);
  };
}

/** Zeros come after the record that makes them visible is durable. */
export function recordBeforeZeros({ region }: Scene): void {
  const write = region.write.bind(region);
  const zero = region.zero.bind(region);
  const late: (() => void)[] = [];
  region.zero = (offset, length) => void late.push(() => zero(offset, length));
  region.write = (offset, source, start, length) => {
    write(offset, source, start, length);
    if (magicOf(source, start) !== GROUP_MAGIC) return;
    region.drain();
    for (const store of late.splice(0)) store();
  };
}

/** Records are written, and durable, before the data that they are about. */
export function recordBeforeData({ region }: Scene): void {
  const write = region.write.bind(region);
  const late: (() => void)[] = [];
  region.write = (offset, source, start, length) => {
    const magic = magicOf(source, start);
    const isMetadata =
      magic === GROUP_MAGIC || magic === SEGMENT_MAGIC || SUPERBLOCK_OFFSETS.some((at) => at === offset);
    if (!isMetadata) {
      const copy = source.slice(start, start + length);
      late.push(() => write(offset, copy, 0, length));
      return;
    }
    write(offset, source, start, length);
    if (magic !== GROUP_MAGIC) return;
    region.drain();
    for (const store of late.splice(0)) store();
  };
}

/** Blocks are free as soon as their file is gone, though a power cut may bring it back. */
export function freeAtOnce({ bench }: Scene): void {
  const { allocator } = bench.store;
  allocator.freeAfter = (start, count) => allocator.free(start, count);
}

/** What is discarded includes what was freed and is not durably so. */
export function discardPending({ bench, region }: Scene): void {
  const discard = region.discard.bind(region);
  region.discard = async (offset, length) => {
    await discard(offset, length);
    for (const { start, count } of bench.store.allocator.pendingRuns())
      await discard(start * bench.store.blockBytes, count * bench.store.blockBytes);
  };
}

/** What is discarded includes segments of metadata, as if a checkpoint that is complete had freed them too early. */
export function discardMetadata({ bench, region }: Scene): void {
  const discard = region.discard.bind(region);
  region.discard = async (offset, length) => {
    await discard(offset, length);
    for (const { start, count } of bench.store.metadataRuns())
      if (start > 0) await discard(start * bench.store.blockBytes, count * bench.store.blockBytes);
  };
}

/** The barrier says that everything before it is durable, and nobody has waited for that. */
export function barrierWithoutSync({ region }: Scene): void {
  const sync = region.sync.bind(region);
  let calls = 0;
  region.sync = async () => {
    calls += 1;
    if (calls % 2 === 0) await sync();
  };
}
