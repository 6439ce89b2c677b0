/** The states that the hardware could leave in one epoch: all of them where they are few, a choice where they are many. */
import type { Epoch, OpenUnit } from "./recorder.ts";

/** For each unit of an epoch which of its versions is on the media; 0: none, it is as before. */
export type Choice = Uint8Array;

const LINE_BYTES = 64;

/** @param limit how many at most; @param random in [0, 1) */
export function* statesOf(epoch: Epoch, limit: number, random: () => number): IterableIterator<Choice> {
  const { units } = epoch;
  let total = 1;
  for (const { versions } of units) {
    total *= versions.length + 1;
    if (total > limit) break;
  }
  if (total <= limit) yield* everyState(units);
  else yield* someStates(units, limit, random);
}

function* everyState(units: readonly OpenUnit[]): IterableIterator<Choice> {
  const choice = new Uint8Array(units.length);
  for (;;) {
    yield choice.slice();
    let at = 0;
    while (at < units.length && choice[at] === (units[at] as OpenUnit).versions.length) {
      choice[at] = 0;
      at += 1;
    }
    if (at === units.length) return;
    (choice[at] as number) += 1;
  }
}

/** The corners, where mistakes live, then choices at random with all degrees of completeness. */
function* someStates(
  units: readonly OpenUnit[],
  limit: number,
  random: () => number,
): IterableIterator<Choice> {
  const count = units.length;
  const last = Uint8Array.from(units, ({ versions }) => versions.length);
  let left = limit;
  const none = new Uint8Array(count);
  yield none;
  yield last.slice();
  left -= 2;
  const share = Math.max(1, Math.floor(limit / 6));
  const places = spread(count, share);
  for (const at of places) {
    const alone = none.slice();
    alone[at] = last[at] as number;
    yield alone;
    const missing = last.slice();
    missing[at] = 0;
    yield missing;
    // In the order of the stores, as far as here.
    const prefix = none.slice();
    prefix.set(last.subarray(0, at), 0);
    yield prefix;
    left -= 3;
  }
  // Whole cache lines, one of them torn.
  const lineOf = (at: number): number => Math.floor((units[at] as OpenUnit).at / LINE_BYTES);
  for (; left > limit / 4; left -= 1) {
    const chance = random();
    const kept = new Map<number, boolean>();
    const torn = lineOf(Math.floor(random() * count));
    yield Uint8Array.from(units, ({ versions }, at) => {
      const line = lineOf(at);
      if (!kept.has(line)) kept.set(line, random() < chance);
      const keep = line === torn ? random() < 0.5 : kept.get(line) === true;
      return keep ? versions.length : 0;
    });
  }
  for (; left > 0; left -= 1) {
    const chance = random();
    yield Uint8Array.from(units, ({ versions }) =>
      random() < chance ? 1 + Math.floor(random() * versions.length) : 0,
    );
  }
}

/** At most `wanted` numbers below `count`, evenly spread. */
function spread(count: number, wanted: number): number[] {
  const number = Math.min(count, wanted);
  return Array.from({ length: number }, (_, index) => Math.floor((index * count) / number));
}

export interface Saved {
  readonly at: number;
  readonly bytes: Uint8Array;
}

/** Make `media` what the choice says. Returns what was there before, in the order of the changes. */
export function apply(media: Uint8Array, epoch: Epoch, choice: Choice): Saved[] {
  const undo: Saved[] = [];
  for (const [index, { at, versions }] of epoch.units.entries()) {
    const chosen = choice[index] as number;
    if (chosen === 0) continue;
    const bytes = versions[chosen - 1] as Uint8Array;
    undo.push({ at, bytes: media.slice(at, at + bytes.length) });
    media.set(bytes, at);
  }
  return undo;
}

/** Make `media` what it is for certain when these are over. */
export function settle(media: Uint8Array, epochs: readonly Epoch[]): void {
  for (const { settled } of epochs) for (const { at, bytes } of settled) media.set(bytes, at);
}
