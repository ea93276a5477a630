"""What a worker sent before it died counts, also when its death is noticed before it is read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest

import hybriddist as hd
from hybriddist.core.messages import Mode, Outcome
from hybriddist.errors import TransportError
from hybriddist.runtime.current import current
from tests.helpers.polling import poll_for

pytestmark = pytest.mark.leaks_by_module


def is_dead(ospid: int) -> bool:
    try:
        return psutil.Process(ospid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def by_sending(pid: int) -> None:
    peer = current().peers[pid]

    def send_on() -> None:
        while True:
            current().start_call(int, peer, (), {}, Mode.DO, 0, 0)

    with pytest.raises(hd.ProcessExitedException):
        send_on()


def by_word_of_others(pid: int) -> None:
    current().peers[pid].lose(TransportError("somebody says so"))


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("notice", [by_sending, by_word_of_others])
def test_unread_results_are_results(transport: str, notice: Callable[[int], Any]) -> None:
    (pid,) = hd.addprocs(1, transport=transport)
    process = current()
    peer = process.peers[pid]
    ospid = hd.remotecall_fetch(os.getpid, pid)
    with peer.recv_lock:  # nobody receives
        done = [process.start_call(abs, peer, (-i,), {}, Mode.FETCH, 0, 0) for i in range(9)]
        process.start_call(os._exit, peer, (3,), {}, Mode.DO, 0, 0)
        poll_for(lambda: is_dead(ospid))
        noticing = threading.Thread(target=notice, args=(pid,))
        noticing.start()
        poll_for(lambda: peer.lost is not None)
    noticing.join()
    poll_for(lambda: all(completion.done for completion in done))
    assert [completion.outcome for completion in done] == [Outcome.VALUE] * 9
    assert [process.value_of(completion, peer) for completion in done] == list(range(9))
    hd.shutdown()
