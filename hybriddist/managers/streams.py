"""Connections that a cluster manager makes by itself: any two binary streams, instead of the library's own sockets.

On the driver, and on a worker that has to reach another one, `ClusterManager.connect` gives the streams. At the other
end a program of the manager's own hands them to the library::

    driver, or worker with the higher pid             worker's program
      manager.connect(pid, config) ◄── streams ──►    init_worker(cookie, manager), once, first of all
        │                                             process_messages(reader, writer), for each connection
        └── greeted, as connector                       └── greeted, as acceptor; then it introduces itself

What `connect` notes in ``config.connect_at`` on the driver travels, pickled, with the list of members, and is unpickled
by the worker that needs it, on the thread that does.

This module is the left side; the right one is ``managers/joining.py``. What it does not know: what streams are made
of, and how they become a transport (``net/stream_pair.py``).

Source: Julia's Distributed, custom transports of cluster managers.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from hybriddist.core.handshake import Role
from hybriddist.core.membership import Member
from hybriddist.core.packed import pack, unpack
from hybriddist.deadline import Deadline
from hybriddist.errors import ConnectError, HybridDistError
from hybriddist.managers.base import ClusterManager, WorkerConfig
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.process import Process
from hybriddist.transport import Transport


def connect_by(
    manager: ClusterManager, pid: int, config: WorkerConfig, process: Process, deadline: Deadline
) -> Transport | None:
    """A proven transport over streams of ``manager``; None if it leaves connecting to the library.

    Raises:
        TimeoutError: no streams by the deadline; those that come later are closed.
        TypeError: it gave something else than two binary streams.
        Exception: whatever `ClusterManager.connect` raised.
    """
    if type(manager).connect is ClusterManager.connect:
        return None
    streams = _call_in_time(manager, pid, config, process, deadline)
    if streams is None:
        return None
    _, greeted = process.paths.over_streams(
        *_pair(manager, streams), Role.CONNECTOR, process.cookie, word_of(manager), process.in_context
    )
    return greeted(deadline)


def connect_at(config: WorkerConfig) -> bytes:
    """``config.connect_at`` for the list of members.

    Raises:
        SerializeError: it cannot be pickled.
    """
    return b"" if config.connect_at is None else pack(config.connect_at)


def _call_in_time(manager: ClusterManager, pid: int, config: WorkerConfig, process: Process, deadline: Deadline) -> Any:
    """What `ClusterManager.connect` returns. A thread of its own runs it: a user's code may block for ever."""
    done = Completion()
    outcome = [None]  # whoever takes it decides: streams in time, or given up

    def call() -> None:
        streams: Any = None
        failure: Exception | None = None
        try:
            streams = manager.connect(pid, config)
        except BaseException as error:  # also a sys.exit: somebody waits for the end of this
            failure = error if isinstance(error, Exception) else ConnectError(f"connect raised {error!r}")
        try:
            outcome.pop()
        except IndexError:
            for stream in streams if isinstance(streams, tuple) else ():
                stream.close()
            return
        done.complete(-1 if failure is not None else 0, streams if failure is None else failure)

    process.spawn(call, f"hybriddist-connect-{pid}")
    if not done.wait(deadline):
        try:
            outcome.pop()
        except IndexError:
            done.wait()  # it has just come
        else:
            raise TimeoutError(f"connect of {manager!r} gave no streams to process {pid} in time")
    if done.outcome:
        raise done.content
    return done.content


def _pair(manager: ClusterManager, streams: Any) -> tuple[BinaryIO, BinaryIO]:
    if not isinstance(streams, tuple) or len(streams) != 2:
        raise TypeError(f"connect of {manager!r} must return (reader, writer) or None, not {streams!r}")
    return streams


def word_of(manager: ClusterManager | None) -> str:
    return "custom" if manager is None else str(manager.path_name)


def dial_by(process: Process, manager: ClusterManager, member: Member, deadline: Deadline) -> Transport | None:
    """A worker's way to another one: through its own manager."""
    config = WorkerConfig()
    config.host, config.ospid = member.host or None, member.ospid or None
    config.ident, config.connect_idents = member.ident, member.connect_idents
    try:
        if member.connect_at:
            config.connect_at = unpack(member.connect_at)
        return connect_by(manager, member.pid, config, process, deadline)
    except (HybridDistError, OSError):
        raise
    except Exception as error:
        raise ConnectError(
            f"connect of {manager!r} to process {member.pid} failed: {error!r}", member.streams
        ) from error
