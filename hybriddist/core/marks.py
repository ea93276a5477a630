"""What went out under a name, remembered so that the next time it is seen whether that is still it.

A number, a short string and the like is compared by its value; everything else is the same object with the same content
(`core/snapshots.py`), and what cannot be compared never is the same. What this module does not know: names, and what
follows from it (`core/books.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from hybriddist.core import contents
from hybriddist.core.books import Mark, scalar_or_address
from hybriddist.core.snapshots import Snapshot


class ValueMark:
    """Of a global of `__main__`, or of an attribute of a class (`books.Mark`)."""

    __slots__ = ("_key", "_snapshot", "_value")

    def __init__(self, value: Any, *, is_attribute: bool = False) -> None:
        key = scalar_or_address(value)
        self._key = key if type(key) is tuple else None
        self._snapshot: Snapshot | None = None
        self._value: Any = None
        if self._key is None:
            self._snapshot = Snapshot.of_value(value, is_attribute=is_attribute)
            if self._snapshot is not None:
                self._value = contents.held(value)

    def matches(self, value: Any) -> bool:
        """Whether it is the same value, and certainly has the same content."""
        if self._key is not None:
            return bool(scalar_or_address(value) == self._key)
        return self._snapshot is not None and contents.holds(self._value, value) and self._snapshot.is_current(value)


attribute_mark: Final[Callable[[Any], Mark]] = functools.partial(ValueMark, is_attribute=True)
"""A mark of what stands in a class: methods, properties and the like are what their functions are."""
