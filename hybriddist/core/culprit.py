"""After a failed pickle: which object could not be pickled, and where it sits.

The pickle is tried once more with Python's own slow pickler, which lets us watch: the objects being saved form a chain
from the value down to the one that fails. Links between them are then put into words::

    argument 1  ->  its __dict__  ->  a dict  ->  a lock         "argument 1.pool['x']"

The search is bounded in objects and in depth; beyond that only the pickler's own message tells. What this module does
not know: how the objects are taken apart (the reducer given to it does).
"""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from hybriddist.core import closures

if TYPE_CHECKING:
    from hybriddist.core.byvalue import Reducer

_MOST_OBJECTS: Final = 200_000
"""About a second of the slow pickler; a failing call should not keep its caller longer."""

_MOST_ITEMS: Final = 10_000
"""Of one container, when looking for an object's place in it."""


_IN_ITS_STATE: Final = " (in its state)"


class _GiveUpError(Exception):
    """The bound on objects is reached."""


class _Watcher(pickle._Pickler):
    """The slow pickler, which notes the chain of objects that it is saving."""

    def __init__(self, reducer: Reducer) -> None:
        super().__init__(io.BytesIO(), 5, buffer_callback=lambda _: False)
        self.chain: list[Any] = []
        self._count = 0
        self._reducer = reducer
        if reducer.dispatch_table is not None:
            self.dispatch_table = reducer.dispatch_table

    def reducer_override(self, obj: Any) -> Any:
        return self._reducer.reduce(obj)

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        self._count += 1
        if self._count > _MOST_OBJECTS:
            raise _GiveUpError
        self.chain.append(obj)
        super().save(obj, save_persistent_id)  # type: ignore[misc]
        self.chain.pop()  # not when it fails: what is left is the way to the culprit


def locate(value: Any, reducer: Reducer, labels: Sequence[str] = ()) -> tuple[Any, str] | None:
    """Find the object that cannot be pickled.

    Args:
        value: what failed to be pickled.
        reducer: as for the failed pickle, but a new one.
        labels: what the items of ``value`` are called, if it is a tuple of a call's parts; else the first is what
            ``value`` is called.

    Returns:
        The object and its place in words ("" if it is the value itself), or None if it was not found.
    """
    watcher = _Watcher(reducer)
    try:
        watcher.dump(value)
    except (_GiveUpError, RecursionError):
        return None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        chain = watcher.chain
        return (chain[-1], _describe(chain, labels)) if chain else None
    return None  # this time it worked


def _describe(chain: Sequence[Any], labels: Sequence[str]) -> str:
    """Put the links of the chain into words. Links that are only the pickler's own (state tuples) are passed over."""
    words = ""
    here = 0
    steps = 0
    while here < len(chain) - 1:
        parts = dict(_parts(chain[here]))
        # The furthest named part: an instance's attribute comes after its __dict__ in the chain.
        for there in range(len(chain) - 1, here, -1):
            name = parts.get(id(chain[there]))
            if name is not None:
                break
        else:
            if not _is_container(chain[here]) and not words.endswith(_IN_ITS_STATE):
                words += _IN_ITS_STATE  # what comes next was made by its __reduce__ or __getstate__
            here += 1
            continue
        words += _label(name, labels, steps, chain[0], words)
        here = there
        steps += 1
    if labels and type(chain[0]) is not tuple:
        return labels[0] + words
    return words if labels or not words else "value" + words


def _label(name: Any, labels: Sequence[str], step: int, value: Any, words: str) -> str:
    """One step in words; the first two speak of the call if the value is one."""
    kind, key = name
    if labels and step == 0 and kind == "item" and type(value) is tuple:
        return str(labels[key])
    if labels and step == 1 and words.endswith("argument"):
        return f" {key + 1}" if kind == "item" and isinstance(key, int) and words == "argument" else f" {key!r}"
    if kind == "item":
        return f"[{key!r}]" if isinstance(key, int | str) else f"[<{type(key).__name__}>]"
    if kind == "attribute":
        return f".{key}"
    return f" ({kind} {key!r})" if key else f" ({kind})"


def _parts(thing: Any) -> Iterator[tuple[int, tuple[str, Any]]]:
    """The address of each part that the thing has under a name, and that name: (kind, key)."""
    kind = type(thing)
    if issubclass(kind, tuple | list):
        for index, item in enumerate(thing[:_MOST_ITEMS]):
            yield id(item), ("item", index)
    elif issubclass(kind, dict):
        for _, (key, item) in zip(range(_MOST_ITEMS), dict.items(thing), strict=False):
            yield id(key), ("key", "")
            yield id(item), ("item", key)
    elif kind is types.FunctionType:
        for key, item in closures.used_globals(thing).items():
            yield id(item), ("global", key)
        for key, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=False):
            for item in closures.cell_contents(cell):
                yield id(item), ("closure variable", key)
        for item in thing.__defaults__ or ():
            yield id(item), ("default value", "")
        for key, item in (thing.__kwdefaults__ or {}).items():
            yield id(item), ("default value of", key)
    elif kind is types.MethodType:
        yield id(thing.__self__), ("attribute", "__self__")
    for key, item in _attributes(thing).items():
        yield id(item), ("attribute", key)


def _attributes(thing: Any) -> dict[str, Any]:
    """The thing's instance attributes and slots; none of its own code runs."""
    found: dict[str, Any] = {}
    for base in type(thing).__mro__:
        for key, member in base.__dict__.items():
            if isinstance(member, types.MemberDescriptorType):
                try:
                    found[key] = member.__get__(thing)
                except (AttributeError, TypeError):
                    continue  # an empty slot
    try:
        found |= object.__getattribute__(thing, "__dict__")
    except (AttributeError, TypeError):
        return found  # it has slots only
    return found


def _is_container(thing: Any) -> bool:
    return isinstance(thing, tuple | list | dict | set | frozenset)
