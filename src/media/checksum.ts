/** CRC32C of everything on the media goes through here. */
import { addon } from "../region/addon.ts";

let native: ((data: Uint8Array, start: number, length: number, seed: number) => number) | undefined;

/** CRC32C (Castagnoli, RFC 3720) of data[start, start + length), continuing from `seed`. */
export function crc32c(data: Uint8Array, start: number, length: number, seed = 0): number {
  native ??= addon().crc32c;
  return native(data, start, length, seed);
}
