#!/usr/bin/env python3
"""An array of numpy that is kept in a file: counts, and where they are up to, survive kill -9 and the power.

    PYTHONPATH=python python3 examples/kept-array.py FILE [STEPS]

FILE is on a mapdirect mount, and is made if there is none. Each step adds one to one of 1,024 counters; after every tenth a
line says how many are durable. Started again, it goes on from there: from a whole step, never from half of one.

How: there are two copies of the array, each with the number of steps that it is of and a checksum. A step is stored into the
older one, and made durable before the next is stored into the other: what a crash leaves half-stored has a wrong checksum, and
the other copy is whole.
"""

import os
import sys
import zlib
from typing import Any, List

import mapdirect
import numpy

COUNTERS = 1024
COPY = numpy.dtype([("steps", "<u8"), ("checksum", "<u4"), ("unused", "<u4"), ("counters", "<u8", COUNTERS)])
LINE_EVERY = 10


def checksum_of(copy: Any) -> int:
    return zlib.crc32(copy["counters"].tobytes(), int(copy["steps"]) & 0xFFFFFFFF)


def is_whole(copy: Any) -> bool:
    # A new file is two copies of zeros.
    return int(copy["checksum"]) == checksum_of(copy) or not copy.tobytes().strip(b"\0")


def newest(copies: Any) -> int:
    whole: List[int] = [index for index in (0, 1) if is_whole(copies[index])]
    if not whole:
        sys.exit("neither copy is whole: this file is not one of ours")
    return max(whole, key=lambda index: int(copies[index]["steps"]))


def main(path: str, steps: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if os.fstat(descriptor).st_size == 0:
        os.ftruncate(descriptor, 2 * COPY.itemsize)
    # A seal: whoever would cut the file, or move its blocks, is refused while this runs.
    with mapdirect.map(descriptor, 2 * COPY.itemsize, lease="seal") as mapping:
        os.close(descriptor)
        copies = numpy.frombuffer(mapping.buffer, dtype=COPY)
        current = newest(copies)
        print(f"begins at {copies[current]['steps']}", flush=True)
        for _ in range(steps):
            before, after = copies[current], copies[1 - current]
            done = int(before["steps"])
            after["checksum"] = ~before["checksum"]  # not whole from here on
            after["counters"] = before["counters"]
            after["counters"][done % COUNTERS] += 1
            after["steps"] = done + 1
            after["checksum"] = checksum_of(after)
            current = 1 - current
            mapping.persist(current * COPY.itemsize, COPY.itemsize)
            if (done + 1) % LINE_EVERY == 0:
                print(f"durable: {done + 1}", flush=True)
        print(f"ends at {copies[current]['steps']}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: kept-array.py FILE [STEPS]")
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 1_000_000_000)
