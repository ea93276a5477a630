"""The bare loops run and do the work they say. Their speed is looked at by people, not by tests."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import bare, idle_memory, large_arrays, launch, loops, many_items, round_trip, table
from benchmarks.rounds import Plan, Row, compare, median, p99


@pytest.mark.parametrize("echo", [round_trip.pipe_echo, round_trip.socket_echo])
@pytest.mark.parametrize("placement", list(bare.placements().values()), ids=str)
def test_echo_loops_give_a_time_for_each_round_trip(echo: object, placement: bare.Placement) -> None:
    with echo(20, placement) as turn:  # type: ignore[operator]
        first, second = turn(), turn()
    assert len(first) == len(second) == 20
    assert all(sample > 0 for sample in first + second)


def test_the_socket_stream_moves_every_byte() -> None:
    with large_arrays.socket_stream(3_000_001) as turn:
        assert [len(turn()), len(turn())] == [1, 1]


def test_the_warm_copy_gives_one_time() -> None:
    assert len(large_arrays.warm_copy(1000)()) == 1


@pytest.mark.parametrize("pool", [many_items.pool_map, many_items.executor_map])
def test_pools_map_all_items(pool: object) -> None:
    with pool(50) as turn:  # type: ignore[operator]
        assert len(turn()) == 1


def test_bare_processes_fold_their_halves() -> None:
    assert len(loops.bare_processes(1003)) == 1
    with pytest.raises(RuntimeError, match="wrong"):
        loops.check(1, 1003)


def test_a_map_with_wrong_values_is_refused() -> None:
    turn = many_items.timed(lambda values: [0 for _ in values], 3)
    with pytest.raises(RuntimeError, match="something else"):
        turn()


def test_a_cold_pool_answers_from_every_worker() -> None:
    (seconds,) = launch.cold("cold_pool", 2)()
    assert seconds > 0


def test_an_idle_pool_worker_has_a_weight() -> None:
    with idle_memory.pool_workers() as turn:
        assert len([megabytes for megabytes in turn() if megabytes > 1]) == idle_memory.WORKERS


def test_contenders_take_turns() -> None:
    order = []

    def contender(name: str, seconds: float) -> object:
        return lambda: order.append(name) or [seconds] * 100

    rivals = {"a": contender("a", 4.0), "b": contender("b", 8.0)}
    rows = compare("x", contender("ours", 2.0), rivals, Plan(rounds=2), bar=0.5)  # type: ignore[arg-type]
    assert order == ["ours", "a", "b"] * 2
    assert [(row.rival, row.ratio, row.bar) for row in rows] == [("a", 0.5, 0.5), ("b", 0.25, None)]


def test_medians_and_percentiles() -> None:
    assert median([[1.0, 2.0, 90.0], [4.0], [3.0]]) == 3.0
    assert p99([[float(n) for n in range(100)]]) == 98.0
    assert math.isnan(p99([[1.0] * 99]))


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.34e-6, "s", "12.3 µs"),
        (0.9e-6, "s", "0.900 µs"),
        (999e-6, "s", "999 µs"),
        (0.04567, "s", "45.7 ms"),
        (12.0, "s", "12.0 s"),
        (1234.0, "s", "1234 s"),
        (17.04, "MB", "17.0 MB"),
        (math.nan, "s", "–"),
    ],
)
def test_quantities_have_three_digits(value: float, unit: str, text: str) -> None:
    assert table.quantity(value, unit) == text


def test_the_table_shows_a_missed_bar_and_the_json_all_digits() -> None:
    row = Row("x", 2.0, math.nan, "y", 1.0, math.nan, "s", 1.5)
    text = table.markdown({"python": "CPython 3"}, [row])
    assert text.splitlines()[0] == "python: CPython 3"
    assert "2.00 **missed**" in text
    assert "≤ 1.5" in text
    assert json.loads(table.as_json({}, [row]))["rows"][0]["ours_p99"] is None
