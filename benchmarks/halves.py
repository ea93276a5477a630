"""Work that is cut beforehand, one part a process, with nothing around it: the least that a parallel loop can cost."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


def serve(function: Callable[[Any], Any], commands: Connection) -> None:
    """Calls the function with each part that comes down the pipe, until told None."""
    while (part := commands.recv()) is not None:
        commands.send(function(part))


@contextmanager
def processes(function: Callable[[Any], Any], parts: Sequence[Any], warm_up: Any) -> Iterator[Callable[[], list[Any]]]:
    """Spawned processes, as many as parts, and a function that has each part done and returns the results.

    Args:
        warm_up: a small part, done once by each.
    """
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in parts]
    children = [context.Process(target=serve, args=(function, theirs), daemon=True) for _, theirs in pairs]
    for child in children:
        child.start()

    def run() -> list[Any]:
        for (ours, _), part in zip(pairs, parts, strict=True):
            ours.send(part)
        return [ours.recv() for ours, _ in pairs]

    try:
        for ours, _ in pairs:
            ours.send(warm_up)
            ours.recv()  # it is up
        yield run
        for ours, _ in pairs:
            ours.send(None)
    finally:
        for child, pair in zip(children, pairs, strict=True):
            child.join(10)
            if child.exitcode is None:
                child.kill()
                child.join()
            child.close()
            for end in pair:
                end.close()
