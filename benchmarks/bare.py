"""Two spawned processes at the two ends of a bare loop, commanded over a pipe.

Both are processes of their own, so that nothing of this one (threads, a large heap) slows the loop down::

    this process ──command pipe──▶ client ◀──what is measured──▶ server
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

Client = Callable[[Connection, Any], None]
"""Runs in the client with the command pipe and its end: reads a count, sends back the samples, until told None."""

Server = Callable[[Any], None]
"""Runs in the server with the other end, until the client closes."""


Placement = Sequence[int]
"""The CPUs that client and server are bound to; empty: wherever the system puts them."""


def placements() -> dict[str, Placement]:
    """The system's own choice, and the two that it chooses from.

    A loop whose ends sleep and wake in turns is several times faster where the system keeps both on one CPU, and it
    does so in some runs and not in others. Two processes that are to compute at the same time have two.
    """
    if not hasattr(os, "sched_setaffinity") or len(cpus := sorted(os.sched_getaffinity(0))) < 2:
        return {"": ()}
    return {"": (), ", on two CPUs": cpus[:2], ", on one CPU": (cpus[0], cpus[0])}


@contextmanager
def loop(
    client: Client, client_end: Any, server: Server, server_end: Any, placement: Placement = ()
) -> Iterator[Callable[[int], list[float]]]:
    """Start both; a function that has the client take so many samples, in seconds; end both."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    processes = [
        context.Process(target=client, args=(theirs, client_end), daemon=True),
        context.Process(target=server, args=(server_end,), daemon=True),
    ]
    for process in processes:
        process.start()
    for process, cpu in zip(processes, placement, strict=False):
        assert process.pid is not None
        os.sched_setaffinity(process.pid, {cpu})
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
