"""A function is pickled once, however many workers get it and however often it is called; and again if it changed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import hybriddist as hd
from hybriddist.core import payload
from tests.helpers.polling import poll_for
from tests.helpers.scripts import ScriptRunner

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]


@pytest.fixture
def pickled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The functions that this interpreter has pickled, once for each time."""
    found: list[Any] = []
    dumps = payload.dumps

    def noting(value: Any, *others: Any) -> Any:
        for part in value if type(value) is tuple else (value,):
            if callable(part):
                found.append(part)
        return dumps(value, *others)

    monkeypatch.setattr(payload, "dumps", noting)
    return found


def closure_over(value: Any) -> Callable[[int], Any]:
    """A new function each time."""
    return lambda x: (value, x)


# ---- functions with closures ------------------------------------------------------------------------------------


def test_over_several_workers_and_calls(cluster: list[int], pickled: list[Any]) -> None:
    f = closure_over("x" * 100_000)
    for i in range(4):
        for pid in cluster:
            assert hd.remotecall_fetch(f, pid, i) == f(i)
        assert hd.spawn(f, i).fetch() == f(i)
    assert pickled.count(f) == 1


def test_through_all_kinds_of_calls(cluster: list[int], pickled: list[Any]) -> None:
    f = closure_over(1)
    assert hd.pmap(f, range(20)) == [f(i) for i in range(20)]
    assert hd.remotecall_all(f, 5) == dict.fromkeys([1, *cluster], f(5))
    assert hd.pmap(f, range(20), batch_size=3) == [f(i) for i in range(20)]
    for pid in cluster:
        hd.remote_do(f, pid, 1)
        hd.remotecall_wait(f, pid, 2)
    assert pickled.count(f) == 1


def test_one_that_has_changed_is_pickled_once_more(cluster: list[int], pickled: list[Any]) -> None:
    value = 0

    def f() -> int:
        return value

    for value in (1, 2, 1):
        for _ in range(3):
            assert [hd.remotecall_fetch(f, pid) for pid in cluster] == [value] * 3
    assert pickled.count(f) == 3


def test_several_threads_that_call_it_at_once(cluster: list[int], pickled: list[Any]) -> None:
    functions = [closure_over(n) for n in range(5)]

    def call(number: int) -> bool:
        f = functions[number % 5]
        return bool(hd.remotecall_fetch(f, cluster[number % 3], number) == f(number))

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(call, range(120)))
    assert [pickled.count(f) for f in functions] == [1] * 5


def test_threads_that_call_what_changes_meanwhile(cluster: list[int]) -> None:
    """A key is not forgotten while another thread is about to name it, which would end the connection."""
    value = 0

    def f() -> int:
        return value

    def call(number: int) -> bool:
        nonlocal value
        value = number
        return hd.remotecall_fetch(f, cluster[number % 2]) in range(400)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(call, range(400)))
    assert hd.remotecall_fetch(f, cluster[0]) == value


def test_an_array_in_a_closure_is_as_it_is_here_with_each_call(cluster: list[int]) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(20_000)

    def f() -> Any:
        return array[0]

    for number in range(3):
        array[0] = number
        assert [hd.remotecall_fetch(f, pid) for pid in cluster] == [number] * 3


# ---- functions of a script --------------------------------------------------------------------------------------

BEGIN = """
import sys, threading
import hybriddist as hd
a, b, c = hd.addprocs(3, transport={transport!r})
pickled = 0
class Counted:
    def __init__(self, x): self.x = x
    def __getstate__(self):
        global pickled
        pickled += 1
        return self.__dict__
def times(call):
    before = pickled
    call()
    return pickled - before
v = Counted(7)
def f(i): return v.x + i
"""


@pytest.fixture
def run(run_python: ScriptRunner, transport: str) -> Callable[[str], None]:
    """Run a script of assertions against three workers."""
    if transport == "memory":
        pytest.skip("its workers share the script's __main__")

    def run(code: str) -> None:
        done = run_python(BEGIN.format(transport=transport) + code + "\nprint('all right')\n")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.endswith("all right\n")
        assert done.stderr == ""

    return run


def test_a_global_is_pickled_once(run: Callable[[str], None]) -> None:
    run(
        """
def calls():
    for i in range(4):
        assert [hd.remotecall_fetch(f, pid, i) for pid in (a, b, c)] == [v.x + i] * 3
def maps():
    assert hd.pmap(f, range(30)) == [v.x + i for i in range(30)]
def all_of_them():
    assert hd.remotecall_all(f, 1) == dict.fromkeys(hd.procs(), v.x + 1)
def mixed():
    calls(); maps(); all_of_them(); calls()
assert times(mixed) == 1
assert times(mixed) == 0
v.x = 8
assert times(mixed) == 1
v = Counted(8)
assert times(mixed) == 1
def f(i): return -v.x
assert times(lambda: [hd.remotecall_fetch(f, pid, 0) for pid in (a, b, c)] * 2) == 1
"""
    )


def test_a_lambda_in_a_loop_is_pickled_once_for_all(run: Callable[[str], None]) -> None:
    run(
        """
def loop():
    for _ in range(3):
        for pid in (a, b, c):
            assert hd.remotecall_fetch(lambda: (v.x, v.x), pid) == (7, 7)
assert times(loop) == 1
"""
    )


def test_calls_from_worker_to_worker(run: Callable[[str], None]) -> None:
    run(
        """
def through(n):
    return [hd.remotecall_fetch(f, pid, i) for i in range(n) for pid in (b, c)]
assert hd.remotecall_fetch(through, a, 0) == []
before = hd.remotecall_eval("pickled", a)
for _ in range(2):
    assert hd.remotecall_fetch(through, a, 3) == [7, 7, 8, 8, 9, 9]
    assert hd.remotecall_eval("pickled", a) == before + 1
"""
    )


def test_a_worker_that_takes_anothers_place_has_nothing_yet(run: Callable[[str], None]) -> None:
    run(
        """
items = [1]
def g():
    items.append(v.x)
    return items
def calls(*pids): return [hd.remotecall_fetch(g, pid) for pid in pids]
assert times(lambda: calls(a, b, c)) == 1
hd.rmprocs(a)
d, = hd.addprocs(1)
assert calls(d, b) == [[1, 7], [1, 7, 7]]
assert calls(d, b) == [[1, 7, 7], [1, 7, 7, 7]]
assert pickled == 1
"""
    )


def test_a_failure_to_pickle_names_the_function(run: Callable[[str], None]) -> None:
    run(
        """
class Locked:
    def __init__(self): self.lock = threading.Lock()
    def __hash__(self): return 1
locked = Locked()
def g(): return locked
for call in (lambda: hd.remotecall_fetch(g, a), lambda: hd.pmap(lambda i: g(), [1, 2])) * 2:
    try:
        call()
    except hd.SerializeError as error:
        assert "cannot pickle the function (global '" in str(error) and "lock" in str(error), error
    else:
        raise AssertionError
locked.lock = None
assert hd.remotecall_fetch(lambda: locked.lock, a) is None
assert type(hd.remotecall_fetch(g, a)).__name__ == "Locked"
"""
    )


def test_references_among_the_globals_work_on_each_worker(run: Callable[[str], None]) -> None:
    """Each receiver is given a claim of its own; one pickle for all would give one for all, or a dead reference."""
    run(
        """
future = hd.remotecall_wait(lambda: 42, a)
channel = hd.RemoteChannel(lambda: hd.Channel(100), pid=b)
def peek(): return future.fetch()
def send(i): channel.put(i)
class Held:
    def __init__(self, channel): self.channel = channel
    def __hash__(self): return 1
held = Held(channel)
def through(i): held.channel.put(i)
for _ in range(3):
    for pid in (b, c, a):
        hd.remotecall_fetch(send, pid, pid)
        hd.remotecall_fetch(through, pid, pid)
        assert channel.take() == channel.take() == pid
    assert [hd.remotecall_fetch(peek, pid) for pid in (b, c, a)] == [42] * 3
"""
    )


# ---- what is left -----------------------------------------------------------------------------------------------


@pytest.fixture
def functions_there(cluster: list[int]) -> Callable[[], int]:
    """How many functions the workers hold for this process."""
    return lambda: sum(hd.remotecall_fetch(count_functions, pid) for pid in cluster)


def count_functions() -> int:
    from hybriddist.runtime.context import this_process

    return len(this_process().peers[1].functions_in)


def test_functions_that_are_gone_here_go_there(cluster: list[int], functions_there: Callable[[], int]) -> None:
    before = functions_there()
    functions = [closure_over(n) for n in range(20)]
    for f in functions:
        for pid in cluster:
            assert hd.remotecall_fetch(f, pid, 1) == f(1)
    assert functions_there() >= before + 60
    del f, functions
    gc.collect()
    poll_for(lambda: functions_there() <= before, what="functions that nobody forgot")
