"""Objects that do something bad at a moment that libraries do not expect: while pickled, unpickled, or dying.

Imported by workers as well as by tests, so it imports little.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import Any, NoReturn

EXIT_CODE = 7


def commit(deed: str) -> NoReturn:
    """Fail, try to leave, or die in one of two ways."""
    if deed == "exit":
        os._exit(EXIT_CODE)
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "leave":
        raise SystemExit(3)
    raise ValueError("this was to be expected")


class Bomb:
    """Goes off when it is pickled, or when it is unpickled."""

    def __init__(self, stage: str, deed: str) -> None:
        self._fields = stage, deed

    def __reduce__(self) -> Any:
        stage, deed = self._fields
        if stage == "pickle":
            commit(deed)
        return light, (Bomb, stage, deed)


class GuiltyError(Exception):
    """The same as an exception."""

    def __init__(self, stage: str, deed: str) -> None:
        super().__init__("the guilty one")
        self._fields = stage, deed

    def __reduce__(self) -> Any:
        stage, deed = self._fields
        if stage == "pickle":
            commit(deed)
        return light, (GuiltyError, stage, deed)


def light(kind: Any, stage: str, deed: str) -> Any:
    """What unpickling calls."""
    if stage == "unpickle":
        commit(deed)
    return kind(stage, deed)


class LastWords:
    """Goes off when it dies, in any process but the one in which it was made."""

    def __init__(self, deed: str, ospid: int | None = None) -> None:
        self._deed = deed
        self._ospid = ospid or os.getpid()

    def __reduce__(self) -> Any:
        return LastWords, (self._deed, self._ospid)

    def __del__(self) -> None:
        if os.getpid() != self._ospid:
            commit(self._deed)


# ---- functions to be called on workers ------------------------------------------------------------------------------


def take(_thing: Any) -> str:
    return "taken"


def give(fields: tuple[str, str]) -> Bomb:
    return Bomb(*fields)


def fail(fields: tuple[str, str]) -> NoReturn:
    raise GuiltyError(*fields)


def run(fields: tuple[str, str]) -> NoReturn:
    commit(fields[1])


def collect(thing: Any) -> str:
    """Have the thing die of the garbage collection, in the middle of a call."""
    cycle: list[Any] = [thing]
    cycle.append(cycle)
    del cycle, thing
    gc.collect()
    return "taken"
