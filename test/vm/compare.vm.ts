/** ext4 with DAX and MAP_SYNC beside mapdirect on a character DAX device, in one guest: ratios alone. */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { bootToScript, keep, kernelNamed, type Result, readLines, workFolder } from "./machine.ts";

const LIMIT_MS = Number(process.env.MAPDIRECT_VM_LIMIT_S ?? 900) * 1000;

interface Ratio {
  readonly name: string;
  /** Through a mapping: neither kernel nor daemon have a part in it. */
  readonly direct: boolean;
  /** mapdirect ÷ ext4, by round. */
  readonly ratios: readonly number[];
}

describe("beside ext4 -o dax on the same kind of memory", () => {
  const folder = workFolder();
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const newest = kernelNamed("newest");
  const kernel = typeof newest === "string" ? kernelNamed("6.1") : newest;

  test.skipIf(typeof kernel === "string")(
    "the same fio jobs run on both, and a direct mapping is one on both",
    async () => {
      if (typeof kernel === "string") return;
      const request = {
        kernel,
        folder,
        name: "compare",
        script: "compare.mjs",
        request: { seconds: 1, rounds: 3 },
        modules: ["ext4"],
        memory: "2G",
        commands: ["memmap=192M!1024M", "memmap=192M!1280M"],
      };
      const { guest, out, ended } = await bootToScript(request, LIMIT_MS);
      const end = await ended;
      const results = readLines<Result>(join(out, "results.jsonl"));
      const wrong = results
        .filter(({ verdict }) => verdict !== "ok")
        .map(({ what, why }) => `${what}: ${why}`);
      expect(wrong).toEqual([]);
      expect(end.code, guest.console()).toBe(0);
      const ratios = readLines<Ratio>(join(out, "notes.jsonl"));
      expect(ratios.length).toBeGreaterThan(0);
      keep("compare", { kernel: kernel.version, ratios });
    },
    LIMIT_MS + 60_000,
  );
});
