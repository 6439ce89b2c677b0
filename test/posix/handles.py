"""File handles (name_to_handle_at(2)), as an NFS server uses them. usage: handles.py MOUNT make|open|stale [HANDLE]"""

import ctypes
import errno
import os
import sys

AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def make(path):
    handle = Handle(bytes=128)
    mount = ctypes.c_int()
    if libc.name_to_handle_at(AT_FDCWD, path.encode(), ctypes.byref(handle), ctypes.byref(mount), 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return f"{handle.type}:{bytes(handle.data[: handle.bytes]).hex()}"


def open_handle(mount, text):
    kind, data = text.split(":")
    raw = bytes.fromhex(data)
    handle = Handle(bytes=len(raw), type=int(kind))
    ctypes.memmove(handle.data, raw, len(raw))
    folder = os.open(mount, os.O_RDONLY)
    fd = libc.open_by_handle_at(folder, ctypes.byref(handle), os.O_RDONLY)
    if fd < 0:
        return errno.errorcode[ctypes.get_errno()]
    try:
        return os.read(fd, 100).decode()
    finally:
        os.close(fd)


if sys.argv[2] == "make":
    print(make(sys.argv[1]))
else:
    print(open_handle(sys.argv[1], sys.argv[3]))
