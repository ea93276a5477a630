"""The book of who works for maps, against a plain set of what was said."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hybriddist.core.engagements import Engagements, Key

PROCESSES = st.integers(1, 4)
MAPS = st.tuples(PROCESSES, st.integers(0, 2))
WORKERS = st.lists(st.integers(2, 6), unique=True)
COUNTS = st.one_of(st.integers(0, 3), st.just(float("inf")))


class Book(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.book = Engagements()
        self.said: set[tuple[Key, int]] = set()

    @rule(key=MAPS, pids=WORKERS)
    def engage(self, key: Key, pids: list[int]) -> None:
        self.book.engage(key, pids)
        self.said.update((key, pid) for pid in pids)

    @rule(key=MAPS, pids=WORKERS, most=COUNTS, gone=PROCESSES)
    def engage_idle(self, key: Key, pids: list[int], most: float, gone: int) -> None:
        living = {1, 2, 3, 4} - {gone} | {key[0]}
        self.said = {(other, pid) for other, pid in self.said if other[0] in living}
        engaged = {pid for _, pid in self.said}
        idle = [pid for pid in pids if pid not in engaged]
        expected = idle[: None if most == float("inf") else int(most)]
        assert self.book.engage_idle(key, pids, most, living) == expected
        self.said.update((key, pid) for pid in expected)

    @rule(key=MAPS, pids=WORKERS, times=st.integers(1, 2))
    def release(self, key: Key, pids: list[int], times: int) -> None:
        for _ in range(times):
            self.book.release(key, pids)
        self.said.difference_update((key, pid) for pid in pids)

    @rule(key=MAPS, times=st.integers(1, 2))
    def end(self, key: Key, times: int) -> None:
        for _ in range(times):
            self.book.end(key)
        self.said = {(other, pid) for other, pid in self.said if other != key}
        assert key not in self.book._workers

    @invariant()
    def it_knows_who_works_for_others(self) -> None:
        for process in range(1, 5):
            expected = {pid for key, pid in self.said if key[0] != process}
            assert self.book.engaged_by_others(process, {1, 2, 3, 4}) == expected


TestBook = Book.TestCase


def test_numbers_are_given_once() -> None:
    book = Engagements()
    assert next(book.numbers) != next(book.numbers)
