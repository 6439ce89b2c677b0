/** More extents than V8 takes arguments, made by an ordinary user's system calls on a real mount. */
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { useMount } from "../support/mount.ts";
import { succeed } from "../support/run.ts";

const MIB = 1024 * 1024;
const BLOCK = 4096;
/** Blocks of the large file; every second one of them is copied. */
const BLOCKS = 2 * 72_000;

const mount = useMount({ sizeBytes: 768 * MIB });

const python = (script: string, ...args: readonly string[]): Promise<string> =>
  succeed("python3", ["-S", "-c", script, ...args], { timeoutMs: 100_000 });

test("a file is cloned, every second block of it copied, an open clone removed and the file cut: all goes on", async () => {
  const folder = await mount.fresh();
  const file = join(folder, "file");
  await python(
    `
import os, sys
with open(sys.argv[1], "wb") as f:
    for _ in range(${BLOCKS * BLOCK} // ${MIB}): f.write(b"x" * ${MIB})
    f.write(b"x" * ${(BLOCKS * BLOCK) % MIB})`,
    file,
  );
  for (const name of ["first", "second"]) await mount.cli("clone", file, join(folder, name));
  const open = openSync(join(folder, "second"), "r");
  try {
    await python(
      `
import os, sys
source = os.open(sys.argv[1], os.O_RDONLY)
target = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
for at in range(0, ${BLOCKS * BLOCK}, ${2 * BLOCK}):
    assert os.copy_file_range(source, target, ${BLOCK}, at, at) == ${BLOCK}
os.unlink(sys.argv[3])`,
      file,
      join(folder, "copies"),
      join(folder, "second"),
    );
  } finally {
    closeSync(open);
  }
  await python("import os, sys; os.truncate(sys.argv[1], 0)", file);
  const { code, stdout } = await mount.cli("extents", join(folder, "copies"));
  expect([code, stdout.split("\n").length]).toEqual([0, BLOCKS + 2]);
  await mount.check();
  await mount.kill9AndRemount();
  await mount.check();
  await succeed("rm", ["-r", folder]);
}, 120_000);
