"""Bytes of a worker's output into lines, and lines into what the driver prints. No I/O, no threads.

A line that a worker printed appears on the driver as ``      From worker N:<tab>line``; what came before its pid was
known, as ``<tab>From worker startup:<tab>line``. A line that carries the prefix already was relayed by another worker
and passes unchanged.
"""

from __future__ import annotations

import re
from typing import Final

from hybriddist.limits import MAX_LINE_BYTES

_PREFIXED: Final = re.compile(r" {6}From worker \d+:\t")


class LineSplitter:
    """Cut a stream of bytes into lines; longer ones than the limit into pieces.

    Args:
        max_bytes: the longest piece.
    """

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines completed by ``data``, without their ends."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) >= self._max_bytes or len(data) >= self._max_bytes:
            size = self._max_bytes
            lines = [line[i : i + size] for line in lines for i in range(0, len(line) or 1, size)]
            while len(self._rest) >= size:
                lines.append(self._rest[:size])
                self._rest = self._rest[size:]
        return [line[:-1] if line.endswith(b"\r") else line for line in lines]

    def finish(self) -> list[bytes]:
        """The last line, if the stream ended without a line end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def decode(line: bytes) -> str:
    """Text of a line, whatever its bytes are."""
    return line.decode("utf-8", "replace")


def label(line: str, pid: int | None) -> str:
    """The line as the driver prints it, with its end.

    Example:
        >>> label("hello", 2)
        '      From worker 2:\\thello\\n'
    """
    if pid is None:
        return f"\tFrom worker startup:\t{line}\n"
    if _PREFIXED.match(line):
        return line + "\n"
    return f"      From worker {pid}:\t{line}\n"
