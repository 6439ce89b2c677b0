import { describe, expect, test } from "vitest";
import { dateInWords, now } from "../../src/base/clock.ts";
import { Errno, errnoName } from "../../src/base/errno.ts";
import { CorruptionError, FsError, InvariantError, invariant } from "../../src/base/errors.ts";
import { retrying, settledOrAborted, Wait } from "../../src/base/wait.ts";

describe("errors", () => {
  test("an FsError carries the number of its name, and gives the name back", () => {
    for (const [name, value] of Object.entries(Errno)) {
      const error = new FsError(name as keyof typeof Errno, "why");
      expect([error.errno, error.code, error.message]).toEqual([value, name, `${name}: why`]);
    }
    expect(new FsError("ENOENT").message).toBe("ENOENT");
    expect(errnoName(9999)).toBe("errno 9999");
  });

  test("a CorruptionError says where, what was expected and what was found", () => {
    const error = new CorruptionError("log", "group 3", "nothing");
    expect(error.message).toBe("damaged log: expected group 3, found nothing");
  });

  test("an invariant that holds costs no message, one that does not throws InvariantError", () => {
    let built = 0;
    const message = (): string => {
      built += 1;
      return "two";
    };
    invariant(true, message);
    expect(built).toBe(0);
    expect(() => invariant(false, message)).toThrow(new InvariantError("two"));
  });
});

describe("retrying", () => {
  test("runs the operation again after each Wait, from the start", async () => {
    let runs = 0;
    const result = await retrying(() => {
      runs += 1;
      if (runs < 4) throw new Wait("not yet", Promise.resolve());
      return runs;
    });
    expect(result).toBe(4);
  });

  test("passes on errors of the operation, and of what it waits for", async () => {
    await expect(
      retrying(() => {
        throw new FsError("ENOSPC");
      }),
    ).rejects.toMatchObject({ code: "ENOSPC" });
    await expect(
      retrying(() => {
        throw new Wait("sync", Promise.reject(new FsError("EIO")));
      }),
    ).rejects.toMatchObject({ code: "EIO" });
  });

  test("does not run the operation before what it waits for has happened", async () => {
    const order: string[] = [];
    let release = (): void => {};
    const until = new Promise<void>((resolve) => {
      release = resolve;
    });
    const done = retrying(() => {
      order.push("run");
      if (order.length === 1) throw new Wait("gate", until);
    });
    await new Promise((resolve) => setImmediate(resolve));
    order.push("gate");
    release();
    await done;
    expect(order).toEqual(["run", "gate", "run"]);
  });
});

test("the clock follows the system's, in whole nanoseconds", () => {
  let last = 0;
  for (let round = 0; round < 1000; round += 1) {
    const { sec, nsec } = now();
    expect(Number.isInteger(sec) && Number.isInteger(nsec) && nsec >= 0 && nsec < 1e9).toBe(true);
    expect(Math.abs(sec * 1000 + nsec / 1e6 - Date.now())).toBeLessThan(50);
    expect(sec * 1e3 + nsec / 1e6).toBeGreaterThan(last - 6);
    last = sec * 1e3 + nsec / 1e6;
  }
});

test("a time that no Date reaches is said in seconds", () => {
  expect(dateInWords(0n)).toBe("1970-01-01T00:00:00.000Z");
  expect(dateInWords(8_640_000_000_000n)).toBe("+275760-09-13T00:00:00.000Z");
  for (const seconds of [8_640_000_000_001n, 2n ** 60n, -(2n ** 63n)])
    expect(dateInWords(seconds)).toBe(`@${seconds}`);
});

test("a wait that was cut short before it began is over at once", async () => {
  await settledOrAborted(new Promise(() => {}), AbortSignal.abort());
});
