import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { wireHeader } from "../../scripts/generate.mjs";
import { toC } from "../../src/layout/struct.ts";
import * as wire from "../../src/lease/wire.ts";
import { packageRoot } from "../../src/region/addon.ts";

it("native/client/wire.h is what src/lease/wire.ts declares (node scripts/generate.mjs writes it)", () => {
  const written = readFileSync(join(packageRoot, "native/client/wire.h"), "utf8");
  expect(written).toBe(wireHeader(wire, toC));
});

it("the public header has the flag of the wire", () => {
  const header = readFileSync(join(packageRoot, "native/client/mapdirect.h"), "utf8");
  const value = /#define MAP_DIRECT (0x[0-9a-f]+)/.exec(header)?.[1];
  expect(Number(value)).toBe(wire.MAP_DIRECT);
});

it("the public header has the version of the package", () => {
  const header = readFileSync(join(packageRoot, "native/client/mapdirect.h"), "utf8");
  const part = (name: string): string | undefined =>
    new RegExp(`#define MAPDIRECT_VERSION_${name} (\\d+)`).exec(header)?.[1];
  const { version } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as {
    version: string;
  };
  expect(`${part("MAJOR")}.${part("MINOR")}.${part("PATCH")}`).toBe(version);
});
