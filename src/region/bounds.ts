/** The range checks that every region backend makes: a bad range is our own bug, never an input error. */
import { InvariantError } from "../base/errors.ts";

export function checkRange(sizeBytes: number, offset: number, length: number): void {
  // Written so that NaN fails too.
  if (
    offset >= 0 &&
    length >= 0 &&
    offset + length <= sizeBytes &&
    Number.isInteger(offset) &&
    Number.isInteger(length)
  )
    return;
  throw new InvariantError(`${length} bytes at ${offset} do not lie in a region of ${sizeBytes} bytes`);
}

export function checkSlice(data: Uint8Array, start: number, length: number): void {
  if (start >= 0 && length >= 0 && start + length <= data.length && Number.isInteger(start)) return;
  throw new InvariantError(`${length} bytes from ${start} do not lie in an array of ${data.length} bytes`);
}

export function checkDisjoint(sourceOffset: number, targetOffset: number, length: number): void {
  if (length === 0 || sourceOffset + length <= targetOffset || targetOffset + length <= sourceOffset) return;
  throw new InvariantError(`copy of ${length} bytes from ${sourceOffset} to ${targetOffset} overlaps itself`);
}
