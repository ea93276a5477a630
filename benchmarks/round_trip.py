"""A small call and its result: `remotecall_fetch` against an echo over `multiprocessing.Pipe` and over bare TCP."""

from __future__ import annotations

import multiprocessing
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import hybriddist as hd
from benchmarks import bare
from benchmarks.rounds import Plan, Round, Row, compare

TRIPS = 4000
"""Round trips of one turn."""

WARM_UP = 200


def echo(value: int) -> int:
    return value


# ---- multiprocessing.Pipe ---------------------------------------------------------------------------------------


def pipe_client(commands: Connection, end: Connection) -> None:
    while (count := commands.recv()) is not None:
        samples = []
        for _ in range(count):
            start = perf_counter()
            end.send(1)
            end.recv()
            samples.append(perf_counter() - start)
        commands.send(samples)


def pipe_server(end: Connection) -> None:
    try:
        while True:
            end.send(end.recv())
    except EOFError:
        pass  # the client is done


@contextmanager
def pipe_echo(trips: int, placement: bare.Placement) -> Iterator[Round]:
    """Turns of so many round trips over a pipe between two spawned processes."""
    client_end, server_end = multiprocessing.get_context("spawn").Pipe()
    with bare.loop(pipe_client, client_end, pipe_server, server_end, placement) as take:
        take(min(trips, WARM_UP))
        yield lambda: take(trips)


# ---- a bare TCP socket ------------------------------------------------------------------------------------------

SMALL_BYTES = 4096
"""A pickled small integer arrives whole in one segment, so one recv of this size reads it."""


def socket_client(commands: Connection, end: socket.socket) -> None:
    while (count := commands.recv()) is not None:
        samples = []
        for _ in range(count):
            start = perf_counter()
            end.sendall(pickle.dumps(1))
            pickle.loads(end.recv(SMALL_BYTES))
            samples.append(perf_counter() - start)
        commands.send(samples)


def socket_server(end: socket.socket) -> None:
    while data := end.recv(SMALL_BYTES):
        end.sendall(pickle.dumps(pickle.loads(data)))


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Two blocking TCP sockets on loopback, connected, without delay for small segments."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


@contextmanager
def socket_echo(trips: int, placement: bare.Placement) -> Iterator[Round]:
    """Turns of so many round trips over TCP between two spawned processes."""
    client_end, server_end = connected_pair()
    with bare.loop(socket_client, client_end, socket_server, server_end, placement) as take:
        take(min(trips, WARM_UP))
        yield lambda: take(trips)


# ---- hybriddist -------------------------------------------------------------------------------------------------


@contextmanager
def worker(transport: str) -> Iterator[int]:
    """One local worker, reached by this transport and no other."""
    (pid,) = hd.addprocs(1, transport=transport)
    try:
        if hd.path_to(pid) != transport:
            raise RuntimeError(f"asked for {transport}, and messages go by {hd.path_to(pid)}")
        yield pid
    finally:
        hd.shutdown()


@contextmanager
def calls(transport: str, trips: int) -> Iterator[Round]:
    """Turns of so many `remotecall_fetch` of a function that returns its argument."""
    with worker(transport) as pid:
        fetch = hd.remotecall_fetch
        for _ in range(WARM_UP):
            fetch(echo, pid, 1)

        def turn() -> list[float]:
            samples = []
            for _ in range(trips):
                start = perf_counter()
                fetch(echo, pid, 1)
                samples.append(perf_counter() - start)
            return samples

        yield turn


@contextmanager
def everywhere(echo: Callable[..., Any], name: str, trips: int) -> Iterator[dict[str, Round]]:
    """A bare loop in each placement."""
    with ExitStack() as stack:
        yield {
            name + words: stack.enter_context(echo(trips, placement)) for words, placement in bare.placements().items()
        }


def over_shm(plan: Plan) -> list[Row]:
    """A call inside a node, against the echo over a pipe."""
    trips = TRIPS // plan.scale
    with everywhere(pipe_echo, "multiprocessing.Pipe echo", trips) as pipes, calls("shm", trips) as ours:
        return compare("round trip, shared memory", ours, pipes, plan, bar=1.0)


def over_tcp(plan: Plan) -> list[Row]:
    """A call over TCP, against the echo over bare TCP."""
    trips = TRIPS // plan.scale
    with everywhere(socket_echo, "bare TCP echo", trips) as sockets, calls("tcp", trips) as ours:
        return compare("round trip, TCP", ours, sockets, plan, bar=1.5)
