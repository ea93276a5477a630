"""pmap while workers come and go, and where there are none."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]


def begin(log: Path, x: Any) -> None:
    """An item has begun: a line in the log."""
    with log.open("a") as file:
        file.write(f"{x} {os.getpid()}\n")


def begun(log: Path) -> Counter[int]:
    return Counter(int(line.split()[0]) for line in log.read_text().splitlines()) if log.exists() else Counter()


def dies_at(victim: int, log: Path, x: int) -> int:
    begin(log, x)
    if x == victim:
        os._exit(7)
    return x


def dies_once(victim: int, log: Path, x: int) -> int:
    begin(log, x)
    if x == victim and begun(log)[x] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def stay(log: Path, gate: hd.Future, x: int) -> int:
    begin(log, x)
    gate.wait(10)
    return hd.myid()


class Caller(threading.Thread):
    """A pmap under way on a thread."""

    def __init__(self, f: Any, *args: Any, **keywords: Any) -> None:
        super().__init__()
        self._call = partial(hd.pmap, f, *args, **keywords)
        self.result: Any = None

    def run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:
            self.result = error

    def end(self) -> Any:
        self.join(15)
        assert not self.is_alive()
        return self.result


# ---- deaths -------------------------------------------------------------------------------------------------------


def test_the_item_of_a_dead_worker_is_told_with_the_reason(transport: str, tmp_path: Path) -> None:
    hd.addprocs(2, transport=transport)
    with pytest.raises(hd.ProcessExitedException, match="it exited with code 7") as caught:
        hd.pmap(partial(dies_at, 3, tmp_path / "log"), range(40))
    assert caught.value.index == 3  # type: ignore[attr-defined]
    assert caught.value.exitcode == 7
    assert hd.nworkers() == 1


@pytest.mark.parametrize(("batch_size", "victim"), [(1, 4), (10, 0), (10, 39)])
def test_other_items_run_exactly_once(transport: str, batch_size: int, victim: int, tmp_path: Path) -> None:
    """Also those that were in one message with it, and had not begun."""
    hd.addprocs(2, transport=transport)
    log = tmp_path / "log"
    handled: list[BaseException] = []

    def handle(error: BaseException) -> str:
        handled.append(error)
        return "dead"

    result = hd.pmap(partial(dies_at, victim, log), range(40), batch_size=batch_size, on_error=handle)
    dead = {x for x in range(40) if result[x] == "dead"}
    assert result == ["dead" if x in dead else x for x in range(40)]
    assert begun(log) <= Counter(range(40))
    assert set(range(40)) - set(begun(log)) <= dead - {victim}  # it was about to begin with those
    # The worker may have been at several: if one takes long, another thread begins with the next.
    where = dict(line.split() for line in log.read_text().splitlines())
    assert {where.get(str(x), where[str(victim)]) for x in dead | {victim}} == {where[str(victim)]}
    assert victim in dead
    assert {type(error) for error in handled} == {hd.ProcessExitedException}


@pytest.mark.parametrize("batch_size", [1, 10])
def test_with_retries_the_item_runs_elsewhere(transport: str, batch_size: int, tmp_path: Path) -> None:
    hd.addprocs(2, transport=transport)
    log = tmp_path / "log"
    checked: list[Any] = []

    def check(state: Any, error: BaseException) -> bool:
        checked.append((type(error), getattr(error, "signal", None)))
        return True

    item = partial(dies_once, 5, log)
    assert hd.pmap(item, range(40), batch_size=batch_size, retry_delays=[0], retry_check=check) == list(range(40))
    assert begun(log) - Counter(range(40)) >= Counter([5])
    assert len({line.split()[1] for line in log.read_text().splitlines() if line.startswith("5 ")}) == 2
    assert 1 <= begun(log).total() - 40 <= len(checked)  # it may have been at several; nothing else ran twice
    assert set(checked) == {(hd.ProcessExitedException, signal.SIGKILL)}


def test_of_adapting_batches_the_dead_workers_is_told_and_the_rest_goes_on(transport: str, tmp_path: Path) -> None:
    hd.addprocs(2, transport=transport)

    def f(x: int) -> int:
        with (tmp_path / str(x)).open("a") as file:
            file.write(".")
        if x == 500:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    results = hd.pmap(f, range(3000), batch_size="auto", on_error=type)
    dead = {x for x, result in enumerate(results) if result is hd.ProcessExitedException}
    assert 500 in dead
    assert all(result == x for x, result in enumerate(results) if x not in dead)
    assert all((tmp_path / str(x)).read_text() == "." for x in range(3000) if x not in dead)


def test_a_worker_that_is_removed_meanwhile(transport: str, tmp_path: Path) -> None:
    one, _ = hd.addprocs(2, transport=transport)
    log, gate = tmp_path / "log", hd.Future()
    caller = Caller(partial(stay, log, gate), range(6), on_error=type)
    caller.start()
    poll_for(lambda: begun(log).total() == 2)
    hd.rmprocs(one)
    gate.put(None)
    result = caller.end()
    assert result.count(hd.ProcessExitedException) == 1
    assert begun(log) == Counter(range(6))


@pytest.mark.parametrize("keywords", [{"on_error": type}, {"retry_delays": [0.0] * 9}], ids=str)
def test_all_workers_gone(transport: str, keywords: dict[str, Any]) -> None:
    hd.addprocs(2, transport=transport)
    with pytest.raises(hd.ProcessExitedException):
        hd.pmap(lambda x: os._exit(1), range(40), **keywords)
    poll_for(lambda: hd.workers() == [1])


def test_a_worker_is_killed_while_a_worker_maps(transport: str) -> None:
    """The caller, itself a worker, is all that is left."""
    one, _ = hd.addprocs(2, transport=transport)

    def call() -> Any:
        caller = hd.myid()

        def item(x: int) -> int:
            if hd.myid() != caller:
                os._exit(7)
            return x

        return hd.pmap(item, range(20), on_error=lambda error: str(error))

    result = hd.remotecall(call, one).fetch(15)
    assert [str(x) for x in range(20) if x not in result] == [str(result.index(x)) for x in result if type(x) is str]
    assert all("code 7" in x for x in result if type(x) is str)
    assert hd.workers() == [one]


# ---- arrivals -----------------------------------------------------------------------------------------------------


def test_new_workers_join_in(transport: str, tmp_path: Path) -> None:
    """At once, not when the others have come to an end."""
    first = hd.addprocs(1, transport=transport)
    log, gate = tmp_path / "log", hd.Future()
    caller = Caller(partial(stay, log, gate), range(12))
    caller.start()
    poll_for(lambda: begun(log))
    new = hd.addprocs(2, transport=transport)

    def processes() -> set[str]:
        return {line.split()[1] for line in log.read_text().splitlines()}

    poll_for(lambda: len(processes()) == 3, what="the new workers have begun")
    gate.put(None)
    assert set(caller.end()) == {*first, *new}
    assert begun(log) == Counter(range(12))


# ---- nobody but the driver ----------------------------------------------------------------------------------------


def test_without_workers_the_driver_works() -> None:
    here = os.getpid(), threading.get_ident()
    mine: list[int] = []

    def f(x: int) -> tuple[int, int]:
        mine.append(x)
        return os.getpid(), threading.get_ident()

    assert hd.pmap(f, range(3)) == [here] * 3
    assert mine == [0, 1, 2]


def test_without_workers_errors_are_as_with_them(tmp_path: Path) -> None:
    with pytest.raises(hd.RemoteException) as caught:
        hd.pmap(lambda x: 1 // x, [1, 0])
    assert caught.value.index == 1  # type: ignore[attr-defined]
    assert caught.value.pid == 1
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert hd.pmap(lambda x: 1 // x, [1, 0], on_error=type) == [1, ZeroDivisionError]
    log = tmp_path / "log"

    def item(x: int) -> int:
        begin(log, x)
        if begun(log)[x] == 1:
            raise OSError
        return x

    assert hd.pmap(item, range(3), retry_delays=[0]) == [0, 1, 2]


def test_a_worker_alone_works_itself(transport: str) -> None:
    (pid,) = hd.addprocs(1, transport=transport)
    assert hd.remotecall(lambda: hd.pmap(lambda x: hd.myid(), range(3)), pid).fetch(10) == [pid] * 3
