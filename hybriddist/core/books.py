"""Which value of a name another process has: what went out under each name of a namespace, and what came in.

A namespace is `__main__`, or a class that travels by value. Its values go along with whatever uses them, and what the
receiver has made of them since must not be undone by a value that it has had already. So every value carries a label::

    sender                                    receiver
    x = []    sent: x is (s, 4), a mark  ──►  x is set, known: s's 4
                                              x.append(1), there
    x is what the mark says              ──►  (s, 4) is known: nothing changed at the sender, x stays [1]
    x = [5]   another: x is (s, 9)       ──►  9 > 4, news: x is set

A label is the token of a process and a number that only grows there, so what overtook an older value stays. A value
that is passed on as it came keeps its label: it is no news for who has it from its origin. That is noticed for numbers,
short strings and the like; other values that are passed on are the ones of who passes them on.

What this module does not know: how a value is marked (`core/snapshots.py`), pickles, connections.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

Label = tuple[str, int]
"""The token of a process, and its number for the value."""

_CLASS_BOOK: Final = "_abc_hybriddist_book"
"""Attribute of a class. The book belongs to the class, since its marks may lead back to it: so they die together. The
prefix keeps `typing.Protocol` from counting it."""

TRAVELLED: Final = "_abc_hybriddist_travelled"
"""Attribute of a class that was rebuilt here from elsewhere."""

OWN_ATTRIBUTES: Final = frozenset({_CLASS_BOOK, TRAVELLED})
"""What this library leaves in a class."""

_SCALARS: Final = frozenset({int, str, bytes, bool, type(None)})
_LONG: Final = 1024
"""Longer strings count by identity: comparing and keeping them would cost more than setting the name again."""


class Mark(Protocol):
    """Remembers what went out under a name."""

    def matches(self, value: Any) -> bool:
        """Whether it is this value, with the content that it has now."""


class Numbers(Protocol):
    """Where numbers come from (`mainspace.Ledger`)."""

    token: str

    def tick(self) -> int:
        """The next number."""


class _Sent:
    """What went out last under a name."""

    __slots__ = ("label", "mark", "number")

    def __init__(self, label: Label, number: int, mark: Mark) -> None:
        self.label = label
        self.number = number
        self.mark = mark


class _Received:
    """What came in under a name."""

    __slots__ = ("key", "known", "label", "owner")

    def __init__(self, owner: str | None) -> None:
        self.owner = owner
        """The process whose name it is; None if it is this one's."""
        self.label: Label | None = None
        """Of the value that came last; None once another one was sent under the name."""
        self.key: Any = None
        """What tells that value from another (`scalar_or_address`)."""
        self.known: dict[str, int] = {}
        """By the token of a process: its number of the value that came last."""


class Book:
    """The values of one namespace."""

    __slots__ = ("_lock", "_received", "_sent", "_token", "latest")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token = ""
        self._sent: dict[str, _Sent] = {}
        self._received: dict[str, _Received] = {}
        self.latest = 0
        """The number of the last change that went out or came in."""

    def __reduce__(self) -> Any:
        return Book, ()  # another process begins its own

    def number(self, name: str) -> int:
        """Of what was sent last under the name, 0 if nothing was: while it stays, receivers have nothing newer."""
        sent = self._sent.get(name)
        return 0 if sent is None else sent.number

    def owner(self, name: str) -> str | None:
        """The token of the process that the name came from; None if it is this process's own."""
        received = self._received.get(name)
        return None if received is None else received.owner

    def outgoing(self, values: Mapping[str, Any], mark: Callable[[Any], Mark], numbers: Numbers) -> dict[str, Label]:
        """Note what goes out: the labels to send along."""
        self._count_by(numbers)
        labels: dict[str, Label] = {}
        for name, value in values.items():
            sent = self._sent.get(name)
            if sent is None or not sent.mark.matches(value):
                sent = self._note_sent(name, value, mark(value), numbers)
            labels[name] = sent.label
        return labels

    def _count_by(self, numbers: Numbers) -> None:
        if self._token != numbers.token:  # in a forked child, which counts anew
            self._sent.clear()
            self._token = numbers.token

    def _note_sent(self, name: str, value: Any, mark: Mark, numbers: Numbers) -> _Sent:
        received = self._received.get(name)
        before = self._sent.get(name)  # kept until the lock is free: its end may run code of the user's
        with self._lock:  # what is noted last has the highest number
            number = numbers.tick()
            label = (numbers.token, number)
            if received is not None and received.label is not None:
                if type(received.key) is tuple and received.key == scalar_or_address(value):
                    label = received.label
                else:
                    received.label = None
            sent = self._sent[name] = _Sent(label, number, mark)
            self.latest = number
        del before
        return sent

    def is_news(self, name: str, label: Label) -> bool:
        """Whether a value that arrives is newer than all that its sender sent before."""
        received = self._received.get(name)
        return received is None or label[1] > received.known.get(label[0], 0)

    def is_received(self, name: str, value: Any) -> bool:
        """Whether that is the object that came in under the name; not for numbers and the like."""
        received = self._received.get(name)
        return received is not None and received.key == id(value)

    def accept(self, name: str, value: Any, label: Label, owner: str | None, numbers: Numbers) -> None:
        """Note that a value has come in and is in its place.

        Args:
            owner: the process whose name it is; None leaves that as it is.
        """
        received = self._received.get(name)
        if received is None:
            received = self._received[name] = _Received(owner)
        elif owner is not None:
            received.owner = owner
        received.known[label[0]] = max(label[1], received.known.get(label[0], 0))
        received.label, received.key = label, scalar_or_address(value)
        self._sent.pop(name, None)
        self.latest = numbers.tick()

    def forget(self, names: Iterable[str]) -> None:
        """Whatever comes next under the names is news."""
        for name in names:
            received = self._received.get(name)
            if received is not None:
                received.known.clear()

    # ---- what all processes do alike ----------------------------------------------------------------------------

    def announce(self, names: Iterable[str], numbers: Numbers) -> dict[str, int]:
        """Numbers for values that this process and others are about to get without their being sent."""
        self._count_by(numbers)
        announced = {name: numbers.tick() for name in names}
        for name, number in announced.items():
            self._sent.pop(name, None)
            self.latest = number
        return announced

    def unchanged(self, names: Iterable[str], values: Mapping[str, Any]) -> list[str]:
        """Those of the names whose values are what was sent last."""
        found = ((name, self._sent.get(name)) for name in names if name in values)
        return [name for name, sent in found if sent is not None and sent.mark.matches(values[name])]

    def settle(self, name: str, label: Label, mark: Mark) -> None:
        """This process has the value that it announced, unless another was sent meanwhile."""
        if name not in self._sent:
            self._sent[name] = _Sent(label, label[1], mark)

    def renew(self, name: str, mark: Mark) -> None:
        """The others have done to their values what was done to this one."""
        sent = self._sent.get(name)
        if sent is not None:
            self._sent[name] = _Sent(sent.label, sent.number, mark)


def scalar_or_address(value: Any) -> Any:
    """What tells one value from another: (type, value) for short scalars, else the object's address, which may be used
    again after the object died."""
    kind = type(value)
    if kind in _SCALARS and (kind is int or kind is bool or value is None or len(value) <= _LONG):
        return (kind, value)
    if kind is float:
        return (kind, value.hex())  # -0.0 equals 0.0, and nan does not equal itself
    return id(value)


# ---- classes --------------------------------------------------------------------------------------------------------


def of_class(cls: type[Any]) -> Book:
    """The book of a class, begun when first asked for."""
    book = cls.__dict__.get(_CLASS_BOOK)
    if type(book) is not Book:
        book = Book()
        _leave(cls, _CLASS_BOOK, book)
    return book


def number_of_class(cls: type[Any]) -> int:
    """Of the last change of an attribute that went out or came in; 0 if there was none."""
    book = cls.__dict__.get(_CLASS_BOOK)
    return book.latest if type(book) is Book else 0


def mark_as_travelled(cls: type[Any]) -> None:
    """Have a class that was made here say that it is at home elsewhere."""
    _leave(cls, TRAVELLED, True)


def is_at_home(cls: type[Any]) -> bool:
    """Whether the class was defined in this process."""
    return TRAVELLED not in cls.__dict__


def _leave(cls: type[Any], name: str, value: Any) -> None:
    try:
        type.__setattr__(cls, name, value)  # its metaclass may have a __setattr__ that has it do something
    except TypeError:  # the metaclass is one of C code, as that of ctypes.Structure
        setattr(cls, name, value)
