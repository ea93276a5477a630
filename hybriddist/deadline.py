"""A deadline: one end in time, made once from a timeout and asked by every step on the way.

A *timeout* is a duration in seconds (``None``: no limit); a *deadline* is absolute. Nobody passes a raw timeout
down a chain of calls, where each step would begin to count anew. Only the monotonic clock is read.
"""

from __future__ import annotations

from time import monotonic
from typing import Final


class Deadline:
    """An absolute end in monotonic time, or none.

    Args:
        timeout: seconds from now; ``None`` for no limit. Negative counts as zero.

    Example:
        >>> Deadline(None).remaining() is None
        True
        >>> Deadline(0).expired()
        True
    """

    __slots__ = ("_end",)

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not isinstance(timeout, int | float):
            raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout).__name__}")
        self._end = None if timeout is None else monotonic() + max(0.0, timeout)

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


NEVER: Final = Deadline(None)
"""No deadline."""
