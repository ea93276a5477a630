"""The receiver's side of "it runs in the worker's `__main__`": which globals came from where.

A function of `__main__` travels with the globals it uses, and they are put into the receiver's `__main__`. Doing just
that would harm in two ways: a worker's counter or list would be set back with each call, and an object that comes home
to the script would bring stale copies of the script's own variables. So each process keeps a ledger::

    script                                   worker
    x = 1;  f reads x  ── x=1 of "script" ─►  x is set, ledger: x is the script's, and its value number 4
                                              f rebinds x to 2
    f again            ── x=1, number 4  ──►  known: x stays 2
    x = 5              ── x=5, number 7  ──►  news: x is set
    x stays 5          ◄─ x=2 of "script" ──  f, or an object whose class uses x, comes back: x is ours, it stays

`core/books.py` has the numbers; classes that travel have books of their own. The ledger lives in the namespace it
describes, under one name, so that it is replaced together with it.

What `everywhere` runs on several processes, its caller among them, assigns names there without sending values. The
caller announces numbers for them beforehand, and who has run the code without an error notes that it has these. Names
that the code only reads may change by it too (`x.append(1)`): if the others had what the caller had, they still do.

What this module does not know: pickles, connections, processes other than by their token.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from hybriddist.core.books import Book, Label, Mark, number_of_class
from hybriddist.records import Record

_KEY: Final = "__hybriddist_ledger__"


def namespace() -> dict[str, Any]:
    """The globals of this process's `__main__`."""
    return sys.modules["__main__"].__dict__


def ledger() -> Ledger:
    """The ledger of this process's `__main__`, begun when first asked for, and anew in a forked child."""
    main = namespace()
    found = main.get(_KEY)
    if type(found) is Ledger and found.ospid == os.getpid():
        return found
    found = main[_KEY] = Ledger()
    return found


class Announcement(Record):
    """Names that several processes are about to define alike."""

    token: str
    """Of the process that has them do it, and does it itself."""

    numbers: Mapping[str, int]
    """For the names that are assigned."""

    read: tuple[str, ...]
    """Names that are read, and whose values may change by that."""


class Ledger:
    """What came into a `__main__` from elsewhere, and what went out.

    Attributes:
        token: names this process in what it sends.
        book: the values of the globals.
        changes: another number whenever anything that went out or came in differs from the time before, be it of a
            global or of a class. While it stays, what was sent last is what a receiver has.
    """

    __slots__ = ("_numbers", "book", "changes", "ospid", "token")

    def __init__(self) -> None:
        self.ospid = os.getpid()
        self.token = os.urandom(8).hex()
        self.book = Book()
        self.changes = 0
        self._numbers = itertools.count(1)

    def __reduce__(self) -> Any:
        return Ledger, ()  # another process begins its own

    def tick(self) -> int:
        """The next number."""
        number = self.changes = next(self._numbers)
        return number

    def number(self, key: str | type[Any]) -> int:
        """Of what was sent last of a global, or of a class."""
        return self.book.number(key) if isinstance(key, str) else number_of_class(key)

    def outgoing(
        self, values: Mapping[str, Any], mark: Callable[[Any], Mark]
    ) -> tuple[dict[str, Label], dict[str, str]]:
        """Note what goes out.

        Args:
            values: names and their values.
            mark: makes the marks (`core/snapshots.py`).

        Returns:
            The labels of the values, and the tokens of the names that are not this process's own. Both must go along.
        """
        labels = self.book.outgoing(values, mark, self)
        owners = ((name, self.book.owner(name)) for name in values)
        return labels, {name: owner for name, owner in owners if owner is not None}

    def incoming(
        self, values: Mapping[str, Any], sender: str, labels: Mapping[str, Label], foreign: Mapping[str, str]
    ) -> None:
        """Put into `__main__` what is news here.

        Args:
            values: names and values that arrived.
            sender: the token of the process that sent them.
            labels: of the values.
            foreign: tokens of the names that were not the sender's own.
        """
        main = namespace()
        news: list[str] = []
        kept: dict[int, Any] = {}  # what is here already, by the address of the copy that came now
        for name, label in labels.items():
            if name not in main:
                news.append(name)
            elif foreign.get(name, sender) == self.token or label[0] == self.token:
                continue
            elif self.book.is_news(name, label):
                news.append(name)
            elif self.book.is_received(name, main[name]):
                kept[id(values[name])] = main[name]
        for name in news:
            value = main[name] = kept.get(id(values[name]), values[name])  # two names of one object are so here
            self.book.accept(name, value, labels[name], foreign.get(name, sender), self)

    # ---- what `everywhere` defines ------------------------------------------------------------------------------

    def announce(self, assigned: Iterable[str], read: Iterable[str] = ()) -> Announcement:
        """Say what this process is about to define together with others."""
        return Announcement(self.token, self.book.announce(assigned, self), tuple(read))

    @contextmanager
    def defining(self, announcement: Announcement, mark: Callable[[Any], Mark]) -> Iterator[None]:
        """Around the code, on each process. If it raises, nothing is known of the names."""
        main = namespace()
        is_ours = announcement.token == self.token
        unchanged = self.book.unchanged(announcement.read, main) if is_ours else []
        own = {name for name in announcement.numbers if name in main and self.book.owner(name) is None}
        yield
        for name in unchanged:
            if name in main:
                self.book.renew(name, mark(main[name]))
        for name, number in announcement.numbers.items():
            if name not in main:  # deleted again
                continue
            if is_ours:
                self.book.settle(name, (self.token, number), mark(main[name]))
            else:
                owner = None if name in own else announcement.token
                self.book.accept(name, main[name], (announcement.token, number), owner, self)
