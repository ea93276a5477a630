"""The first Ctrl-C at a map: what is under way is interrupted, nothing more begins, and the workers are free."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.core.messages import Call
from hybriddist.runtime.peer import Peer

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp"], indirect=True, scope="module"),
]


class Stay:
    """Items that stay until they are interrupted, and say when they come and go."""

    def __init__(self) -> None:
        self.come = hd.RemoteChannel(partial(hd.Channel, 1000))
        self.gone = hd.RemoteChannel(partial(hd.Channel, 1000))

    def __call__(self, x: int) -> None:
        try:
            self.come.put(x)
            while True:
                time.sleep(0.01)  # not on the main thread of its worker it hears of the strike at its next step only
        finally:
            self.gone.put(x)


def nested(item: Stay, x: int) -> Any:
    return hd.pmap(item, range(3 * x, 3 * x + 3))


def struck(run: Callable[[], Any], item: Stay, count: int, cluster: list[int]) -> None:
    """Strike ``run`` when so many items are under way; check that all of them end, and that the workers are free."""
    come: list[int] = []

    def strike() -> None:
        come.extend(item.come.take(timeout=20) for _ in range(count))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run()
    thread.join()
    missing = set(come)
    while missing:
        missing.discard(item.gone.take(timeout=10))
    for future in [hd.remotecall(hd.myid, pid) for pid in cluster for _ in range(2)]:
        assert future.fetch(timeout=10) in cluster
    while item.come.isready():  # some came just before the strike, or were at it
        come.append(item.come.take(timeout=10))
    assert len(come) <= 3 * 7  # what was out


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
@pytest.mark.parametrize("map_", [hd.pmap, hd.imap, hd.imap_unordered])
def test_all_workers_are_free(map_: Any, batch_size: Any, cluster: list[int]) -> None:
    item = Stay()
    struck(lambda: list(map_(item, range(100), batch_size=batch_size)), item, 3, cluster)


@pytest.mark.parametrize("kind", [hd.WorkerPool, hd.CachingPool])
def test_a_pool_has_all_its_workers_again(kind: Any, cluster: list[int]) -> None:
    item, pool = Stay(), kind(cluster)
    keywords: dict[str, Any] = {
        "item_timeout": 50,
        "retry_delays": itertools.repeat(0),
        "on_error": lambda _: pytest.fail("an interrupt of the map is no failure of an item"),
    }
    struck(lambda: hd.pmap(item, pool, range(9), **keywords), item, 3, cluster)
    assert sorted(pool.take(timeout=10) for _ in cluster) == cluster


def test_maps_inside_maps(cluster: list[int]) -> None:
    item = Stay()
    struck(lambda: hd.pmap(partial(nested, item), range(3)), item, 3, cluster)


def test_while_a_retry_is_waited_for(cluster: list[int]) -> None:
    come = hd.RemoteChannel(partial(hd.Channel, 1000))

    def item(x: int) -> None:
        come.put(x)
        raise OSError

    def strike() -> None:
        for _ in range(4):
            come.take(timeout=20)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        hd.pmap(item, range(4), retry_delays=[60])
    thread.join()
    assert time.monotonic() - begin < 30
    assert not come.isready()


@pytest.mark.parametrize(
    "begin",
    [
        lambda item, pid: hd.pmap(item, range(3)),
        lambda item, pid: hd.distributed(item, range(3), reduce=max),
        lambda item, pid: hd.remotecall(item, pid, 0),
        lambda item, pid: hd.remotecall_fetch(item, pid, 0),
    ],
    ids=["pmap", "distributed", "remotecall", "remotecall_fetch"],
)
def test_while_it_is_sent(
    begin: Callable[[Stay, int], Any], cluster: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the interrupt is raised when it has gone, and nobody would ever ask for its end."""
    item, send = Stay(), Peer.send
    strikes = [KeyboardInterrupt()]

    def strike(peer: Peer, message: Any, **keywords: Any) -> None:
        send(peer, message, **keywords)
        if isinstance(message, Call) and strikes and threading.current_thread() is threading.main_thread():
            strike = strikes.pop()
            item.come.take(timeout=20)
            raise strike

    monkeypatch.setattr(Peer, "send", strike)
    with pytest.raises(KeyboardInterrupt):
        begin(item, cluster[0])
    item.gone.take(timeout=20)
