"""100 MB as an argument and as a result: against one warm copy in memory, and against a bare socket."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy as np

import hybriddist as hd
from benchmarks import bare
from benchmarks.round_trip import connected_pair, worker
from benchmarks.rounds import Plan, Round, Row, compare

ITEMS = 12_500_000
"""Of float64: 100 MB."""

Array = np.ndarray[Any, np.dtype[np.float64]]


# ---- bare -------------------------------------------------------------------------------------------------------


def warm_copy(items: int) -> Round:
    """Copies between two arrays whose pages are all there."""
    source, target = np.random.default_rng(1).random(items), np.zeros(items)
    np.copyto(target, source)

    def turn() -> list[float]:
        start = perf_counter()
        np.copyto(target, source)
        return [perf_counter() - start]

    return turn


def stream_client(commands: Connection, end: socket.socket) -> None:
    """Asks for the bytes and receives them into a warm buffer."""
    buffer = bytearray()
    view = memoryview(buffer)
    while (count := commands.recv()) is not None:
        if len(buffer) != count:
            buffer = bytearray(b"\1") * count
            view = memoryview(buffer)
        start = perf_counter()
        end.sendall(count.to_bytes(8, "little"))
        received = 0
        while received < count:
            received += end.recv_into(view[received:])
        commands.send([perf_counter() - start])


def stream_server(end: socket.socket) -> None:
    buffer = b""
    while asked := end.recv(8):
        count = int.from_bytes(asked, "little")
        if len(buffer) != count:
            buffer = bytes(bytearray(b"\2") * count)
        end.sendall(buffer)


@contextmanager
def socket_stream(count: int) -> Iterator[Round]:
    """Turns of sending so many bytes once, with `sendall` and `recv_into`, between two spawned processes."""
    client_end, server_end = connected_pair()
    with bare.loop(stream_client, client_end, stream_server, server_end) as take:
        take(count)  # the buffers are there and warm
        yield lambda: take(count)


# ---- hybriddist -------------------------------------------------------------------------------------------------


def size(array: Array) -> int:
    return array.nbytes


@functools.cache
def held(items: int) -> Array:
    """The same array every time: making it is not what is measured."""
    return np.random.default_rng(1).random(items)


def as_argument(pid: int, items: int) -> Round:
    array = held(items)

    def turn() -> list[float]:
        start = perf_counter()
        received = hd.remotecall_fetch(size, pid, array)
        seconds = perf_counter() - start
        assert received == array.nbytes
        return [seconds]

    turn()
    return turn


def as_result(pid: int, items: int) -> Round:
    def turn() -> list[float]:
        start = perf_counter()
        array = hd.remotecall_fetch(held, pid, items)
        seconds = perf_counter() - start
        assert array.nbytes == 8 * items
        return [seconds]

    turn()
    return turn


def over_shm(plan: Plan) -> list[Row]:
    """Inside a node, against one warm copy."""
    items = ITEMS // plan.scale
    rivals = {"one warm copy": warm_copy(items)}
    with worker("shm") as pid:
        return [
            *compare("100 MB argument, shared memory", as_argument(pid, items), rivals, plan, bar=2.0),
            *compare("100 MB result, shared memory", as_result(pid, items), rivals, plan, bar=2.0),
        ]


def over_tcp(plan: Plan) -> list[Row]:
    """Over TCP, against a bare socket."""
    items = ITEMS // plan.scale
    with socket_stream(8 * items) as stream, worker("tcp") as pid:
        rivals = {"bare socket": stream}
        return [
            *compare("100 MB argument, TCP", as_argument(pid, items), rivals, plan, bar=1 / 0.8),
            *compare("100 MB result, TCP", as_result(pid, items), rivals, plan, bar=1 / 0.8),
        ]
