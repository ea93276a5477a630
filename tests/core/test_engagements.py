"""The book of who works for maps, against a plain list of what was said."""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hybriddist.core.engagements import Engagements

HOLDERS = st.integers(1, 4)
WORKERS = st.lists(st.integers(2, 6), unique=True)


class Book(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.book = Engagements()
        self.said: Counter[tuple[int, int]] = Counter()

    @rule(holder=HOLDERS, pids=WORKERS)
    def engage(self, holder: int, pids: list[int]) -> None:
        self.book.engage(holder, pids)
        self.said.update((holder, pid) for pid in pids)

    @rule(holder=HOLDERS, pids=WORKERS, most=st.one_of(st.integers(0, 3), st.just(float("inf"))), gone=HOLDERS)
    def engage_idle(self, holder: int, pids: list[int], most: float, gone: int) -> None:
        living = {1, 2, 3, 4, holder} - ({gone} - {holder})
        self.said = Counter({key: count for key, count in self.said.items() if key[0] in living})
        idle = [pid for pid in pids if not any(self.said[other, pid] for other in living)]
        expected = idle[: None if most == float("inf") else int(most)]
        assert self.book.engage_idle(holder, pids, most, living) == expected
        self.said.update((holder, pid) for pid in expected)

    @rule(holder=HOLDERS, pids=WORKERS)
    def release(self, holder: int, pids: list[int]) -> None:
        self.book.release(holder, pids)
        for pid in pids:
            self.said[holder, pid] = max(0, self.said[holder, pid] - 1)

    @invariant()
    def it_knows_who_works_for_others(self) -> None:
        for holder in range(1, 5):
            expected = {pid for (other, pid), count in self.said.items() if count and other != holder}
            assert self.book.engaged_by_others(holder) == expected

    @invariant()
    def it_keeps_nothing_of_what_is_over(self) -> None:
        assert set(self.book._workers) == {holder for (holder, _), count in self.said.items() if count}


TestBook = Book.TestCase
