"""Classes by value: made once in each process, and kept as they are there until they change where they come from.

cloudpickle takes a class apart into what makes an empty one and the attributes that fill it; a tracking id tells the
receiver that it has the class already. These are ours::

    there ─ id, how it is made ─►  known here: that class.  Otherwise made, which runs the hooks of its bases
          ─ attributes, labels ─►  at home here: it stays as it is.  Otherwise those that are news are set

* A class that is known is not made again to be thrown away: `__init_subclass__` and metaclasses would run for each
  object that arrives.
* A class at home keeps its own attributes, which may be newer than those that come back.
* A class elsewhere is state, as globals are: a list in it that grew there stays, until it changes at the sender. So
  each attribute has a label (`core/books.py`).
* Slots are slots there as well: its objects could not come home otherwise.

What this module does not know: which classes go by value (cloudpickle does), functions, pickles.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from hybriddist.core import books, contents, mainspace
from hybriddist.core.marks import attribute_mark

_IDENTITY: Final = {6: 4, 7: 5}
"""Where cloudpickle's arguments for a class, or for an enum, have the tracking id."""

_NAMESPACE: Final = 3
"""Where those for a class have its first namespace."""

_IMMUTABLE: Final = 1 << 8
"""Flag of a class of C code that takes no attributes."""


def reduce_class(cls: type[Any], reduction: tuple[Any, ...]) -> tuple[Any, ...]:
    """How a class is taken apart.

    Args:
        cls: the class.
        reduction: cloudpickle's, with six parts.
    """
    make, arguments, (attributes, slots), _, _, fill = reduction
    if cls.__flags__ & _IMMUTABLE or len(arguments) not in _IDENTITY:
        return reduction
    attributes = {name: value for name, value in attributes.items() if name not in books.OWN_ATTRIBUTES}
    if len(arguments) == 6:
        attributes |= _repeated(cls, attributes)
        # With its first namespace, since another thread may find the class as soon as it is made.
        namespace = {**arguments[_NAMESPACE], books.TRAVELLED: True}
        names = _slots(cls)
        if names is not None:
            namespace["__slots__"] = names
            attributes = {name: value for name, value in attributes.items() if not _is_slot(cls, name)}
        arguments = (*arguments[:_NAMESPACE], namespace, *arguments[_NAMESPACE + 1 :])
    ledger = mainspace.ledger()
    numbered = {name: value for name, value in attributes.items() if name not in contents.OF_ANY_CLASS}
    labels = books.of_class(cls).outgoing(numbered, attribute_mark, ledger)
    identity = arguments[_IDENTITY[len(arguments)]]
    return make_class, (identity, make, arguments), (fill, attributes, slots, labels), None, None, fill_class


def make_class(identity: str, make: Callable[..., Any], arguments: tuple[Any, ...]) -> type[Any]:
    """The class of that identity: the one that is here, or a new one, still without its attributes."""
    from cloudpickle import cloudpickle

    known: Mapping[str, type[Any]] = getattr(cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_ID", {})
    found = known.get(identity)
    if found is None:
        found = make(*arguments)
        if books.is_at_home(found):  # an enum, whose first namespace is its members
            books.mark_as_travelled(found)
    return found


def fill_class(cls: type[Any], state: tuple[Any, ...]) -> None:
    """Give a class the attributes that are news here, unless it is at home: then its own definition counts."""
    if books.is_at_home(cls):
        return
    fill, attributes, slots, labels = state
    book, ledger = books.of_class(cls), mainspace.ledger()
    news = {
        name: value
        for name, value in attributes.items()
        if name not in labels or name not in cls.__dict__ or book.is_news(name, labels[name])
    }
    fill(cls, (news, slots))
    # Noted when they are there: another thread that has the class too would go on without them.
    for name in news.keys() & labels.keys():
        book.accept(name, news[name], labels[name], None, ledger)


def _repeated(cls: type[Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of its own that are the very objects that a base has: cloudpickle leaves them out, but where the
    class goes the base's may be others meanwhile."""
    return {
        name: value
        for name, value in cls.__dict__.items()
        if name not in attributes
        and name not in contents.OF_ANY_CLASS
        and any(base.__dict__.get(name, cls) is value for base in cls.__bases__)
    }


def _is_slot(cls: type[Any], name: str) -> bool:
    part = cls.__dict__.get(name)
    return isinstance(part, types.MemberDescriptorType) and part.__objclass__ is cls


def _slots(cls: type[Any]) -> tuple[str, ...] | None:
    """The slots to make the class with; None for a class without, or whose metaclass adds them."""
    if "__slots__" not in cls.__dict__ or typing.NamedTuple in cls.__dict__.get("__orig_bases__", ()):
        return None
    special = [name for name in ("__dict__", "__weakref__") if name in cls.__dict__]
    return (*(name for name in cls.__dict__ if _is_slot(cls, name)), *special)
