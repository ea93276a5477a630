"""A deadline: one end in time, made once from a timeout and asked by every step on the way.

A *timeout* is a duration in seconds (``None``: no limit); a *deadline* is absolute. Nobody passes a raw timeout
down a chain of calls, where each step would begin to count anew. Only the monotonic clock is read.
"""

from __future__ import annotations

import math
from _thread import TIMEOUT_MAX
from time import monotonic
from typing import Any, Final


class Deadline:
    """An absolute end in monotonic time, or none.

    Args:
        timeout: seconds from now, any kind of number; ``None`` for no limit, and so is what no lock can wait for
            (some hundred years, or infinity). Negative counts as zero.

    Raises:
        TypeError: it is no number.
        ValueError: it is not-a-number.

    Example:
        >>> Deadline(None).remaining() is None
        True
        >>> Deadline(0).expired()
        True
    """

    __slots__ = ("_end",)

    def __init__(self, timeout: float | None) -> None:
        seconds = math.inf if timeout is None else seconds_of(timeout)
        self._end = None if seconds > TIMEOUT_MAX else monotonic() + max(0.0, seconds)

    def remaining(self) -> float | None:
        """Seconds left, never negative; ``None`` without a limit."""
        return None if self._end is None else max(0.0, self._end - monotonic())

    def expired(self) -> bool:
        """Whether the end has come."""
        return self._end is not None and monotonic() >= self._end

    def sooner(self, timeout: float | None) -> Deadline:
        """The earlier of this deadline and ``timeout`` seconds from now."""
        other = Deadline(timeout)
        if self._end is not None and (other._end is None or self._end < other._end):
            return self
        return other


def seconds_of(timeout: Any, name: str = "timeout") -> float:
    """A timeout as a float.

    Args:
        timeout: any kind of number.
        name: of the argument, for the message.

    Raises:
        TypeError: it is no number.
        ValueError: it is not-a-number.
    """
    kind = type(timeout)
    if kind is bool or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        raise TypeError(f"{name} must be a number of seconds or None, not {kind.__name__}")
    try:
        seconds = float(timeout)
    except OverflowError:  # a whole number without any sense of measure
        return math.inf if timeout > 0 else 0.0
    if math.isnan(seconds):
        raise ValueError(f"{name} must be a number of seconds or None, not nan")
    return seconds


NEVER: Final = Deadline(None)
"""No deadline."""
