"""Functions that take any kind of reference, `Future` or `RemoteChannel`, or a local `Channel`.

They are the methods of the same names, for those who like functions; and what one may want to know of a reference:
its identity, who holds it, what is behind it.
"""

from __future__ import annotations

import io
from typing import Any

from hybriddist.calls import remotecall_fetch
from hybriddist.channel import RemoteChannel
from hybriddist.future import Future
from hybriddist.ids import RRID
from hybriddist.runtime.channels import Channel
from hybriddist.runtime.current import current
from hybriddist.runtime.keeper import Keeper


def fetch(x: Any, *args: Any, timeout: float | None = None) -> Any:
    """The value of a future, or the oldest item of a channel, which stays there. Anything else is returned as it is.

    Args:
        x: a reference, or anything.
        *args: what a backing store's ``fetch`` takes, if ``x`` is a `RemoteChannel` with one of your own.
        timeout: seconds; None waits without limit.

    Raises:
        TimeoutError: not within ``timeout``; nothing is lost.
        Others: as ``x.fetch``.

    Example:
        >>> import hybriddist as hd
        >>> hd.fetch(5)
        5

    Source: Julia's Distributed, ``fetch``.
    """
    if isinstance(x, Future):
        return x.fetch(timeout)
    return x.fetch(*args, timeout=timeout) if isinstance(x, RemoteChannel | Channel) else x


def wait(x: Any, *args: Any, timeout: float | None = None) -> Any:
    """Wait for a reference or any other waitable; returns it.

    Raises:
        TypeError: ``x`` is nothing that one can wait for.

    Source: Julia's ``wait``.
    """
    _check_has(x, "wait")
    x.wait(*args, timeout=timeout) if args or timeout is not None else x.wait()
    return x


def put(x: Any, *values: Any, timeout: float | None = None) -> Any:
    """Give a future its value, or add an item to a channel; returns it.

    Raises:
        TypeError: ``x`` is nothing that takes a value.

    Source: Julia's ``put!``.
    """
    _check_has(x, "put")
    x.put(*values) if timeout is None else x.put(*values, timeout=timeout)
    return x


def take(x: Any, *args: Any, timeout: float | None = None) -> Any:
    """Remove and return the oldest item of a channel; waits while there is none.

    Raises:
        TypeError: ``x`` has nothing that can be taken, such as a future: its value stays for all, `fetch` it.

    Source: Julia's ``take!``.
    """
    _check_channel(x, "take")
    return x.take(*args) if timeout is None else x.take(*args, timeout=timeout)


def isready(x: Any, *args: Any) -> bool:
    """Whether a future has a value, or a channel an item.

    Raises:
        TypeError: ``x`` is neither.

    Source: Julia's ``isready``.
    """
    _check_has(x, "isready")
    return bool(x.isready(*args))


def close(x: Any) -> None:
    """Close a channel: nothing more can be put, and what is in it can still be taken.

    Source: Julia's ``close``.
    """
    _check_channel(x, "close")
    x.close()


def isopen(x: Any) -> bool:
    """Whether a channel is not closed.

    Source: Julia's ``isopen``.
    """
    _check_channel(x, "isopen")
    return bool(x.isopen())


def finalize(x: Any) -> None:
    """Give a reference up now, without waiting for the garbage collector. The handle cannot be used afterwards.

    What is behind it goes as soon as no other process holds a reference to it.

    Source: Julia's ``finalize`` of a remote reference.
    """
    _reference(x, "finalize")._finalize()


def remoteref_id(x: Any) -> RRID:
    """The identity of a reference: ``whence``, the process that made it, and ``id``, a number of that process.

    Source: Julia's Distributed, ``remoteref_id``.
    """
    rrid: RRID = _reference(x, "remoteref_id")._rrid
    return rrid


def channel_from_id(id: RRID) -> Any:
    """What is behind the `RemoteChannel` with this identity: the `Channel`, or the backing store of your own.

    Only on the process on which it lives. Whoever keeps it keeps the channel, also when no reference is left.

    Raises:
        LookupError: there is no such channel on this process.

    Source: Julia's Distributed, ``channel_from_id``.
    """
    if not isinstance(id, tuple) or len(id) != 2:
        raise TypeError(f"channel_from_id takes an RRID, as remoteref_id gives it, not {id!r}")
    process = current()
    entry = process.store.peek(id)
    backing = entry.content if entry is not None and entry.done else None
    if isinstance(backing, Keeper):
        return backing.store
    if not isinstance(backing, Channel):
        raise LookupError(
            f"Local instance of remote reference not found: process {process.pid} holds no channel {tuple(id)}. "
            "Ask the process on which it lives (`where` of its RemoteChannel)"
        )
    return backing


def worker_id_from_socket(s: Any) -> int:
    """The process at the other end of a connection.

    Args:
        s: a socket of one of this process's connections (of shared memory: of its doorbell), or its descriptor; a
            stream of a cluster manager's own connection, or the socket behind it; or anything else.

    Returns:
        Its pid; the own pid for a stream in memory (`io.BytesIO`); -1 for what is no connection of the cluster.

    Source: Julia's Distributed, ``worker_id_from_socket``.
    """
    process = current()
    if isinstance(s, io.BytesIO):
        return process.pid
    peers = list(process.peers.items())
    for pid, peer in peers:
        if any(s is part for part in (peer.transport, *peer.transport.streams)):
            return pid
    descriptor = _descriptor(s)
    for pid, peer in peers:
        if descriptor in (peer.descriptor, *map(_descriptor, peer.transport.streams)) and descriptor >= 0:
            return pid
    return -1


def _descriptor(s: Any) -> int:
    """-1 for what has none, or none any more."""
    try:
        descriptor = s if type(s) is int else s.fileno()
    except (AttributeError, OSError, ValueError):
        return -1
    return descriptor if type(descriptor) is int else -1


def live_references(pid: int) -> list[RRID]:
    """The references whose values, channels, or calls under way process ``pid`` holds for others, sorted.

    For tests and for the hunt for leaks. What only the process itself refers to is not among them.
    """
    return remotecall_fetch(_live_here, pid)


def _live_here() -> list[RRID]:
    process = current()
    process.references.flush()
    return process.store.live(process.pid)


def _reference(x: Any, verb: str) -> Any:
    if not hasattr(x, "_rrid"):
        raise TypeError(f"{verb} takes a reference, such as a Future, not {type(x).__name__}")
    return x


def _check_has(x: Any, verb: str) -> None:
    if not hasattr(x, verb):
        raise TypeError(f"{verb} takes a reference or a channel, not {type(x).__name__}")


def _check_channel(x: Any, verb: str) -> None:
    if isinstance(x, Future):
        raise TypeError(f"{verb} is for channels: a Future is set once, and its value stays for all; use fetch")
    if not hasattr(x, verb):
        raise TypeError(f"{verb} takes a channel, not {type(x).__name__}")


__all__ = [
    "channel_from_id", "close", "fetch", "finalize", "isopen", "isready", "live_references", "put", "remoteref_id",
    "take", "wait", "worker_id_from_socket",
]  # fmt: skip
