"""`reply`: the end of a call or a request goes to whoever asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hybriddist.core import captured
from hybriddist.core.messages import Outcome, Result, new
from hybriddist.errors import SerializationError, TransportError
from hybriddist.transport import Buffer

if TYPE_CHECKING:
    from hybriddist.runtime.peer import Peer


def reply(
    peer: Peer,
    call_id: int,
    outcome: int,
    content: Any,
    *,
    last: bool = False,
    nanoseconds: int = 0,
    unsent: Callable[[], None] | None = None,
) -> None:
    """Send the end of a call or request. What cannot be pickled becomes an error; the connection stays.

    Args:
        content: the value; of outcomes ERROR and NOT_RUN the `CapturedException`; of others nothing.
        nanoseconds: how long it ran, if that is to be told.
        last: with it the work that this thread has taken from the queue is done.
        unsent: called if a value cannot be pickled, before the error is sent, or if whoever asked is gone.
    """
    body: Buffer = b""
    buffers: Sequence[Buffer] = ()
    try:
        if outcome == Outcome.VALUE and content is not None:
            try:
                body, buffers = peer.process.encode(content, peer.pid)
            except (SerializationError, KeyboardInterrupt) as error:
                outcome, content = Outcome.ERROR, captured.capture(error)
                if unsent is not None:
                    unsent()
        if outcome == Outcome.ERROR or outcome == Outcome.NOT_RUN:
            body, buffers = captured.dump(content)
        if last:
            peer.process.receiver.about_to_end()
        peer.send(new(Result, (call_id, outcome, body, buffers, nanoseconds)))
    except TransportError:  # whoever asked is gone; nobody is left to tell
        if unsent is not None and outcome == Outcome.VALUE:
            unsent()
