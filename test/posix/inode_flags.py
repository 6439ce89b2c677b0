"""What an inode with flags refuses, one line for each call: run in an empty directory of one file system and of another.

Each call is made on a fresh file or directory that has got the flag, by root; then the flag goes, and what was made.
"""
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import struct
import sys

GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
IMMUTABLE, APPEND, NODUMP, NOATIME = 0x10, 0x20, 0x40, 0x80
libc = ctypes.CDLL(None, use_errno=True)


def flags(path, value=None):
    fd = os.open(path, os.O_RDONLY)
    try:
        now = struct.unpack("i", fcntl.ioctl(fd, GETFLAGS, b"\0" * 4))[0]
        if value is None:
            return now
        # Others are the file system's own.
        return fcntl.ioctl(fd, SETFLAGS, struct.pack("i", now & ~0xF0 | value))
    finally:
        os.close(fd)


def make(path):
    with open(path, "w") as file:
        file.write("content")


def libc_call(name, *args):
    if getattr(libc, name)(*args) != 0:
        raise OSError(ctypes.get_errno(), name)


def opening(how):
    return lambda f, d: os.close(os.open(f, how))


def renameat2(source, target, how):
    libc_call("renameat2", -100, source.encode(), -100, target.encode(), how)


def fallocate(mode):
    def run(f, d):
        fd = os.open(f, os.O_WRONLY | os.O_APPEND)
        try:
            libc_call("fallocate", fd, mode, ctypes.c_long(0), ctypes.c_long(4096))
        finally:
            os.close(fd)

    return run


def append(f, d):
    with open(f, "a") as file:
        file.write("more")


def ftruncate(f, d):
    fd = os.open(f, os.O_WRONLY | os.O_APPEND)
    try:
        os.ftruncate(fd, 1)
    finally:
        os.close(fd)


def map_to_write(f, d):
    fd = os.open(f, os.O_RDWR | os.O_APPEND)
    try:
        mmap.mmap(fd, 4, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
    finally:
        os.close(fd)


def xset(f, d):
    fd = os.open(f, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FSSETXATTR, struct.pack("IIIII8x", 0, 0, 0, 7, 0))
    finally:
        os.close(fd)


CALLS = {
    "open to read": opening(os.O_RDONLY),
    "open to write": opening(os.O_WRONLY),
    "open to read and write": opening(os.O_RDWR),
    "open to append": opening(os.O_WRONLY | os.O_APPEND),
    "open and truncate": opening(os.O_RDONLY | os.O_TRUNC),
    "open to append and truncate": opening(os.O_WRONLY | os.O_APPEND | os.O_TRUNC),
    "open O_NOATIME": opening(os.O_RDONLY | os.O_NOATIME),
    "append": append,
    "truncate": lambda f, d: os.truncate(f, 2),
    "ftruncate": ftruncate,
    "fallocate": fallocate(0),
    "fallocate, keep size": fallocate(1),
    "punch a hole": fallocate(3),
    "chmod": lambda f, d: os.chmod(f, 0o600),
    "chown": lambda f, d: os.chown(f, 1, 1),
    "utimes, now": lambda f, d: os.utime(f),
    "utimes, then": lambda f, d: os.utime(f, (1, 1)),
    "setxattr": lambda f, d: os.setxattr(f, "trusted.a", b"v"),
    "removexattr": lambda f, d: os.removexattr(f, "trusted.there"),
    "unlink": lambda f, d: os.unlink(f),
    "rename": lambda f, d: os.rename(f, f + ".to"),
    "rename over it": lambda f, d: (make(f + ".other"), os.rename(f + ".other", f)),
    "rename with itself": lambda f, d: os.rename(f, f),
    "exchange": lambda f, d: (make(f + ".other"), renameat2(f, f + ".other", 2)),
    "link": lambda f, d: os.link(f, f + ".link"),
    "chmod the directory": lambda f, d: os.chmod(d, 0o700),
    "create inside": lambda f, d: make(d + "/new"),
    "mkdir inside": lambda f, d: os.mkdir(d + "/new"),
    "symlink inside": lambda f, d: os.symlink("to", d + "/new"),
    "mknod inside": lambda f, d: os.mkfifo(d + "/new"),
    "O_TMPFILE inside": lambda f, d: os.close(os.open(d, os.O_TMPFILE | os.O_WRONLY)),
    "write to a file inside": lambda f, d: open(d + "/there", "w").close(),
    "create what is there": lambda f, d: os.close(os.open(d + "/there", os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "unlink inside": lambda f, d: os.unlink(d + "/there"),
    "unlink what is not there": lambda f, d: os.unlink(d + "/nothing"),
    "rmdir inside": lambda f, d: os.rmdir(d + "/dir"),
    "rename inside": lambda f, d: os.rename(d + "/there", d + "/to"),
    "rename out of it": lambda f, d: os.rename(d + "/there", d + ".out"),
    "rename into it": lambda f, d: (make(d + ".in"), os.rename(d + ".in", d + "/in")),
    "rename over one inside": lambda f, d: (make(d + ".in"), os.rename(d + ".in", d + "/there")),
    "link into it": lambda f, d: (make(d + ".in"), os.link(d + ".in", d + "/in")),
    "rmdir": lambda f, d: os.rmdir(d + "/dir/../../empty"),
    "rename the directory": lambda f, d: os.rename(d, d + ".to"),
}
# The kernel looks at flags that a FUSE file system cannot tell it of.
KERNELS_OWN = {
    "map what can be written": map_to_write,
    "access to write": lambda f, d: os.access(f, os.W_OK) or fail(errno.EPERM),
}


def fail(number):
    raise OSError(number, "")


def answer(run, *args):
    try:
        run(*args)
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]


def everywhere(directory, action):
    for path, names, files in os.walk(directory):
        for name in names + files + [""]:
            full = os.path.join(path, name)
            if not os.path.islink(full) and (os.path.isfile(full) or os.path.isdir(full)):
                action(full)


def ask(work, what, flag, run):
    os.mkdir(work)
    f, d = work + "/file", work + "/directory"
    make(f)
    os.setxattr(f, "trusted.there", b"v")
    os.makedirs(d + "/dir")
    os.mkdir(work + "/empty")
    make(d + "/there")
    for path in (f, d, work + "/empty"):
        flags(path, flag)
    print(f"{what}: {answer(run, f, d)}")
    everywhere(work, lambda path: flags(path, 0))
    shutil.rmtree(work)


def descriptors(work):
    """What is open for writing when the flag comes."""
    os.mkdir(work)
    f = work + "/file"
    for name, flag, how in (("immutable", IMMUTABLE, os.O_RDWR), ("append", APPEND, os.O_RDWR | os.O_APPEND)):
        make(f)
        fd = os.open(f, how)
        flags(f, flag)
        print(f"{name}, open before: write: {answer(os.write, fd, b'x')}")
        print(f"{name}, open before: ftruncate: {answer(os.ftruncate, fd, 1)}")
        print(f"{name}, open before: fchmod: {answer(os.fchmod, fd, 0o600)}")
        print(f"{name}, open before: fsetxattr: {answer(os.setxattr, fd, 'trusted.b', b'v')}")
        print(f"{name}, open before: fallocate: {answer(os.posix_fallocate, fd, 0, 8192)}")
        with open(work + "/other", "w+b") as other:
            other.write(b"bytes")
            other.flush()
            print(f"{name}, open before: copy from it: {answer(os.copy_file_range, fd, other.fileno(), 4, 0, 0)}")
            # To a descriptor that appends nothing can be copied, whatever the flags.
            if name == "immutable":
                print(f"{name}, open before: copy to it: {answer(os.copy_file_range, other.fileno(), fd, 4, 0, 0)}")
        flags(f, 0)
        os.close(fd)
        os.unlink(f)
    shutil.rmtree(work)


def setting(work):
    os.mkdir(work)
    f = work + "/file"
    make(f)
    for name, value in (("none", 0), ("all", IMMUTABLE | APPEND | NODUMP | NOATIME), ("nodump", NODUMP)):
        print(f"set {name}: {answer(flags, f, value)}, then {flags(f) & 0xF0:#x}")
    print(f"set what no file has: {answer(flags, f, 0x800000)}")
    flags(f, 0)
    fd = os.open(f, os.O_RDONLY)
    flags(f, IMMUTABLE | NOATIME)
    xflags = struct.unpack("IIIII8x", fcntl.ioctl(fd, FSGETXATTR, b"\0" * 28))[0]
    print(f"as XFS has them: {xflags & 0xD8:#x}")
    flags(f, 0)
    print(f"another project: {answer(xset, f, None)}")
    os.close(fd)
    pid = os.fork()
    if pid == 0:
        os.chown(f, 1000, 1000)
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        print(f"the owner: nodump: {answer(flags, f, NODUMP)}, immutable: {answer(flags, f, IMMUTABLE)}")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    os.chown(f, 0, 0)
    pid = os.fork()
    if pid == 0:
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        print(f"another: nodump: {answer(flags, f, NODUMP)}")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    d = work + "/directory"
    os.mkdir(d)
    flags(d, NODUMP | NOATIME | APPEND)
    make(d + "/new")
    os.mkdir(d + "/dir")
    print(f"handed down: {flags(d + '/new') & 0xF0:#x}, {flags(d + '/dir') & 0xF0:#x}")
    flags(d, 0)
    os.mkfifo(work + "/fifo")
    fd = os.open(work + "/fifo", os.O_RDONLY | os.O_NONBLOCK)
    print(f"a fifo: {answer(fcntl.ioctl, fd, GETFLAGS, b'0000')}")
    os.close(fd)
    shutil.rmtree(work)


def main():
    os.umask(0o022)
    root = sys.argv[1]
    os.chmod(root, 0o755)
    for name, flag in (("plain", 0), ("immutable", IMMUTABLE), ("append", APPEND)):
        for call, run in CALLS.items():
            ask(root + "/work", f"{name}: {call}", flag, run)
    descriptors(root + "/work")
    sys.stdout.flush()
    setting(root + "/work")
    if "--all" in sys.argv:
        for call, run in KERNELS_OWN.items():
            ask(root + "/work", f"append: {call}", APPEND, run)


main()
