"""Waiting for several peers at once, while other threads receive from some of them."""

from __future__ import annotations

import threading
import time

import hybriddist as hd
from hybriddist.runtime.completion import Completion
from hybriddist.runtime.current import current


def test_who_waits_for_several_is_woken_by_a_thread_that_receives_from_one(cluster: list[int]) -> None:
    """It cannot hold that peer's lock, and so does not see what the peer sends."""
    process = current()
    peers = [process.peer(pid) for pid in cluster]
    news = Completion()
    held, done = threading.Event(), threading.Event()

    def receive_from_the_first() -> None:
        with peers[0].recv_lock:
            held.set()
            done.wait(10)

    receiving = threading.Thread(target=receive_from_the_first)
    receiving.start()
    held.wait(10)
    completing = threading.Timer(0.1, news.complete, [0, None])
    completing.start()
    try:
        begin = time.monotonic()
        assert process.wait_for_any(news, peers, 30)
        assert time.monotonic() - begin < 20  # woken, not timed out
    finally:
        done.set()
        receiving.join()
        completing.join()
    assert hd.remotecall_fetch(abs, cluster[0], -1) == 1
