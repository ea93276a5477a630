"""The line of a worker pool: by example, and against a model in which workers and takers come and go."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hybriddist.core.exits import ExitReason
from hybriddist.core.fifo import CLOSED, DONE, Event
from hybriddist.core.membership import Member
from hybriddist.core.worker_line import WorkerLine
from hybriddist.runtime.roster import Roster

Ticket = tuple[int, int]
"""The process whose ticket it is, and a number."""


def cluster(workers: int) -> Roster:
    roster = Roster()
    for _ in range(workers):
        add(roster)
    return roster


def add(roster: Roster) -> int:
    pid = roster.allocate_pid()
    roster.add(Member(pid))
    roster.joined(pid)
    return pid


def line_of(roster: Roster, *pids: int) -> WorkerLine:
    return WorkerLine(roster, pids, lambda ticket: int(ticket[0]))


def line_of_all(roster: Roster) -> WorkerLine:
    return WorkerLine(roster, None, lambda ticket: int(ticket[0]))


# ---- one by one -----------------------------------------------------------------------------------------------------


def test_the_worker_that_has_been_free_for_longest_goes_first() -> None:
    line = line_of(cluster(2), 2, 3, 2)
    assert line.take((1, 0)) == [((1, 0), DONE, 2)]
    assert line.put("p", 2) == [("p", DONE, None)]
    assert [line.take((1, n))[0][2] for n in (1, 2)] == [3, 2]
    assert not line.is_ready()


def test_takers_are_served_in_their_order() -> None:
    line = line_of(cluster(1), 2)
    line.take((1, 0))
    assert line.take((1, 1)) == line.take((1, 2)) == []
    assert line.put("p", 2) == [((1, 1), DONE, 2), ("p", DONE, None)]
    assert line.withdraw((1, 2))
    line.put("p", 2)
    assert list(line.items) == [2]


def test_what_is_free_or_no_member_is_not_put() -> None:
    line = line_of(cluster(3), 2)
    for pid in (2, 3, 99):
        assert line.put("p", pid) == [("p", DONE, None)]
    assert list(line.items) == [2]


def test_a_dead_member_is_forgotten_and_its_place_goes_to_nobody() -> None:
    roster = cluster(2)
    line = line_of(roster, 2, 3)
    line.take((1, 0))
    roster.gone(2, ExitReason("killed"))
    roster.gone(3, ExitReason("killed"))
    assert not line.look()
    assert not line.is_ready()
    assert line.put("p", 2) == [("p", DONE, None)]
    assert line.take((1, 1)) == [((1, 1), CLOSED, None)]
    assert (list(line.members), line.gone) == ([], [2, 3])


def test_a_member_that_is_leaving_is_no_member() -> None:
    roster = cluster(2)
    line = line_of(roster, 2, 3)
    roster.leaving(2)
    assert line.take((1, 0)) == [((1, 0), DONE, 3)]
    assert list(line.members) == [3]


def test_those_who_wait_are_told_when_the_last_member_dies() -> None:
    roster = cluster(1)
    line = line_of(roster, 2)
    for number in range(3):
        line.take((1, number))
    line.read("r", False)
    roster.gone(2, ExitReason("killed"))
    assert line.look() == [((1, 1), CLOSED, None), ((1, 2), CLOSED, None)]
    assert line.waiting() == 1  # who waits for a free worker goes on: one may be pushed
    assert line.push(add(roster)) == [("r", DONE, None)]


def test_a_dead_and_a_living_member() -> None:
    """In the words of the issue: [dead, 1] gives 1 and forgets the dead one."""
    roster = cluster(1)
    roster.gone(2, ExitReason("killed"))
    line = line_of(roster, 2, 1)
    assert line.take((1, 0)) == [((1, 0), DONE, 1)]
    assert list(line.members) == [1]


def test_what_a_dead_process_held_is_free_again() -> None:
    roster = cluster(3)
    line = line_of(roster, 2, 3)
    line.take((4, 0))
    line.take((1, 0))
    line.take((1, 1))
    roster.gone(4, ExitReason("killed"))
    assert line.look() == [((1, 1), DONE, 2)]


def test_a_worker_that_died_holding_itself_is_gone() -> None:
    roster = cluster(2)
    line = line_of(roster, 2, 3)
    line.take((2, 0))
    roster.gone(2, ExitReason("killed"))
    line.look()
    assert (list(line.members), line.holders) == ([3], {})


def test_a_worker_that_did_not_reach_its_taker_is_the_next_again() -> None:
    line = line_of(cluster(3), 2, 3)
    line.take((4, 0))
    assert line.give_back(2, (4, 0)) == []
    assert list(line.items) == [2, 3]
    assert line.give_back(3, (4, 0)) == []  # it is free: somebody was quicker
    line.take((4, 1))
    line.put("p", 2)
    line.take((1, 0))
    line.take((1, 1))
    assert line.give_back(2, (4, 1)) == []  # it is somebody else's by now
    assert line.holders == {2: 1, 3: 1}


def test_the_line_of_all_workers_follows_them() -> None:
    roster = cluster(0)
    line = line_of_all(roster)
    assert line.is_ready()
    assert [line.take((1, n)) for n in range(2)] == [[((1, n), DONE, 1)] for n in range(2)]
    assert line.put("p", 1) == [("p", DONE, None)]
    assert line.read("r", False) == [("r", DONE, None)]
    assert line.push(1) == []
    assert list(line.members) == []
    assert add(roster) == 2
    assert line.take((1, 3)) == [((1, 3), DONE, 2)]
    assert line.take((1, 4)) == []
    assert add(roster) == 3
    assert line.look() == [((1, 4), DONE, 3)]
    line.take((1, 5))
    line.read("r", False)
    for pid in (2, 3):
        roster.gone(pid, ExitReason("removed"))
    assert line.look() == [("r", DONE, None), ((1, 5), DONE, 1)]


def test_a_dead_process_cannot_be_pushed() -> None:
    roster = cluster(2)
    line = line_of(roster, 2)
    line.take((1, 0))
    line.take((1, 1))
    roster.gone(3, ExitReason("killed"))
    assert line.push(3) == []
    assert list(line.members) == [2]


def test_what_is_done_in_no_time_is_left_alone_when_there_is_news() -> None:
    roster = cluster(2)
    line = line_of(roster, 2, 3)
    assert line.take_now(1) == 0  # nobody has looked yet
    line.look()
    assert line.take_now(1) == 2
    assert line.put_now(2)
    assert line.take_now(1) == 3
    line.read("r", False)
    line.take((1, 0))
    line.take((1, 1))
    assert not line.put_now(3)
    assert line.put("p", 3) == [((1, 1), DONE, 3), ("p", DONE, None)]
    roster.gone(3, ExitReason("killed"))
    assert not line.put_now(2)
    assert line.put("p", 2) == [("p", DONE, None)]
    roster.gone(2, ExitReason("killed"))
    assert line.take_now(1) == 0


# ---- against a model ------------------------------------------------------------------------------------------------


class LineModel(RuleBasedStateMachine):
    """Each member is free or with one living holder, each taker hears once, in turn, nobody waits for what is there."""

    @initialize(workers=st.integers(1, 4), own=st.booleans(), data=st.data())
    def begin(self, workers: int, own: bool, data: st.DataObject) -> None:
        self.roster = cluster(workers)
        self.follows = not own
        self.members: list[int] = self.roster.workers()
        if own:
            self.members = data.draw(st.lists(st.sampled_from(self.roster.procs()), unique=True))
        self.line = line_of(self.roster, *self.members) if own else line_of_all(self.roster)
        self.free = list(self.members)
        self.held: dict[int, Ticket] = {}
        self.waiting: list[Ticket] = []
        self.number = 0

    # ---- the model ----------------------------------------------------------------------------------------

    def serve(self) -> list[Event]:
        """Give what is free to those who wait."""
        events: list[Event] = []
        while self.waiting and self.free:
            pid, ticket = self.free.pop(0), self.waiting.pop(0)
            self.held[pid] = ticket
            events.append((ticket, DONE, pid))
        while self.waiting and not self.members:
            ticket = self.waiting.pop(0)
            events.append((ticket, DONE, 1) if self.follows else (ticket, CLOSED, None))
        return events

    def lose(self, pid: int) -> None:
        if pid in self.members:
            self.members.remove(pid)
            self.held.pop(pid, None)
            if pid in self.free:
                self.free.remove(pid)
        self.free += [held for held, ticket in self.held.items() if ticket[0] == pid]
        self.held = {held: ticket for held, ticket in self.held.items() if ticket[0] != pid}

    # ---- what happens -------------------------------------------------------------------------------------

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        self.number += 1
        ticket = (data.draw(st.sampled_from(self.roster.procs())), self.number)
        self.waiting.append(ticket)
        expected = self.serve()
        assert self.line.take(ticket) == expected

    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        pid = data.draw(st.integers(1, 6))
        if pid in self.held:
            del self.held[pid]
            self.free.append(pid)
        assert self.line.put("p", pid) == [*self.serve(), ("p", DONE, None)]

    @rule()
    def take_now(self) -> None:
        self.number += 1
        pid = self.line.take_now(1)
        assert pid == (self.free.pop(0) if self.free else 0)
        if pid:
            self.held[pid] = (1, self.number)

    @rule(data=st.data())
    def put_now(self, data: st.DataObject) -> None:
        pid = data.draw(st.integers(1, 6))
        assert self.line.put_now(pid) == (not self.waiting)
        if not self.waiting and self.held.pop(pid, None):
            self.free.append(pid)

    @rule(data=st.data())
    def push(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(self.roster.procs()))
        if pid not in self.members and not self.follows:
            self.members.append(pid)
            self.free.append(pid)
        assert self.line.push(pid) == self.serve()

    @rule(data=st.data(), politely=st.booleans())
    @precondition(lambda self: self.roster.nprocs() > 1)
    def die(self, data: st.DataObject, politely: bool) -> None:
        pid = data.draw(st.sampled_from([pid for pid in self.roster.procs() if pid != 1]))
        # A process that is gone has no tickets in the line: they were withdrawn with its connection.
        for ticket in [ticket for ticket in self.waiting if ticket[0] == pid]:
            self.waiting.remove(ticket)
            assert self.line.withdraw(ticket)
        if politely:
            self.roster.leaving(pid)
        self.roster.gone(pid, ExitReason("killed"))
        self.lose(pid)
        assert self.line.look() == self.serve()

    @rule()
    @precondition(lambda self: self.roster.nprocs() < 6)
    def join(self) -> None:
        pid = add(self.roster)
        if self.follows:
            self.members.append(pid)
            self.free.append(pid)
        assert self.line.look() == self.serve()

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def withdraw(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        assert self.line.withdraw(ticket)
        self.waiting.remove(ticket)

    @rule(data=st.data())
    @precondition(lambda self: self.held)
    def give_back(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(sorted(self.held)))
        ticket = self.held.pop(pid)
        self.free.insert(0, pid)
        assert self.line.give_back(pid, ticket) == self.serve()

    @invariant()
    def the_line_is_as_the_model(self) -> None:
        if not hasattr(self, "line"):
            return
        assert self.line.look() == []
        assert sorted(self.line.members) == sorted(self.members)
        assert list(self.line.items) == self.free
        assert self.line.holders == {pid: ticket[0] for pid, ticket in self.held.items()}
        assert self.line.waiting() == len(self.waiting)
        assert self.line.is_ready() == (bool(self.free) or (self.follows and not self.members))

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        if hasattr(self, "line") and self.waiting:
            assert self.members
            assert not self.free
            assert set(self.held) == set(self.members)


TestLineModel = LineModel.TestCase
