"""Files as the memory of shared arrays: opened, extended, mapped.

A file is opened once, by the process that makes the array; the others of the node open its descriptor, as they do with
any block. So a relative path means nothing to them, and it does not matter if the file is renamed or removed.

What this module does not know: what is in the file.
"""

from __future__ import annotations

import os
import stat
from typing import Any, Final

from hybriddist.shm.block import Block

_FLAGS: Final = {
    "r": os.O_RDONLY,
    "r+": os.O_RDWR,
    "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "a+": os.O_RDWR | os.O_CREAT,
}


def map_file(file: Any, mode: str | None, offset: int, length: int) -> tuple[Block, bool]:
    """Open and map a part of a file; whether it may be written.

    Raises:
        TypeError, ValueError: a bad path, mode or offset; the file is too short, or is no regular file.
        OSError: it cannot be opened, or the disk is full; a file that was there is left with its old length.
    """
    path = os.fspath(file)
    if not os.path.isabs(path):
        raise ValueError(f"file must be an absolute path, not {path!r}; os.path.abspath makes one")
    if mode is None:
        mode = "r+" if os.path.exists(path) else "w+"
    flags = _FLAGS.get(mode)
    if flags is None:
        raise ValueError(f"mode must be one of {', '.join(map(repr, _FLAGS))}, not {mode!r}")
    if not isinstance(offset, int) or offset < 0:
        raise ValueError(f"offset must be a number of bytes, 0 or more, not {offset!r}")
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file")
        if status.st_size < offset + length:
            if mode == "r":
                raise ValueError(
                    f"{path} has {status.st_size} bytes; the array needs {length} from byte {offset} on, and mode "
                    "'r' does not extend it"
                )
            _extend(descriptor, status.st_size, offset + length)
    except BaseException:
        os.close(descriptor)
        raise
    return Block.of_file(descriptor, offset, length, writable=mode != "r"), mode != "r"


def _extend(descriptor: int, old: int, new: int) -> None:
    """Make a file longer, and see that the disk has room for it: else the first touch would kill the process."""
    try:
        os.truncate(descriptor, new)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, old, new - old)
    except BaseException:
        os.truncate(descriptor, old)
        raise


__all__ = ["map_file"]
