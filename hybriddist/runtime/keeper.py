"""`Keeper`: a backing store of the user's own behind a `RemoteChannel`.

Its operations are the user's code: they run on executing threads, and block them for as long as they like. They know
nothing of timeouts, so a take that is given up leaves its thread behind, in the store. It is not lost for that: the
next one who wants to take with the same arguments does not begin another take, but gets what that one brings.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hybriddist.core.messages import Outcome
from hybriddist.deadline import Deadline
from hybriddist.runtime.completion import Completion

if TYPE_CHECKING:
    from hybriddist.runtime.process import Process


class Taking(Completion):
    """One take from a store; ends with VALUE and the item, or with ERROR and the exception."""

    __slots__ = ("args",)

    def __init__(self, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.args = args

    def result(self) -> Any:
        """What it brought."""
        if self.outcome == Outcome.ERROR:
            raise self.content
        return self.content


def _wait_for(taking: Taking) -> None:
    taking.wait()


class Keeper:
    """A store, and the takes from it that nobody waits for any more."""

    __slots__ = ("_forsaken", "_lock", "store")

    def __init__(self, store: Any) -> None:
        self.store = store
        self._lock = allocate_lock()
        self._forsaken: list[Taking] = []
        """As many as there were takes that were given up, and no more."""

    def begin(self, args: tuple[Any, ...]) -> tuple[Taking, Callable[[], None]]:
        """A take: what will end, and what has to be called for that, on a thread that may block."""
        with self._lock:
            earlier = next((taking for taking in self._forsaken if taking.args == args), None)
            if earlier is not None:
                self._forsaken.remove(earlier)
                return earlier, partial(_wait_for, earlier)
        taking = Taking(args)

        def run() -> None:
            try:
                taking.complete(Outcome.VALUE, self.store.take(*args))
            except BaseException as error:
                taking.complete(Outcome.ERROR, error)

        return taking, run

    def forsake(self, taking: Taking) -> None:
        """Nobody waits for this one any more, or what it has brought could not be handed over."""
        with self._lock:
            if taking.outcome != Outcome.ERROR and taking not in self._forsaken:
                self._forsaken.append(taking)

    def give_back(self, args: tuple[Any, ...], item: Any) -> None:
        """What ``take(*args)`` has brought, and did not reach its taker."""
        taking = Taking(args)
        taking.complete(Outcome.VALUE, item)
        self.forsake(taking)

    def call(self, verb: str, args: tuple[Any, ...]) -> Any:
        """An operation of the store; runs user code, and blocks as long as the store does."""
        if verb == "take":
            taking, run = self.begin(args)
            try:
                run()
            except BaseException:
                self.forsake(taking)
                raise
            return taking.result()
        if self._forsaken and verb in ("fetch", "wait", "isready", "isempty"):
            for taking in list(self._forsaken):
                if taking.done and taking.outcome == Outcome.VALUE and taking.args == args:
                    return {"isready": True, "isempty": False}.get(verb, taking.content)
        if not hasattr(self.store, verb):  # what a store need not have
            if verb == "isempty":
                return not self.store.isready(*args)
            if verb == "isopen":
                return True
        return getattr(self.store, verb)(*args)

    def call_within(self, process: Process, verb: str, args: tuple[Any, ...], timeout: float) -> Any:
        """As `call`, on a thread that can be left behind.

        Raises:
            TimeoutError: it did not end within ``timeout`` seconds. What it takes is not lost.
        """
        deadline = Deadline(timeout)
        if verb == "take":
            taking, run = self.begin(args)
        else:
            taking = Taking(args)

            def run() -> None:
                try:
                    taking.complete(Outcome.VALUE, self.call(verb, args))
                except BaseException as error:
                    taking.complete(Outcome.ERROR, error)

        process.start()
        process.executor.submit(run)
        try:
            if not taking.wait(deadline):
                raise TimeoutError(f"{verb} of {type(self.store).__name__} did not end within {timeout} seconds")
        except BaseException:
            if verb == "take":
                self.forsake(taking)
            raise
        return taking.result()
