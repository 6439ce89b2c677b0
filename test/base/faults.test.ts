import { afterEach, describe, expect, test } from "vitest";
import { after, every, fault, guarded, inBackground, listenToFaults, soon } from "../../src/base/faults.ts";

const bug = new RangeError("a bug");
const throwing = (): never => {
  throw bug;
};

let heard: [string, unknown][] = [];
let told: () => void = () => {};
const next = () =>
  new Promise<void>((resolve) => {
    told = resolve;
  });

function listen(): void {
  heard = [];
  listenToFaults((what, error) => {
    heard.push([what, error]);
    told();
  });
}

afterEach(() => listenToFaults(null));

describe("what nobody expected", () => {
  test("in a guarded function is told, its arguments go along and its caller hears nothing", () => {
    listen();
    const sums: number[] = [];
    const guard = guarded("adding", (a: number, b: number) => {
      sums.push(a + b);
      throw bug;
    });
    expect(guard(1, 2)).toBeUndefined();
    expect([sums, heard]).toEqual([[3], [["adding", bug]]]);
  });

  test("in a timer, a later turn or a promise is told, and an interval goes on", async () => {
    listen();
    const timers = [after(1, "after", throwing), every(5, "every", async () => throwing())];
    try {
      soon("soon", throwing);
      inBackground("background", Promise.reject(bug));
      while (
        heard.filter(([what]) => what === "every").length < 2 ||
        new Set(heard.map(([what]) => what)).size < 4
      )
        await next();
    } finally {
      for (const timer of timers) clearInterval(timer);
    }
    expect(heard.every(([, error]) => error === bug)).toBe(true);
  });

  test("without a listener is thrown from the event loop: it is never lost", async () => {
    const others = process.listeners("uncaughtException");
    process.removeAllListeners("uncaughtException");
    try {
      const thrown = new Promise((resolve) => process.once("uncaughtException", resolve));
      fault("a test", bug);
      expect(await thrown).toBe(bug);
    } finally {
      for (const other of others) process.on("uncaughtException", other);
    }
  });
});
