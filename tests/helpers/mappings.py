"""What a process has mapped of shared memory, and where its arrays lie. For Linux: it reads ``/proc``."""

from __future__ import annotations

import gc
from typing import Any

MAPS = "/proc/self/maps"
OURS = "/dev/shm/hybriddist-"


def place_of(array: Any) -> tuple[str, str, int]:
    """Which byte of which memory an array begins with: device, inode, offset. The same for all who have mapped it."""
    address = array.__array_interface__["data"][0]
    with open(MAPS) as maps:
        for line in maps:
            bounds, _, offset, device, inode, *_ = line.split()
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            if start <= address < end:
                return device, inode, int(offset, 16) + address - start
    raise AssertionError(f"{address:#x} is not mapped")


def inode_of(array: Any) -> str:
    """The memory in which an array lies: "0" if it is this process's alone."""
    return place_of(array)[1]


def has_mapped(*inodes: str) -> bool:
    """Whether this process has any of these mapped still, when its garbage is gone."""
    gc.collect()
    with open(MAPS) as maps:
        return any(line.split()[4] in inodes for line in maps)


def mapped_sizes(ospid: int | str = "self") -> list[int]:
    """The bytes of each mapping of the library's shared memory that a process has."""
    sizes = []
    with open(f"/proc/{ospid}/maps") as maps:
        for line in maps:
            if OURS in line:
                start, end = line.split()[0].split("-")
                sizes.append(int(end, 16) - int(start, 16))
    return sizes
