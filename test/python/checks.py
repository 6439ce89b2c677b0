"""What python.test.ts runs, one function at a time: checks.py FUNCTION DIRECTORY REGION, on a mount with break_time=4."""

import ctypes
import errno
import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
import types

import mapdirect

PAGE = 4096
directory, region = sys.argv[2:4]


def path_of(name="file"):
    return os.path.join(directory, name)


def make(pages, name="file", fill=b"f"):
    fd = os.open(path_of(name), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, fill * (pages * PAGE))
    return fd


def truncate(size, name="file"):
    """In another process, which has no copy of anything; the errno, or 0."""
    command = "import os,sys\ntry: os.truncate(sys.argv[1], int(sys.argv[2]))\nexcept OSError as e: sys.exit(e.errno)"
    return subprocess.run([sys.executable, "-c", command, path_of(name), str(size)]).returncode


def raises(kind, action, number=None):
    try:
        action()
    except kind as error:
        assert number is None or getattr(error, "errno", None) == number, error
        return True
    return False


def breakable(fd, **more):
    return mapdirect.map(fd, lease="breakable", **more)


def stores():
    fd = make(3)
    with mapdirect.map(fd, 2 * PAGE, PAGE, lease="seal") as mapping:
        assert (len(mapping), mapping.offset, mapping.kind) == (2 * PAGE, PAGE, "seal")
        mapping.buffer[5:11] = b"stored"
        assert os.pread(fd, 6, PAGE + 5) == b"stored"
        os.pwrite(fd, b"WRITTEN", 2 * PAGE)
        assert bytes(mapping.buffer[PAGE : PAGE + 7]) == b"WRITTEN"
        mapping.persist(5, 6)
        mapping.persist()
        place = mapping.locate(5)
        assert place.state == "written" and place.lease_id == mapping.lease_id and place.length >= PAGE - 5
        with open(region, "rb") as storage:
            assert os.pread(storage.fileno(), 6, place.physical) == b"stored"
        (extent,) = [e for e in mapdirect.extents(fd) if e.offset <= PAGE < e.offset + e.length]
        assert extent.state == "written" and extent.physical + PAGE - extent.offset == place.physical - 5
        assert truncate(0) == errno.ETXTBSY
    assert truncate(0) == 0, "the lease ends with the block"


def prepares():
    fd = os.open(path_of(), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.ftruncate(fd, 4 * PAGE)
    os.pwrite(fd, b"x" * PAGE, PAGE)
    assert [(e.state, e.offset, e.length, e.physical is None) for e in mapdirect.extents(fd)] == [
        ("hole", 0, PAGE, True),
        ("written", PAGE, PAGE, False),
        ("hole", 2 * PAGE, 2 * PAGE, True),
    ]
    with mapdirect.map(fd, prepare=False) as mapping:
        place = mapping.locate()
        assert (place.state, place.physical, place.length) == ("hole", None, PAGE)
        assert bytes(mapping.buffer[:4]) == bytes(4)
    mapdirect.prepare(fd, 0, PAGE)
    assert [e.state for e in mapdirect.extents(fd, 0, 2 * PAGE)].count("hole") == 0
    with mapdirect.map(open(path_of(), "r+b")) as mapping:
        mapping.buffer[3 * PAGE] = 7
        assert os.pread(fd, 1, 3 * PAGE) == b"\7"
    many = os.open(path_of("many"), os.O_RDWR | os.O_CREAT)
    for index in range(1400):
        os.pwrite(many, b"m", 2 * index * PAGE)
    found = mapdirect.extents(many)
    assert len(found) == 2799 and found[-1].offset == 2798 * PAGE, "more than one call of the library gives"
    assert all(a.offset + a.length == b.offset for a, b in zip(found, found[1:]))


def refuses():
    fd = make(2)
    assert raises(ValueError, lambda: mapdirect.map(fd, 3 * PAGE))
    assert raises(ValueError, lambda: mapdirect.map(fd, 0))
    assert raises(ValueError, lambda: mapdirect.map(fd, PAGE, -PAGE))
    assert raises(ValueError, lambda: mapdirect.map(fd, lease="sealed"))
    assert raises(OSError, lambda: mapdirect.map(fd, PAGE, 100), errno.EINVAL)
    assert raises(OSError, lambda: mapdirect.map(os.open(path_of(), os.O_RDONLY), prepare=False), errno.EACCES)
    with tempfile.TemporaryFile(dir="/dev/shm") as elsewhere:
        elsewhere.truncate(PAGE)
        for action in (mapdirect.map, mapdirect.prepare, mapdirect.extents):
            assert raises(OSError, lambda: action(elsewhere), errno.EOPNOTSUPP), action
    looked_at = os.fstat
    os.fstat = lambda fd: types.SimpleNamespace(st_size=4 * PAGE)  # as it was before somebody else has cut it
    assert raises(ValueError, lambda: mapdirect.map(fd, prepare=False)), "never a page that raises SIGBUS"
    os.fstat = looked_at
    assert truncate(2 * PAGE) == 0
    mapping = mapdirect.map(fd)
    for offset, length in ((-1, 1), (0, 2 * PAGE + 1), (2 * PAGE, 1)):
        assert raises(ValueError, lambda: mapping.persist(offset, length))
    assert raises(ValueError, lambda: mapping.locate(2 * PAGE))


def releases():
    fd = make(2)
    mapping = mapdirect.map(fd, lease="seal")
    whole, part = mapping.buffer, mapping.buffer[PAGE:]
    mapping.release()
    mapping.release()
    assert truncate(0) == 0
    assert mapping.released and not mapping.revoked
    for action in (lambda: mapping.buffer, mapping.persist, mapping.locate, lambda: whole[0]):
        assert raises(ValueError, action)
    assert bytes(part) == bytes(PAGE), "zeros, and not what was there"
    part[0] = 1
    assert os.fstat(fd).st_size == 0


def ends_when_collected():
    fd = make(1)
    mapping = mapdirect.map(fd, lease="seal")
    part = mapping.buffer[8:16]
    del mapping
    gc.collect()
    part[0:3] = b"abc"
    assert os.pread(fd, 3, 8) == b"abc" and truncate(0) == errno.ETXTBSY, "a buffer keeps the mapping"
    del part
    assert truncate(0) == 0


def tells():
    fd = make(3)
    told = []

    def callback(notice):
        told.append((notice, threading.current_thread().name))
        # What any thread may do: descriptors are the program's.
        with open(path_of("note"), "w") as note:
            note.write(os.pread(fd, 1, 0).decode())
        array[0:4] = b"last"
        mapping.persist(0, 4)

    mapping = breakable(fd, on_break=callback)
    array = mapping.buffer
    part = array[PAGE:]
    assert truncate(PAGE) == 0
    ((notice, thread),) = told
    assert thread == "mapdirect-breaks"
    assert (notice.lease_id, notice.reason, notice.offset) == (mapping.lease_id, "conflict", PAGE), notice
    assert 0 < notice.remaining_ms <= 4000
    assert open(path_of("note")).read() == "f"
    assert os.pread(fd, 5, 0) == b"lastf", "what the callback stored is in the file"
    assert_inert(mapping, part)
    assert_inert(mapping, array)
    os.pwrite(fd, b"n" * (2 * PAGE), PAGE)
    assert bytes(part) == bytes(2 * PAGE), "nothing of what the blocks are used for now"


def assert_inert(mapping, part):
    assert bytes(part) == bytes(len(part)), "zeros, and not what was there"
    part[0] = 1
    part[0] = 0
    assert mapping.revoked and not mapping.released and "revoked" in repr(mapping)
    for action in (lambda: mapping.buffer, mapping.persist, mapping.locate):
        assert raises(mapdirect.Revoked, action, errno.EIO)


def goes_without_callback():
    fd = make(2)
    with breakable(fd) as mapping:
        part = mapping.buffer[:]
        assert truncate(0) == 0
        assert_inert(mapping, part)


def callback_fails():
    def callback(notice):
        raise RuntimeError("of the callback")

    fd = make(1)
    mapping = breakable(fd, on_break=callback)
    other = breakable(make(1, "other"))
    assert truncate(0) == 0 and mapping.revoked
    assert not other.revoked
    told = []
    other.on_break(told.append)
    assert truncate(0, "other") == 0 and len(told) == 1, "the next callback is called all the same"


def callback_hangs():
    fd = make(1)
    forever = threading.Event()
    mapping = breakable(fd, on_break=lambda notice: forever.wait())
    part = mapping.buffer[:]
    assert truncate(0) == 0
    assert_inert(mapping, part)
    forever.set()


def interpreter_is_held():
    """A function of C that does not let other threads of Python run until the truncate is over."""
    fd = make(1)
    mapping = breakable(fd, on_break=lambda notice: None)
    part = mapping.buffer[:]
    command = [sys.executable, "-c", "import os,sys; os.truncate(sys.argv[1], 0); open(sys.argv[2], 'w')"]
    other = subprocess.Popen([*command, path_of(), path_of("done")])
    libc = ctypes.PyDLL(None)
    for _ in range(120):
        libc.usleep(50_000)
        if libc.access(os.fsencode(path_of("done")), os.F_OK) == 0:
            break
    else:
        raise AssertionError("the truncate waits for the interpreter")
    assert other.wait() == 0
    assert_inert(mapping, part)


def releases_in_callback():
    fd = make(1)
    mapping = breakable(fd, on_break=lambda notice: mapping.release())
    assert truncate(0) == 0 and mapping.released


def forks():
    fd = make(2)
    told = []
    mapping = breakable(fd, on_break=told.append)
    part = mapping.buffer[:]
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            part[1] = ord("c")
            os.write(go, b"r")
            for _ in range(1000):
                if mapping.revoked:
                    break
                time.sleep(0.01)
            assert_inert(mapping, part)
            assert len(told) == 1, told
            with mapdirect.map(make(1, "of-child")) as own:
                own.buffer[0] = 1
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.read(ready, 1)
    assert os.pread(fd, 2, 0) == b"fc", "both see one file"
    assert truncate(0) == 0
    assert os.waitpid(child, 0)[1] == 0
    assert len(told) == 1, "each process is told by itself"
    assert_inert(mapping, part)

    fd = make(1, "sealed")
    sealed = mapdirect.map(fd, lease="seal")
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(ready, 1)
        os._exit(0)
    sealed.release()
    assert truncate(0, "sealed") == errno.ETXTBSY, "the child's copy counts"
    os.write(go, b"g")
    os.waitpid(child, 0)
    for _ in range(300):
        if truncate(0, "sealed") == 0:
            break
    else:
        raise AssertionError("the lease ends with the last copy")


def threads():
    """Threads that map, store, read and release what others take away from them all the time."""
    end = time.monotonic() + 3
    revoked = [0]
    failures = []
    for index in range(3):
        os.close(make(4, f"thread-{index}", bytes([index + 1])))

    def holder(index):
        try:
            with open(path_of(f"thread-{index}"), "r+b") as file:
                while time.monotonic() < end:
                    try:
                        mapping = breakable(file, on_break=lambda notice: None)
                    except OSError as error:
                        assert error.errno == errno.EAGAIN, error
                        time.sleep(0.01)
                        continue
                    with mapping:
                        try:
                            view = mapping.buffer
                            while time.monotonic() < end:
                                seen = bytes(view)
                                if mapping.revoked:
                                    raise mapdirect.Revoked
                                # The last page may be one of zeros that the preparing has made.
                                assert set(seen[: 3 * PAGE]) == {index + 1}, set(seen)
                                view[: 3 * PAGE] = seen[: 3 * PAGE]
                                mapping.persist()
                        except mapdirect.Revoked:
                            revoked[0] += 1
        except BaseException as error:
            failures.append(error)

    def breaker(index):
        with open(path_of(f"thread-{index}"), "r+b") as file:
            while time.monotonic() < end:
                # Frees the last block, and puts one there that has other bytes for a moment.
                os.ftruncate(file.fileno(), 3 * PAGE)
                os.pwrite(file.fileno(), bytes([index + 1]) * PAGE, 3 * PAGE)
                time.sleep(0.002)

    all_threads = [threading.Thread(target=work, args=(index,)) for index in range(3) for work in (holder, holder, breaker)]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join()
    assert failures == [], failures
    assert revoked[0] > 0


def exits():
    """While a lease is being broken, and with mappings that nobody released."""
    fd = make(1)
    subprocess.Popen([sys.executable, "-c", "import os,sys; os.truncate(sys.argv[1], 0)", path_of()])
    leaked = breakable(fd, on_break=lambda notice: time.sleep(0.5))
    globals()["kept"] = [leaked, mapdirect.map(make(1, "other"), lease="seal").buffer]
    time.sleep(0.3)


def numpy_arrays():
    import numpy

    fd = make(4, fill=bytes(1))
    with breakable(fd) as mapping:
        table = numpy.frombuffer(mapping.buffer, dtype="<u8")
        assert table.flags.writeable and table.size == 4 * PAGE // 8
        table[:] = numpy.arange(table.size)
        assert os.pread(fd, 8, 800) == (100).to_bytes(8, "little"), "an array without a copy"
        os.pwrite(fd, (7).to_bytes(8, "little"), 800)
        assert table[100] == 7
        image = table.reshape(16, -1)[3]
        assert truncate(PAGE) == 0
        assert not table.any() and not image.any(), "zeros, and not what was there"
        image += 1
        assert mapping.revoked and os.pread(fd, 8, 800) == (7).to_bytes(8, "little")
    again = mapdirect.map
    for _ in range(200):
        try:
            again = mapdirect.map(fd)
            break
        except OSError as error:
            assert error.errno == errno.EAGAIN
            time.sleep(0.02)
    assert numpy.frombuffer(again.buffer, dtype="<u8")[100] == 7, "a new mapping gives access again"


globals()[sys.argv[1]]()
print("ok")
