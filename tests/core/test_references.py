"""Claims on references: the two books by hand, then many processes, paths and deaths against a model."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybriddist.core.messages import Claims
from hybriddist.core.references import Change, HolderBook, OwnerBook, edge, ends
from hybriddist.ids import RRID
from hybriddist.transport import Frame


class Handle:
    """Any object that can be referred to weakly."""


REF = RRID(1, 7)


def tell(book: OwnerBook, changes: list[Change]) -> list[bool]:
    return [book.apply(*change) for change in changes]


# ---- the owner's book -------------------------------------------------------------------------------------------


def test_an_edge_is_one_number_that_the_message_can_carry() -> None:
    pids = (1, 2, 1000, 2**31 - 1)
    for giver in pids:
        for receiver in pids:
            assert ends(edge(giver, receiver)) == (giver, receiver)
    change = (2**31 - 1, 2**62, edge(2**31 - 1, 2**31 - 1), -5)
    assert Claims.decode(Frame(Claims([change]).encode())).changes == [change]


def test_a_reference_is_freed_when_its_only_holder_releases_it() -> None:
    book = OwnerBook()
    assert book.created(REF) is False
    assert (book.held(), book.holders(REF), len(book)) == ([REF], [1], 1)
    assert book.apply(*REF, edge(1, 1), -1) is True
    assert (book.held(), book.holders(REF), len(book)) == ([], [], 0)


def test_a_release_that_overtakes_its_add_frees_nothing() -> None:
    book = OwnerBook()
    book.created(REF)
    assert book.apply(*REF, edge(1, 3), -1) is False
    assert book.holders(REF) == [1]
    assert book.apply(*REF, edge(1, 3), 1) is False
    assert book.apply(*REF, edge(1, 1), -1) is True
    assert len(book) == 0


def test_nothing_is_freed_before_the_creators_first_claim_is_heard() -> None:
    book = OwnerBook()
    # 1 gave to 3, who gave to 4, who is done: all that came before the call that creates the value.
    assert tell(book, [(*REF, edge(3, 4), 1), (*REF, edge(3, 4), -1)]) == [False, False]
    assert book.created(REF) is False
    assert book.held() == [REF]
    # The creator lets go, 3 is still a holder.
    assert tell(book, [(*REF, edge(1, 3), 1), (*REF, edge(1, 1), -1)]) == [False, False]
    assert book.holders(REF) == [3]
    assert book.apply(*REF, edge(1, 3), -1) is True
    assert len(book) == 0


def test_the_first_claim_may_come_as_a_zero() -> None:
    book = OwnerBook()
    assert tell(book, [(*REF, edge(1, 3), 1), (*REF, edge(1, 1), 0)]) == [False, False]
    assert book.apply(*REF, edge(1, 3), -1) is True
    assert len(book) == 0


def test_the_claims_of_a_dead_process_vanish() -> None:
    book = OwnerBook()
    other = RRID(1, 8)
    for rrid in (REF, other):
        book.created(rrid)
        book.apply(*rrid, edge(1, 3), 1)
    book.apply(*other, edge(3, 4), 1)
    assert book.drop_process(3) == []
    assert book.holders(REF) == [1]
    assert book.holders(other) == [1, 4]
    assert book.drop_process(1) == [REF]
    assert book.apply(*other, edge(3, 4), -1) is True
    assert len(book) == 0


def test_late_messages_of_and_about_the_dead_are_ignored() -> None:
    book = OwnerBook()
    book.created(REF)
    book.drop_process(3)
    for late in (edge(1, 3), edge(3, 3), edge(3, 4)):
        assert book.apply(*REF, late, 1) is False
    assert book.apply(*REF, edge(1, 3), -1) is False
    assert book.holders(REF) == [1]
    assert book.apply(*REF, edge(1, 1), -1) is True
    assert len(book) == 0


def test_a_value_whose_creator_died_before_it_came_is_free_at_once() -> None:
    book = OwnerBook()
    book.drop_process(1)
    assert book.created(REF) is True
    assert len(book) == 0


@pytest.mark.parametrize("death_is_heard_first", [False, True])
def test_the_debt_of_a_dead_giver_does_not_cancel_a_living_ones_claim(death_is_heard_first: bool) -> None:
    book = OwnerBook()
    book.created(REF)
    lost_add = (*REF, edge(3, 4), -1)  # 3 gave to 4 and died before its add left; 4 is done with that one
    if death_is_heard_first:
        book.drop_process(3)
        book.apply(*lost_add)
    else:
        book.apply(*lost_add)
        book.drop_process(3)
    tell(book, [(*REF, edge(1, 4), 1), (*REF, edge(1, 1), -1)])
    assert book.held() == [REF]
    assert book.holders(REF) == [4]
    assert book.apply(*REF, edge(1, 4), -1) is True
    assert len(book) == 0


# ---- the holder's book ------------------------------------------------------------------------------------------


def test_a_reference_that_arrives_again_is_the_same_handle_with_one_more_credit() -> None:
    book = HolderBook[Handle](3)
    first = book.arrived(REF, 2, 1, Handle)
    assert book.arrived(REF, 2, 1, Handle) is first
    assert book.arrived(REF, 2, 4, Handle) is first
    assert book.handle(REF) is first
    assert book.take_changes(2) == []
    del first
    assert book.has_changes()
    assert book.owners() == [2]
    assert sorted(book.take_changes(2)) == [(*REF, edge(1, 3), -2), (*REF, edge(4, 3), -1)]
    assert not book.has_changes()
    assert book.handle(REF) is None


def test_releasing_by_hand_and_then_dying_releases_once() -> None:
    book = HolderBook[Handle](3)
    handle = book.arrived(REF, 2, 1, Handle)
    book.released(REF)
    book.released(REF)
    assert book.handle(REF) is None
    del handle
    assert book.take_changes(2) == [(*REF, edge(1, 3), -1)]
    assert book.take_changes(2) == []


def test_a_new_handle_keeps_its_own_credits_when_the_old_ones_are_collected_late() -> None:
    book = HolderBook[Handle](3)
    old = book.arrived(REF, 2, 1, Handle)
    del old
    new = book.arrived(REF, 2, 1, Handle)
    assert book.take_changes(2) == [(*REF, edge(1, 3), -1)]
    assert book.handle(REF) is new


def test_a_reference_that_arrives_while_its_handle_is_dying_gets_a_handle_of_its_own() -> None:
    book = HolderBook[Handle](3)
    old = book.arrived(REF, 2, 1, Handle)
    arrived: list[Handle] = []
    # The newest callback runs first: the handle is dead, and the book has not heard of it yet.
    watcher = weakref.ref(old, lambda _: arrived.append(book.arrived(REF, 2, 4, Handle)))
    del old
    assert watcher() is None
    assert book.handle(REF) is arrived[0]
    assert book.take_changes(2) == [(*REF, edge(1, 3), -1)]
    arrived.clear()
    assert book.take_changes(2) == [(*REF, edge(4, 3), -1)]


def test_a_handle_that_dies_in_a_cycle_and_on_another_thread_is_collected() -> None:
    book = HolderBook[Handle](3)
    handle = book.arrived(REF, 2, 1, Handle)
    handle.itself = handle  # type: ignore[attr-defined]
    del handle
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    assert book.take_changes(2) == [(*REF, edge(1, 3), -1)]


def test_the_bell_rings_after_the_append_and_once_until_the_dead_are_collected() -> None:
    waiting: list[int] = []
    book = HolderBook[Handle](3, notify=lambda: waiting.append(len(book._dropped)))
    handles = [book.arrived(RRID(1, i), 2, 1, Handle) for i in range(3)]
    del handles[0], handles[0]
    assert waiting == [1]
    assert len(book.take_changes(2)) == 2
    handles.clear()
    assert waiting == [1, 1]
    kept = book.arrived(REF, 2, 1, Handle)
    book.released(REF)
    del kept
    assert waiting == [1, 1]


def test_changes_are_merged_and_gains_come_first() -> None:
    book = HolderBook[Handle](1)
    handle = Handle()
    book.created(REF, 2, handle, announced=True)
    book.given(REF, 2, 3)
    book.given(REF, 2, 3)
    book.given(REF, 5, 3)
    book.released(REF)
    book.given(REF, 2, 4)
    changes = book.take_changes(2)
    assert changes[-1] == (*REF, edge(1, 1), -1)
    assert sorted(changes[:-1]) == [(*REF, edge(1, 3), 2), (*REF, edge(1, 4), 1)]
    assert book.owners() == [5]


def test_a_reference_whose_call_was_not_sent_costs_no_message() -> None:
    book: HolderBook[Handle] = HolderBook(1)
    handle = Handle()
    book.created(REF, 2, handle, announced=True)
    book.never_told(REF)
    book.never_told(REF)
    assert book.handle(REF) is None
    book.released(REF)
    del handle
    gc.collect()
    assert book.owners() == []


def test_a_release_of_what_was_never_created_leaves_nothing() -> None:
    """The creator was interrupted while it sent the call, and it was not sent after all."""
    book = OwnerBook()
    book.apply(*REF, edge(1, 1), -1)
    assert len(book) == 0


def test_a_reference_that_nobody_else_saw_costs_no_message() -> None:
    book = HolderBook[Handle](1)
    handle = Handle()
    book.created(REF, 2, handle, announced=False)
    del handle
    assert book.take_changes(2) == []


def test_the_creators_zero_is_sent_when_others_know_the_reference() -> None:
    book, owner = HolderBook[Handle](1), OwnerBook()
    handle = Handle()
    book.created(REF, 2, handle, announced=False)
    book.given(REF, 2, 3)
    del handle
    changes = book.take_changes(2)
    assert sorted(changes) == [(*REF, edge(1, 1), 0), (*REF, edge(1, 3), 1)]
    assert tell(owner, changes) == [False, False]
    assert owner.apply(*REF, edge(1, 3), -1) is True


def test_a_zero_of_somebody_elses_reference_is_left_out() -> None:
    book = HolderBook[Handle](3)
    keep = book.arrived(REF, 2, 1, Handle)
    book.given(REF, 2, 3)  # to itself
    book.given(REF, 2, 4)
    assert book.arrived(REF, 2, 3, Handle) is keep
    book.released(REF)
    assert sorted(book.take_changes(2)) == sorted([(*REF, edge(3, 4), 1), (*REF, edge(1, 3), -1)])


def test_a_dead_owner_is_told_nothing() -> None:
    book = HolderBook[Handle](3)
    early = book.arrived(REF, 2, 1, Handle)
    book.given(REF, 2, 4)
    book.drop_owner(2)
    assert book.owners() == []
    assert book.arrived(REF, 2, 4, Handle) is early
    del early
    book.given(REF, 2, 4)
    assert book.take_changes(2) == []
    assert book.owners() == []


# ---- many processes ---------------------------------------------------------------------------------------------

PIDS = (1, 2, 3, 4)
MAX_REFERENCES = 2
T = TypeVar("T")


@dataclass(eq=False)
class Copy:
    """One claim as an onlooker who sees everything knows it."""

    giver: int
    receiver: int
    parents: tuple[Copy, ...] = ()
    """What the giver held when it gave; nothing for a new reference."""


@dataclass(eq=False)
class Process:
    pid: int
    alive: bool = True
    gone: set[int] = field(default_factory=set)
    owned: OwnerBook = field(default_factory=OwnerBook)
    freed: set[RRID] = field(default_factory=set)
    values: set[RRID] = field(default_factory=set)
    handles: dict[RRID, Handle] = field(default_factory=dict)
    copies: dict[RRID, list[Copy]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.book = HolderBook[Handle](self.pid)


class World:
    """Processes, and an ordered path for every pair. What happens next is chosen from outside, number by number."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self.choose = choose
        self.processes = {pid: Process(pid) for pid in PIDS}
        self.paths: dict[tuple[int, int], deque[tuple[str, RRID, object]]] = {
            (a, b): deque() for a in PIDS for b in PIDS
        }
        self.owner_of: dict[RRID, int] = {}
        self.lost: list[tuple[RRID, int]] = []
        self.create()

    def pick(self, things: Sequence[T]) -> T:
        return things[self.choose(len(things))]

    def living(self) -> list[Process]:
        return [process for process in self.processes.values() if process.alive]

    def sound(self, copy: Copy) -> bool:
        """Every giver back to the creator lives."""
        if not self.processes[copy.giver].alive:
            return False
        return not copy.parents or any(self.sound(parent) for parent in copy.parents)

    # ---- what happens -----------------------------------------------------------------------------------------

    def step(self) -> None:
        # Weighed, so that references live long enough to travel and deaths leave somebody to care.
        happen = self.pick([self.give] * 6 + [self.deliver] * 8 + [self.drop] * 4 + [self.flush] * 4
                           + [self.hear_of_a_death] * 2 + [self.create, self.crash])  # fmt: skip
        happen()
        self.check()

    def create(self) -> None:
        if len(self.owner_of) == MAX_REFERENCES:
            return
        process, owner = self.pick(self.living()), self.pick(PIDS)
        rrid = RRID(process.pid, len(self.owner_of) + 1)
        self.owner_of[rrid] = owner
        process.handles[rrid] = Handle()
        process.copies[rrid] = [Copy(process.pid, process.pid)]
        announced = self.pick((False, True))
        process.book.created(rrid, owner, process.handles[rrid], announced=announced)
        if announced:
            self.paths[process.pid, owner].append(("call", rrid, None))

    def holdings(self) -> list[tuple[Process, RRID]]:
        return [(process, rrid) for process in self.living() for rrid in process.handles]

    def give(self) -> None:
        if self.holdings():
            process, rrid = self.pick(self.holdings())
            receiver = self.pick(PIDS)
            process.book.given(rrid, self.owner_of[rrid], receiver)
            copy = Copy(process.pid, receiver, tuple(process.copies[rrid]))
            self.paths[process.pid, receiver].append(("reference", rrid, copy))

    def drop(self) -> None:
        if self.holdings():
            process, rrid = self.pick(self.holdings())
            if self.pick((False, True)):
                process.book.released(rrid)
            del process.handles[rrid], process.copies[rrid]

    def flush(self) -> None:
        process = self.pick(self.living())
        for owner in process.book.owners():
            changes = process.book.take_changes(owner)
            if changes:
                self.paths[process.pid, owner].append(("claims", RRID(0, 0), changes))

    def busy_paths(self) -> list[tuple[int, int]]:
        return [(a, b) for (a, b), path in self.paths.items() if path and self.processes[b].alive]

    def deliver(self) -> None:
        if self.busy_paths():
            self.deliver_one(*self.pick(self.busy_paths()))

    def deliver_one(self, sender: int, receiver: int) -> None:
        kind, rrid, content = self.paths[sender, receiver].popleft()
        process = self.processes[receiver]
        if kind == "call":
            process.values.add(rrid)
            if process.owned.created(rrid):
                process.freed.add(rrid)
        elif kind == "claims":
            for change in content:  # type: ignore[attr-defined]
                rrid = RRID(*change[:2])
                if change[2] == edge(rrid.whence, rrid.whence) and sender not in process.gone:
                    process.values.add(rrid)
                if process.owned.apply(*change):
                    process.freed.add(rrid)
        elif sender in process.gone:
            self.lost.append((rrid, edge(sender, receiver)))
        else:
            assert isinstance(content, Copy)
            process.handles[rrid] = process.book.arrived(rrid, self.owner_of[rrid], sender, Handle)
            process.copies.setdefault(rrid, []).append(content)

    def crash(self) -> None:
        """A process dies: what it sent may be cut off anywhere."""
        if len(self.living()) == 1:
            return
        process = self.pick(self.living())
        process.alive = False
        process.handles.clear()
        process.copies.clear()
        for other in PIDS:
            path = self.paths[process.pid, other]
            for _ in range(self.choose(len(path) + 1)):
                kind, rrid, _ = path.pop()
                if kind == "reference":
                    self.lost.append((rrid, edge(process.pid, other)))

    def unheard_deaths(self) -> list[tuple[Process, int]]:
        dead = [process.pid for process in self.processes.values() if not process.alive]
        return [(process, pid) for process in self.living() for pid in dead if pid not in process.gone]

    def hear_of_a_death(self) -> None:
        if self.unheard_deaths():
            self.hear(*self.pick(self.unheard_deaths()))

    def hear(self, process: Process, dead: int) -> None:
        process.gone.add(dead)
        process.freed.update(process.owned.drop_process(dead))
        process.book.drop_owner(dead)

    # ---- what must hold ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing in use is freed; handles are canonical."""
        for process in self.living():
            for rrid, copies in process.copies.items():
                assert process.book.handle(rrid) is process.handles[rrid]
                owner = self.processes[self.owner_of[rrid]]
                if owner.alive and rrid in owner.freed:
                    assert not any(self.sound(copy) for copy in copies), f"{process.pid} holds {rrid}"
            for rrid in process.owned.held():
                assert not process.gone.intersection(process.owned.holders(rrid))
        for pair in self.busy_paths():
            for kind, rrid, content in self.paths[pair]:
                owner = self.processes[self.owner_of.get(rrid, pair[0])]
                if kind == "reference" and owner.alive and rrid in owner.freed:
                    assert isinstance(content, Copy)
                    assert not self.sound(content), f"{rrid} is under way {pair}"

    def finish(self) -> None:
        """When all is dropped, heard and delivered, the books are empty, and every value was freed."""
        for process, dead in self.unheard_deaths():
            self.hear(process, dead)
        while True:
            for process in self.living():
                process.handles.clear()
                process.copies.clear()
                for owner in process.book.owners():
                    self.paths[process.pid, owner].append(("claims", RRID(0, 0), process.book.take_changes(owner)))
            if not self.busy_paths():
                break
            for pair in self.busy_paths():
                self.deliver_one(*pair)
        for owner in self.living():
            # The stated limit: a reference lost with its dying sender keeps its claim until the receiver leaves.
            for rrid in owner.owned.held():
                assert all((rrid, each) in self.lost for each in self.edges(owner, rrid)), self.edges(owner, rrid)
                owner.values.discard(rrid)
            assert len(owner.owned) == len(owner.owned.held())
            assert owner.values <= owner.freed
            for pid in PIDS:
                owner.owned.drop_process(pid)
            assert len(owner.owned) == 0

    @staticmethod
    def edges(owner: Process, rrid: RRID) -> list[int]:
        return [each for each, count in owner.owned._claims[rrid].items() if count]


def run(numbers: Sequence[int]) -> None:
    supply = iter(numbers)
    world = World(lambda count: next(supply, 0) % count)
    while next(supply, None) is not None:
        world.step()
    world.finish()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=60, max_size=400))
def test_a_small_cluster_never_frees_what_is_in_use_and_always_what_is_not(numbers: list[int]) -> None:
    run(numbers)


@pytest.mark.parametrize("seed", range(8))
def test_many_small_clusters(seed: int) -> None:
    """Plain random schedules: far more of them a second than hypothesis makes; the seed of a failure is its name."""
    source = random.Random(seed)
    for _ in range(500):
        run([source.randrange(1000) for _ in range(source.randrange(60, 400))])
