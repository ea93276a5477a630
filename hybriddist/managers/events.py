"""Functions of the user's that hear of workers coming and going.

::

    addprocs ── starting(manager, params) ── launch, join ── started(pid) ──► returns
    rmprocs  ── exiting(pid), for a limited time ── it leaves ── exited(pid, reason)
    a death  ─────────────────────────────────────────────────── exited(pid, reason)

"starting" and "started" run on the thread that called `addprocs`, which raises what they raise: before anything is
started, or with the workers staying. The others run on threads of the library, and what they raise is shown on stderr:
a worker that goes cannot be held up by an error. Who is slow is named on stderr as well.

What this module does not know: when any of this happens (``launching.py``, ``removing.py``, ``driver.py``).
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from hybriddist import limits
from hybriddist.errors import CompositeException

EVENTS: Final = {
    "starting": ("manager", "params"),
    "started": ("pid",),
    "exiting": ("pid",),
    "exited": ("pid", "reason"),
}
"""Each event, and what its functions are called with."""


Spawn = Callable[[Callable[[], None], str], object]
"""Runs a function on a thread of its own, with a name."""


class Events:
    """The functions of one cluster, in the order in which they were added.

    Attributes:
        slow_seconds: a function that runs for longer is named on stderr.
        waiting_seconds: how long those of "exiting" and of "exited" may hold up a removal, each time.
    """

    def __init__(self) -> None:
        self.slow_seconds = limits.SLOW_CALLBACK_SECONDS
        self.waiting_seconds = limits.EXITING_CALLBACK_SECONDS
        self._functions: dict[Hashable, tuple[str, Callable[..., Any]]] = {}
        self._keys = itertools.count(1)
        self._lock = threading.Lock()

    def add(self, event: str, function: Callable[..., Any], key: Hashable = None) -> Hashable:
        """Add a function; its key.

        Raises:
            ValueError: there is no such event, or the key is taken.
            TypeError: it is no function, or cannot be called with what the event brings.
        """
        if event not in EVENTS:
            raise ValueError(f"event must be one of {', '.join(map(repr, EVENTS))}, not {event!r}")
        _check_function(event, function)
        with self._lock:
            if key is None:
                key = next(number for number in self._keys if number not in self._functions)
            elif key in self._functions:
                raise ValueError(f"key {key!r} is taken, by a function for {self._functions[key][0]!r}: off_worker it")
            self._functions[key] = (event, function)
        return key

    def remove(self, key: Hashable) -> None:
        """Call a function no more.

        Raises:
            ValueError: no function has this key.
        """
        with self._lock:
            if self._functions.pop(key, None) is None:
                raise ValueError(f"no function has the key {key!r}: on_worker returns keys")

    def starting(self, manager: Any, params: dict[str, Any]) -> None:
        """Before a launch. Raises what the first function that fails raises; the others are not called."""
        for function in self._of("starting"):
            with self._watched("starting", function):
                function(manager, dict(params))

    def started(self, pids: Sequence[int]) -> None:
        """After a launch. Every function is called for every worker; then a failure is raised, several together."""
        failures: list[Exception] = []
        for pid in pids:
            for function in self._of("started"):
                try:
                    with self._watched("started", function):
                        function(pid)
                except Exception as error:
                    error.add_note(f'raised by an on_worker("started") function for worker {pid}, which stays')
                    failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise CompositeException("functions for started workers failed; the workers stay", failures, pids)

    def exiting(self, pid: int, spawn: Spawn, seconds: float) -> None:
        """Before a worker is asked to leave; waits for the functions for at most ``seconds``."""
        self._in_time("exiting", (pid,), spawn, seconds)

    def exited(self, pid: int, reason: str, spawn: Spawn, seconds: float) -> None:
        """After a worker's end; waits as `exiting` does."""
        self._in_time("exited", (pid, reason), spawn, seconds)

    def __len__(self) -> int:
        return len(self._functions)

    # ---- inside -----------------------------------------------------------------------------------------------

    def _of(self, event: str) -> list[Callable[..., Any]]:
        with self._lock:
            return [function for of, function in self._functions.values() if of == event]

    def _in_time(self, event: str, args: tuple[Any, ...], spawn: Spawn, seconds: float) -> None:
        functions = self._of(event)
        if not functions:
            return
        done = threading.Event()

        def call() -> None:
            try:
                for function in functions:
                    self._call_and_show(event, function, *args)
            finally:
                done.set()

        spawn(call, f"hybriddist-{event}-{args[0]}")
        if not done.wait(min(seconds, self.waiting_seconds)):
            _say(f"the on_worker({event!r}) functions for worker {args[0]} take too long: they are not waited for")

    def _call_and_show(self, event: str, function: Callable[..., Any], *args: Any) -> None:
        try:
            with self._watched(event, function):
                function(*args)
        except BaseException:  # also a sys.exit: it would end a thread of ours, and nobody would know
            import traceback  # 3 ms of a start, for what is rare

            _say(f"the on_worker({event!r}) function {_name(function)} failed for worker {args[0]}:")
            traceback.print_exc()

    @contextmanager
    def _watched(self, event: str, function: Callable[..., Any]) -> Iterator[None]:
        """Name the function on stderr when it has run for too long."""
        text = f"the on_worker({event!r}) function {_name(function)} has been running for {self.slow_seconds:g} s"
        timer = threading.Timer(self.slow_seconds, _say, (text,))
        timer.daemon = True
        timer.name = "hybriddist-slow-callback"
        try:
            timer.start()
        except RuntimeError:
            pass  # the interpreter ends, and starts no threads any more
        try:
            yield
        finally:
            timer.cancel()


def _check_function(event: str, function: Any) -> None:
    names = EVENTS[event]
    if not callable(function):
        raise TypeError(f"on_worker({event!r}, ...) takes a function of ({', '.join(names)}), not {function!r}")
    import inspect  # 10 ms of a start

    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # a builtin that does not say
    try:
        signature.bind(*names)
    except TypeError as error:
        raise TypeError(
            f"on_worker({event!r}, ...) calls its function with ({', '.join(names)}), "
            f"but {_name(function)}{signature} cannot be called so: {error}"
        ) from None


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _say(text: str) -> None:
    print(f"hybriddist: {text}", file=sys.stderr, flush=True)
