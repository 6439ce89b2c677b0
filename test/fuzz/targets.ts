/** What is fuzzed, by name. */
import { vi } from "vitest";
import type { Target } from "./fuzzer.ts";
import { ImageTarget } from "./image.ts";
import { SessionTarget } from "./session.ts";

const makers: Readonly<Record<string, () => Promise<Target<unknown>>>> = {
  image: () => ImageTarget.make() as Promise<Target<unknown>>,
  session: () => SessionTarget.make() as Promise<Target<unknown>>,
};

export const targetNames = Object.keys(makers);

/** The volumes that inputs are about are made anew: the same each time, times and all. */
export async function makeTarget(name: string): Promise<Target<unknown>> {
  const make = makers[name];
  if (make === undefined) throw new Error(`no target is called ${name}`);
  vi.useFakeTimers({ toFake: ["Date"], now: 1_700_000_000_000 });
  try {
    return await make();
  } finally {
    vi.useRealTimers();
  }
}
