"""Exceptions on their journey between processes: always something arrives.

`capture` takes an exception with its traceback as text (frames do not travel). `dump` makes bytes of it and `load` an
exception again, and neither fails: what cannot be pickled here, or rebuilt there, is replaced by a stand-in that names
the type and carries the text.

What this module does not know: processes and their numbers (`errors.RemoteException` adds them), and messages.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import hybriddist.errors
from hybriddist.core import payload
from hybriddist.core.dismantle import (
    StandIn,
    drop_frames,
    headline,
    message,
    own_attribute,
    pickles,
    put_together,
    shorten,
    take_apart,
)
from hybriddist.errors import DeserializeError, RemoteException
from hybriddist.transport import Buffer

if TYPE_CHECKING:
    import traceback

NESTED: Final = b"_revive_nested"
"""In every pickle with a captured exception in it that is no reply by itself."""

_OUR_FOLDER: Final = os.path.dirname(os.path.abspath(hybriddist.errors.__file__)) + os.sep


class CapturedException:
    """An exception and the text of its traceback.

    Attributes:
        ex: the exception. In another process than its own: a copy without frames, or a stand-in.
        traceback_text: the traceback where it was raised, as Python prints it.
    """

    __slots__ = ("ex", "traceback_text")

    def __init__(self, ex: BaseException, traceback_text: str) -> None:
        self.ex = ex
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        # A RemoteException inside is from a further process, and says so itself.
        text = message(self.ex) if isinstance(self.ex, RemoteException | StandIn) else shorten(headline(self.ex))
        return f"{text}\n\n{self.traceback_text}" if self.traceback_text else text

    def __repr__(self) -> str:
        return f"CapturedException({payload.type_name(self.ex)})"

    def drop_frames(self) -> None:
        """To be kept: what the text says of the frames is enough from now on. See `dismantle.drop_frames`."""
        drop_frames(self.ex)

    def __reduce__(self) -> tuple[Any, ...]:
        body, buffers = dump(self, interruptible=True)
        return _revive_nested, (body, [pickle.PickleBuffer(buffer) for buffer in buffers])


def capture(exception: BaseException, *, interruptible: bool = False) -> CapturedException:
    """Take an exception where it was caught, for the journey.

    A `RemoteException` is kept with its own first capture; only the frames between are added. Never raises.

    Args:
        interruptible: let a `KeyboardInterrupt` through: it is Ctrl-C. Else the exception's own code has raised it.
    """
    try:
        text = _format(exception)
    except KeyboardInterrupt:
        if interruptible:
            raise
        text = ""
    return CapturedException(exception, shorten(text))


def dump(captured: CapturedException, *, interruptible: bool = False) -> tuple[bytes, list[memoryview]]:
    """Make bytes (body and buffers, as `payload.dumps` does). Never fails: a stand-in goes for what cannot.

    Args:
        interruptible: as in `capture`.
    """
    try:
        return payload.dumps((captured.traceback_text, take_apart(captured.ex)))
    except BaseException as error:
        # Too large, say: each part could be pickled, and all together could not. Or the exception's own code failed
        # where no exception's does: if that were raised here, somebody would wait for the answer for ever.
        if interruptible and isinstance(error, KeyboardInterrupt):
            raise
        text = shorten(f"{_message_at_any_rate(captured.ex)}\n(it could not be pickled: {headline(error)})")
        return payload.dumps((captured.traceback_text, take_apart(StandIn(payload.type_name(captured.ex), text))))


def load(body: Buffer, buffers: Iterable[Buffer] = ()) -> CapturedException:
    """Undo `dump`. Never fails: a stand-in takes the place of what cannot be rebuilt here."""
    try:
        traceback_text, parts = payload.loads(body, buffers)
        return CapturedException(put_together(parts, traceback_text), traceback_text)
    except DeserializeError as error:
        return CapturedException(error, "")
    except Exception as error:  # not what `dump` makes
        return CapturedException(DeserializeError(f"these bytes are no captured exception: {headline(error)}"), "")


def claims(body: Buffer, buffers: Iterable[Buffer] = ()) -> list[Any]:
    """What the receiver of a dumped exception claims: references are in the pickles of its parts."""
    _, parts = payload.loads(body, buffers)
    return [claim for part_body, part_buffers in pickles(parts) for claim in payload.claims(part_body, part_buffers)]


def _revive_nested(body: Buffer, buffers: list[Buffer]) -> CapturedException:
    """One that is part of a value; it may have references in it (`payload`)."""
    return load(body, buffers)


def _claim_nested(body: Buffer, buffers: list[Buffer]) -> list[Any]:
    return claims(body, buffers)


def _message_at_any_rate(exception: BaseException) -> str:
    try:
        return message(exception)
    except KeyboardInterrupt:
        return ""


# ---- the traceback ----------------------------------------------------------------------------------------------


def _format(exception: BaseException) -> str:
    """The traceback as Python prints it, without the frames by which this library came to call the user's code."""
    import traceback  # 3 ms of a worker's start

    try:
        if isinstance(exception, RemoteException):
            # Its text holds the first capture. What is new is only where it passed through.
            frames = traceback.extract_tb(exception.__traceback__)
            _drop_our_frames(frames)
            frames.reverse()
            _drop_our_frames(frames)  # at this end: those that waited for the further process
            frames.reverse()
            return "Passed on here:\n" + "".join(frames.format()) if frames else ""
        report = traceback.TracebackException.from_exception(exception, compact=True)
        pending = [report]
        for each in pending:  # grows while it is read
            _drop_our_frames(each.stack)
            linked = [each.__cause__, each.__context__, *(each.exceptions or ())]
            pending += [other for other in linked if other is not None]
        return "".join(report.format())
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        # Up to Python 3.12 a `__getattr__` that does not know `__notes__` is enough.
        return f"{_frames_alone(exception)}{headline(exception)}\n(its traceback: {payload.type_name(failure)})\n"


def _frames_alone(exception: BaseException) -> str:
    """Where an exception was raised, without a question to the exception's own code."""
    import traceback

    frames = traceback.extract_tb(own_attribute(exception, "__traceback__"))
    _drop_our_frames(frames)
    return "".join(["Traceback (most recent call last):\n", *frames.format()])


def _drop_our_frames(frames: list[traceback.FrameSummary]) -> None:
    """Drop the leading ones: those below the user's code may explain the error."""
    ours = 0
    while ours < len(frames) and frames[ours].filename.startswith(_OUR_FOLDER):
        ours += 1
    del frames[:ours]
