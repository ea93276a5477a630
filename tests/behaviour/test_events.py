"""on_worker, and what a process says of itself: who hears what, and when."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.testing.clusters import memory_cluster
from tests.helpers.polling import poll_for
from tests.helpers.printed import Printed
from tests.helpers.scripts import ScriptRunner

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]

Heard = list[tuple[Any, ...]]


@pytest.fixture
def heard() -> Iterator[Heard]:
    """What was heard of all events, in order."""
    heard: Heard = []
    keys = [
        hd.on_worker("starting", lambda manager, params: heard.append(("starting", repr(manager), params["env"]))),
        hd.on_worker("started", lambda pid: heard.append(("started", pid))),
        hd.on_worker("exiting", lambda pid: heard.append(("exiting", pid, hd.remotecall_fetch(hd.myid, pid)))),
        hd.on_worker("exited", lambda pid, reason: heard.append(("exited", pid, reason, hd.get_status(pid)))),
    ]
    yield heard
    for key in keys:
        hd.off_worker(key)


def last_words(value: Any) -> None:
    hd.set_status("before")
    hd.set_status(value)


def test_a_whole_life(transport: str, heard: Heard) -> None:
    """All events in order; a worker can be called while it is exiting, and its last words are read after its end."""
    (pid,) = hd.addprocs(1, transport=transport, env={"COLOUR": "red"})
    assert heard == [("starting", "LocalManager()", {"COLOUR": "red"}), ("started", pid)]
    hd.remotecall_fetch(last_words, pid, {"item": 7})
    hd.rmprocs(pid)
    assert heard[2] == ("exiting", pid, pid)
    event, gone, reason, status = heard[3]
    assert (event, gone, status) == ("exited", pid, {"item": 7})
    assert "it was removed" in reason
    assert len(heard) == 4


def test_a_death_is_heard_with_its_reason_and_last_words(transport: str, heard: Heard) -> None:
    one, two = hd.addprocs(2, transport=transport)
    hd.remote_do(lambda: (hd.set_status("at the edge"), os.kill(os.getpid(), signal.SIGKILL)), one)
    (event,) = poll_for(lambda: [each for each in heard if each[0] == "exited"])
    assert event == ("exited", one, "killed by signal 9 (SIGKILL)", "at the edge")
    assert not [each for each in heard if each[0] == "exiting"]
    assert hd.get_status(one) == "at the edge"
    assert hd.remotecall_fetch(hd.get_status, two, one) == "at the edge"


def test_functions_stay_after_shutdown_until_they_are_taken_off() -> None:
    heard: list[int] = []
    key = hd.on_worker("started", heard.append)
    first = hd.addprocs(1)
    hd.shutdown()
    second = hd.addprocs(1)
    hd.off_worker(key)
    hd.addprocs(1)
    assert heard == first + second


def test_who_fails_before_the_start_prevents_it() -> None:
    def refuse(manager: Any, params: Any) -> None:
        raise PermissionError("not today")

    key = hd.on_worker("starting", refuse)
    try:
        with pytest.raises(PermissionError, match="not today"):
            hd.addprocs(1)
        assert hd.workers() == [1]
    finally:
        hd.off_worker(key)


def test_who_fails_after_the_start_is_heard_and_the_worker_stays() -> None:
    def complain(pid: int) -> None:
        raise LookupError(f"what is {pid}?")

    key = hd.on_worker("started", complain)
    try:
        with pytest.raises(LookupError, match="what is"):
            hd.addprocs(1)
    finally:
        hd.off_worker(key)
    (pid,) = hd.workers()
    assert pid != 1
    assert hd.remotecall_fetch(hd.myid, pid) == pid


def test_who_fails_or_is_slow_at_the_end_holds_nobody_up() -> None:
    from hybriddist.cluster import cluster_of
    from hybriddist.runtime.current import current

    def fail(pid: int, reason: str) -> None:
        raise LookupError("nobody asked")

    go_on = threading.Event()
    pids = hd.addprocs(2)
    events = cluster_of(current()).events
    before, events.waiting_seconds = events.waiting_seconds, 0.05
    keys = [hd.on_worker("exiting", lambda pid: go_on.wait(20)), hd.on_worker("exited", fail)]
    try:
        with Printed() as printed:
            hd.rmprocs(pids, waitfor=20)
            poll_for(lambda: printed.err.count("LookupError: nobody asked") == 2)
    finally:
        go_on.set()
        events.waiting_seconds = before
        for key in keys:
            hd.off_worker(key)
    assert hd.workers() == [1]
    assert printed.err.count("on_worker('exiting') functions for worker") == 2


def test_only_the_driver_hears() -> None:
    (pid,) = hd.addprocs(1)
    with pytest.raises(hd.RemoteException) as info:
        hd.remotecall_fetch(hd.on_worker, pid, "started", print)
    assert isinstance(info.value.__cause__, hd.NotDriverError)


def test_a_function_may_add_and_remove_workers() -> None:
    def replace(pid: int, reason: str) -> None:
        hd.off_worker("replace")
        hd.addprocs(1)

    hd.on_worker("exited", replace, key="replace")
    (pid,) = hd.addprocs(1)
    hd.rmprocs(pid)
    assert poll_for(lambda: [each for each in hd.workers() if each > 1]) == [pid + 1]


# ---- status -------------------------------------------------------------------------------------------------------


def check_statuses(pids: list[int]) -> None:
    everybody = [1, *pids]
    assert [hd.get_status(pid) for pid in everybody] == [None] * len(everybody)
    hd.set_status("driving")
    for pid in pids:
        hd.remotecall_fetch(hd.set_status, pid, ("worker", pid))
    expected = ["driving", *[("worker", pid) for pid in pids]]
    for reader in everybody:
        assert [hd.remotecall_fetch(hd.get_status, reader, pid) for pid in everybody] == expected
    hd.set_status(None)
    assert hd.get_status(1) is None


def test_everybody_reads_what_everybody_says(transport: str) -> None:
    check_statuses(hd.addprocs(2, transport=transport))


def test_in_memory_too() -> None:
    with memory_cluster(2) as cluster:
        check_statuses(cluster.pids)


def test_what_one_says_comes_in_order(transport: str) -> None:
    (pid,) = hd.addprocs(1, transport=transport)

    def count() -> int:
        for number in range(200):
            hd.set_status(number)
        return number

    assert hd.remotecall_fetch(count, pid) == hd.get_status(pid) == 199


def test_a_status_is_a_copy_that_only_its_reader_unpickles() -> None:
    """The driver need not know the class of what one worker says to another."""
    one, two = hd.addprocs(2)

    def define() -> None:
        import sys
        import types

        module = sys.modules["only_there"] = types.ModuleType("only_there")
        exec("class Word(str): pass", module.__dict__)

    for pid in (one, two):
        hd.remotecall_wait(define, pid)

    def say() -> None:
        import sys

        hd.set_status(sys.modules["only_there"].Word("hello"))

    hd.remotecall_wait(say, one)
    assert hd.remotecall_fetch(lambda: str(hd.get_status(one)), two) == "hello"
    with pytest.raises(hd.DeserializeError):
        hd.get_status(one)
    items = [1]
    hd.set_status(items)
    items.append(2)
    assert hd.get_status(1) == [1]
    hd.set_status(None)


@pytest.mark.parametrize(
    ("pid", "kind"), [(999_999, hd.NoSuchProcessError), (0, hd.NoSuchProcessError), ("2", TypeError)]
)
def test_of_nobody(pid: Any, kind: type[Exception]) -> None:
    (worker,) = hd.addprocs(1)
    with pytest.raises(kind):
        hd.get_status(pid)
    with pytest.raises(hd.RemoteException) as info:
        hd.remotecall_fetch(hd.get_status, worker, pid)
    assert isinstance(info.value.__cause__, kind)


def test_a_bad_status_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="a status is at most 65536 bytes"):
        hd.set_status(bytes(70_000))
    with pytest.raises(hd.SerializeError):
        hd.set_status(threading.Lock())
    assert hd.get_status(1) is None


@pytest.mark.parametrize("end", ["", "hd.shutdown()", "raise SystemExit(0)"], ids=["its end", "shutdown", "an exit"])
def test_the_driver_tells_of_all_ends_before_its_own(run_python: ScriptRunner, end: str) -> None:
    done = run_python(
        f"""
        import hybriddist as hd
        say = lambda *words: print(" ".join(map(str, words)) + "\\n", end="", flush=True)  # in one piece
        hd.on_worker("exiting", lambda pid: say("exiting", pid))
        hd.on_worker("exited", lambda pid, reason: say("exited", pid, hd.get_status(pid)))
        one, two = hd.addprocs(2)
        hd.remotecall_fetch(hd.set_status, one, "first")
        {end}
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["exited 2 first", "exited 3 None", "exiting 2", "exiting 3"]
