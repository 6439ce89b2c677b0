import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/global.ts"],
    // A mount that hangs shows as a timeout; every test with a real mount stays far below it.
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
