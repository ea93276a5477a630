"""What is the same for all references: who they are. What this module does not know: what is behind one."""

from __future__ import annotations

from typing import Any, Final, Self

from hybriddist.ids import RRID
from hybriddist.runtime.process import Process

DEAD: Final = RRID(0, 0)
"""Of references that went through something that is no cluster."""


class Reference:
    """A handle to something that a process of the cluster holds.

    Equal are those to the same thing; within a process there is one handle for each. A copy is the handle itself: a
    reference has no parts.
    """

    __slots__ = ("__weakref__", "_process", "_rrid", "where")

    _process: Process
    _rrid: RRID
    where: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other._rrid == self._rrid

    def __hash__(self) -> int:
        return hash(self._rrid)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self  # copying would go through `__reduce__`


__all__ = ["DEAD", "Reference"]
