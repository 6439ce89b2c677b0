import { expect, test } from "vitest";
import { makeFileSystem } from "../../src/media/mkfs.ts";
import { Store } from "../../src/namespace/store.ts";
import { MemoryRegion } from "../support/memory-region.ts";

test("a cleanly closed volume opens while a process maps the log's spare segment", async () => {
  const region = MemoryRegion.blank(16 * 1024 * 1024);
  await makeFileSystem(region, { label: "", uid: 0, gid: 0 });
  const first = await Store.open(region, { readOnly: false });
  await first.close();
  const again = await Store.open(region, { readOnly: false });
  expect(again.recovery.label).toBe("clean");
  expect(again.recovery.log.spare).not.toBe(0);
  await again.close();
  const spare = again.recovery.log.spare / again.blockBytes;
  const mapped = await Store.open(region, {
    readOnly: false,
    reachable: async ({ unused }) => {
      expect(unused).toBe(true);
      return [{ owner: -1, runs: [{ start: spare, count: 16 }] }];
    },
  });
  await mapped.close();
});
