/** What `direct load` (guest/direct.c) leaves in a file, checked against what it had acknowledged. */

const LINE_BYTES = 64;
const WORDS = 8;

/** The last number that was said to be durable; a line without its end is not said. */
export function acknowledged(log: string): number {
  const lines = log.split("\n").slice(0, -1);
  return lines.length === 0 ? 0 : Number(lines.at(-1));
}

/**
 * The first thing that is not as it must be, in words; undefined if all is. Each line holds the last acknowledged record
 * of its place; the one after the last may be there in part, word by word.
 */
export function recordsProblem(data: Buffer, last: number): string | undefined {
  const lines = data.length / LINE_BYTES;
  for (let place = 0; place < lines; place += 1) {
    // The greatest number up to `last` at this place; 0 or less if none was stored there.
    let number = last - ((((last - place) % lines) + lines) % lines);
    if (number === 0) number = -lines;
    for (let word = 0; word < WORDS; word += 1) {
      const found = data.readBigUInt64LE(place * LINE_BYTES + word * 8);
      const expected = number > 0 ? (BigInt(number) << 8n) | BigInt(word) : 0n;
      const next = (BigInt(last + 1) << 8n) | BigInt(word);
      const underWay = (last + 1) % lines === place && found === next;
      if (found !== expected && !underWay) {
        return `line ${place}, word ${word}: ${found.toString(16)}, should be ${expected.toString(16)} (${last} acknowledged)`;
      }
    }
  }
  return undefined;
}
