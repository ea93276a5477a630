"""A value as one piece of bytes, for what is kept or handed on before somebody unpickles it.

The driver keeps a worker's last words, and hands on what a manager needs to know; it has no use for the objects, and
may lack their classes. So they stay as they came until whoever asked for them unpacks them, on its own thread.
"""

from __future__ import annotations

from typing import Any

from hybriddist.core import payload
from hybriddist.core.frames import FrameDecoder, encode
from hybriddist.errors import DeserializeError


def pack(value: Any) -> bytes:
    """Pickle a value, its large buffers behind it.

    Raises:
        SerializeError: it cannot be pickled.
    """
    head, buffers = payload.dumps(value)
    return b"".join([encode(head, [len(buffer) for buffer in buffers]), *buffers])


def unpack(data: bytes) -> Any:
    """Undo `pack`. Executes what the pickle says: only for bytes of a proven peer.

    Raises:
        DeserializeError: it cannot be unpickled here.
    """
    frames = FrameDecoder().feed(data)
    if len(frames) != 1:
        raise DeserializeError(f"{len(data)} bytes hold {len(frames)} values, not one")
    return payload.loads(frames[0].head, frames[0].buffers)
