import { defineConfig } from "vitest/config";

/** `npm run test:vm`: guests in QEMU. Two at a time, whatever the machine has: each has two processors of its own. */
export default defineConfig({
  test: {
    include: ["test/vm/*.vm.ts"],
    globalSetup: ["test/support/global.ts", "test/vm/setup.ts"],
    maxWorkers: 2,
    hookTimeout: 60_000,
  },
});
