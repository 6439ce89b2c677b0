import { describe, expect, test } from "vitest";
import { append, largest, smallest } from "../../src/base/arrays.ts";

/** More than V8 takes as arguments of one call. */
const MANY = 300_000;
const many = Array.from({ length: MANY }, (_, index) => index);

describe("arrays of any length", () => {
  test("the engine really refuses so many arguments: what is tested here cannot pass by itself", () => {
    expect(() => Math.max(...many)).toThrow(RangeError);
  });

  test("have a smallest and a largest value, and none have infinities", () => {
    expect(smallest(many, (value) => value - 7)).toBe(-7);
    expect(largest(many, (value) => value * 2)).toBe(2 * (MANY - 1));
    expect([smallest([], Number), largest([], Number)]).toEqual([Infinity, -Infinity]);
  });

  test("are appended in order", () => {
    const array = [1, 2];
    append(array, many);
    expect([array.length, array[2], array.at(-1)]).toEqual([MANY + 2, 0, MANY - 1]);
  });
});
