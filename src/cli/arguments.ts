/** Values of options, as commander's argument parsers: a wrong one is wrong usage. */
import { InvalidArgumentError } from "commander";
import { parseOffset, parseSize } from "../daemon/sizes.ts";
import { LABEL_BYTES_MAX } from "../media/format.ts";

const WANTS_SIZE = "A size is a whole number of bytes, or one with K, M, G or T.";

export function sizeArgument(text: string): number {
  const bytes = parseSize(text);
  if (bytes === undefined) throw new InvalidArgumentError(WANTS_SIZE);
  return bytes;
}

export function labelArgument(text: string): string {
  if (Buffer.byteLength(text) > LABEL_BYTES_MAX)
    throw new InvalidArgumentError(`A label has at most ${LABEL_BYTES_MAX} bytes.`);
  return text;
}

export function offsetArgument(text: string): bigint {
  const bytes = parseOffset(text);
  if (bytes === undefined) throw new InvalidArgumentError(WANTS_SIZE);
  return bytes;
}

/** For an option that may be given more than once. */
export function collect(text: string, before: string[]): string[] {
  return [...before, text];
}
