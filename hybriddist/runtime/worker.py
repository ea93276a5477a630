"""A worker's life: read the cookie, listen, announce, serve until told to leave.

::

    stdin: cookie line ─► listen (loopback TCP, Unix socket) ─► print the announcement ─► wait for the driver's Join
                                                                   │                           │ within the timeout
    exit 1: stdin ended, or the driver's connection broke  ◄───────┴───── serve: main thread ◄─┘
    exit 0: told to leave

The announcement is one line on stdout, ``hybriddist_worker:PORT#ADDRESS``. What this module does not know: who started
the process, and how.
"""

from __future__ import annotations

import os
import sys
from typing import IO, NoReturn

from hybriddist import limits
from hybriddist.core import handshake
from hybriddist.deadline import Deadline
from hybriddist.net.address import network_address
from hybriddist.net.listener import TcpListener
from hybriddist.runtime.alarm import SignalAlarm
from hybriddist.runtime.context import become
from hybriddist.runtime.folders import Seat
from hybriddist.runtime.leash import take_stdin
from hybriddist.runtime.lending import Borrower
from hybriddist.runtime.options import WorkerOptions
from hybriddist.runtime.process import Process
from hybriddist.runtime.signals import take_as_usual
from hybriddist.settings import Settings
from hybriddist.shm.listener import UnixListener

ANNOUNCEMENT = "hybriddist_worker:"


def run(options: WorkerOptions, cookie: str | None = None, out: IO[str] | None = None) -> NoReturn:
    """Be a worker, on the main thread, until the process ends.

    Args:
        options: where to listen, how long to wait for the driver, and so on.
        cookie: the cluster's secret; None: the first line of stdin.
        out: where to print the announcement; stdout by default.
    """
    take_as_usual()  # whoever started us may have kept SIGINT away from the thread that did
    if cookie is None:
        cookie = read_line(0)
    seat = None if options.unix_path is None else Seat(options.unix_path)
    leash = take_stdin(close_stdin=options.close_stdin, seat=seat)
    if leash is not None:
        leash.arm()
    settings = Settings(options.worker_timeout_seconds, options.silence_limit_seconds)
    process = Process(0, cookie=cookie, settings=settings, worker=True)
    become(process)
    process.guard.install()
    process.alarm = alarm = SignalAlarm(process.guard)
    process.poller.add(alarm.fileno(), alarm)
    Borrower(process).install()
    tcp = TcpListener(
        options.bind_host or network_address(),
        options.bind_port or 9000 + os.getpid() % 1000,
        port_is_hint=not options.bind_port,
    )
    process.links.listen(tcp)
    process.addresses = [f"tcp:{tcp.address}"]
    if seat is not None:
        process.paths.quiet = True
        seat.take()
        process.links.listen(UnixListener(seat.socket_path))
        process.addresses.insert(0, f"unix:{seat.socket_path}")
    process.on_driver_gone = lambda: leave(1, seat)
    process.spawn(lambda: wait_for_driver(process, seat), "hybriddist-join")
    print(f"{ANNOUNCEMENT}{tcp.address.port}#{tcp.address.host}", file=out or sys.stdout, flush=True)
    handshake.prepare()  # while the driver reads that
    process.receiver.serve()
    process.close(limits.POLITE_EXIT_SECONDS)
    if seat is not None:
        seat.leave()
    sys.exit(0)


def read_line(fd: int) -> str:
    """One line of a descriptor, read byte by byte so that nothing behind it is taken."""
    line = bytearray()
    while len(line) <= limits.MAX_COOKIE_CHARACTERS:
        byte = os.read(fd, 1)
        if byte in (b"", b"\n"):
            return line.decode("ascii", "replace").rstrip("\r")
        line += byte
    raise ValueError(f"the cookie on stdin is longer than {limits.MAX_COOKIE_CHARACTERS} characters")


def wait_for_driver(process: Process, seat: Seat | None) -> None:
    """On a thread of its own: leave if no driver comes in time."""
    seconds = process.settings.worker_timeout_seconds
    if not process.links.arrived.wait(Deadline(seconds)):
        try:
            print(
                f"Master process (id 1) could not connect within {seconds} seconds.\nexiting.",
                file=sys.stderr,
                flush=True,
            )
        finally:
            leave(1, seat)


def leave(code: int, seat: Seat | None) -> NoReturn:
    """Exit now, whatever state the process is in; nothing here may fail to end in the exit."""
    try:
        if seat is not None:
            seat.leave()
    finally:
        os._exit(code)
