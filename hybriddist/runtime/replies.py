"""The end of a call or a request goes to whoever asked: packed, and sent.

In two steps, so that a caller can let go of the value in between: then what it was made of may go without a copy, if it
was made in the place from which it is sent (``reserving.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hybriddist.core import captured, payload
from hybriddist.core.messages import Outcome, Result, new
from hybriddist.errors import SerializationError, TransportError
from hybriddist.records import Record
from hybriddist.transport import Buffer

if TYPE_CHECKING:
    from hybriddist.runtime.peer import Peer


class Packed(Record):
    """The end of a call as it is sent. It holds nothing of the value but the memory of its large arrays."""

    outcome: int
    body: Buffer
    buffers: Sequence[Buffer]


def pack(peer: Peer, outcome: int, content: Any) -> Packed:
    """Pickle the end of a call or request. What cannot be pickled becomes an error.

    Args:
        content: the value; of outcomes ERROR and NOT_RUN the `CapturedException`; of others nothing.
    """
    body: Buffer = b""
    buffers: Sequence[Buffer] = ()
    if content.__class__ in payload.NUMBERS:  # most results of small calls; nothing can go wrong with them
        if content is not None:
            body = payload.dumps(content)[0]
    elif outcome == Outcome.VALUE:
        try:
            body, buffers = peer.process.encode(content, peer.pid)
        except (SerializationError, KeyboardInterrupt) as error:
            outcome, content = Outcome.ERROR, captured.capture(error)
    if outcome == Outcome.ERROR or outcome == Outcome.NOT_RUN:
        body, buffers = peer.process.references.encode_captured(content, peer.pid)
    packed: Packed = new(Packed, (outcome, body, buffers))
    return packed


def send(peer: Peer, call_id: int, packed: Packed, *, last: bool = False, nanoseconds: int = 0) -> bool:
    """Send it; False if whoever asked is gone. An array of `empty` goes without a copy if nobody else has the value.

    Args:
        nanoseconds: how long it ran, if that is to be told.
        last: with it the work that this thread has taken from the queue is done.
    """
    outcome, body, buffers = packed
    if buffers and type(buffers) is list:
        peer.transport.settle(buffers)
    try:
        if last:
            peer.process.receiver.about_to_end()
        peer.send(new(Result, (call_id, outcome, body, buffers, nanoseconds)))
    except TransportError:
        return False
    return True


def reply(
    peer: Peer,
    call_id: int,
    outcome: int,
    content: Any,
    *,
    last: bool = False,
    unsent: Callable[[], None] | None = None,
) -> None:
    """Pack and send; the connection stays, whatever the content is.

    Args:
        unsent: called if a value cannot be pickled, before the error is sent, or if whoever asked is gone.
    """
    packed = pack(peer, outcome, content)
    if unsent is not None and packed.outcome != outcome:
        unsent()
        unsent = None
    if not send(peer, call_id, packed, last=last) and unsent is not None and outcome == Outcome.VALUE:
        unsent()
