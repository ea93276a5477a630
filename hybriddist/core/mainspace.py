"""The receiver's side of "it runs in the worker's `__main__`": which globals came from where.

A function of `__main__` travels with the globals it uses, and they are put into the receiver's `__main__`. Doing just
that would harm in two ways: a worker's counter would be set back with each call, and an object that comes home to the
script would bring stale copies of the script's own variables. So each process keeps a ledger of what it received::

    script                                   worker
    x = 1;  f reads x  ── x=1 of "script" ─►  x is set, ledger: x = 1 of "script"
                                              f rebinds x to 2
    f again            ── x=1 of "script" ─►  the ledger has x = 1: nothing changed there, x stays 2
    x = 5              ── x=5 of "script" ─►  news: x is set
    x stays 5          ◄─ x=2 of "script" ──  f, or an object whose class uses x, comes back: x is ours, it stays

The ledger lives in the namespace it describes, under one name, so that it is replaced together with it. What this
module does not know: pickles, connections, processes other than by their token.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

_KEY: Final = "__hybriddist_ledger__"
_SCALARS: Final = frozenset({int, str, bytes, bool, type(None)})
_LONG: Final = 1024
"""Longer strings count by identity: comparing and keeping them would cost more than setting the name again."""


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


class Mark(Protocol):
    """Remembers what went out under a name."""

    def matches(self, value: Any) -> bool:
        """Whether it is this value, with the content that it has now."""


class Ledger:
    """What came into a `__main__` from elsewhere, and what went out.

    Attributes:
        token: names this process in what it sends.
        versions: how often a name has gone out with another value, or another content, than the time before. While
            it stays, what was sent last is what a receiver has.
        changes: the sum of the versions.
    """

    __slots__ = ("changes", "ospid", "received", "sent", "token", "versions")

    def __init__(self) -> None:
        self.ospid = os.getpid()
        self.token = os.urandom(8).hex()
        self.changes = 0
        self.versions: dict[str, int] = {}
        self.received: dict[str, tuple[str, Any]] = {}
        self.sent: dict[str, Mark] = {}

    def outgoing(self, values: Mapping[str, Any], mark: Callable[[Any], Mark]) -> dict[str, str]:
        """Note what goes out.

        Args:
            values: names and their values.
            mark: makes the marks (`core/snapshots.py`).

        Returns:
            The tokens of the names that are not this process's own, which must go along.
        """
        foreign: dict[str, str] = {}
        for name, value in values.items():
            before = self.sent.get(name)
            if before is None or not before.matches(value):
                self.versions[name] = self.versions.get(name, 0) + 1
                self.sent[name] = mark(value)
                self.changes += 1
            if name in self.received:
                foreign[name] = self.received[name][0]
        return foreign

    def incoming(self, values: Mapping[str, Any], sender: str, foreign: Mapping[str, str]) -> None:
        """Put into `__main__` what is news here.

        Args:
            values: names and values that arrived.
            sender: the token of the process that sent them.
            foreign: tokens of the names that were not the sender's own.
        """
        main = namespace()
        for name, value in values.items():
            owner = foreign.get(name, sender)
            entry = (owner, scalar_or_address(value))
            known = name in main
            if known and (owner == self.token or (type(entry[1]) is tuple and self.received.get(name) == entry)):
                continue
            main[name] = value
            self.received[name] = entry


def scalar_or_address(value: Any) -> Any:
    """What tells one value of a name from another: (type, value) for short scalars, else the object's identity.

    An address may be used again after the object died. The worst that follows is that an unchanged version hides
    a change from a function cache, whose own check holds the objects and so keeps their addresses taken.
    """
    kind = type(value)
    if kind in _SCALARS and (kind is int or kind is bool or value is None or len(value) <= _LONG):
        return (kind, value)
    if kind is float:
        return (kind, value.hex())  # -0.0 equals 0.0, and nan does not equal itself
    return id(value)
