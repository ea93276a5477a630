"""The pools of other libraries map what they are given; those that are not installed are left out."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from benchmarks import batches, halves, peers
from benchmarks.rounds import Plan, compare


def test_a_pool_of_the_standard_library() -> None:
    with peers.pool() as run:
        assert list(run(abs, range(-3, 0))) == [3, 2, 1]


@pytest.mark.parametrize("name", ["joblib", "mpire"])
def test_other_libraries(name: str) -> None:
    pytest.importorskip(name, reason="comes with the extra 'benchmarks'")
    with getattr(peers, name)() as run:
        assert list(run(abs, range(-3, 0))) == [3, 2, 1]


def test_who_is_not_there_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> ExitStack:
        raise ModuleNotFoundError("No module named 'fast'", name="fast")

    with ExitStack() as stack:
        assert list(peers.those_here(stack, {"fast": missing, "pool": ExitStack})) == ["pool"]
    assert "without fast" in capsys.readouterr().err


def test_parts_are_done_by_their_processes() -> None:
    with halves.processes(sum, [range(4), range(4, 8)], ()) as run:
        assert [run(), run()] == [[6, 22]] * 2


def test_uneven_items_differ_a_thousandfold() -> None:
    items = batches.costs(1000)
    assert items == sorted(items)
    assert 950 < items[-1] / items[0] <= 1000


def test_a_bar_for_each_rival() -> None:
    rows = compare("x", lambda: [1.0], {"a": lambda: [2.0], "b": lambda: [4.0]}, Plan(2), bar={"b": 0.5})
    assert [(row.rival, row.ratio, row.bar) for row in rows] == [("a", 0.5, None), ("b", 0.25, 0.5)]
