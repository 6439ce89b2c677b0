"""Direct mappings of files of a mapdirect file system: bytes that *are* the file's physical blocks.

    import mapdirect
    import numpy

    with open("/mnt/table", "r+b") as file:
        mapping = mapdirect.map(file, 1 << 20)          # allocates and zeroes first
    with mapping:
        table = numpy.frombuffer(mapping.buffer, dtype="<f8")
        table[0] = 1.5                                  # in the file, at once
        mapping.persist(0, 8)                           # durable

All offsets and lengths are in bytes. Errors of the library are OSError with the errno that native/client/mapdirect.h lists
for the C function of the same name.

After a lease has ended
    A lease ends by `release()`, or because it is broken (by a conflicting operation, or the administrator). However it
    ends, the interpreter survives, and nothing that is not the file's is shown for the file's: in one step, *inert pages*
    take the place of the range. `buffer`, and every array made from it, then reads as zeros; what is stored there is
    lost; `Mapping.buffer` and the methods raise `Revoked` (errno EIO) after a revocation, ValueError after a release. A
    plain `mapping.buffer[...]` therefore never goes wrong silently. A program that keeps arrays asks afterwards: what was
    loaded before `mapping.revoked` was found to be False was the file's, and what was stored before `persist()` returned
    is in the file.

    What can still end the process, by SIGBUS: with `prepare=False` a store to a hole or an unwritten extent; and a region
    (the storage behind the mount) that somebody cuts short.

    Where the system promises no more memory than it has (vm.overcommit_memory=2) inert pages may be read-only: a store to
    them then raises SIGSEGV.

Threads
    All functions may be called by several threads at a time, and let others run while they wait. Callbacks of
    `on_break` run on one thread, "mapdirect-breaks".

Fork
    As in C: a child of os.fork() has a copy of each mapping, and the lease lasts until the last copy is gone. Each process
    is told of a break by itself; callbacks are inherited. The library has threads, so of Python 3.12 and newer os.fork()
    warns while there are mappings.

The C library is looked for: under the preload library, in the process; else where MAPDIRECT_LIBRARY says; else in dist/lib of
the clone that this file lies in; else where the system looks for libmapdirect.so.0.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, List, NoReturn, Optional, Protocol, Tuple, Type, Union

__all__ = [
    "Break",
    "Extent",
    "Location",
    "Mapping",
    "Revoked",
    "extents",
    "map",
    "prepare",
    "version",
]


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


File = Union[int, _HasFileno]
"""A descriptor, or what has one: a file object."""

# ---- native/client/mapdirect.h

_PROT_READ_WRITE = 1 | 2
_MAP_SHARED_VALIDATE = 0x03
_MAP_SYNC = 0x80000
_MAP_FAILED = ctypes.c_void_p(-1).value

_LEASES = {"default": 0, "seal": 1, "breakable": 2}
_WHOLE_FILE = 0x100
_PREPARE = 0x200

_STATES = ("hole", "unwritten", "written", "shared")
_WRITTEN = 2
_BEYOND = 4
_REVOKED = 5

_INERT = 2
_REASONS = {1: "conflict", 2: "administrator", 3: "unmount"}


class _Extent(ctypes.Structure):
    _fields_ = [
        ("offset", ctypes.c_uint64),
        ("physical", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("state", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class _MapInfo(ctypes.Structure):
    _fields_ = [
        ("generation", ctypes.c_uint64),
        ("next_offset", ctypes.c_uint64),
        ("file_bytes", ctypes.c_uint64),
        ("map_bytes", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
    ]


class _LeaseInfo(ctypes.Structure):
    _fields_ = [
        ("lease_id", ctypes.c_uint64),
        ("generation", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("physical", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("device", ctypes.c_uint64),
        ("kind", ctypes.c_uint32),
        ("state", ctypes.c_uint32),
        ("cacheline", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class _Break(ctypes.Structure):
    _fields_ = [
        ("lease_id", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("conflict_length", ctypes.c_uint64),
        ("remaining_ms", ctypes.c_uint64),
        ("reason", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


_SIGNATURES: Dict[str, Tuple[Any, Tuple[Any, ...]]] = {
    "mapdirect_map": (
        ctypes.c_void_p,
        (
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int64,
            ctypes.c_uint,
        ),
    ),
    "mapdirect_unmap": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_size_t)),
    "mapdirect_detach": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_size_t)),
    "mapdirect_persist": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_size_t)),
    "mapdirect_prepare": (ctypes.c_int, (ctypes.c_int, ctypes.c_int64, ctypes.c_int64)),
    "mapdirect_extents": (
        ctypes.c_ssize_t,
        (
            ctypes.c_int,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.POINTER(_Extent),
            ctypes.c_size_t,
            ctypes.POINTER(_MapInfo),
        ),
    ),
    "mapdirect_query": (ctypes.c_int, (ctypes.c_void_p, ctypes.POINTER(_LeaseInfo))),
    "mapdirect_on_break": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)),
    "mapdirect_wait_break": (ctypes.c_int, (ctypes.POINTER(_Break), ctypes.c_int)),
    "mapdirect_answer_break": (ctypes.c_int, (ctypes.POINTER(_Break),)),
    "mapdirect_version": (ctypes.c_char_p, ()),
}


def _load() -> ctypes.CDLL:
    process = ctypes.CDLL(None, use_errno=True)
    if hasattr(process, "mapdirect_map"):
        # The preload library: a second copy would not know what the first has mapped.
        library = process
    else:
        clone = Path(__file__).resolve().parents[2] / "dist" / "lib" / "libmapdirect.so.0"
        name = os.environ.get("MAPDIRECT_LIBRARY") or (str(clone) if clone.exists() else "libmapdirect.so.0")
        try:
            library = ctypes.CDLL(name, use_errno=True)
        except OSError as error:
            raise ImportError(f"the C library of mapdirect cannot be loaded: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise ImportError(f"the C library of mapdirect is too old: it lacks {name}") from error
        function.restype = result
        function.argtypes = arguments
    return library


_library = _load()


def _fail(what: str) -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")


def _descriptor(fd: File) -> int:
    return fd if isinstance(fd, int) else fd.fileno()


def version() -> str:
    """The version of the C library, "major.minor.patch"."""
    text: bytes = _library.mapdirect_version()
    return text.decode()


# ---- what is told and found


class Revoked(OSError):
    """The lease was broken, and the memory is inert. What was stored last, and not persisted, may not be durable."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the lease on the mapping was broken")


@dataclass(frozen=True)
class Break:
    """A lease is being broken."""

    lease_id: int
    offset: int
    """Of what somebody wants to change, in the file, bytes."""
    length: int
    """Of that, bytes."""
    remaining_ms: int
    """Milliseconds until the operation goes on without us. The callback has three quarters of them."""
    reason: str
    """"conflict": somebody wants to change the blocks; "administrator"; "unmount"."""


@dataclass(frozen=True)
class Location:
    """Where a byte of a mapping lies. Valid as long as the mapping is."""

    state: str
    """"written": the byte is in the region at `physical`. "hole": it reads zero, and a store raises SIGBUS."""
    physical: Optional[int]
    """Offset in the region, bytes; None for a hole."""
    length: int
    """Bytes from there on that are alike and adjacent."""
    lease_id: int
    generation: int


@dataclass(frozen=True)
class Extent:
    """One piece of a file's block map."""

    offset: int
    """In the file, bytes."""
    physical: Optional[int]
    """In the region, bytes; None for a hole. A snapshot, unless a lease covers it."""
    length: int
    """Bytes."""
    state: str
    """"hole", "unwritten" (allocated, reads zeros), "written", or "shared" with another file."""


Callback = Callable[[Break], object]

# ---- breaks


class _Core:
    """What is known of a mapping as long as its memory is reachable, whoever has kept what of it."""

    __slots__ = ("callback", "address", "length")

    def __init__(self, address: int, length: int, callback: Optional[Callback]) -> None:
        self.address = address
        self.length = length
        self.callback = callback


class _Registry:
    """Which mappings there are, by address. Renewed in a forked child, where the lock may be held by a thread of the parent."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.cores: Dict[int, _Core] = {}
        self.being_made = 0
        """Mapped perhaps, and not in `cores` yet."""
        self.listening = False

    def find(self, address: int) -> Optional[_Core]:
        with self.changed:
            while True:
                for core in list(self.cores.values()):
                    if core.address <= address < core.address + core.length:
                        return core
                if self.being_made == 0:
                    return None
                self.changed.wait()

    def forget(self, address: int) -> None:
        # Without the lock: garbage collection may come here on a thread that holds it.
        self.cores.pop(address, None)


_registry = _Registry()


def _tell(what: _Break) -> None:
    core = _registry.find(what.address)
    if core is None or core.callback is None:
        return
    notice = Break(
        lease_id=what.lease_id,
        offset=what.offset,
        length=what.conflict_length,
        remaining_ms=what.remaining_ms,
        reason=_REASONS.get(what.reason, "conflict"),
    )
    try:
        core.callback(notice)
    except BaseException:
        # The memory goes all the same.
        sys.excepthook(*sys.exc_info())


def _hear(timeout_ms: int) -> None:
    what = _Break()
    if _library.mapdirect_wait_break(ctypes.byref(what), timeout_ms) != 0:
        return
    try:
        _tell(what)
    finally:
        _library.mapdirect_answer_break(ctypes.byref(what))


def _listen() -> None:
    while True:
        _hear(-1)


def _start_listening() -> None:
    with _registry.changed:
        if _registry.listening:
            return
        _registry.listening = True
    # From here on the library waits for this process, though the thread may take a while to come.
    _hear(0)
    threading.Thread(target=_listen, name="mapdirect-breaks", daemon=True).start()


def _set_handler() -> None:
    # No code of Python runs on the library's thread: its descriptors are not the program's, and a collection of garbage there
    # could close one.
    handler = ctypes.cast(_library.mapdirect_hand_over, ctypes.c_void_p)
    _library.mapdirect_on_break(handler, None, _INERT)


def _after_fork_in_child() -> None:
    global _registry
    old = _registry
    _registry = _Registry()
    _registry.cores = dict(old.cores)
    if old.listening:
        _start_listening()


def _at_exit() -> None:
    # No callback can run any more: nobody shall wait for one.
    _library.mapdirect_on_break(None, None, _INERT)


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)


def _give_back(address: int, length: int) -> None:
    """When nothing leads to the memory any more: the end of the mapping, if it has not ended, and of the addresses."""
    _registry.forget(address)
    _library.mapdirect_unmap(address, length)


# ---- mappings


class Mapping:
    """A range of a file whose bytes are the file's physical blocks; made by `map()`. A context manager that releases it.

    It ends with `release()`, or when nothing leads to its memory any more: neither this object nor a buffer of it.
    """

    def __init__(self, memory: Any, core: _Core, lease: _LeaseInfo, offset: int) -> None:
        self._memory = memory
        self._core = core
        self._view: Optional[memoryview] = memoryview(memory).cast("B")
        self._released = False
        self._releasing = threading.Lock()
        self.offset: int = offset
        """In the file, bytes."""
        self.length: int = core.length
        """Bytes."""
        self.lease_id: int = lease.lease_id
        self.generation: int = lease.generation
        """Of the block map, which the lease pins."""
        self.kind: str = "seal" if lease.kind == _LEASES["seal"] else "breakable"
        self.granularity: str = "cacheline" if lease.cacheline else "page"
        """"cacheline": persist() is a flush of the CPU's caches. "page": it is an msync."""

    @property
    def buffer(self) -> memoryview:
        """The bytes, as a writable memoryview: numpy.frombuffer and torch.frombuffer take it without a copy.

        Stores are seen by read(2) and every other mapping at once. What it becomes when the lease ends: see the module.

        Raises Revoked; ValueError (released).
        """
        self._check(0, 0)
        view = self._view
        if view is None:
            raise ValueError("the mapping is released")
        return view

    @property
    def released(self) -> bool:
        """Whether `release()` was called."""
        return self._released

    @property
    def revoked(self) -> bool:
        """Whether the lease was broken. While it is False, all that was loaded before was the file's; True is for ever."""
        if self._released:
            return False
        lease = _LeaseInfo()
        found = _library.mapdirect_query(self._core.address, ctypes.byref(lease)) == 0
        return not found or lease.lease_id != self.lease_id or lease.state >= _REVOKED

    def persist(self, offset: int = 0, length: Optional[int] = None) -> None:
        """Make the stores to [offset, offset + length) of the mapping durable; up to its end if length is None.

        Raises Revoked; ValueError (released, or not a part of the mapping); OSError EIO (the region cannot be written).
        """
        if length is None:
            length = self.length - offset
        self._check(offset, length)
        if _library.mapdirect_persist(self._core.address + offset, length) != 0:
            number = ctypes.get_errno()
            self._check(offset, length)
            raise OSError(number, f"persist: {os.strerror(number)}")

    def locate(self, offset: int = 0) -> Location:
        """Where the byte at `offset` of the mapping lies in the region.

        Raises Revoked; ValueError (released, or not in the mapping).
        """
        self._check(offset, 1)
        lease = _LeaseInfo()
        failed = _library.mapdirect_query(self._core.address + offset, ctypes.byref(lease)) != 0
        if failed or lease.state >= _REVOKED:
            self._check(offset, 1)
            raise Revoked
        written = lease.state == _WRITTEN
        return Location(
            state="written" if written else "hole",
            physical=lease.physical if written else None,
            length=min(lease.length, self.length - offset),
            lease_id=self.lease_id,
            generation=self.generation,
        )

    def on_break(self, callback: Optional[Callback]) -> None:
        """Have `callback` called with a `Break` when the lease is being broken; None: nothing.

        It runs on a thread of its own, may still load, store and persist, and has three quarters of the remaining time;
        when it has returned the memory becomes inert, and the operation that waits goes on. One callback for each mapping;
        those of several mappings run one after the other. An exception in it is shown, and changes nothing.
        """
        self._core.callback = callback
        if callback is not None:
            _start_listening()

    def release(self) -> None:
        """End the lease, if it has not ended, and have the memory be inert. May be called again."""
        with self._releasing:
            if self._released:
                return
            self._released = True
        _registry.forget(self._core.address)
        _drop(self)
        if _library.mapdirect_detach(self._core.address, self.length) != 0:
            _fail("release")

    def __enter__(self) -> Mapping:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.release()

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        state = "released" if self._released else "revoked" if self.revoked else self.kind
        return f"<mapdirect.Mapping of [{self.offset}, {self.offset + self.length}): {state}>"

    def _check(self, offset: int, length: int) -> None:
        if self._released:
            raise ValueError("the mapping is released")
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"[{offset}, {offset} + {length}) of a mapping of {self.length} bytes")
        if self.revoked:
            raise Revoked


def _drop(mapping: Mapping) -> None:
    """A view that nothing was made from raises an exception from now on; arrays keep it as it is."""
    view = mapping._view
    mapping._view = None
    if view is not None:
        try:
            view.release()
        except BufferError:
            pass


def map(
    fd: File,
    length: Optional[int] = None,
    offset: int = 0,
    *,
    lease: str = "default",
    prepare: bool = True,
    whole_file: bool = False,
    sync: bool = False,
    on_break: Optional[Callback] = None,
) -> Mapping:
    """Map [offset, offset + length) of a file directly; it has to be within the file.

    fd          open for reading and writing; may be closed afterwards.
    length      bytes; None: up to the end of the file.
    offset      bytes, a multiple of the page size (mmap.PAGESIZE).
    lease       "seal": conflicting operations fail with ETXTBSY; for the file's owner and root. "breakable": they wait, a
                bounded time, and the mapping is revoked. "default": what the mount says.
    prepare     allocate, zero and unshare the range first. With False a store to a hole ends the process with SIGBUS: see
                `Mapping.locate`.
    whole_file  any change of the file's size is a conflict, not only changes of the range.
    sync        as MAP_SYNC: refuse unless a flush of the CPU's caches alone makes stores durable.
    on_break    as `Mapping.on_break`, from the beginning.

    Raises ValueError (the range is not within the file, an unknown lease); OSError: EACCES (not open for reading and
    writing, the region cannot be opened, a seal for another's file), EAGAIN (a break is under way or just over, a limit on
    leases), EINVAL (alignment), ENOSPC (preparing), EOPNOTSUPP (not on a mapdirect mount, or `sync` would not be true), EPERM
    (shared blocks, with prepare=False), ETXTBSY (preparing what somebody has sealed).
    """
    descriptor = _descriptor(fd)
    if lease not in _LEASES:
        raise ValueError(f"lease: expected default, seal or breakable, got {lease!r}")
    size = os.fstat(descriptor).st_size
    if length is None:
        length = size - offset
    if offset < 0 or length <= 0 or offset + length > size:
        raise ValueError(f"[{offset}, {offset} + {length}) of a file of {size} bytes")
    kind = _LEASES[lease] | (_WHOLE_FILE if whole_file else 0) | (_PREPARE if prepare else 0)
    flags = _MAP_SHARED_VALIDATE | (_MAP_SYNC if sync else 0)
    _set_handler()
    if on_break is not None:
        _start_listening()
    registry = _registry
    with registry.changed:
        registry.being_made += 1
    try:
        address = _library.mapdirect_map(None, length, _PROT_READ_WRITE, flags, descriptor, offset, kind)
        if address is None or address == _MAP_FAILED:
            _fail("map")
        memory = (ctypes.c_ubyte * length).from_address(address)
        weakref.finalize(memory, _give_back, address, length).atexit = False
        core = _Core(address, length, on_break)
        registry.cores[address] = core
    finally:
        with registry.changed:
            registry.being_made -= 1
            registry.changed.notify_all()
    info = _LeaseInfo()
    # Somebody may have cut the file since its size was looked at. From here on nobody can.
    _library.mapdirect_query(address + length - 1, ctypes.byref(info))
    mapping = Mapping(memory, core, info, offset)
    if info.state == _BEYOND:
        mapping.release()
        raise ValueError(f"[{offset}, {offset} + {length}) of a file that became smaller")
    return mapping


def prepare(fd: File, offset: int = 0, length: int = 0) -> None:
    """Make [offset, offset + length) of a file ready to be mapped and stored to, durably: holes and unwritten extents become
    written zeros, shared extents are unshared. Length 0 means up to the end of the file. Its size does not change.

    Raises OSError: EBADF (also: not open for writing), EINVAL, ENOSPC, ETXTBSY (somebody holds a lease on the range and it is
    not ready yet), EOPNOTSUPP (not a file of a mapdirect mount).
    """
    if _library.mapdirect_prepare(_descriptor(fd), offset, length) != 0:
        _fail("prepare")


_EXTENTS = 512


def extents(fd: File, offset: int = 0, length: Optional[int] = None) -> List[Extent]:
    """The block map of [offset, offset + length) of a file, holes included; up to its end if length is None.

    Without a lease it is a snapshot, of one moment, which may be wrong by the time it is read.

    Raises OSError: EBADF, EINVAL, EOPNOTSUPP (not a file of a mapdirect mount).
    """
    descriptor = _descriptor(fd)
    if length is None:
        length = max(0, os.fstat(descriptor).st_size - offset)
    end = offset + length
    pieces = (_Extent * _EXTENTS)()
    info = _MapInfo()
    while True:
        found: List[Extent] = []
        at = offset
        generation: Optional[int] = None
        while at < end:
            count = _library.mapdirect_extents(descriptor, at, end - at, pieces, _EXTENTS, ctypes.byref(info))
            if count < 0:
                _fail("extents")
            if generation is None:
                generation = info.generation
            if info.generation != generation:
                break
            for piece in pieces[:count]:
                physical = None if piece.state == 0 else piece.physical
                found.append(Extent(piece.offset, physical, piece.length, _STATES[piece.state]))
            if info.next_offset == 0:
                return found
            at = info.next_offset
        else:
            return found
