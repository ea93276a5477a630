"""How a program of a manager's own becomes a worker that is reached by the manager's own connections.

::

    init_worker(cookie, manager)   this process has no pid yet, and waits for the driver; threads of the library start
    process_messages(reader, writer) ─► greeted ─► the driver's Join: it is worker 3
    process_messages(reader, writer) ─► greeted ─► Identify: a connection of worker 5
    told to leave, or the driver is gone ─► the process ends

What this module does not know: how connections come to be (``managers/streams.py`` has the other side), and what a
worker that listens by itself does (``runtime/worker.py``).

Source: Julia's Distributed, custom transports of cluster managers.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import BinaryIO

from hybriddist.core.handshake import Role
from hybriddist.errors import ClusterError
from hybriddist.ids import DRIVER
from hybriddist.limits import POLITE_EXIT_SECONDS
from hybriddist.managers.base import ClusterManager
from hybriddist.managers.streams import dial_by, word_of
from hybriddist.runtime.context import become, known
from hybriddist.runtime.lending import Borrower
from hybriddist.runtime.process import Process
from hybriddist.runtime.signals import take_as_usual
from hybriddist.runtime.start import check_cookie, set_up_streams
from hybriddist.runtime.worker import leave, wait_for_driver
from hybriddist.settings import Settings


def init_worker(cookie: str, manager: ClusterManager | None = None) -> None:
    """Make this process a worker that listens nowhere: its program accepts connections, for `process_messages`.

    For the programs that cluster managers with connections of their own start. To be called once and first: before
    any future, call or worker of this process. It returns at once; calls are run by threads of the library, so the
    program has its main thread for itself, and an interrupt reaches a call at its next Python instruction. The process
    ends when the driver tells it to leave or its connection to the driver ends (at once: `atexit` functions are not
    run), and when no driver has come within ``HYBRIDDIST_WORKER_TIMEOUT`` seconds.

    Args:
        cookie: the cluster's secret, 1 to 256 ASCII characters.
        manager: whose `ClusterManager.connect` makes connections to other workers; without one this worker reaches
            only those that listen by themselves.

    Raises:
        TypeError, ValueError: an argument is wrong.
        ClusterError: this process has references, workers or calls, or is a worker already.

    Example::

        hd.init_worker(sys.stdin.readline().strip(), MyManager())
        while True:
            connection, _ = listener.accept()
            hd.process_messages(connection.makefile("rb"), connection.makefile("wb"))

    Source: Julia's Distributed, ``init_worker``.
    """
    check_cookie(cookie)
    if manager is not None and not isinstance(manager, ClusterManager):
        raise TypeError(f"manager is a ClusterManager or None, not {type(manager).__name__}")
    before = known()
    if before is not None:
        if before.pid != DRIVER or before.peers:
            raise ClusterError("this process is a member of a cluster already; init_worker comes first of all")
        if before.new_rrid().id > 1:  # calls and references are numbered from 1
            raise ClusterError("this process has made references or calls already; init_worker comes before any")
        before.close(0.0)
    take_as_usual()  # whoever started us may have kept SIGINT away from the thread that did
    set_up_streams(stderr_to_stdout=False)
    process = Process(0, cookie=cookie, settings=Settings.from_environment(), worker=True)
    become(process)
    process.guard.install()
    Borrower(process).install()
    process.paths.word = word_of(manager)
    if manager is not None:
        process.links.dialer = partial(dial_by, process, manager)
    process.on_driver_gone = lambda: leave(1, None)
    process.start()
    process.spawn(lambda: wait_for_driver(process, None), "hybriddist-join")
    process.spawn(lambda: _leave_when_told(process), "hybriddist-leaving")


def process_messages(reader: BinaryIO, writer: BinaryIO, incoming: bool = True) -> None:
    """Give the library a connection from another process of the cluster; it returns at once.

    The streams belong to the library from now on: it reads, writes, flushes and closes them, on threads of its own,
    and each of these may block. The other side has to prove the cookie in both directions before anything that it sends
    is believed; if it can't, or takes longer than `limits.HANDSHAKE_SECONDS`, the streams are closed without a word.

    Args:
        reader: a binary file object to read from, such as ``socket.makefile("rb")``.
        writer: one to write to; may be the same.
        incoming: whether the other side made the connection. False: this process did, to its driver, whose manager
            hands out the other end in ``connect``; so before it is a member.

    Raises:
        TypeError: these are no binary streams.
        ClusterError: this process is no worker made by `init_worker`; or it is a member already and the connection is
            not incoming: then the streams are to be returned by the manager's ``connect``.
        ConnectError: there are no descriptors or threads to be had; the streams are closed.

    Source: Julia's Distributed, ``process_messages``.
    """
    process = known()
    if process is None or process.pid == DRIVER:
        raise ClusterError(
            "process_messages is for workers, after init_worker; the driver gets streams from its manager's connect"
        )
    if not incoming and process.pid:
        raise ClusterError(
            f"this process is worker {process.pid}: connections that it makes come from its manager's connect"
        )
    sock, greeted = process.paths.over_streams(
        reader, writer, Role.ACCEPTOR, process.cookie, process.paths.word, process.in_context
    )
    process.links.welcome(sock, greeted)


def _leave_when_told(process: Process) -> None:
    """The main thread belongs to the program: nothing else ends the process."""
    process.leaving.wait()
    try:
        process.close(POLITE_EXIT_SECONDS)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)
