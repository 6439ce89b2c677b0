/** Values of options, as commander's argument parsers: a wrong one is wrong usage. */
import { InvalidArgumentError } from "commander";
import { parseOffset, parseSize } from "../daemon/sizes.ts";

const WANTS_SIZE = "A size is a whole number of bytes, or one with K, M, G or T.";

export function sizeArgument(text: string): number {
  const bytes = parseSize(text);
  if (bytes === undefined) throw new InvalidArgumentError(WANTS_SIZE);
  return bytes;
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
