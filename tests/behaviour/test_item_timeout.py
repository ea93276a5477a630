"""pmap with a time limit for each item: interrupted, and if that does not help, the worker is replaced."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd
from tests.helpers.polling import poll_for

pytestmark = [pytest.mark.leaks_by_module, pytest.mark.usefixtures("no_workers")]


def sleeps_at(victim: int, x: int) -> int:
    if x == victim:
        time.sleep(60)
    return x


def deaf_at(victim: int, x: int) -> int:
    """It takes no notice of interrupts."""
    while x == victim:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
    return x


@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
def test_an_item_that_takes_too_long_fails_alone(transport: str, batch_size: Any) -> None:
    pids = hd.addprocs(2, transport=transport)
    seen: list[BaseException] = []

    def handle(error: BaseException) -> str:
        seen.append(error)
        return "late"

    results = hd.pmap(lambda x: sleeps_at(4, x), range(20), item_timeout=0.3, batch_size=batch_size, on_error=handle)
    assert results == ["late" if x == 4 else x for x in range(20)]
    assert [type(error) for error in seen] == [TimeoutError]
    assert "0.3 seconds" in str(seen[0])
    assert hd.workers() == pids  # it reacted
    assert [hd.remotecall(hd.myid, pid).fetch(timeout=5) for pid in pids] == pids


def test_it_is_raised_with_its_index(transport: str) -> None:
    hd.addprocs(2, transport=transport)
    with pytest.raises(TimeoutError) as caught:
        hd.pmap(lambda x: sleeps_at(3, x), itertools.count(), item_timeout=0.2)
    assert caught.value.index == 3  # type: ignore[attr-defined]


def test_waiting_behind_another_does_not_count(transport: str) -> None:
    """Each takes two thirds of the limit, and most wait for longer than that."""
    hd.addprocs(1, transport=transport)
    assert hd.pmap(lambda x: (time.sleep(0.2), x)[1], range(6), item_timeout=0.3, batch_size=3) == list(range(6))


def test_a_retry_has_its_own_time(transport: str, tmp_path: Any) -> None:
    hd.addprocs(2, transport=transport)

    def once(x: int) -> int:
        mark = tmp_path / str(x)
        if not mark.exists():
            mark.touch()
            time.sleep(60)
        return x

    checked: list[Any] = []
    results = hd.pmap(
        once, range(3), item_timeout=0.3, retry_delays=[0.0], retry_check=lambda s, e: checked.append(type(e)) or True
    )
    assert results == [0, 1, 2]
    assert checked == [TimeoutError] * 3


def test_a_worker_that_does_not_react_is_replaced(transport: str) -> None:
    before = hd.addprocs(2, transport=transport)
    results = hd.pmap(lambda x: deaf_at(2, x), range(10), item_timeout=0.3, on_error=type)
    assert results == [TimeoutError if x == 2 else x for x in range(10)]
    poll_for(lambda: hd.nworkers() == 2, timeout=10)
    after = hd.workers()
    assert len(set(after) & set(before)) == 1
    assert max(after) > max(before)
    assert [hd.path_to(pid) for pid in after] == [transport] * 2
    assert len(set(hd.pmap(lambda _: (time.sleep(0.05), os.getpid())[1], range(4)))) == 2


def test_the_replacement_takes_part(transport: str) -> None:
    """The only worker is stuck: the rest waits for the new one."""
    hd.addprocs(1, transport=transport)
    results = hd.pmap(lambda x: deaf_at(0, x), range(5), item_timeout=0.2, on_error=type)
    assert results == [TimeoutError, 1, 2, 3, 4]


def test_from_a_worker(transport: str) -> None:
    one, _ = hd.addprocs(2, transport=transport)

    def inner() -> Any:
        return hd.pmap(lambda x: sleeps_at(1, x), range(6), item_timeout=0.3, on_error=type)

    assert hd.remotecall(inner, one).fetch(timeout=20) == [0, TimeoutError, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("limit", "kind"),
    [(0, ValueError), (-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)],
)
def test_bad_limits(limit: Any, kind: type[Exception], transport: str) -> None:
    with pytest.raises(kind, match="item_timeout"):
        hd.pmap(abs, [1], item_timeout=limit)


def test_no_thread_is_left(transport: str) -> None:
    hd.addprocs(1, transport=transport)
    hd.pmap(lambda x: sleeps_at(0, x), range(2), item_timeout=0.2, on_error=type)
    assert not [t for t in threading.enumerate() if "replacement" in t.name]


def test_an_import_that_takes_too_long_comes_to_its_end(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an extension module could not be imported a second time, by nobody on that worker."""
    (tmp_path / "hd_slow_part.py").write_text("PART = True\n")
    (tmp_path / "hd_slow_module.py").write_text(
        "import time\ntime.sleep(0.4)\nimport hd_slow_part\nWHOLE = hd_slow_part.PART\n"
    )
    pids = hd.addprocs(1, transport=transport)
    monkeypatch.syspath_prepend(tmp_path)  # not the worker's: it borrows both modules

    def item(_: int) -> None:
        import hd_slow_module  # type: ignore[import-not-found]  # noqa: F401

        time.sleep(60)

    with pytest.raises(TimeoutError, match=r"0\.2 seconds"):
        hd.pmap(item, [0], item_timeout=0.2)
    assert hd.workers() == pids
    assert hd.remotecall_fetch(lambda: sys.modules["hd_slow_module"].WHOLE, pids[0])
