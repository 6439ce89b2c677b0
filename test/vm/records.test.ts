/** What judges the power cuts must find what is missing: it is tried here on records that a guest never wrote. */
import { expect, test } from "vitest";
import { acknowledged, recordsProblem } from "./records.ts";

const LINES = 16;

/** The file after so many records. */
function after(last: number): Buffer {
  const data = Buffer.alloc(LINES * 64);
  for (let number = 1; number <= last; number += 1) {
    for (let word = 0; word < 8; word += 1) {
      data.writeBigUInt64LE((BigInt(number) << 8n) | BigInt(word), (number % LINES) * 64 + word * 8);
    }
  }
  return data;
}

test("everything that was acknowledged, and nothing more, is right", () => {
  for (const last of [0, 1, 15, 16, 17, 32, 100]) expect(recordsProblem(after(last), last)).toBeUndefined();
});

test("the record that was under way may be there, in part or whole", () => {
  for (const last of [0, 15, 16, 100]) {
    expect(recordsProblem(after(last + 1), last)).toBeUndefined();
    const torn = after(last);
    after(last + 1).copy(
      torn,
      ((last + 1) % LINES) * 64 + 16,
      ((last + 1) % LINES) * 64 + 16,
      ((last + 1) % LINES) * 64 + 40,
    );
    expect(recordsProblem(torn, last)).toBeUndefined();
  }
});

test("a record that is lost, torn, or came too early is found", () => {
  expect(recordsProblem(after(99), 100)).toMatch(/line 4, word 0.*100 acknowledged/);
  expect(recordsProblem(after(102), 100)).toMatch(/line 6/);
  const torn = after(100);
  torn.writeUInt8(7, (100 % LINES) * 64 + 60);
  expect(recordsProblem(torn, 100)).toMatch(/line 4, word 7/);
});

test("a line without its end says nothing", () => {
  expect(acknowledged("1\n2\n33")).toBe(2);
  expect(acknowledged("1")).toBe(0);
  expect(acknowledged("")).toBe(0);
});
