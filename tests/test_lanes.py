"""How many workers a map of batches gives work to."""

from __future__ import annotations

import math

import pytest

from hybriddist.lanes import Pace


@pytest.fixture
def pace() -> Pace:
    return Pace(4)


def worth(pace: Pace, left: int | None, silent_seconds: float = 0.0) -> float:
    return pace.lanes_worth(left, pace._heard + silent_seconds)


def test_a_map_begins_with_few_lanes_and_soon_opens_all_if_nobody_answers(pace: Pace) -> None:
    few = worth(pace, 100_000)
    assert few == 4
    assert worth(pace, None) == few
    assert worth(pace, 100_000, pace.patience() + 0.001) == math.inf


@pytest.mark.parametrize(("cpus", "lanes"), [(1, 2), (2, 2), (5, 5), (8, 8), (64, 8)])
def test_at_first_there_are_as_many_lanes_as_cpus_within_bounds(cpus: int, lanes: int) -> None:
    assert worth(Pace(cpus), 100_000) == lanes


def test_each_failure_asks_for_one_lane_more(pace: Pace) -> None:
    few = worth(pace, 100_000)
    pace.end(1, 1e-7)
    pace.want_another()
    pace.want_another()
    assert worth(pace, 1) == few + 2


def test_tiny_items_stay_on_few_lanes(pace: Pace) -> None:
    few = worth(pace, 1_000_000)
    for items in (1, 1, 4, 16, 1000, 10_000):
        pace.end(items, 50e-6 + items * 1e-7)
        assert worth(pace, 100_000) == few


@pytest.mark.parametrize("seconds", [1e-3, 0.1])
def test_items_that_take_long_get_all_lanes_at_once(seconds: float, pace: Pace) -> None:
    pace.end(1, seconds)
    assert worth(pace, 10_000) > 1000


def test_lanes_follow_what_is_left(pace: Pace) -> None:
    pace.end(1000, 0.1)
    assert worth(pace, 100_000) > worth(pace, 10_000) > worth(pace, 100)


def test_without_a_known_end_as_much_is_expected_as_has_been(pace: Pace) -> None:
    pace.end(1000, 0.1)
    assert worth(pace, None) == worth(pace, 1000)


def test_items_that_get_dearer_count_soon(pace: Pace) -> None:
    for _ in range(20):
        pace.end(1000, 1e-3)
    few = worth(pace, 10_000)
    for _ in range(20):
        pace.end(10, 10e-3)
    assert worth(pace, 10_000) > few


def test_when_some_have_ended_silence_may_be_longer(pace: Pace) -> None:
    before = pace.patience()
    pace.end(100, 1e-3)
    assert pace.patience() > before
    assert worth(pace, 1000, before + 0.001) < math.inf
    assert worth(pace, 1000, pace.patience() + 0.001) == math.inf
