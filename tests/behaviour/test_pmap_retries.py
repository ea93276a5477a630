"""pmap: delays between attempts, each item's own, and all ways of handling failures together."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import hybriddist as hd

pytestmark = [
    pytest.mark.leaks_by_module,
    pytest.mark.parametrize("transport", ["shm", "tcp", "memory"], indirect=True, scope="module"),
]

BATCHES = pytest.mark.parametrize("batch_size", [1, 2, "auto"])
PLACES = pytest.mark.parametrize("distributed", [True, False])


class Attempts:
    """A function that fails so many times for each item, and counts in a folder, which all processes see."""

    def __init__(self, folder: Path, failures: int) -> None:
        self.folder = folder
        self.failures = failures

    def __call__(self, x: int) -> int:
        file = self.folder / str(x)
        with file.open("a") as log:
            log.write("x")
        if len(file.read_text()) <= self.failures:
            raise OSError(f"{x} is not ready")
        return x

    def made(self) -> dict[int, int]:
        return {int(file.name): len(file.read_text()) for file in self.folder.iterdir()}


class Delays:
    """Can be iterated again and again, and notes how often it was."""

    def __init__(self, *delays: Any) -> None:
        self.delays = delays
        self.iterated = 0

    def __iter__(self) -> Iterator[Any]:
        self.iterated += 1
        yield from self.delays


@BATCHES
@PLACES
def test_delays_may_be_endless(batch_size: Any, distributed: bool, cluster: list[int], tmp_path: Path) -> None:
    item = Attempts(tmp_path, failures=5)
    keywords: dict[str, Any] = {"batch_size": batch_size, "distributed": distributed}
    assert hd.pmap(item, [1, 2, 3], retry_delays=itertools.repeat(0.001), **keywords) == [1, 2, 3]
    assert item.made() == {1: 6, 2: 6, 3: 6}
    assert list(hd.imap(Attempts(tmp_path, failures=9), [3], retry_delays=itertools.repeat(0), **keywords)) == [3]


@BATCHES
@PLACES
def test_each_item_that_fails_iterates_the_delays(
    batch_size: Any, distributed: bool, cluster: list[int], tmp_path: Path
) -> None:
    delays = Delays(0, 0.001, 0)
    item = Attempts(tmp_path, failures=3)
    assert hd.pmap(item, range(4), retry_delays=delays, batch_size=batch_size, distributed=distributed) == [0, 1, 2, 3]
    assert delays.iterated == 4
    hd.pmap(abs, range(4), retry_delays=delays, batch_size=batch_size, distributed=distributed)
    assert delays.iterated == 4  # nothing failed, so nothing was read


@PLACES
def test_an_iterator_gives_all_items_the_same_delays(distributed: bool, cluster: list[int], tmp_path: Path) -> None:
    item = Attempts(tmp_path, failures=2)
    assert hd.pmap(item, range(5), retry_delays=iter([0, 0.001]), distributed=distributed) == [0, 1, 2, 3, 4]
    with pytest.raises(hd.RemoteException, match="9 is not ready"):
        hd.pmap(item, [9], retry_delays=iter([0.0]), distributed=distributed)
    assert item.made()[9] == 2


@pytest.mark.parametrize(("delay", "error"), [("soon", TypeError), (-1, ValueError)])
@PLACES
def test_a_delay_that_is_none_is_told_when_it_is_due(
    delay: Any, error: type[Exception], distributed: bool, cluster: list[int], tmp_path: Path
) -> None:
    item = Attempts(tmp_path, failures=9)
    with pytest.raises(error, match="retry_delays") as caught:
        hd.pmap(item, [7], retry_delays=Delays(0, delay), distributed=distributed)
    assert caught.value.index == 0  # type: ignore[attr-defined]
    assert item.made() == {7: 2}


# ---- all together -------------------------------------------------------------------------------------------------


class OnSome:
    """Fails on other processes than these. On these every item stays until all of them have one."""

    def __init__(self, willing: list[int]) -> None:
        self.willing = willing
        self.here = hd.RemoteChannel(partial(hd.Channel, 1000))
        self.go = hd.Future()

    def __call__(self, _: int) -> int:
        pid = hd.myid()
        if pid not in self.willing:
            raise ValueError(f"{pid} does not want to")
        if not self.go.isready():
            self.here.put(pid)
            self.go.wait(20)
        return pid

    @contextlib.contextmanager
    def meeting(self) -> Iterator[None]:
        """They meet meanwhile."""

        def meet() -> None:
            missing = set(self.willing)
            while missing:
                missing.discard(self.here.take(timeout=20))
            self.go.put(None)

        with ThreadPoolExecutor(1) as helper:
            met = helper.submit(meet)
            yield
            met.result()


def checked(state: int | None, error: BaseException) -> tuple[int, bool]:
    assert type(error) is ValueError
    return (state or 0) + 1, True


@BATCHES
@PLACES
@pytest.mark.parametrize("check", [None, checked])
@pytest.mark.parametrize("retries", [False, True])
@pytest.mark.parametrize("handled", [False, True])
def test_every_combination(
    batch_size: Any, distributed: bool, check: Any, retries: bool, handled: bool, cluster: list[int]
) -> None:
    """Julia's own test of its pmap. An item goes to other processes until one takes it, and all of those take part."""
    seen: list[BaseException] = []
    # Without retries nobody needs a third process, where the second has failed with all the items in no time.
    item = OnSome([1] if not distributed else cluster[::2] if retries else cluster[:1])

    def handle(error: BaseException) -> int:
        seen.append(error)
        if retries:
            raise error
        return -1

    def run() -> list[int]:
        result: list[int] = hd.pmap(
            item,
            range(100),
            batch_size=batch_size,
            distributed=distributed,
            on_error=handle if handled else None,
            retry_delays=[0.001] * 10_000 if retries else (),
            retry_check=check,
        )
        return result

    if distributed and not retries and not handled:
        with pytest.raises(hd.RemoteException, match=rf"({cluster[1]}|{cluster[2]}) does not want to"):
            run()
        return
    with item.meeting():
        results = run()
    assert len(results) == 100
    failed = {-1} if handled and not retries and distributed else set()
    assert set(results) == {*item.willing, *failed}
    assert bool(seen) == (handled and distributed)
    assert all(type(error) is ValueError for error in seen)


@BATCHES
@pytest.mark.parametrize("item_timeout", [None, 20.0])
@pytest.mark.parametrize("kind", [None, hd.WorkerPool, hd.CachingPool])
def test_with_pools_time_limits_and_progress(
    batch_size: Any, item_timeout: float | None, kind: Any, cluster: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    pool = () if kind is None else (kind(cluster),)
    keywords: dict[str, Any] = {
        "retry_delays": itertools.repeat(0.001),
        "retry_check": checked,
        "batch_size": batch_size,
        "item_timeout": item_timeout,
        "progress": True,
    }
    for each in (hd.pmap, hd.imap, hd.imap_unordered):
        item = OnSome(cluster[::2])
        with item.meeting():
            assert set(each(item, *pool, range(30), **keywords)) == {cluster[0], cluster[2]}
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("30/30") >= 3
    for lender in pool:
        assert sorted(lender.take(timeout=10) for _ in cluster) == cluster
