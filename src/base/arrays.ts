/**
 * What is done elsewhere by handing an array over as a list of arguments. V8 puts arguments on the stack, and throws
 * RangeError at about 125,000 of them: how many extents, leases or mounts there are is not ours to decide. The linter
 * forbids it in src/ (scripts/lint/no-argument-lists-from-arrays.grit).
 */

/** Arguments at a time: far from what the stack takes, however deep it is already. */
const AT_A_TIME = 4096;

/** As array.push(...items). */
export function append<T>(array: T[], items: Iterable<T>): void {
  for (const item of items) array.push(item);
}

/** As array.splice(first, count, ...by), but for the result. */
export function replaceRange<T>(array: T[], first: number, count: number, by: readonly T[]): void {
  if (by.length <= AT_A_TIME) {
    // biome-ignore lint/plugin: bounded by the line above
    array.splice(first, count, ...by);
    return;
  }
  array.splice(first, count);
  for (let done = 0; done < by.length; done += AT_A_TIME) {
    // biome-ignore lint/plugin: at most AT_A_TIME
    array.splice(first + done, 0, ...by.slice(done, done + AT_A_TIME));
  }
}

/** As Math.min(...) over what `of` says of each; Infinity for none. */
export function smallest<T>(items: Iterable<T>, of: (item: T) => number): number {
  let found = Number.POSITIVE_INFINITY;
  for (const item of items) found = Math.min(found, of(item));
  return found;
}

/** As Math.max(...) over what `of` says of each; -Infinity for none. */
export function largest<T>(items: Iterable<T>, of: (item: T) => number): number {
  let found = Number.NEGATIVE_INFINITY;
  for (const item of items) found = Math.max(found, of(item));
  return found;
}
