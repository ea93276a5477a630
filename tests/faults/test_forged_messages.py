"""Messages that are well formed and false: who knows the cookie and is no member, and members that answer for others.

What breaks the rules of the wire is the business of `test_broken_rules.py`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import hybriddist as hd
from hybriddist.core import payload
from hybriddist.core.frames import encode
from hybriddist.core.handshake import Role
from hybriddist.core.messages import (
    Call,
    Claims,
    Forget,
    Identify,
    Join,
    Mode,
    Operation,
    Outcome,
    Request,
    Result,
    Started,
)
from hybriddist.core.references import edge
from hybriddist.deadline import Deadline
from hybriddist.greeting import greet
from hybriddist.ids import RRID
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.current import current
from tests.helpers.polling import poll_for
from tests.helpers.printed import Printed

pytestmark = pytest.mark.leaks_by_module


@pytest.fixture(scope="module", params=["shm", "tcp"])
def cluster(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """Three workers that have met."""
    try:
        pids = hd.addprocs(3, transport=request.param, lazy=False)
        assert pids[0] < pids[1] < pids[2]
        yield pids
    finally:
        hd.shutdown()


def connections(pids: list[int]) -> list[list[int]]:
    """The peer objects of each process: the same later, if no connection was lost meanwhile."""
    return [hd.remotecall_fetch(_addresses_of_peers, pid) for pid in [1, *pids]]


def _addresses_of_peers() -> list[int]:
    return [id(peer) for _, peer in sorted(current().peers.items()) if peer.lost is None]


@contextlib.contextmanager
def unnoticed(pids: list[int]) -> Iterator[None]:
    """What happens inside costs no member a connection, and no process has anything to complain of."""
    before = connections(pids)
    with Printed() as printed:
        yield
        assert connections(pids) == before
        for pid in pids:  # what it has said before comes before that
            hd.remotecall_fetch(_say, pid, f"the end of {pid}")
            printed.wait_for(f"the end of {pid}\n", "err")
        assert printed.err.count("\n") == len(pids), printed.err
    assert hd.workers() == pids


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def pickled(value: Any) -> bytes:
    return payload.dumps(value)[0]


# ---- who is no member -----------------------------------------------------------------------------------------------


def _no_pickle() -> bytes:
    return b"\x80\x05no pickle"


INTRODUCTIONS: dict[str, Callable[[list[int]], bytes]] = {
    "as one that is connected": lambda pids: Identify(pickled({"pid": pids[1], "to": pids[0]})).encode(),
    "as the one it speaks to": lambda pids: Identify(pickled({"pid": pids[0], "to": pids[0]})).encode(),
    "as the driver": lambda pids: Identify(pickled({"pid": 1, "to": pids[0]})).encode(),
    "to somebody else": lambda pids: Identify(pickled({"pid": 99, "to": pids[1]})).encode(),
    "without a name": lambda pids: Identify(pickled({"to": pids[0]})).encode(),
    "with a name that is none": lambda pids: Identify(pickled({"pid": "two", "to": pids[0]})).encode(),
    "with a list": lambda pids: Identify(pickled([1, 2])).encode(),
    "with noise": lambda pids: Identify(_no_pickle()).encode(),
    "as a second driver": lambda pids: Join(pickled({"pid": 7, "members": []})).encode(),
    "with a call": lambda pids: Call(1, Mode.FETCH, 0, 0, 0, pickled((os.getpid, (), {}))).encode(),
    "with a result": lambda pids: Result(1, Outcome.VALUE, pickled(1)).encode(),
}


@pytest.mark.parametrize("how", INTRODUCTIONS)
def test_introductions(cluster: list[int], how: str) -> None:
    """The connection ends without an answer; nothing is run and nobody's place is taken."""
    with unnoticed(cluster):
        process = psutil.Process(hd.remotecall_fetch(os.getpid, cluster[0]))
        (port,) = [c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        head = INTRODUCTIONS[how](cluster)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            greet(sock, Role.CONNECTOR, hd.cluster_cookie(), Deadline(10))
            sock.settimeout(10)
            sock.sendall(b"T" + encode(head))
            with contextlib.suppress(ConnectionError):
                assert sock.recv(100) == b""


# ---- members ---------------------------------------------------------------------------------------------------------


def send(pid: int, *messages: Any) -> None:
    """On a worker: send messages of which this library would send none."""
    peer = current().peers[pid]
    for message in messages:
        peer.send(message)


def test_results_that_nobody_waits_for(cluster: list[int]) -> None:
    """Of calls that never were, or are over."""
    with unnoticed(cluster):
        for pid in cluster:
            hd.remotecall_fetch(abs, pid, -1)
            results = [Result(number, Outcome.VALUE, pickled("forged")) for number in (0, 1, 2, -1, 2**62)]
            hd.remotecall_fetch(send, pid, 1, *results, Started(1), Started(2**62), Forget(2**31))
        assert [hd.remotecall_fetch(abs, pid, -pid) for pid in cluster] == cluster


def test_a_result_from_another_process(cluster: list[int]) -> None:
    """Each answers what it was asked itself, and no more."""
    with unnoticed(cluster):
        asked, liar, _ = cluster
        future = hd.Future(asked)
        future.add_done_callback(lambda _: None)  # so that its value is asked for
        (number,) = current().peers[asked].pending
        hd.remotecall_fetch(send, liar, 1, Result(number, Outcome.VALUE, pickled("forged")))
        hd.remotecall_fetch(hd.put, liar, future, "true")
        assert future.fetch(timeout=10) == "true"


def test_references_of_nobody(cluster: list[int]) -> None:
    """There is no value behind them, and they lead to no other."""
    with unnoticed(cluster):
        holder, other, _ = cluster
        kept = hd.remotecall_wait(str, holder, "kept")
        released = hd.remotecall_wait(str, holder, "released")
        rrid = hd.remoteref_id(released)
        hd.finalize(released)
        poll_for(lambda: rrid not in hd.live_references(holder))
        for false in (rrid, RRID(1, 2**62), RRID(other, 1), RRID(-1, -1)):
            assert hd.remotecall_fetch(_ask, other, holder, false) == "no value"
        assert kept.fetch() == "kept"


def _ask(pid: int, rrid: RRID) -> Any:
    """On a worker: fetch what is behind a reference that one was never given."""
    process = current()
    peer = process.peer(pid)
    completion = process.start_request(peer, Operation.FETCH, rrid)
    if not process.wait(completion, peer, Deadline(0.2)):
        return "no value"
    return process.value_of(completion, peer)


def test_a_second_value(cluster: list[int]) -> None:
    """The first one stays, whoever sends another."""
    with unnoticed(cluster):
        holder, other, _ = cluster
        kept = hd.remotecall_wait(str, holder, "first")
        rrid = hd.remoteref_id(kept)
        hd.remotecall_fetch(send, other, holder, Request(1 << 60, Operation.PUT, *rrid, pickled(("second",))))
        assert hd.remotecall_fetch(_ask, other, holder, rrid) == "first"
        assert kept.fetch() == "first"


def test_claims_on_what_is_not_there(cluster: list[int]) -> None:
    """Counted, and without effect on others."""
    with unnoticed(cluster):
        holder, other, third = cluster
        kept = hd.remotecall_wait(str, holder, "kept")
        changes = [
            (1, 2**62, edge(third, other), -1),
            (1, 2**62, edge(third, other), 1),
            (-5, -5, edge(third, other), -3),
        ]
        hd.remotecall_fetch(send, other, holder, Claims(changes))
        assert kept.fetch() == "kept"


def test_a_call_that_cannot_be_read_is_answered(cluster: list[int]) -> None:
    """It is the caller's error, and the connection stays."""
    with unnoticed(cluster):
        process, peer = current(), current().peers[cluster[0]]
        for number, body in enumerate((_no_pickle(), pickled(5), pickled((1, 2)), pickled((abs, 1, 2)), b""), 1 << 61):
            completion = peer.pending[number] = Completion()
            peer.send(Call(number, Mode.FETCH, 0, 0, 0, body))
            assert process.wait(completion, peer, Deadline(10))
            assert completion.outcome == Outcome.ERROR
