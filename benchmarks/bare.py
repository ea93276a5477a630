"""Two spawned processes at the two ends of a bare loop, commanded over a pipe.

Both are processes of their own, so that nothing of this one (threads, a large heap) slows the loop down::

    this process ──command pipe──▶ client ◀──what is measured──▶ server
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

Client = Callable[[Connection, Any], None]
"""Runs in the client with the command pipe and its end: reads a count, sends back the samples, until told None."""

Server = Callable[[Any], None]
"""Runs in the server with the other end, until the client closes."""


@contextmanager
def loop(client: Client, client_end: Any, server: Server, server_end: Any) -> Iterator[Callable[[int], list[float]]]:
    """Start both; a function that has the client take so many samples, in seconds; end both."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    processes = [
        context.Process(target=client, args=(theirs, client_end), daemon=True),
        context.Process(target=server, args=(server_end,), daemon=True),
    ]
    for process in processes:
        process.start()
    for end in (theirs, client_end, server_end):
        end.close()  # so that the death of either is seen as end-of-file

    def take(count: int) -> list[float]:
        ours.send(count)
        samples: list[float] = ours.recv()
        return samples

    try:
        take(1)  # both are up
        yield take
        ours.send(None)
    finally:
        ours.close()
        for process in processes:
            process.join(10)
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()
