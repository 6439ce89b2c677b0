/** The C of docs/LEASES.md, "Devices", is what a compiler takes, and the guard is the one that registered.c tries. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { packageRoot } from "../../src/region/addon.ts";
import { folderPrefix } from "../support/leftovers.ts";
import { missing, run } from "../support/run.ts";

const text = readFileSync(join(packageRoot, "docs/LEASES.md"), "utf8");
const section = /\n## Devices\n([\s\S]*?)\n## /.exec(text)?.[1] ?? "";
const parts = [...section.matchAll(/```c\n([\s\S]*?)```/g)].map((match) => match[1] ?? "");

/** What those who have no adapter and no GPU lack. */
const DECLARATIONS = `
#include <linux/io_uring.h>
#include <mapdirect.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
struct ibv_mr;
int ibv_dereg_mr(struct ibv_mr *region);
int cuCtxSynchronize(void);
int cuMemHostUnregister(void *memory);
`;

test("every example compiles without a warning", async ({ skip }) => {
  const lacking = missing("cc");
  if (lacking !== undefined) skip(lacking);
  expect(parts.length).toBe(5);
  const folder = mkdtempSync(folderPrefix(tmpdir()));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  const source = join(folder, "devices.c");
  writeFileSync(source, DECLARATIONS + parts.join("\n"));
  const warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused"];
  const { code, stderr } = await run("cc", [
    ...["-std=gnu11", "-D_GNU_SOURCE", "-fsyntax-only", ...warnings],
    `-I${join(packageRoot, "dist/include")}`,
    source,
  ]);
  expect(stderr).toBe("");
  expect(code).toBe(0);
});

test("the guard of the document is the one that is tested", () => {
  const tested = readFileSync(join(packageRoot, "test/client/programs/registered.c"), "utf8");
  const guard = /static pid_t guard\(void\) \{[\s\S]*?\n\}\n/;
  expect(guard.exec(section)?.[0]).toBe(guard.exec(tested)?.[0]);
});
