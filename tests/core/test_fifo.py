"""The queue of a channel against a model of it, and what is said of closing, withdrawing and giving back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hybriddist.core.fifo import CLOSED, DONE, Event, Fifo


def said(events: list[Event]) -> dict[object, tuple[int, object]]:
    assert len({ticket for ticket, _, _ in events}) == len(events), "somebody was told twice"
    return {ticket: (outcome, item) for ticket, outcome, item in events}


# ---- one by one ---------------------------------------------------------------------------------------------------


def test_items_come_in_the_order_in_which_they_were_put() -> None:
    fifo = Fifo(3)
    for item in "abc":
        assert fifo.put(item, item) == [(item, DONE, None)]
    assert [fifo.take(1)[0][2] for _ in range(3)] == ["a", "b", "c"]


def test_a_putter_waits_for_room_and_hears_after_the_taker() -> None:
    fifo = Fifo(1)
    fifo.put("p", "a")
    assert fifo.put("q", "b") == []
    assert fifo.take("t") == [("t", DONE, "a"), ("q", DONE, None)]
    assert list(fifo.items) == ["b"]


def test_unbuffered_an_item_passes_from_hand_to_hand() -> None:
    fifo = Fifo(0)
    assert fifo.put("p", "a") == []
    assert fifo.is_ready()
    assert fifo.take("t") == [("t", DONE, "a"), ("p", DONE, None)]
    assert fifo.take("t") == []
    assert not fifo.is_ready()
    assert fifo.put("p", "b") == [("t", DONE, "b"), ("p", DONE, None)]


def test_takers_are_served_in_turn_and_each_item_goes_to_one() -> None:
    fifo = Fifo(5)
    assert fifo.take("t") == fifo.take("u") == []
    assert fifo.put("p", 1)[0] == ("t", DONE, 1)
    assert fifo.put("p", 2)[0] == ("u", DONE, 2)
    assert not fifo.items


def test_all_readers_see_an_item_even_if_somebody_takes_it() -> None:
    fifo = Fifo(1)
    fifo.read("r", True)
    fifo.read("w", False)
    fifo.take("t")
    assert fifo.put("p", 1) == [("r", DONE, 1), ("w", DONE, None), ("t", DONE, 1), ("p", DONE, None)]


def test_an_unbuffered_queue_tells_that_somebody_waits_to_put() -> None:
    fifo = Fifo(0)
    assert fifo.read("w", False) == []
    assert fifo.put("p", 1) == [("w", DONE, None)]
    assert fifo.read("v", False) == [("v", DONE, None)]


def test_close_lets_the_rest_be_taken_and_tells_who_waits() -> None:
    fifo = Fifo(1)
    fifo.put("p", 1)
    fifo.put("q", 2)
    assert fifo.close() == [("q", CLOSED, None)]
    assert fifo.put("p", 3) == [("p", CLOSED, None)]
    assert fifo.read("r", True) == [("r", DONE, 1)]
    assert fifo.take("t") == [("t", DONE, 1)]
    assert fifo.take("t") == fifo.read("t", True) == fifo.read("t", False) == [("t", CLOSED, None)]
    assert fifo.close() == []
    empty = Fifo(0)
    empty.take("t")
    empty.read("r", False)
    assert said(empty.close()) == {"t": (CLOSED, None), "r": (CLOSED, None)}


@pytest.mark.parametrize("capacity", [0, 1])
def test_who_withdraws_was_never_there(capacity: int) -> None:
    fifo = Fifo(capacity)
    fifo.take("t")
    fifo.read("r", False)
    assert fifo.waiting() == 2
    assert fifo.withdraw("t")
    assert fifo.withdraw("r")
    assert not fifo.withdraw("t")
    while fifo.put("p", 1):
        pass
    assert fifo.withdraw("p")
    assert fifo.waiting() == 0
    assert len(fifo.items) == capacity


def test_what_is_given_back_is_the_oldest_again() -> None:
    fifo = Fifo(2)
    for item in (1, 2):
        fifo.put(item, item)
    fifo.take("t")
    fifo.put(3, 3)
    assert fifo.put(4, 4) == []
    assert fifo.give_back(1) == []  # it is full, and still there is room for it
    assert [fifo.take("t")[0][2] for _ in range(4)] == [1, 2, 3, 4]
    fifo.take("t")
    fifo.read("r", True)
    assert fifo.give_back(9) == [("r", DONE, 9), ("t", DONE, 9)]
    fifo.close()
    fifo.give_back(8)
    assert fifo.take("t") == [("t", DONE, 8)]


@given(st.lists(st.integers()), st.sampled_from([1, 2, 5, math.inf]))
def test_through_a_queue_goes_what_came_in(items: list[int], capacity: float) -> None:
    fifo = Fifo(capacity)
    for number, item in enumerate(items):
        fifo.put(number, item)
    assert [fifo.take("t")[0][2] for _ in items] == items


# ---- against a model ----------------------------------------------------------------------------------------------


class FifoModel(RuleBasedStateMachine):
    """Every item is at exactly one place, every ticket hears exactly once, nobody waits for what is there."""

    @initialize(capacity=st.sampled_from([0, 1, 2, math.inf]))
    def begin(self, capacity: float) -> None:
        self.fifo = Fifo(capacity)
        self.number = 0
        self.waiting: dict[int, tuple[str, int | None]] = {}
        self.inside: list[int] = []
        """Items that were accepted and not taken, in order."""
        self.taken: list[int] = []
        self.dropped: list[int] = []
        self.returned = 0
        self.puts: list[int] = []

    def ticket(self) -> int:
        self.number += 1
        return self.number

    def hear(self, events: list[Event]) -> None:
        for ticket, (outcome, item) in said(events).items():
            kind, put = self.waiting.pop(ticket)
            if outcome == CLOSED:
                assert not self.fifo.is_open
                if kind == "put":
                    self.dropped.append(put)
                continue
            if kind == "put":
                if put not in self.taken:
                    self.inside.append(put)
            elif kind == "take":
                if item in self.inside:
                    assert item == self.inside.pop(0)
                self.taken.append(item)
            elif kind == "fetch":
                assert item not in self.taken

    @rule()
    def put(self) -> None:
        ticket = self.ticket()
        self.waiting[ticket] = ("put", ticket)
        self.puts.append(ticket)
        self.hear(self.fifo.put(ticket, ticket))

    @rule()
    def take(self) -> None:
        ticket = self.ticket()
        self.waiting[ticket] = ("take", None)
        self.hear(self.fifo.take(ticket))

    @rule(wants=st.booleans())
    def read(self, wants: bool) -> None:
        ticket = self.ticket()
        self.waiting[ticket] = ("fetch" if wants and self.fifo.capacity else "wait", None)
        self.hear(self.fifo.read(ticket, bool(wants and self.fifo.capacity)))

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def withdraw(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.fifo.withdraw(ticket)
        kind, item = self.waiting.pop(ticket)
        if kind == "put" and item is not None:
            self.dropped.append(item)

    @rule()
    @precondition(lambda self: self.taken)
    def give_back(self) -> None:
        item = self.taken.pop()
        self.inside.insert(0, item)
        self.returned += 1
        self.hear(self.fifo.give_back(item))

    @rule()
    def close(self) -> None:
        self.hear(self.fifo.close())

    @invariant()
    def nothing_is_lost_and_nothing_is_double(self) -> None:
        if not hasattr(self, "fifo"):
            return
        putters = [item for kind, item in self.waiting.values() if kind == "put" and item is not None]
        everywhere = sorted([*self.inside, *self.taken, *self.dropped, *putters])
        assert everywhere == self.puts
        assert list(self.fifo.items) == self.inside
        assert len(self.inside) <= self.fifo.capacity + self.returned

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        if not hasattr(self, "fifo"):
            return
        kinds = [kind for kind, _ in self.waiting.values()]
        assert self.fifo.waiting() == len(kinds)
        if self.fifo.is_ready():
            assert set(kinds) <= {"put"}
        if "put" in kinds:
            assert len(self.fifo.items) >= self.fifo.capacity
        if not self.fifo.is_open:
            assert not kinds


TestFifoModel = FifoModel.TestCase
