/**
 * What Linux programs ask a file system for beside POSIX: flags of an inode (what they refuse is compared with ext4 in
 * test/posix/), times of access that are not to move, a label, a version, shutdown.
 */
import { existsSync, mkdirSync } from "node:fs";
import { open, readFile, rm, stat, writeFile } from "node:fs/promises";
import { describe, expect, test } from "vitest";
import { mapDirect, open as openDirect } from "../../src/api/index.ts";
import { Ioctl, LeaseFlag, LeaseKind, WireMap } from "../../src/lease/wire.ts";
import { addon } from "../../src/region/addon.ts";
import { grantRequest } from "../support/grant.ts";
import { type TestMount, useMount, withMount } from "../support/mount.ts";
import { missing, notRoot, run, succeed } from "../support/run.ts";

const lacking = notRoot ?? missing("chattr", "lsattr", "python3");

const chattr = (path: string, change: string): Promise<string> => succeed("chattr", [change, path]);

/** The letters of lsattr(1) that are set. */
async function lsattr(path: string): Promise<string> {
  const output = await succeed("lsattr", ["-d", path]);
  return (output.split(" ")[0] ?? "").replaceAll("-", "");
}

/** What a program in Python prints. */
const python = async (text: string, ...words: string[]): Promise<string> =>
  (await succeed("python3", ["-S", "-c", text, ...words])).trim();

const refusal = (action: Promise<unknown>): Promise<string> =>
  action.then(
    () => "ok",
    (error: NodeJS.ErrnoException) => error.code ?? String(error),
  );

describe.skipIf(lacking !== undefined)(`inode flags${lacking === undefined ? "" : `: ${lacking}`}`, () => {
  const mount = useMount({ sizeBytes: 64 << 20 });

  test("survive a remount and the death of the daemon, in the log and in a checkpoint", async () => {
    await writeFile(mount.at("fixed"), "content");
    mkdirSync(mount.at("grows"));
    await chattr(mount.at("fixed"), "+iA");
    await chattr(mount.at("grows"), "+ad");
    for (const again of [() => mount.kill9AndRemount(), () => mount.remount(), () => mount.remount()]) {
      await again();
      expect(await lsattr(mount.at("fixed"))).toBe("iA");
      expect(await lsattr(mount.at("grows"))).toBe("ad");
      expect(await refusal(rm(mount.at("fixed")))).toBe("EPERM");
      expect(await refusal(writeFile(mount.at("fixed"), "other"))).toBe("EPERM");
    }
    await mount.unmount();
    const checked = await mount.cli("fsck", mount.region);
    expect(checked, checked.stdout).toMatchObject({ code: 0 });
    const dumped = await mount.cli("dump", mount.region);
    expect(dumped.stdout).toContain('"flags":144');
    await mount.mount();
    await chattr(mount.at("fixed"), "-iA");
    await chattr(mount.at("grows"), "-ad");
    expect(await lsattr(mount.at("fixed"))).toBe("");
    await rm(mount.at("fixed"));
  });

  test("are no attribute that anybody sees, sets or copies", async () => {
    await writeFile(mount.at("hidden"), "");
    await chattr(mount.at("hidden"), "+d");
    expect(await python("import os, sys; print(os.listxattr(sys.argv[1]))", mount.at("hidden"))).toBe("[]");
    const name = "system.inode_flags";
    const call = (what: string): Promise<string> =>
      python(
        `import os, sys
try:
    ${what}
except OSError as error:
    print(error.strerror)`,
        mount.at("hidden"),
      );
    expect(await call(`os.setxattr(sys.argv[1], "${name}", b"\\x10\\0\\0\\0")`)).toMatch(/not supported/);
    expect(await call(`os.getxattr(sys.argv[1], "${name}")`)).toMatch(/not supported/);
    expect(await call(`os.removexattr(sys.argv[1], "${name}")`)).toMatch(/not supported/);
    expect(await lsattr(mount.at("hidden"))).toBe("d");
    await rm(mount.at("hidden"));
  });

  test("a file that is immutable or append-only is not mapped directly to be written", async () => {
    await writeFile(mount.at("mapped"), Buffer.alloc(65536, 1));
    const file = await openDirect(mount.at("mapped"));
    const before = await open(mount.at("mapped"), "r+");
    const grant = async (): Promise<void> => {
      addon().ioctl(before.fd, Ioctl.GRANT, grantRequest(LeaseKind.SEAL, 0, 4096));
    };
    for (const flag of ["i", "a"]) {
      await chattr(mount.at("mapped"), `+${flag}`);
      expect(await refusal(mapDirect(file)), flag).toBe("EACCES");
      // The client library opens the file once more, which is refused as well. On a descriptor from before:
      expect(await refusal(grant()), flag).toBe("EACCES");
      await chattr(mount.at("mapped"), `-${flag}`);
    }
    const mapping = await mapDirect(file);
    mapping.buffer.write("stored");
    await mapping.release();
    await before.close();
    await file.close();
    await rm(mount.at("mapped"));
  });

  test("a file that is mapped directly does not become immutable under a seal, and does when its lease is over", async () => {
    await writeFile(mount.at("sealed"), Buffer.alloc(65536, 1));
    const file = await openDirect(mount.at("sealed"));
    const mapping = await mapDirect(file);
    for (const flag of ["i", "a"]) {
      const refused = await run("chattr", [`+${flag}`, mount.at("sealed")]);
      expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining("Text file busy") });
    }
    // What forbids no store needs no lease to end.
    await chattr(mount.at("sealed"), "+dA");
    expect(await lsattr(mount.at("sealed"))).toBe("dA");
    mapping.buffer.write("stored");
    await mapping.release();
    await chattr(mount.at("sealed"), "+i");
    expect((await readFile(mount.at("sealed"), "latin1")).slice(0, 6)).toBe("stored");
    await chattr(mount.at("sealed"), "-i");
    await file.close();
    await rm(mount.at("sealed"));
  });

  test("what an ordinary mapping has stored before is kept, and what it stores afterwards is not", async () => {
    await writeFile(mount.at("ordinary"), Buffer.alloc(8192, 0x61));
    const printed = await python(
      `import fcntl, mmap, os, struct, sys
f = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(f, 8192, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
m[0:6] = b"before"
fcntl.ioctl(f, 0x40086602, struct.pack("i", 0x10))
print(os.pread(os.open(sys.argv[1], os.O_RDONLY), 6, 0).decode())
m[0:5] = b"after"
try:
    m.flush()
    print("flushed")
except OSError as error:
    print(error.strerror)
os._exit(0)`,
      mount.at("ordinary"),
    );
    expect(printed).toMatch(/^before\n(Operation not permitted|Input\/output error)$/);
    await mount.remount();
    expect((await readFile(mount.at("ordinary"), "latin1")).slice(0, 6)).toBe("before");
    await chattr(mount.at("ordinary"), "-i");
    await rm(mount.at("ordinary"));
  });

  test("an append-only file is not written from a descriptor that no longer appends", async () => {
    await writeFile(mount.at("log"), "one");
    await chattr(mount.at("log"), "+a");
    const printed = await python(
      `import fcntl, os, sys
f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
os.write(f, b" two")
fcntl.fcntl(f, fcntl.F_SETFL, 0)
try:
    os.pwrite(f, b" three", 7)
except OSError as error:
    print(error.strerror)`,
      mount.at("log"),
    );
    expect(printed).toBe("Operation not permitted");
    expect(await readFile(mount.at("log"), "latin1")).toBe("one two");
    await chattr(mount.at("log"), "-a");
    await rm(mount.at("log"));
  });

  test("another with all capabilities in a user namespace of their own may set none", async () => {
    await writeFile(mount.at("foreign"), "");
    const words = ["--user", "--map-root-user", "chattr", "+i", mount.at("foreign")];
    const refused = await run("unshare", words, { user: 1000 });
    expect(refused.code).not.toBe(0);
    expect(await lsattr(mount.at("foreign"))).toBe("");
    await rm(mount.at("foreign"));
  });
});

test.skipIf(lacking !== undefined)(
  "of a grant that is under way and of a flag that comes meanwhile one is refused",
  async () => {
    await withMount({ sizeBytes: 400 << 20 }, async (mount) => {
      const request = grantRequest(LeaseKind.SEAL, 0, 256 << 20);
      new DataView(request.buffer).setUint32(WireMap.at.flags, LeaseFlag.PREPARE, true);
      const printed = await python(
        `import errno, fcntl, os, struct, sys, threading, time
path, number, request = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
def ask(number, fd, argument):
    try:
        fcntl.ioctl(fd, number, argument)
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
for n in range(8):
    with open(path, "w") as file:
        file.truncate(256 << 20)
    fd, other = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    answers = {}
    def grant():
        # It takes a while: the blocks are allocated and zeroed first.
        answers["grant"] = ask(number, fd, bytearray(request))
    thread = threading.Thread(target=grant)
    thread.start()
    time.sleep(n / 100)
    answers["flag"] = ask(0x40086602, other, struct.pack("i", 0x10))
    thread.join()
    print(answers["grant"], answers["flag"])
    ask(0x40086602, other, struct.pack("i", 0))
    os.close(fd)
    os.close(other)
    os.unlink(path)`,
        mount.at("contested"),
        `${Ioctl.GRANT}`,
        Buffer.from(request).toString("hex"),
      );
      const answers = printed.split("\n");
      expect(answers.length).toBe(8);
      for (const answer of answers) expect(["ok ETXTBSY", "EACCES ok", "EPERM ok"], answer).toContain(answer);
    });
  },
);

describe.skipIf(lacking !== undefined)("times of access", () => {
  const mount = useMount({ options: "strictatime" });
  const LATER = `import os, sys, time
path, flags = sys.argv[1], int(sys.argv[2])
os.utime(path, (1000, 1000))
fd = os.open(path, os.O_RDONLY | flags)
os.listdir(fd) if os.path.isdir(path) else os.read(fd, 10)
os.close(fd)
# The kernel may have what it was.
os.utime(path, ns=(0, 0), follow_symlinks=True) if False else None
print(int(os.stat(path).st_atime) > 1000)`;
  const O_NOATIME = 0o1000000;
  const moves = async (path: string, flags: number): Promise<boolean> => {
    await python(LATER, path, `${flags}`);
    // Not from the kernel's cache.
    await run("sh", ["-c", "echo 2 > /proc/sys/vm/drop_caches"]);
    return (await stat(path)).atimeMs > 1_000_000;
  };

  test("move with each read, but not for O_NOATIME", async () => {
    await writeFile(mount.at("file"), "content");
    mkdirSync(mount.at("folder"));
    for (const name of ["file", "folder"]) {
      expect(await moves(mount.at(name), 0), name).toBe(true);
      expect(await moves(mount.at(name), O_NOATIME), name).toBe(false);
    }
  });

  test("nor for a descriptor that got O_NOATIME later, nor in copy_file_range", async () => {
    await writeFile(mount.at("set-later"), "content");
    const text = `import fcntl, os, sys
os.utime(sys.argv[1], (1000, 1000))
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NOATIME)
os.read(fd, 10)
to = os.open(sys.argv[1] + ".copy", os.O_CREAT | os.O_WRONLY)
os.copy_file_range(os.open(sys.argv[1], os.O_RDONLY | os.O_NOATIME), to, 7, 0, 0)`;
    await python(text, mount.at("set-later"));
    await run("sh", ["-c", "echo 2 > /proc/sys/vm/drop_caches"]);
    expect((await stat(mount.at("set-later"))).atimeMs).toBe(1_000_000);
  });

  test("nor where the inode says so", async () => {
    await writeFile(mount.at("quiet"), "content");
    mkdirSync(mount.at("quiet-folder"));
    for (const name of ["quiet", "quiet-folder"]) {
      await chattr(mount.at(name), "+A");
      expect(await moves(mount.at(name), 0), name).toBe(false);
      await chattr(mount.at(name), "-A");
      expect(await moves(mount.at(name), 0), name).toBe(true);
    }
  });
});

const ASK = `import errno, fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
def ask(number, argument):
    try:
        return fcntl.ioctl(fd, number, argument)
    except OSError as error:
        return errno.errorcode[error.errno].encode()
GETFSLABEL, SETFSLABEL, GETVERSION, GOINGDOWN = 0x81009431, 0x41009432, 0x80087601, 0x8004587d
`;
/** The system's, which others may run as well. */
const PYTHON = existsSync("/usr/bin/python3") ? "/usr/bin/python3" : "python3";
const ask = (mount: TestMount, text: string, user?: number): Promise<string> =>
  run(PYTHON, ["-S", "-c", `${ASK}${text}`, mount.path], user === undefined ? {} : { user }).then(
    ({ stdout, stderr }) => `${stdout}${stderr}`.trim(),
  );

describe.skipIf(lacking !== undefined)("the label and the version", () => {
  const mount = useMount();
  const label = (): Promise<string> =>
    ask(mount, "print(ask(GETFSLABEL, bytes(256)).rstrip(b'\\0').decode())");

  test("is read and set in a mounted volume, durably", async () => {
    expect(await label()).toBe("");
    expect(await ask(mount, "print(ask(SETFSLABEL, 'née'.encode().ljust(256, b'\\0'))[:0])")).toBe("b''");
    expect(await label()).toBe("née");
    await mount.kill9AndRemount();
    expect(await label()).toBe("née");
    await mount.remount();
    expect((await mount.cli("info", "--json", mount.path)).stdout).toContain('"née"');
    expect(await ask(mount, "print(ask(SETFSLABEL, bytes(256))[:0])")).toBe("b''");
    expect(await label()).toBe("");
  });

  test("is refused where it is too long, no UTF-8, or asked for by somebody else", async () => {
    const set = (bytes: string, user?: number): Promise<string> =>
      ask(mount, `print(ask(SETFSLABEL, (${bytes}).ljust(256, b'\\0')).decode())`, user);
    expect(await set("b'x' * 65")).toBe("EINVAL");
    expect(await set("b'x' * 256")).toBe("EINVAL");
    expect(await set("b'\\xff'")).toBe("EINVAL");
    expect(await set("b'other'", 1000)).toBe("EPERM");
    expect(await label()).toBe("");
  });

  test("a version is the generation of the inode; what is not known is ENOTTY", async () => {
    expect(await ask(mount, "print(struct.unpack('i', ask(GETVERSION, bytes(8))[:4])[0])")).toBe("0");
    expect(await ask(mount, "print(ask(0x40087602, bytes(8)).decode())")).toBe("ENOTTY");
    expect(await ask(mount, "print(ask(0x5452, bytes(8)).decode())")).not.toBe("");
  });
});

describe.skipIf(lacking !== undefined)("shutdown (XFS_IOC_GOINGDOWN)", () => {
  const down = (mount: TestMount, flags: string, user?: number): Promise<string> =>
    ask(mount, `print(ask(GOINGDOWN, ${flags})[:6].decode(errors="replace"))`, user);

  test.each([0, 1, 2])("with flag %d leaves what a crash would, and EIO to everybody", async (flag) => {
    await withMount({}, async (mount) => {
      await writeFile(mount.at("written"), "content");
      const before = await open(mount.at("written"), "r+");
      expect(await down(mount, `struct.pack("I", ${flag})`)).not.toMatch(/E/);
      expect(await refusal(readFile(mount.at("written")))).toBe("EIO");
      expect(await refusal(writeFile(mount.at("other"), ""))).toBe("EIO");
      expect(await refusal(before.write("x", 0))).toBe("EIO");
      expect(await refusal(before.sync())).toBe("EIO");
      await before.close();
      const unmounted = await mount.cli("unmount", mount.path);
      expect(unmounted).toMatchObject({
        code: 1,
        stderr: expect.stringContaining("the next mount recovers"),
      });
      const probed = await mount.cli("info", "--json", mount.region);
      // Not closed: no checkpoint has come after that.
      expect(JSON.parse(probed.stdout).recovery.label).not.toBe("clean");
      await mount.mount();
      expect(await readFile(mount.at("written"), "latin1")).toBe("content");
      expect(await refusal(readFile(mount.at("other")))).toBe("ENOENT");
      await mount.check();
    });
  });

  test("is refused to others, with flags that are none, and with an argument that is nowhere", async () => {
    await withMount({}, async (mount) => {
      expect(await down(mount, 'struct.pack("I", 0)', 1000)).toBe("EPERM");
      expect(await down(mount, 'struct.pack("I", 3)')).toBe("EINVAL");
      const nowhere = `import ctypes
ctypes.CDLL(None, use_errno=True).ioctl(fd, ctypes.c_ulong(GOINGDOWN), ctypes.c_void_p(4096))
print(errno.errorcode[ctypes.get_errno()])`;
      expect(await ask(mount, nowhere)).toBe("EFAULT");
      await writeFile(mount.at("still"), "there");
    });
  });
});

/** mount_setattr(2) with MOUNT_ATTR_IDMAP, and the user namespace of a child. */
const MAP_IDS = `import ctypes, errno, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
ready, go = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    libc.unshare(0x10000000)
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    os._exit(0)
os.read(ready[0], 1)
for kind in ("uid_map", "gid_map"):
    with open(f"/proc/{pid}/{kind}", "w") as file:
        file.write("0 1000 1")
namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
tree = libc.syscall(428, -100, sys.argv[1].encode(), 1)
attributes = struct.pack("QQQQ", 0x100000, 0, 0, namespace)
result = libc.syscall(442, tree, b"", 0x1000, attributes, len(attributes))
print("mapped" if result == 0 else errno.errorcode[ctypes.get_errno()])
os.write(go[1], b"x")
os.waitpid(pid, 0)`;

test.skipIf(lacking !== undefined)("a mount that maps ids, and a freeze, are refused", async () => {
  await withMount({}, async (mount) => {
    expect(await python(MAP_IDS, mount.path)).toBe("EINVAL");
    const frozen = await run("fsfreeze", ["--freeze", mount.path]);
    expect(frozen).toMatchObject({ code: 1, stderr: expect.stringContaining("Operation not supported") });
    await writeFile(mount.at("still"), "there");
  });
});
