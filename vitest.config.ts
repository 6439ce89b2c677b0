import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    globalSetup: ["test/support/global.ts"],
    // A mount that hangs shows as a timeout; every test with a real mount stays far below it.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    projects: [
      { extends: true, test: { name: "kernel", include: ["test/**/*.test.ts"] } },
      {
        // The suite of mounts once more, over io_uring, where the kernel allows that.
        extends: true,
        test: {
          name: "io_uring",
          include: ["breaking", "data", "denial", "names", "tools"].map(
            (name) => `test/mount/${name}.test.ts`,
          ),
          env: { MAPDIRECT_TEST_TRANSPORT: "io_uring" },
          setupFiles: ["test/support/transport.ts"],
        },
      },
      {
        // And over the optional package. What that lacks: test/support/transport.ts.
        extends: true,
        test: {
          name: "fuse-native",
          include: ["data", "lifecycle", "names", "tools"].map((name) => `test/mount/${name}.test.ts`),
          env: { MAPDIRECT_TEST_TRANSPORT: "fuse-native" },
          setupFiles: ["test/support/transport.ts"],
        },
      },
    ],
  },
});
