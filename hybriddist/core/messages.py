"""The messages that processes exchange, and their bytes.

A message is a dataclass or a named tuple; its head is a fixed header, known by the first byte, followed by a body. The
header is readable without the body, so that a call whose body cannot be unpickled can still be answered::

    byte   0      1      2 ...                       n ...
           +------+------+---------------------------+------------------------------+
           | kind | flag | fixed fields of the kind  | body: a pickle, or nothing   |  + out-of-band buffers
           +------+------+---------------------------+------------------------------+

``body`` and ``buffers`` are opaque here: ``core/payload.py`` makes them from objects and objects from them. What this
module does not know: how frames are delimited (``core/frames.py``), which message is allowed when
(``core/protocol.py``), and what handling one means (``runtime/handlers.py``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Final, NamedTuple, Self

from hybriddist.errors import RemoteProtocolError
from hybriddist.transport import Buffer, Frame

# What every call passes through: named tuples made by the tuple's own constructor, and methods bound once. A dataclass
# takes twice the time.
_CALL: Final = struct.Struct("<BBHIqqq")
_RESULT: Final = struct.Struct("<BBHIq")
_pack_call: Final = _CALL.pack
_unpack_call: Final = _CALL.unpack_from
_pack_result: Final = _RESULT.pack
_unpack_result: Final = _RESULT.unpack_from
new: Final[Any] = tuple.__new__
"""``new(Call, (...))`` takes half the time of ``Call(...)``."""


class Mode(IntEnum):
    """What becomes of a call's value."""

    FETCH = 0x20
    """It is sent back (`remotecall_fetch`)."""
    STORE = 1
    """It is kept under the reference (`remotecall`)."""
    WAIT = 0x22
    """It is kept under the reference, and its completion is reported (`remotecall_wait`)."""
    DO = 3
    """It is dropped (`remote_do`)."""
    EACH = 0x24
    """The body holds the arguments of several calls, which run one after the other; each is answered by itself."""


ANSWERED: Final = 0x20
"""Part of the modes whose call is answered by a `Result`."""

class Outcome(IntEnum):
    """How a call or a request ended."""

    VALUE = 0
    ERROR = 1
    """The body is a `CapturedException`."""
    NOT_RUN = 2
    """The call was not run, because the message it came in cannot be unpickled. The body is a `CapturedException`."""


class Operation(IntEnum):
    """What a `Request` asks of the process that holds a reference."""

    FETCH = 0
    WAIT = 1
    IS_READY = 2
    PUT = 3


class Call(NamedTuple):
    """Run a function. Answered by a `Result` with the same ``call_id``, except in modes STORE and DO.

    ``function_key``: 0, then the body is the pickle of ``(function, args, kwargs)``; else the key of an earlier
    `Define` on this connection, and the body is the pickle of ``(args, kwargs)`` or, empty, of no arguments.
    ``whence`` and ``id``: the reference that keeps the value (modes STORE and WAIT).

    Mode EACH: the body is the pickle of a list of args, ``id`` their number; they are answered as ``call_id``,
    ``call_id + 1`` and so on.
    """

    call_id: int
    mode: int
    function_key: int
    whence: int
    id: int
    body: Buffer
    buffers: Sequence[Buffer] = ()

    def encode(self) -> bytes:
        call_id, mode, key, whence, id_, body, _ = self
        return _pack_call(1, mode, 0, key, call_id, whence, id_) + body

    @staticmethod
    def decode(frame: Frame) -> Call:
        head, buffers = frame
        _, mode, _, key, call_id, whence, id_ = _unpack_call(head)
        call: Call = new(Call, (call_id, mode, key, whence, id_, head[32:], buffers))
        return call


class Result(NamedTuple):
    """The end of a `Call` or a `Request`."""

    call_id: int
    outcome: int
    body: Buffer
    buffers: Sequence[Buffer] = ()

    def encode(self) -> bytes:
        call_id, outcome, body, _ = self
        return _pack_result(2, outcome, 0, 0, call_id) + body

    @staticmethod
    def decode(frame: Frame) -> Result:
        head, buffers = frame
        _, outcome, _, _, call_id = _unpack_result(head)
        result: Result = new(Result, (call_id, outcome, head[16:], buffers))
        return result


class Request(NamedTuple):
    """An operation on a reference, sent to the process that holds it. Answered by a `Result`."""

    call_id: int
    operation: int
    whence: int
    id: int
    body: Buffer = b""
    buffers: Sequence[Buffer] = ()

    def encode(self) -> bytes:
        return _pack_call(3, self.operation, 0, 0, self.call_id, self.whence, self.id) + self.body

    @staticmethod
    def decode(frame: Frame) -> Request:
        head, buffers = frame
        _, operation, _, _, call_id, whence, id_ = _unpack_call(head)
        return Request(call_id, operation, whence, id_, head[32:], buffers)


@dataclass(slots=True)
class Define:
    """The function that later calls on this connection name by ``key`` (1 and above). The body is its pickle."""

    KIND: ClassVar[int] = 4
    HEADER: ClassVar[struct.Struct] = struct.Struct("<BBHI")

    key: int
    body: Buffer
    buffers: Sequence[Buffer] = ()

    def encode(self) -> bytes:
        return self.HEADER.pack(4, 0, 0, self.key) + self.body

    @classmethod
    def decode(cls, frame: Frame) -> Define:
        _, _, _, key = cls.HEADER.unpack_from(frame.head)
        return cls(key, frame.head[8:], frame.buffers)


class _Numbered:
    """A message that is only a number."""

    __slots__ = ()
    HEADER: ClassVar[struct.Struct] = struct.Struct("<BBHIq")


@dataclass(slots=True)
class Forget(_Numbered):
    """The function of ``key`` will not be called any more."""

    KIND: ClassVar[int] = 5

    key: int

    def encode(self) -> bytes:
        return self.HEADER.pack(5, 0, 0, 0, self.key)

    @classmethod
    def decode(cls, frame: Frame) -> Forget:
        return cls(cls.HEADER.unpack_from(frame.head)[4])


@dataclass(slots=True)
class Started(_Numbered):
    """A call of a message with several (mode EACH) begins out of its turn."""

    KIND: ClassVar[int] = 6

    call_id: int

    def encode(self) -> bytes:
        return self.HEADER.pack(6, 0, 0, 0, self.call_id)

    @classmethod
    def decode(cls, frame: Frame) -> Started:
        return cls(cls.HEADER.unpack_from(frame.head)[4])


@dataclass(slots=True)
class Claims:
    """Changes of who holds references of the receiving process.

    ``changes``: tuples (whence, id, pid, delta): process ``pid`` holds ``delta`` more claims on the reference.
    """

    KIND: ClassVar[int] = 7
    HEADER: ClassVar[struct.Struct] = struct.Struct("<BBHI")
    CHANGE: ClassVar[struct.Struct] = struct.Struct("<qqqq")

    changes: Sequence[tuple[int, int, int, int]]

    def encode(self) -> bytes:
        pack = self.CHANGE.pack
        return self.HEADER.pack(7, 0, 0, len(self.changes)) + b"".join([pack(*change) for change in self.changes])

    @classmethod
    def decode(cls, frame: Frame) -> Claims:
        _, _, _, count = cls.HEADER.unpack_from(frame.head)
        body = memoryview(frame.head)[8:]
        if len(body) != count * cls.CHANGE.size:
            raise RemoteProtocolError(f"a Claims message of {len(body)} bytes declares {count} changes")
        return cls([(whence, id_, pid, delta) for whence, id_, pid, delta in cls.CHANGE.iter_unpack(body)])


@dataclass(slots=True)
class _Control:
    """A message of the control plane. Its body is the pickle of a dict, read only after the peer's proof."""

    KIND: ClassVar[int]
    HEADER: ClassVar[struct.Struct] = struct.Struct("<BBHI")

    body: Buffer = b""
    buffers: Sequence[Buffer] = ()

    def encode(self) -> bytes:
        return self.HEADER.pack(self.KIND, 0, 0, 0) + self.body

    @classmethod
    def decode(cls, frame: Frame) -> Self:
        return cls(frame.head[8:], frame.buffers)


class Join(_Control):
    """The driver's first message to a worker: its pid, the members, the cluster's settings."""

    KIND = 16


class Joined(_Control):
    """The worker's answer: what the driver wants to know of its process."""

    KIND = 17


class Identify(_Control):
    """The first message on a connection between workers: who connects."""

    KIND = 18


class Members(_Control):
    """From the driver: the processes of the cluster as they are now."""

    KIND = 19


class Left(_Control):
    """From the driver: a process is gone, and why."""

    KIND = 20


class Leave(_Control):
    """From the driver: finish and exit."""

    KIND = 21


class Heartbeat(_Control):
    """A sign of life on an idle connection between nodes."""

    KIND = 22


Message = (
    Call | Result | Request | Define | Forget | Started | Claims
    | Join | Joined | Identify | Members | Left | Leave | Heartbeat
)  # fmt: skip

_RARE = (
    Define, Forget, Started, Claims,
    Join, Joined, Identify, Members, Left, Leave, Heartbeat,
)  # fmt: skip

_DECODERS: Final[dict[int, Callable[[Frame], Message]]] = {
    1: Call.decode,
    2: Result.decode,
    3: Request.decode,
    **{cls.KIND: cls.decode for cls in _RARE},
}


def decode(frame: Frame) -> Message:
    """The message in a frame.

    Raises:
        RemoteProtocolError: the kind is unknown or the head is shorter than its header.
    """
    try:
        return _DECODERS[frame.head[0]](frame)
    except (KeyError, IndexError, struct.error):
        kind = frame.head[0] if len(frame.head) else None
        raise RemoteProtocolError(f"no message of kind {kind} in {len(frame.head)} bytes") from None
