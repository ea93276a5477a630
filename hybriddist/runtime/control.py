"""The wire between the driver and its template process: pickles with descriptors, over a Unix socket pair.

::

    4 bytes: length of the body (with them, as ancillary data, the descriptors)  |  body: one pickled dict

The descriptors ride on the length, read by itself: so they can never be taken for those of a neighbouring object.

driver to template
    ``{"do": "start", "id": n, "options": {...}}`` and the descriptors stdin, stdout, stderr ·
    ``{"do": "signal", "ospid": n, "signal": n, "group": bool}``
template to driver
    ``{"is": "started", "id": n, "ospid": n}`` and perhaps a pidfd · ``{"is": "failed", "id": n, "errno": n}`` ·
    ``{"is": "exited", "ospid": n, "status": n}``

Both ends trust each other: the pair was made by the one and inherited by the other, and has no name. Pickles, because
the template has a pickler anyway, and `json` would take 1.5 ms of its start. What this module does not know: what the
objects mean.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections.abc import Sequence
from typing import Any, Final

from hybriddist.core import payload

MAX_DESCRIPTORS: Final = 3
_LENGTH_BYTES: Final = 4


def send(sock: socket.socket, value: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one object. The descriptors stay open here.

    Raises:
        OSError: the other side is gone.
    """
    body, _ = payload.dumps(value)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
    length = len(body).to_bytes(_LENGTH_BYTES, "little")
    sent = sock.sendmsg([length, body], ancillary)
    if sent < _LENGTH_BYTES + len(body):
        sock.sendall((length + body)[sent:])


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next object and its descriptors (not inheritable, the caller's own); ``None`` at the end.

    Blocks until the object is complete.
    """
    descriptors = array("i")
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * descriptors.itemsize)
    try:
        head, ancillary, _, _ = sock.recvmsg(_LENGTH_BYTES, space)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        for fd in descriptors:
            os.set_inheritable(fd, False)  # recvmsg does not close them on exec
        if not head:
            return None
        if len(head) < _LENGTH_BYTES:
            head += _receive_exactly(sock, _LENGTH_BYTES - len(head))
        body = _receive_exactly(sock, int.from_bytes(head, "little"))
    except (EOFError, ConnectionError):
        for fd in descriptors:
            os.close(fd)
        return None
    return payload.loads(body), list(descriptors)


def _receive_exactly(sock: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = sock.recv(count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
