"""What an object that may change is made of, in a form that can be compared later.

Each reader gives a tuple of the object's parts, which are compared by identity, or something that is compared by
equality. A reader runs no code of the object but `__hash__`. An object is not kept alive by what is remembered of it,
if its type allows that: a channel that was a global goes when its user lets go of it. What this module does
not know: which objects are worth it, and why they are compared (`core/snapshots.py`).
"""

from __future__ import annotations

import collections
import operator
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any, Final

from hybriddist.core import books


class Held(weakref.ref[Any]):
    """An object that is not kept alive, and something that is remembered of it for as long as it lives."""

    __slots__ = ("content",)

    content: Any


def _let_go(held: Any) -> None:
    held.content = None


def held(value: Any, content: Any = None) -> Any:
    """``value``, not kept alive: a `Held`; of a type that does not allow that, ``value`` itself.

    So is an array, of which only small ones are remembered: while somebody refers to it weakly, numpy refuses to resize
    it in place.
    """
    if is_plain_array(value):
        return value
    try:
        found = Held(value, _let_go)
    except TypeError:
        return value
    found.content = content
    return found


def holds(held: Any, value: Any) -> bool:
    """Whether it is this value that is held."""
    return (held() if type(held) is Held else held) is value


Content = tuple[Callable[[Any], Any], Any, Any]
"""A reader, an object, and what was read of it; or a reader, a `Held`, and None."""

SEQUENCES: Final = frozenset({list, set, collections.deque})
"""Types whose content is their items."""

MAPPINGS: Final = frozenset({dict, collections.OrderedDict, collections.Counter})
"""Types whose content is their keys and values, in order."""

SIZED: Final = (list, set, dict, collections.deque)
"""Of these the length says whether the content is worth comparing."""

_UNBOUND: Final = object()

OF_ANY_CLASS: Final = frozenset(
    {"__dict__", "__weakref__", "__doc__", "__annotations__", "__dataclass_fields__", "__dataclass_params__",
     "__match_args__", "__static_attributes__", "__firstlineno__", "__annotate_func__", "__annotations_cache__",
     "__slots__", "__slotnames__", "_abc_impl"}
    | books.OWN_ATTRIBUTES
)  # fmt: skip
"""Attributes of a class that no run depends on, or that follow from the others."""


def is_unchanged(entry: Content) -> bool:
    read, value, before = entry
    if type(value) is Held:
        before = value.content
        value = value()
    try:
        now = read(value)
        if type(before) is tuple:  # by identity: 1, 1.0 and True are equal
            return len(now) == len(before) and all(map(operator.is_, now, before))
        return bool(now == before)
    except Exception:  # changed by another thread meanwhile, or its __hash__ raises
        return False


def keys_and_values(value: dict[Any, Any]) -> tuple[Any, ...]:
    return (*value, *value.values())


def default_dict(value: collections.defaultdict[Any, Any]) -> tuple[Any, ...]:
    return (value.default_factory, *value, *value.values())


def attributes(value: Any) -> tuple[Any, ...]:
    """The attributes of an object of a class written in Python: names and values, and what is in its slots."""
    found: list[Any] = []
    for base in type(value).__mro__:
        for member in base.__dict__.values():
            if isinstance(member, types.MemberDescriptorType):
                found.append(member.__get__(value) if _is_bound(member, value) else _UNBOUND)
    return (*found, *keys_and_values(getattr(value, "__dict__", {})))


def _is_bound(member: types.MemberDescriptorType, value: Any) -> bool:
    try:
        member.__get__(value)
    except AttributeError:
        return False
    return True


def class_parts(cls: type) -> tuple[Any, ...]:
    attributes = {name: part for name, part in cls.__dict__.items() if name not in OF_ANY_CLASS}
    return (*attributes, *attributes.values())


def is_generated(part: Any) -> bool:
    """Whether it is a method that `dataclasses` made: its code follows from the fields, its globals are its own."""
    code = getattr(getattr(part, "__wrapped__", part), "__code__", None)
    return isinstance(code, types.CodeType) and code.co_qualname.startswith("__create_fn__.")


def is_plain_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject


def array_bytes(value: Any) -> list[Any]:
    return [value.dtype, value.shape, value.tobytes()]
