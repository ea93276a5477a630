"""The messages that processes exchange, and their bytes.

A message is a named tuple; its head is a fixed header, known by the first byte, followed by a body. The
header is readable without the body, so that a call whose body cannot be unpickled can still be answered::

    byte   0      1      2 ...                       n ...
           +------+------+---------------------------+------------------------------+
           | kind | flag | fixed fields of the kind  | body: a pickle, or nothing   |  + out-of-band buffers
           +------+------+---------------------------+------------------------------+

A large body travels apart, as the last of the buffers: it is then written from where it lies, has no checksum, and is
copied like an array. The head is the message's without its body, after a byte that says so. What this module does not
know: how objects become bodies and buffers (``core/payload.py``), how frames are delimited (``core/frames.py``), which
message is allowed when (``core/protocol.py``), and what handling one means (``runtime/handlers.py``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, ClassVar, Final, Self

from hybriddist.errors import RemoteProtocolError
from hybriddist.records import Record
from hybriddist.transport import Buffer, Frame

# Every call passes through here: methods bound once.
_CALL: Final = struct.Struct("<BBHIqqq")
_RESULT: Final = struct.Struct("<BBHIq")
_SHORT: Final = struct.Struct("<BBHI")
_CHANGE: Final = struct.Struct("<qqqq")
_pack_call: Final = _CALL.pack
_unpack_call: Final = _CALL.unpack_from
_pack_result: Final = _RESULT.pack
_unpack_result: Final = _RESULT.unpack_from
MOST_NANOSECONDS: Final = (1 << 32) - 1

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


class EachFlag(IntEnum):
    """How the calls of a message in mode EACH are run. ANNOUNCED: each says when it begins, not only one that does out
    of its turn. PATIENT: they wait some milliseconds for what computes; to compute beside it would be slower."""

    ANNOUNCED = 1
    PATIENT = 2


ANSWERED: Final = 0x20
"""Part of the modes whose call is answered by a `Result`."""


class Outcome(IntEnum):
    """How a call or a request ended."""

    VALUE = 0
    ERROR = 1
    """The body is a `CapturedException`."""
    NOT_RUN = 2
    """The call was not run, because the message it came in cannot be unpickled. The body is a `CapturedException`."""
    CANCELLED = 3
    """It was cancelled before it had an end of its own."""
    CLOSED = 4
    """The channel is closed."""


class Operation(IntEnum):
    """What a `Request` asks of the process that holds a reference."""

    FETCH = 0
    WAIT = 1
    IS_READY = 2
    PUT = 3
    CANCEL = 4
    """End the reference's call, and the reference without a value. The answer is whether it had none."""


class ChannelOperation(IntEnum):
    """What a `Request` asks of the process that holds a channel; with `MAY_CREATE` it makes one if there is none."""

    PUT = 0x10
    """The body is one item, without references in it: it may stay pickled, and be passed on so."""
    PUT_REFERENCES = 0x11
    """The body is one item with references in it, which count as the holder's as soon as it is unpickled."""
    PUT_SEVERAL = 0x12
    """The body is a tuple of arguments for a backing store of the user's own."""
    TAKE = 0x13
    FETCH = 0x14
    WAIT = 0x15
    IS_READY = 0x16
    IS_EMPTY = 0x17
    IS_OPEN = 0x18
    CLOSE = 0x19
    INDEX = 0x1A
    """Answered by an element of what FETCH would bring; the body is the index."""
    GIVE_BACK = 0x1B
    """An item that was taken and has not reached its taker. The body: the arguments of the take, and the item."""


MAY_CREATE: Final = 0x40
"""Added to a `ChannelOperation`."""


class Call(Record):
    """Run a function. Answered by a `Result` with the same ``call_id``, except in modes STORE and DO.

    ``function_key``: 0, then the body is the pickle of ``(function, args, kwargs)``; else the key of an earlier
    `Define` on this connection, and the body is the pickle of ``(args, kwargs)`` or, empty, of no arguments.
    ``whence`` and ``id``: the reference that keeps the value (modes STORE and WAIT). In mode FETCH a negative
    ``whence``, minus a sum of bits, says which arguments are ids of blocks of the process ``id``, the sender.

    Mode EACH: the body is the pickle of a list of args, ``id`` their number; they are answered as ``call_id``,
    ``call_id + 1`` and so on. ``whence`` is a sum of `EachFlag`.
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


class Result(Record):
    """The end of a `Call` or a `Request`."""

    call_id: int
    outcome: int
    body: Buffer
    buffers: Sequence[Buffer] = ()
    nanoseconds: int = 0
    """How long a call of a message with several (mode EACH) ran there, at most `MOST_NANOSECONDS`; 0: not told."""

    def encode(self) -> bytes:
        call_id, outcome, body, _, nanoseconds = self
        return _pack_result(2, outcome, 0, nanoseconds, call_id) + body

    @staticmethod
    def decode(frame: Frame) -> Result:
        head, buffers = frame
        _, outcome, _, nanoseconds, call_id = _unpack_result(head)
        result: Result = new(Result, (call_id, outcome, head[16:], buffers, nanoseconds))
        return result


class Request(Record):
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


class Define(Record):
    """The function that later calls on this connection name by ``key`` (1 and above).

    The body is its pickle; or, if ``is_handle``, that of a handle to the memory where its pickle is.
    """

    key: int
    body: Buffer
    buffers: Sequence[Buffer] = ()
    is_handle: bool = False

    def encode(self) -> bytes:
        return _SHORT.pack(4, self.is_handle, 0, self.key) + self.body

    @staticmethod
    def decode(frame: Frame) -> Define:
        head, buffers = frame
        _, is_handle, _, key = _SHORT.unpack_from(head)
        return Define(key, head[8:], buffers, bool(is_handle))


class Forget(Record):
    """The function of ``key`` will not be called any more."""

    key: int

    def encode(self) -> bytes:
        return _RESULT.pack(5, 0, 0, 0, self.key)

    @staticmethod
    def decode(frame: Frame) -> Forget:
        return Forget(_RESULT.unpack_from(frame.head)[4])


class Started(Record):
    """A call of a message with several (mode EACH) begins, and is not the oldest without a result."""

    call_id: int

    def encode(self) -> bytes:
        return _RESULT.pack(6, 0, 0, 0, self.call_id)

    @staticmethod
    def decode(frame: Frame) -> Started:
        return Started(_RESULT.unpack_from(frame.head)[4])


class Cancel(Record):
    """The sender wants no answer to its call or request any more.

    If it has not begun it is dropped, if it runs it is interrupted, if it waits it is withdrawn; the answer then is
    CANCELLED. Without effect when it has ended: then its answer is under way.
    """

    call_id: int

    def encode(self) -> bytes:
        return _RESULT.pack(8, 0, 0, 0, self.call_id)

    @staticmethod
    def decode(frame: Frame) -> Cancel:
        return Cancel(_RESULT.unpack_from(frame.head)[4])


class Claims(Record):
    """Changes of who holds references of the receiving process.

    ``changes``: tuples (whence, id, edge, delta): ``delta`` more claims on the reference, on that edge from a giver to
    a receiver (``core/references.py``).
    """

    changes: Sequence[tuple[int, int, int, int]]

    def encode(self) -> bytes:
        pack = _CHANGE.pack
        return _SHORT.pack(7, 0, 0, len(self.changes)) + b"".join([pack(*change) for change in self.changes])

    @staticmethod
    def decode(frame: Frame) -> Claims:
        _, _, _, count = _SHORT.unpack_from(frame.head)
        body = memoryview(frame.head)[8:]
        if len(body) != count * _CHANGE.size:
            raise RemoteProtocolError(f"a Claims message of {len(body)} bytes declares {count} changes")
        return Claims([(whence, id_, edge, delta) for whence, id_, edge, delta in _CHANGE.iter_unpack(body)])


class _Content(Record):
    body: Buffer = b""
    buffers: Sequence[Buffer] = ()


class _Control(_Content):
    """A message of the control plane. Its body is the pickle of a dict, read only after the peer's proof."""

    __slots__ = ()
    KIND: ClassVar[int]

    def encode(self) -> bytes:
        return _SHORT.pack(self.KIND, 0, 0, 0) + self.body

    @classmethod
    def decode(cls, frame: Frame) -> Self:
        _SHORT.unpack_from(frame.head)
        return cls(frame.head[8:], frame.buffers)


class Join(_Control):
    """The driver's first message to a worker: its pid, the members, the cluster's settings."""

    __slots__ = ()
    KIND = 16


class Joined(_Control):
    """The worker's answer: what the driver wants to know of its process."""

    __slots__ = ()
    KIND = 17


class Identify(_Control):
    """The first message on a connection between workers: who connects."""

    __slots__ = ()
    KIND = 18


class Members(_Control):
    """From the driver: the processes of the cluster as they are now."""

    __slots__ = ()
    KIND = 19


class Left(_Control):
    """From the driver: a process is gone, and why."""

    __slots__ = ()
    KIND = 20


class Leave(_Control):
    """From the driver: finish and exit."""

    __slots__ = ()
    KIND = 21


class Heartbeat(_Control):
    """A sign of life on an idle connection between nodes."""

    __slots__ = ()
    KIND = 22


Message = (
    Call | Result | Request | Define | Forget | Started | Claims | Cancel
    | Join | Joined | Identify | Members | Left | Leave | Heartbeat
)  # fmt: skip

_CONTROL: Final = (Join, Joined, Identify, Members, Left, Leave, Heartbeat)

_APART: Final = 255
"""The first byte of a head whose message has its body among the buffers."""

BODILESS: Final = frozenset({Forget, Started, Claims, Cancel})
"""Messages of numbers only: no body and no out-of-band buffers, no such attributes."""

_DECODERS: Final[dict[int, Callable[[Frame], Message]]] = {
    1: Call.decode,
    2: Result.decode,
    3: Request.decode,
    4: Define.decode,
    5: Forget.decode,
    6: Started.decode,
    7: Claims.decode,
    8: Cancel.decode,
    **{cls.KIND: cls.decode for cls in _CONTROL},
    _APART: lambda frame: _decode_apart(frame),
}


def encode_apart(message: Any) -> tuple[bytes, list[Buffer]]:
    """The frame of a message with a body that travels apart: the head and the buffers."""
    return bytes([_APART]) + message._replace(body=b"").encode(), [*message.buffers, message.body]


def _decode_apart(frame: Frame) -> Any:
    head, buffers = frame
    message: Any = decode(Frame(head[1:], buffers[:-1])) if buffers and head[1] != _APART else None
    if message is None or message.__class__ in BODILESS or message.body:
        raise RemoteProtocolError(f"{len(buffers)} buffers and a head of {len(head)} bytes: no body is apart")
    return message._replace(body=buffers[-1])


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
