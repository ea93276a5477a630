"""`CachingPool`: a worker pool whose calls send each function to each worker once.

The pool keeps what it has sent: a value on the worker, behind a reference, found by the identity of the function. A
call names the value by its number::

    1st call of f on worker 2    STORE f under (1, 17);  call_stored(1, 17)(args)
    later ones                   call_stored(1, 17)(args)                      a few bytes, however much f has captured
    clear, the pool dies, f dies, worker 2 dies: the reference is dropped, and the worker frees f

The connection's own cache (``core/functions.py``) does the same where it can be sure that the function would travel
unchanged. Here the user says so, by using the pool: what a function has captured is what it was at its first call.

What this module does not know: how a worker for a call is found (``pools.py``), and put back (``calls.py``).
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from types import BuiltinMethodType, MethodType, ModuleType
from typing import Any

from hybriddist.future import Future
from hybriddist.placing import Placing, itself
from hybriddist.pools import WorkerPool
from hybriddist.runtime.current import current


class CachingPool(WorkerPool):
    """A `WorkerPool` whose calls send each function to each worker once.

    For functions that have captured much: a lambda with a large array in it, a method of a large object. A function is
    known by its identity, a bound method by those of its function and its object. **What it has captured is what it was
    at the first call on each worker**; later changes are not seen there until `clear`. Large arrays (1 MiB and more)
    are put into shared memory at the first call of all, once for the workers of a node, and are what they were then;
    each worker may write to them, and sees only its own changes. A call to the own pid sends nothing and sees
    everything.

    The copies on the workers are freed by ``hd.clear(pool)``, and when the pool or the function is collected.

    Args:
        pids: as of `WorkerPool`.

    Raises:
        TypeError: when it is pickled: what it has sent is known here only.

    Example::

        table = np.random.rand(10_000_000)
        pool = hd.CachingPool(hd.workers())
        look_up = lambda i: table[i]
        [hd.remotecall_fetch(look_up, pool, i) for i in range(100)]     # the table travels once to each worker
        hd.clear(pool)

    Source: Julia's Distributed, ``CachingPool``.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        super().__init__(pids)
        self._sent: dict[Hashable, _Sent] = {}
        self._dead: deque[_Death] = deque()
        """Filled by the garbage collector, in any thread: a finaliser must do no more."""
        self._seen = -1
        """`changes` of the membership when it was last looked at."""

    def function_on(self, pid: int, f: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
        """What stands for ``f`` on worker ``pid``, which is sent there now if it was not yet; and what keeps it there.

        Raises:
            SerializeError: ``f`` cannot be pickled.
            ProcessExitedException: the worker is gone.
        """
        if self._dead or self._seen != current().membership.changes:
            self._tidy()
        key, parts = _identity(f)
        sent = self._sent.get(key)
        if sent is None or not sent.is_of(parts):  # an address may be another object's since the first one died
            sent = self._sent[key] = _Sent(key, parts, self._dead.append)
        copy = sent.copies.get(pid)
        if copy is None:
            if sent.placing is None:
                sent.placing = Placing(current())
            copy = sent.copies.setdefault(pid, sent.placing.place(pid, f))
        return copy

    def clear(self) -> CachingPool:
        """Free the copies on the workers, so that functions are sent anew; the pool itself. Does not wait for that.

        A call that is under way keeps its copy until it has ended.
        """
        self._sent = {}
        current().references.flush()
        return self

    def _tidy(self) -> None:
        """Drop what belongs to functions and workers that are gone."""
        sent = self._sent
        while self._dead:
            death = self._dead.popleft()
            entry = sent.get(death.key)
            if entry is not None and death in entry.parts:
                sent.pop(death.key, None)
        membership = current().membership
        self._seen = membership.changes
        for entry in list(sent.values()):
            for pid in list(entry.copies):
                if membership.why_gone(pid) is not None:
                    entry.copies.pop(pid, None)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("CachingPool objects cannot be pickled: what they have sent is known to their process only")


class _Death(weakref.ref[Any]):
    """A weak reference to a part of a function, which knows the function's key."""

    __slots__ = ("key",)
    key: Hashable


class _Sent:
    """A function, and where there are copies of it.

    Attributes:
        parts: how to get what the function is known by: weak references, or for what allows none the object itself.
        copies: by pid, what a call sends, and the reference that keeps the copy.
        placing: what it has captured, if that is much, in shared memory.
    """

    __slots__ = ("copies", "parts", "placing")

    def __init__(self, key: Hashable, parts: tuple[Any, ...], note_death: Callable[[Any], None]) -> None:
        self.parts: list[Callable[[], Any]] = []
        self.copies: dict[int, tuple[Callable[..., Any], Future]] = {}
        self.placing: Placing | None = None
        for part in parts:
            try:
                death = _Death(part, note_death)
            except TypeError:
                self.parts.append(partial(itself, part))
            else:
                death.key = key
                self.parts.append(death)

    def is_of(self, parts: tuple[Any, ...]) -> bool:
        """Whether these are the parts of this function."""
        for mine, part in zip(self.parts, parts, strict=True):  # noqa: SIM110  # `all` takes three times as long
            if mine() is not part:
                return False
        return True


def _identity(f: Any) -> tuple[Hashable, tuple[Any, ...]]:
    """What a function is known by: a key, and the objects whose addresses are in it."""
    if type(f) is MethodType:  # a new object at each access
        return (id(f.__func__), id(f.__self__)), (f.__func__, f.__self__)
    if type(f) is BuiltinMethodType and f.__self__ is not None and not isinstance(f.__self__, ModuleType):
        return (f.__name__, id(f.__self__)), (f.__self__,)
    return id(f), (f,)


__all__ = ["CachingPool"]
