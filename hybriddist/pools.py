"""Worker pools: `AbstractWorkerPool`, `WorkerPool`, `default_worker_pool`.

A pool knows which of its workers are free. Every call takes one in the place of a pid: it takes a worker, and puts it
back when it has ended (``calls.py``). A `WorkerPool` lives on the process that made it::

    owner     WorkerPool ──► WorkerChannel: members, who is free, who has whom, who waits
                                  ▲
    elsewhere WorkerPool ──► RemoteChannel, counted as any reference: it keeps the channel alive

so takes from other processes stand in the same line as those of the owner. What this module does not know: how the line
is kept (``runtime/worker_channel.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from hybriddist.channel import RemoteChannel, new_handle
from hybriddist.errors import (
    ClusterError,
    HybridDistError,
    InvalidStateException,
    ProcessExitedException,
    RemoteException,
)
from hybriddist.ids import DRIVER, as_pid
from hybriddist.runtime.current import current
from hybriddist.runtime.inquiry import member
from hybriddist.runtime.process import Process
from hybriddist.runtime.worker_channel import WorkerChannel

P = TypeVar("P", bound="AbstractWorkerPool")


class AbstractWorkerPool(ABC):
    """What calls and maps need of a pool. For a pool of your own, define the six methods.

    A call on a pool takes a worker on the calling thread when it begins, and has a thread of the library put it back
    when it has ended, by whatever end (`remote_do`: at once). ``pmap`` takes a worker when it has something for it, if
    `isready` says that there is one. It gives it several items, one after the other or a few at a time, and puts it
    back when it has nothing for it any more.

    Several threads may use a pool at once. Whoever has taken a worker is alone with it as far as the pool is concerned.

    Source: Julia's Distributed, ``AbstractWorkerPool``.
    """

    @abstractmethod
    def push(self, pid: int) -> AbstractWorkerPool:
        """Make a process a member, free to be taken; the pool itself."""

    @abstractmethod
    def put(self, pid: int) -> int:
        """Put back a worker that was taken; its pid. What is no member is ignored."""

    @abstractmethod
    def take(self, timeout: float | None = None) -> int:
        """The pid of a free worker, which nobody else gets until it is put back; waits while there is none.

        Raises:
            TimeoutError: none within ``timeout`` seconds; none is lost.
            ClusterError: no member lives.
        """

    @abstractmethod
    def __len__(self) -> int:
        """How many members there are, free or not."""

    @abstractmethod
    def isready(self) -> bool:
        """Whether a worker is free now; somebody else may take it at once."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> Any:
        """Wait until a worker is free; it is not taken.

        Raises:
            TimeoutError: none within ``timeout`` seconds.
        """

    is_here = False
    """Whether `put` takes no time, cannot fail, and runs nothing that users wrote: a pool of ours on this process."""

    def __bool__(self) -> bool:
        """A pool is true, also while it has no members."""
        return True

    def has_member(self, pid: int) -> bool:
        """Whether a process is a member. A pool of your own that does not say so has all.

        A map on a worker of the pool works there itself while nobody in the pool is free; elsewhere it waits.
        """
        return True

    def function_on(self, pid: int, f: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
        """What a call is to send to worker ``pid`` in the place of ``f``, and an object to keep until it has ended.

        The object may be None: there is nothing to keep. Here it is ``f`` itself.
        """
        return f, None

    def clear(self: P) -> P:
        """Forget what was kept on workers to make calls cheaper; the pool itself. Here that is nothing."""
        return self


class WorkerPool(AbstractWorkerPool):
    """Workers of which each is given to one user at a time.

    Those who wait are served in their order, and the worker that has been free for longest goes first. A worker that
    is gone is a member no more; one whose taker has died, or was interrupted while taking, is free again.

    Sent to another process it is a proxy: it means the same pool, which stays where it was made and lives as long as
    some process has it. When that process is gone operations raise `ProcessExitedException`.

    Args:
        pids: any iterable of pids; what is named twice is one member. Those that are gone are left out.

    Raises:
        TypeError: ``pids`` are no pids.
        NoSuchProcessError: one of them never was.

    Example::

        pool = hd.WorkerPool(hd.workers())
        pid = pool.take()
        pool.put(pid)
        hd.remotecall_fetch(pow, pool, 2, 10)       # 1024

    Source: Julia's Distributed, ``WorkerPool``.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        process = current()
        self._set_up(WorkerChannel(process.pid, process.membership, _checked(process, pids)), None)

    def _set_up(self, channel: WorkerChannel | None, handle: RemoteChannel | None) -> None:
        self._channel = channel
        """The pool itself; None: it is on another process."""
        self._handle = handle
        """How other processes find it; None: no other has it."""
        self.is_here = channel is not None

    @classmethod
    def _around(cls, channel: WorkerChannel | None, handle: RemoteChannel | None = None) -> WorkerPool:
        pool = WorkerPool.__new__(WorkerPool)
        pool._set_up(channel, handle)
        return pool

    def push(self, pid: int) -> WorkerPool:
        """Make a process a member, free to be taken, unless it is one; the pool itself.

        Raises:
            TypeError, NoSuchProcessError: it is no process. One that is gone is ignored.
            ProcessExitedException: the pool's process is gone.
        """
        if self._channel is None:
            self._ask(_push_here, as_pid(pid))
        else:
            self._channel.push(_checked(current(), (pid,))[0])
        return self

    def put(self, pid: int) -> int:
        """Put back a worker that was taken; its pid. What is no member, or is free already, is ignored.

        Raises:
            TypeError: it is no pid.
            ProcessExitedException: the pool's process is gone.
        """
        pid = as_pid(pid)
        self._source().put(pid)
        return pid

    def take(self, timeout: float | None = None) -> int:
        """The pid of a free worker, which nobody else gets until it is put back; waits while there is none.

        Raises:
            TimeoutError: none within ``timeout`` seconds; none is lost.
            ClusterError: no member lives, or the last one that lived has gone while this waited.
            ProcessExitedException: the pool's process is gone.
        """
        # Plain calls: behind one with "*" a Ctrl-C may strike, and would take the worker along.
        try:
            if self._channel is not None:
                return self._channel.take(timeout=timeout)  # type: ignore[no-any-return]
            return self._source().take(timeout=timeout)  # type: ignore[no-any-return]
        except TimeoutError:
            raise TimeoutError(f"no worker was free within {timeout} seconds in {self!r}") from None
        except InvalidStateException:
            if self._channel is None:  # a reference that is dead here
                raise
            raise ClusterError(self._without_members()) from None
        except RemoteException as error:
            if isinstance(error.captured.ex, InvalidStateException):
                raise ClusterError(self._without_members()) from None
            raise

    def isready(self) -> bool:
        """Whether a worker is free now; somebody else may take it at once.

        Raises:
            ProcessExitedException: the pool's process is gone.
        """
        return bool(self._source().isready())

    def wait(self, timeout: float | None = None) -> WorkerPool:
        """Wait until a worker is free; the pool itself. Somebody else may take it at once.

        It waits also while no member lives: one may be pushed.

        Raises:
            TimeoutError: none within ``timeout`` seconds.
            ProcessExitedException: the pool's process is gone.
        """
        try:
            self._source().wait(timeout=timeout)
        except TimeoutError:
            raise TimeoutError(f"no worker was free within {timeout} seconds in {self!r}") from None
        return self

    def __len__(self) -> int:
        """How many members live, free or not.

        Raises:
            ProcessExitedException: the pool's process is gone.
        """
        return len(self._members())

    # ---- inside -----------------------------------------------------------------------------------------------

    def _source(self) -> Any:
        """What has the operations of channels."""
        return self._handle if self._channel is None else self._channel

    def has_member(self, pid: int) -> bool:
        """Whether a living process is a member.

        Raises:
            ProcessExitedException: the pool's process is gone.
        """
        return pid in self._members()

    def _members(self) -> list[int]:
        members: list[int] = self._ask(_members_here) if self._channel is None else self._channel.members()
        return members

    def _ask(self, function: Callable[..., Any], *args: Any) -> Any:
        """Have the owner do what is no operation of a channel."""
        assert self._handle is not None
        process = current()
        try:
            return process.fetch_call(function, self._handle.where, (self, *args), {})
        except RemoteException as error:
            if isinstance(error.captured.ex, HybridDistError):
                raise error.captured.ex from None
            raise

    def _without_members(self) -> str:
        gone = [] if self._channel is None else self._channel.gone()
        why = f"those that it had are gone: {', '.join(map(str, gone))}" if gone else "no member lives"
        return f"no active worker available in the pool {self!r}: {why}"

    def _reference(self) -> RemoteChannel:
        """The handle that goes to other processes."""
        process = current()
        handle = self._handle
        if self._channel is not None and (handle is None or handle._process is not process):
            rrid = process.new_rrid()
            handle = new_handle(process, process.pid, rrid, object, 0)
            process.references.created(rrid, process.pid, handle)
            process.store.made(rrid, self._channel)
            self._handle = handle
        assert handle is not None
        return handle

    def __eq__(self, other: object) -> bool:
        """Whether it is the same pool, wherever it lives."""
        if not isinstance(other, WorkerPool):
            return NotImplemented
        if self._channel is None or other._channel is None:
            return self._channel is other._channel and self._handle == other._handle
        return self._channel is other._channel

    def __hash__(self) -> int:
        return hash(self._source())

    def __repr__(self) -> str:
        if self._channel is not None:
            return f"{type(self).__name__}({self._channel.members()})"
        assert self._handle is not None
        return f"WorkerPool(of process {self._handle.where}: {tuple(self._handle._rrid)})"

    def __copy__(self) -> WorkerPool:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> WorkerPool:
        """Workers are not multiplied by copying: it is the same pool."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes a proxy."""
        return _revive, (self._reference(),)


def default_worker_pool(pool: AbstractWorkerPool | None = None) -> AbstractWorkerPool:
    """The pool that is used where none is named; with an argument, set it.

    At first it has all workers, those that come later too, and gives pid 1 where there are none: then it has no
    members, and gives it as often as it is asked for. The cluster has one, the driver's: on a worker a proxy of it is
    returned, or set. `shutdown` brings the first one back.

    Args:
        pool: the new one, which is returned. To have the first one back keep it: ``before = default_worker_pool()``.

    Raises:
        TypeError: ``pool`` is no pool.
        SerializeError: on a worker: it cannot be sent to the driver.

    Source: Julia's Distributed, ``default_worker_pool`` and ``default_worker_pool!``.
    """
    if pool is not None and not isinstance(pool, AbstractWorkerPool):
        raise TypeError(f"the default pool is a worker pool, not {type(pool).__name__}")
    process = current()
    if process.pid == DRIVER:
        if pool is not None:
            process.default_pool = pool
        return process.ensure_default_pool(lambda: _of_all_workers(process))  # type: ignore[no-any-return]
    if pool is None:
        return process.fetch_call(_default_for_others, DRIVER, (), {})  # type: ignore[no-any-return]
    process.fetch_call(_set_default, DRIVER, (pool,), {})
    return pool


def _of_all_workers(process: Process) -> WorkerPool:
    return WorkerPool._around(WorkerChannel(process.pid, process.membership, None))


def _checked(process: Process, pids: Iterable[int]) -> list[int]:
    """The pids, each of a process that is or was."""
    if isinstance(pids, str | bytes) or not isinstance(pids, Iterable):
        raise TypeError(f"a WorkerPool takes the pids of its workers, not {type(pids).__name__}")
    checked = [as_pid(pid) for pid in pids]
    for pid in checked:
        if pid != process.pid:
            try:
                member(process, pid)
            except ProcessExitedException:
                pass  # the pool sees that by itself
    return checked


# ---- on the owner ---------------------------------------------------------------------------------------------------


def _push_here(pool: WorkerPool, pid: int) -> None:
    pool.push(pid)


def _members_here(pool: WorkerPool) -> list[int]:
    return pool._members()


def _default_for_others() -> AbstractWorkerPool:
    """What a worker gets for the default pool: what its functions are sent by is the worker's own affair."""
    pool = default_worker_pool()
    return WorkerPool._around(pool._channel, pool._handle) if isinstance(pool, WorkerPool) else pool


def _set_default(pool: AbstractWorkerPool) -> None:
    default_worker_pool(pool)


def _revive(handle: RemoteChannel) -> WorkerPool:
    """A pool has arrived: a proxy, or, where it lives, the pool itself."""
    process = current()
    if handle.where != process.pid:
        return WorkerPool._around(None, handle)
    channel = process.channels.backing(handle._rrid, create=False)
    assert isinstance(channel, WorkerChannel)
    return WorkerPool._around(channel, handle)


__all__ = ["AbstractWorkerPool", "WorkerPool", "default_worker_pool"]
