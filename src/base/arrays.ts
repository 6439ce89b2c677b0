/**
 * What is done elsewhere by handing an array over as a list of arguments. V8 puts arguments on the stack, and throws
 * RangeError at about 125,000 of them: how many extents, leases or mounts there are is not ours to decide. The linter
 * forbids it in src/ (scripts/lint/no-argument-lists-from-arrays.grit).
 */

/** As array.push(...items). */
export function append<T>(array: T[], items: Iterable<T>): void {
  for (const item of items) array.push(item);
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

/** The first `most` of them and, as one more, how many are left out. */
export function firstFew(all: readonly string[], most: number): string[] {
  const few = all.slice(0, most);
  return all.length > most ? [...few, `${all.length - most} more`] : few;
}
