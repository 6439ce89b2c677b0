/** `npm start`: every sentence of the story is checked by the story itself; here, that it is told to its end. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { readMounts } from "../../src/daemon/mounts.ts";
import { packageRoot } from "../../src/region/addon.ts";
import { noUserMount, OTHER_UID, run } from "../support/run.ts";

const entry = join(packageRoot, "dist", "bin", "demo.js");

async function tellsTheStory(user?: number): Promise<void> {
  const before = new Set(readdirSync("/dev/shm"));
  const { code, stdout, stderr } = await run(process.execPath, [entry], user === undefined ? {} : { user });
  expect(code, stdout + stderr).toBe(0);
  expect(stderr).toBe("");
  for (const word of ["ETXTBSY", "SIGBUS", "EINVAL", "EACCES", "EOPNOTSUPP", "lease", "are gone"]) {
    expect(stdout).toContain(word);
  }
  const folder = /(\/\S+mapdirect-demo-\w+)\/region/.exec(stdout)?.[1] ?? "";
  expect(folder).not.toBe("");
  expect(before.has(folder)).toBe(false);
  expect(existsSync(folder)).toBe(false);
  expect(readMounts().filter(({ mountpoint }) => mountpoint.startsWith(folder))).toEqual([]);
}

test("the demonstration holds, and leaves nothing behind", () => tellsTheStory());

test("it holds for an ordinary user as well", async ({ skip }) => {
  const reason = noUserMount();
  if (reason !== undefined) skip(reason);
  await tellsTheStory(OTHER_UID);
});
