/** More extents than V8 takes arguments, made by an ordinary user's system calls on a real mount. */
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { useMount } from "../support/mount.ts";
import { programPath, succeed } from "../support/run.ts";

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

test("whoever allocates, frees or copies a file of very many extents keeps nobody else waiting for all of it", async () => {
  const folder = await mount.fresh();
  const script = `
import ctypes, fcntl, os, sys, threading
folder, program = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
BLOCKS = 60_000
file = folder + "/file"
fd = os.open(file, os.O_RDWR | os.O_CREAT)
for block in range(BLOCKS): os.pwrite(fd, b"x", block * ${2 * BLOCK})
other = folder + "/other"
os.close(os.open(other, os.O_CREAT))
def fallocate(mode):
    if libc.fallocate(fd, mode, 0, BLOCKS * ${2 * BLOCK}): raise OSError(ctypes.get_errno(), "fallocate")
def meanwhile(work):
    # How often others are answered while it goes on.
    failures = []
    def run():
        try: work()
        except BaseException as error: failures.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    answers = 0
    while thread.is_alive():
        os.listxattr(other)
        answers += 1
    assert not failures, failures
    return answers
counts = {}
counts["clone"] = meanwhile(lambda: os.system("%s clone %s %s/clone" % (program, file, folder)) and 1 / 0)
counts["allocate"] = meanwhile(lambda: fallocate(0))
assert os.fstat(fd).st_blocks * 512 == BLOCKS * ${2 * BLOCK}
counts["zero"] = meanwhile(lambda: fallocate(16))
assert not any(os.pread(fd, ${BLOCK}, BLOCKS * ${BLOCK}))
free = os.statvfs(folder).f_bfree
counts["truncate"] = meanwhile(lambda: os.ftruncate(fd, 0))
# What it had counts as free at once, and is so a moment later.
assert os.statvfs(folder).f_bfree >= free + BLOCKS
os.unlink(folder + "/clone")
size = os.statvfs(folder).f_bfree * ${BLOCK} - ${64 * MIB}
assert libc.fallocate(fd, 0, 0, size) == 0, os.strerror(ctypes.get_errno())
print(counts)
# In one turn it would be one or two.
assert all(counts[each] > 10 for each in ("clone", "allocate", "zero")), counts`;
  await python(script, folder, programPath);
  await mount.check();
  await mount.kill9AndRemount();
  await mount.check();
  await succeed("rm", ["-r", folder]);
}, 120_000);
