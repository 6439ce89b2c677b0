/** A copy of a region as it was, against one that was made at once: whatever is stored, handed out and copied in whatever order. */
import fc from "fast-check";
import { afterEach, describe, expect, test, vi } from "vitest";
import { listenToFaults } from "../../src/base/faults.ts";
import { Allocator } from "../../src/space/allocator.ts";
import { COPIER_IDLE_MS, CopyBeforeWrite, PIECE_BYTES } from "../../src/space/copy-before-write.ts";
import { MemoryRegion } from "../support/memory-region.ts";

const BLOCKS = 96;

/** 251 is prime: no two blocks are the same. */
function filled(blockBytes: number): MemoryRegion {
  const bytes = Uint8Array.from({ length: 251 }, (_, index) => index + 1);
  return MemoryRegion.fromImage(Buffer.alloc(BLOCKS * blockBytes, bytes));
}

/** Runs that are handed out are not copied at once: stores come in between. */
class Copier {
  readonly copy: CopyBeforeWrite;
  readonly region: MemoryRegion;
  readonly blockBytes: number;
  readonly image: Uint8Array;
  done = false;

  constructor(copy: CopyBeforeWrite, region: MemoryRegion, blockBytes: number) {
    this.copy = copy;
    this.region = region;
    this.blockBytes = blockBytes;
    this.image = new Uint8Array(BLOCKS * blockBytes);
  }

  /** `between` is called before each run is copied. */
  step(runsMax: number, piecesMax: number, between: () => void): void {
    const { runs, pieces, done } = this.copy.advance(runsMax, piecesMax);
    for (const { start, count } of runs) {
      between();
      const at = start * this.blockBytes;
      this.image.set(this.region.peek(at, count * this.blockBytes), at);
    }
    for (const { offset, bytes } of pieces) this.image.set(bytes, offset);
    this.done = done;
  }
}

describe("a copy of a region as it was at one moment", () => {
  afterEach(() => vi.useRealTimers());

  test("has what was allocated at that moment, whatever is stored meanwhile", () => {
    const store = fc.record({
      kind: fc.constantFrom("write", "zero", "copy"),
      at: fc.nat(BLOCKS * PIECE_BYTES - 1),
      length: fc.nat(5 * PIECE_BYTES),
    });
    fc.assert(
      fc.property(
        fc.constantFrom(PIECE_BYTES, 2 * PIECE_BYTES),
        fc.array(fc.boolean(), { minLength: BLOCKS, maxLength: BLOCKS }),
        fc.array(store, { maxLength: 60 }),
        fc.array(fc.tuple(fc.nat(5), fc.nat(2)), { minLength: 1, maxLength: 20 }),
        fc.option(fc.tuple(fc.nat(BLOCKS - 1), fc.integer({ min: 1, max: 20 })), { nil: undefined }),
        (blockBytes, allocated, stores, steps, hurry) => {
          const region = filled(blockBytes);
          const allocator = new Allocator(BLOCKS, blockBytes);
          for (const [block, is] of allocated.entries()) if (is) allocator.claim(block, 1);
          const before = region.image();
          const except = [{ start: 3, count: 2 }];
          const copier = new Copier(
            new CopyBeforeWrite({ region, blockBytes, allocator, except }),
            region,
            blockBytes,
          );
          if (hurry !== undefined) copier.copy.copying([{ start: hurry[0], count: hurry[1] }]);
          let next = 0;
          const storeSome = (): void => {
            const wish = stores[next];
            if (wish === undefined) return;
            next += 1;
            const at = Math.min(wish.at, BLOCKS * blockBytes - 1);
            const length = Math.min(wish.length, BLOCKS * blockBytes - at);
            if (wish.kind === "zero") region.zero(at, length);
            else if (wish.kind === "write") region.write(at, new Uint8Array(length).fill(next), 0, length);
            else if (at + 2 * length <= BLOCKS * blockBytes) region.copy(at, at + length, length);
          };
          for (let turn = 0; !copier.done; turn += 1) {
            const [runs, pieces] = steps[turn % steps.length] as [number, number];
            storeSome();
            // Whatever was asked for, it comes to an end.
            copier.step(runs + 1, pieces + 1, storeSome);
          }
          expect(region.beforeStore).toBeNull();
          expect(copier.copy.leftBytes).toBe(0);
          for (const [block, is] of allocated.entries()) {
            const wanted = is && block !== 3 && block !== 4;
            if (!wanted) continue;
            const [from, to] = [block * blockBytes, (block + 1) * blockBytes];
            if (!Buffer.from(copier.image.subarray(from, to)).equals(before.subarray(from, to)))
              throw new Error(`block ${block} is not as it was`);
          }
        },
      ),
      { numRuns: 200 },
    );
  });

  function begun(blocks = BLOCKS): { region: MemoryRegion; copy: CopyBeforeWrite } {
    const region = MemoryRegion.blank(blocks * PIECE_BYTES);
    const allocator = new Allocator(blocks, PIECE_BYTES);
    allocator.claim(0, blocks);
    return { region, copy: new CopyBeforeWrite({ region, blockBytes: PIECE_BYTES, allocator, except: [] }) };
  }

  test("hands out first what somebody waits for", () => {
    const { copy } = begun();
    expect(copy.copying([{ start: 70, count: 2 }])).not.toBeNull();
    expect(copy.advance(1, 1).runs).toEqual([{ start: 70, count: 2 }]);
    // Not copied before the copier comes back.
    expect(copy.copying([{ start: 70, count: 2 }])).not.toBeNull();
    copy.advance(1, 1);
    expect(copy.copying([{ start: 70, count: 2 }])).toBeNull();
    copy.end();
  });

  test("lets those who store wait when much was set aside, until some of it is taken", async () => {
    const { region, copy } = begun(20_000);
    expect(copy.full).toBeNull();
    region.zero(0, 16_384 * PIECE_BYTES);
    expect(copy.full).toBeNull();
    region.zero(16_384 * PIECE_BYTES, PIECE_BYTES);
    const waiting = copy.full;
    expect(waiting).not.toBeNull();
    expect(copy.advance(1, 3)).toMatchObject({ runs: [], done: false });
    await waiting;
    expect(copy.full).toBeNull();
    copy.end();
  });

  test("is given up when somebody waits and the copier does not come back", async () => {
    vi.useFakeTimers();
    const { region, copy } = begun();
    // Nobody waits: it may take its time.
    vi.advanceTimersByTime(3 * COPIER_IDLE_MS);
    expect(region.beforeStore).not.toBeNull();
    const waiting = copy.copying([{ start: 0, count: 1 }]);
    vi.advanceTimersByTime(COPIER_IDLE_MS);
    await waiting;
    expect(copy.copying([{ start: 0, count: 1 }])).toBeNull();
    expect(region.beforeStore).toBeNull();
    expect(() => copy.advance(1, 1)).toThrow("ECANCELED");
  });

  test("ends with what cannot be read, and the store that needed it goes on", () => {
    const { region, copy } = begun();
    region.failReads(8 * PIECE_BYTES, 1);
    region.zero(8 * PIECE_BYTES, PIECE_BYTES);
    expect(() => copy.advance(1, 1)).toThrow("EIO");
    expect(region.beforeStore).toBeNull();
  });

  test("a fault in setting bytes aside ends the copy, and not the store that is under way", () => {
    const region = filled(4096);
    const allocator = new Allocator(BLOCKS, 4096);
    allocator.claim(0, 4);
    const copy = new CopyBeforeWrite({ region, blockBytes: 4096, allocator, except: [] });
    const faults: unknown[] = [];
    listenToFaults((_, error) => faults.push(error));
    try {
      vi.spyOn(region, "read").mockImplementation(() => {
        throw new RangeError("injected");
      });
      region.write(0, Uint8Array.of(9), 0, 1);
      expect(region.peek(0, 1)[0]).toBe(9);
      expect(faults).toEqual([new RangeError("injected")]);
      expect(() => copy.advance(1, 1)).toThrow(expect.objectContaining({ code: "EIO" }));
    } finally {
      listenToFaults(null);
      copy.end();
    }
  });
});
