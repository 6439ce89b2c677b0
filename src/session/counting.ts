/**
 * What a session counts while it serves: requests, how long they took, errors, bytes.
 *
 * Invariants:
 * - counting a request costs a few stores into arrays and allocates nothing: it runs for each of them;
 * - a request is timed from its arrival to its answer, whatever it waited for in between; one that is never answered
 *   (FORGET) is counted, not timed;
 * - nothing here is ever reset: whoever wants rates takes the difference of two looks.
 */
import { errnoName } from "../base/errno.ts";
import { opcodeName } from "../fuse/opcodes.ts";

/** Opcodes of the kernel's protocol are below; what is not, a hostile kernel's, is counted under the last. */
const OPCODES = 64;
/** Bucket b holds times of at most 2^(b / 4) microseconds, and more than those of the bucket before. */
const PER_OCTAVE = 4;
const OCTAVES = 24;
/** The last one has no bound: more than 2^24 µs, 17 s. */
export const BUCKETS = OCTAVES * PER_OCTAVE + 2;

/** The bound of a bucket, microseconds. */
export function boundMicros(bucket: number): number {
  return bucket >= BUCKETS - 1 ? Number.POSITIVE_INFINITY : 2 ** (bucket / PER_OCTAVE);
}

export interface Latency {
  readonly operation: string;
  readonly count: number;
  readonly totalMicros: number;
  /** One count for each bucket. */
  readonly counts: Float64Array;
}

export class Counting {
  readonly #requests = new Float64Array(OPCODES);
  readonly #totalMicros = new Float64Array(OPCODES);
  readonly #counts = new Float64Array(OPCODES * BUCKETS);
  readonly #errors = new Map<number, number>();
  errors = 0;
  bytesRead = 0;
  bytesWritten = 0;

  received(opcode: number): void {
    const row = opcode < OPCODES ? opcode : OPCODES - 1;
    this.#requests[row] = (this.#requests[row] as number) + 1;
  }

  answered(opcode: number, tookMs: number): void {
    const row = opcode < OPCODES ? opcode : OPCODES - 1;
    const micros = tookMs * 1000;
    this.#totalMicros[row] = (this.#totalMicros[row] as number) + micros;
    const at = row * BUCKETS + bucketOf(micros);
    this.#counts[at] = (this.#counts[at] as number) + 1;
  }

  failed(errno: number): void {
    this.errors += 1;
    this.#errors.set(errno, (this.#errors.get(errno) ?? 0) + 1);
  }

  /** How often each operation that ever came was asked for. */
  operations(): Record<string, number> {
    const found: Record<string, number> = {};
    for (const [opcode, count] of this.#requests.entries()) if (count > 0) found[nameOf(opcode)] = count;
    return found;
  }

  /** By the name of the errno. */
  errorsByName(): Record<string, number> {
    return Object.fromEntries([...this.#errors].map(([errno, count]) => [errnoName(errno), count]));
  }

  *latencies(): IterableIterator<Latency> {
    for (let opcode = 0; opcode < OPCODES; opcode += 1) {
      const counts = this.#counts.subarray(opcode * BUCKETS, (opcode + 1) * BUCKETS);
      const count = counts.reduce((sum, one) => sum + one, 0);
      if (count === 0) continue;
      yield {
        operation: nameOf(opcode),
        count,
        totalMicros: this.#totalMicros[opcode] as number,
        counts,
      };
    }
  }
}

const nameOf = (opcode: number): string =>
  opcode === OPCODES - 1 ? "unknown" : opcodeName(opcode).toLowerCase();

function bucketOf(micros: number): number {
  if (!(micros > 1)) return 0;
  return Math.min(BUCKETS - 1, Math.ceil(Math.log2(micros) * PER_OCTAVE));
}

/**
 * The time that a share (0 to 1) of the counted ones did not exceed, microseconds; 0 when nothing was counted. Within a
 * bucket they are taken to be spread evenly: the answer is at most 19 % off.
 */
export function percentileMicros(counts: ArrayLike<number>, share: number): number {
  let total = 0;
  for (let bucket = 0; bucket < counts.length; bucket += 1) total += counts[bucket] as number;
  if (total === 0) return 0;
  let left = share * total;
  for (let bucket = 0; bucket < counts.length; bucket += 1) {
    const count = counts[bucket] as number;
    if (count > 0 && left <= count) {
      const low = bucket === 0 ? 0 : boundMicros(bucket - 1);
      const high = boundMicros(Math.min(bucket, BUCKETS - 2));
      return low + Math.max(0, high - low) * (left / count);
    }
    left -= count;
  }
  return boundMicros(BUCKETS - 2);
}
