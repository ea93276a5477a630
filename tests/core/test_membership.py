"""Pids, states, nodes, topologies and snapshots: by example, and a driver with a worker's view as a state machine."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hybriddist.core.exits import ExitReason
from hybriddist.core.membership import Member, Membership, State, Topology
from hybriddist.errors import InternalError, NoSuchProcessError, ProcessExitedException, TopologyError

KILLED = ExitReason("killed by signal 9 (SIGKILL)", signal=9, stderr_tail="last words")


def cluster(*nodes: int | None, topology: str = "all_to_all", idents: Any = None) -> Membership:
    """A driver and workers 2, 3, ...; each is on the node of the given process, or on one of its own."""
    membership = Membership()
    membership.choose_topology(topology)
    for position, same_node_as in enumerate(nodes):
        member = Member(membership.allocate_pid(), ident=position)
        if idents is not None:
            member.connect_idents = idents[position]
        membership.add(member)
        membership.joined(member.pid, same_node_as=same_node_as)
    return membership


def in_state(state: State) -> Membership:
    membership = cluster(1)
    membership.add(Member(membership.allocate_pid()))
    if state in (State.JOINED, State.LEAVING):
        membership.joined(3)
    if state is State.LEAVING:
        membership.leaving(3)
    if state is State.GONE:
        membership.gone(3, KILLED)
    return membership


# ---- lists and counts -------------------------------------------------------------------------------------------


def test_a_lone_driver_is_its_own_worker() -> None:
    alone = Membership()
    assert (alone.procs(), alone.workers(), alone.nprocs(), alone.nworkers()) == ([1], [1], 1, 1)
    assert (alone.nodes(), alone.procs_on_node()) == ([[1]], [1])


def test_workers_are_counted_without_the_driver() -> None:
    three = cluster(1, 1, None)
    assert (three.procs(), three.workers(), three.nprocs(), three.nworkers()) == ([1, 2, 3, 4], [2, 3, 4], 4, 3)


@pytest.mark.parametrize("state", list(State))
def test_only_who_has_joined_and_not_left_is_counted(state: State) -> None:
    membership = in_state(state)
    assert membership.procs() == ([1, 2, 3] if state is State.JOINED else [1, 2])
    assert [member.pid for member in membership.members()] == ([1, 2] if state is State.GONE else [1, 2, 3])


def test_pids_are_never_used_again() -> None:
    membership = cluster(1, 1)
    membership.gone(3, KILLED)
    assert membership.allocate_pid() == 4  # this one never comes up
    assert membership.allocate_pid() == 5
    with pytest.raises(InternalError, match="3 cannot be added: the pid is taken"):
        membership.add(Member(3))
    with pytest.raises(InternalError, match="2 cannot be added: the pid is taken"):
        membership.add(Member(2))


def test_nodes_are_sets_of_processes_that_share_memory() -> None:
    membership = cluster(1, None, 3, 2, 4)
    assert membership.nodes() == [[1, 2, 5], [3, 4, 6]]
    assert membership.procs_on_node() == [1, 2, 5]
    assert membership.procs_on_node(4) == membership.procs(4) == [3, 4, 6]
    assert membership.require(6).node == 3
    membership.gone(3, KILLED)
    assert membership.nodes() == [[1, 2, 5], [4, 6]]
    assert membership.procs_on_node(6) == [4, 6]


# ---- states -----------------------------------------------------------------------------------------------------

CHANGES = {
    "joined": lambda membership: membership.joined(3),
    "leaving": lambda membership: membership.leaving(3),
    "gone": lambda membership: membership.gone(3, KILLED),
}
ALLOWED = {
    (State.LAUNCHING, "joined"),
    (State.LAUNCHING, "gone"),
    (State.JOINED, "leaving"),
    (State.JOINED, "gone"),
    (State.LEAVING, "gone"),
}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("change", list(CHANGES))
def test_every_change_in_every_state(state: State, change: str) -> None:
    membership = in_state(state)
    if (state, change) in ALLOWED:
        CHANGES[change](membership)
        member = membership.get(3)
        assert (State.GONE if member is None else member.state) == State(change)
    elif (state, change) == (State.GONE, "gone"):
        assert CHANGES[change](membership) is False
    else:
        before = membership.snapshot()
        with pytest.raises(InternalError, match=f"process 3 cannot become {change}"):
            CHANGES[change](membership)
        assert membership.snapshot() == before


def test_a_process_does_not_change_itself_and_a_member_starts_at_the_start() -> None:
    membership = Membership()
    with pytest.raises(InternalError, match="it is this process"):
        membership.gone(1, KILLED)
    with pytest.raises(InternalError, match="process 2 cannot become joined: it is not a member"):
        membership.joined(2)
    with pytest.raises(InternalError, match="cannot be added as joined"):
        membership.add(Member(2, state=State.JOINED))


def test_the_reason_that_knows_more_is_kept() -> None:
    membership = cluster(1)
    assert membership.gone(2, ExitReason.lost()) is True
    assert membership.gone(2, KILLED) is False
    assert membership.why_gone(2) == KILLED
    assert membership.gone(2, ExitReason.lost()) is False
    assert membership.why_gone(2) == KILLED


# ---- require ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.LAUNCHING, State.JOINED, State.LEAVING])
def test_who_is_not_gone_is_found(state: State) -> None:
    assert in_state(state).require(3).state is state


def test_who_never_was_is_told_who_is() -> None:
    with pytest.raises(NoSuchProcessError, match=r"no process with id 9 .*the processes are 1, 2, 3") as caught:
        cluster(1, 1).require(9)
    assert caught.value.pid == 9
    with pytest.raises(NoSuchProcessError, match="there are no workers yet: addprocs"):
        Membership().require(2)


def test_who_is_gone_is_told_with_the_reason() -> None:
    membership = in_state(State.GONE)
    with pytest.raises(ProcessExitedException) as caught:
        membership.require(3)
    error = caught.value
    assert (error.pid, error.reason, error.signal, error.stderr_tail) == (3, KILLED.text, 9, "last words")
    with pytest.raises(ProcessExitedException) as again:
        membership.require(3)
    assert again.value is not error  # tracebacks stick to exceptions


@pytest.mark.parametrize("pid", ["2", 2.0, None, True])
def test_a_pid_is_an_integer(pid: Any) -> None:
    with pytest.raises(TypeError, match="a pid is an integer"):
        cluster(1).require(pid)


# ---- topology ---------------------------------------------------------------------------------------------------


def test_all_to_all_connects_all() -> None:
    membership = cluster(1, 1, 1)
    assert all(membership.may_connect(a, b) for a in range(1, 5) for b in range(1, 5))
    assert [membership.connects_to(pid) for pid in (1, 2, 3, 4)] == [[], [], [2], [2, 3]]
    assert membership.missing_idents(4) == []


def test_master_worker_connects_workers_with_the_driver_only() -> None:
    membership = cluster(1, 1, topology="master_worker")
    membership.check_topology(1, 3)
    membership.check_topology(3, 1)
    membership.check_topology(3, 3)
    with pytest.raises(TopologyError, match=r"peer 3 is not connected to 2\. Topology: master_worker"):
        membership.check_topology(2, 3)
    assert membership.connects_to(3) == []


def test_custom_connects_whom_one_of_the_two_names() -> None:
    even_with_even_odd_with_odd = [[2, 4], [3], [], [1], None]
    membership = cluster(*[1] * 5, topology="custom", idents=even_with_even_odd_with_odd)
    for a in range(5):
        for b in range(5):
            named = a == b or {a, b} in ({0, 2}, {0, 4}, {1, 3})
            assert membership.may_connect(a + 2, b + 2) is named
    assert [membership.connects_to(pid) for pid in range(2, 7)] == [[], [], [2], [3], [2]]
    with pytest.raises(TopologyError, match=r"peer 6 is not connected to 3\. Topology: custom: neither names"):
        membership.check_topology(3, 6)
    membership.gone(6, KILLED)
    assert membership.missing_idents(2) == [4]
    with pytest.raises(ProcessExitedException):
        membership.may_connect(2, 6)


def test_a_process_without_an_ident_is_named_by_nobody() -> None:
    membership = cluster(1, 1, topology="custom", idents=[[None], [None]])
    for member in membership.members():
        member.ident = None
    assert not membership.may_connect(2, 3)


def test_the_higher_pid_connects_but_for_the_driver() -> None:
    assert [Membership.connector(*pair) for pair in ((2, 5), (5, 2), (1, 5), (5, 1))] == [5, 5, 1, 1]


def test_choosing_a_topology() -> None:
    membership = Membership()
    with pytest.raises(ValueError, match="all_to_all, master_worker, custom, not 'ring'"):
        membership.choose_topology("ring")
    membership.choose_topology("all_to_all", lazy=False)
    assert not membership.lazy
    membership.choose_topology("all_to_all")
    assert membership.lazy
    membership.choose_topology("master_worker", lazy=True)
    assert (membership.topology, membership.lazy) == (Topology.MASTER_WORKER, False)


def test_living_workers_hold_the_topology_fast() -> None:
    membership = cluster(1)
    membership.choose_topology("all_to_all", lazy=True)
    with pytest.raises(ValueError, match="lazy=True already exist"):
        membership.choose_topology("all_to_all", lazy=False)
    with pytest.raises(TopologyError, match="topology all_to_all already exist; the requested topology custom cannot"):
        membership.choose_topology("custom")
    membership.leaving(2)
    with pytest.raises(TopologyError, match=r"are removed; still leaving: 2\. Wait for the removal that"):
        membership.choose_topology("custom")
    with pytest.raises(ValueError, match=r"lazy=False cannot be set; still leaving: 2\. Wait"):
        membership.choose_topology("all_to_all", lazy=False)
    membership.gone(2, KILLED)
    membership.choose_topology("custom")
    assert membership.topology is Topology.CUSTOM


# ---- snapshots --------------------------------------------------------------------------------------------------


def worker_view(driver: Membership, pid: int) -> Membership:
    view = Membership(pid)
    view.replace(pickle.loads(pickle.dumps(driver.snapshot())))
    return view


def test_a_snapshot_is_plain_data_and_says_all() -> None:
    driver = cluster(1, None, topology="custom", idents=[["a"], None])
    driver.require(2).addresses.append("unix:/there")
    driver.gone(3, KILLED)
    view = worker_view(driver, 2)
    assert view.members() == driver.members()
    assert (view.topology, view.lazy) == (driver.topology, driver.lazy)
    reason = view.why_gone(3)
    assert reason is not None
    assert (reason.text, reason.signal, reason.stderr_tail) == (KILLED.text, 9, "")

    def is_plain(value: Any) -> bool:
        if type(value) in (list, tuple):
            return all(map(is_plain, value))
        if type(value) is dict:
            return all(map(is_plain, (*value, *value.values())))
        return value is None or type(value) in (str, int, bool, bytes)

    assert is_plain(driver.snapshot())


def test_a_snapshot_does_not_share_with_the_members() -> None:
    driver = cluster(1)
    snapshot = driver.snapshot()
    driver.require(2).addresses.append("late")
    assert snapshot["members"][1]["addresses"] == []


def test_a_worker_counts_itself_before_the_driver_does() -> None:
    driver = cluster(1)
    driver.add(Member(driver.allocate_pid()))
    assert worker_view(driver, 3).workers() == [2, 3]
    assert worker_view(driver, 2).workers() == [2]


def test_a_worker_keeps_the_reason_that_it_knows_and_nobody_rises_from_the_dead() -> None:
    driver = cluster(1, 1)
    before = driver.snapshot()
    view = worker_view(driver, 2)
    view.gone(3, KILLED)
    view.replace(before)
    assert view.procs() == [1, 2]
    driver.gone(3, ExitReason.lost())
    view.replace(driver.snapshot())
    assert view.why_gone(3) == KILLED


def test_who_is_missing_in_a_snapshot_is_gone() -> None:
    driver, other = cluster(1, 1), cluster(1)
    view = worker_view(driver, 2)
    view.replace(other.snapshot())
    assert view.procs() == [1, 2]
    with pytest.raises(ProcessExitedException, match="removed"):
        view.require(3)


@pytest.mark.parametrize("state", list(State))
def test_news_is_who_was_not_said_to_be_up_or_gone(state: State) -> None:
    membership = in_state(state)
    assert membership.is_news(3) is (state is State.LAUNCHING)
    assert membership.is_news(99)
    assert not worker_view(membership, 3).is_news(3)


def test_a_worker_learns_of_a_process_before_the_next_snapshot() -> None:
    driver = cluster(1)
    driver.add(Member(driver.allocate_pid()))
    view = worker_view(driver, 2)
    driver.require(3).addresses = ["unix:/there"]
    driver.joined(3, same_node_as=1)
    assert view.is_news(3)
    view.learn(pickle.loads(pickle.dumps(driver.require(3).values())))
    assert view.require(3) == driver.require(3)
    assert (view.workers(), view.nodes(), view.is_news(3)) == ([2, 3], [[1, 2, 3]], False)
    view.replace(driver.snapshot())
    assert view.members() == driver.members()


def test_who_is_gone_is_not_learned_of_again() -> None:
    driver = cluster(1, 1)
    view = worker_view(driver, 2)
    late = driver.require(3).values()
    view.gone(3, KILLED)
    view.learn(late)
    assert view.procs() == [1, 2]
    assert view.why_gone(3) == KILLED


class Life(RuleBasedStateMachine):
    """A driver's membership, a worker's view of it, and a model of dicts."""

    REASONS = (ExitReason.lost(), ExitReason.removed(), KILLED, ExitReason("it exited with code 3", exitcode=3))

    def __init__(self) -> None:
        super().__init__()
        self.driver = cluster(1)
        self.view = worker_view(self.driver, 2)
        self.states = {2: State.JOINED}
        self.nodes = {1: 1, 2: 1}
        self.fresh = True

    def pids(self, *states: State) -> list[int]:
        return [pid for pid, state in self.states.items() if state in states and pid != 2]

    @rule()
    def launch(self) -> None:
        pid = self.driver.allocate_pid()
        assert pid == max(self.states) + 1
        self.driver.add(Member(pid))
        self.states[pid] = State.LAUNCHING
        self.fresh = False

    @precondition(lambda self: self.pids(State.LAUNCHING))
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(self.pids(State.LAUNCHING)))
        neighbour = data.draw(st.sampled_from([None, *self.driver.procs()]))
        self.driver.joined(pid, same_node_as=neighbour)
        self.states[pid] = State.JOINED
        self.nodes[pid] = pid if neighbour is None else self.nodes[neighbour]
        self.fresh = False

    @precondition(lambda self: self.pids(State.JOINED))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(self.pids(State.JOINED)))
        self.driver.leaving(pid)
        self.states[pid] = State.LEAVING
        self.fresh = False

    @precondition(lambda self: len(self.states) > 1)
    @rule(data=st.data(), reason=st.sampled_from(REASONS))
    def go(self, data: st.DataObject, reason: ExitReason) -> None:
        pid = data.draw(st.sampled_from(self.pids(*State)))
        assert self.driver.gone(pid, reason) is (self.states[pid] is not State.GONE)
        self.states[pid] = State.GONE
        self.fresh = False

    @rule()
    def tell(self) -> None:
        self.view.replace(self.driver.snapshot())
        self.fresh = True

    @invariant()
    def lists_are_the_models(self) -> None:
        joined = sorted(pid for pid, state in self.states.items() if state is State.JOINED)
        driver = self.driver
        assert driver.workers() == (joined or [1])
        assert driver.procs() == [1, *joined]
        assert (driver.nprocs(), driver.nworkers()) == (len(joined) + 1, max(1, len(joined)))
        assert sorted(pid for node in driver.nodes() for pid in node) == driver.procs()
        for node in driver.nodes():
            assert len({self.nodes[pid] for pid in node}) == 1
            assert all(driver.procs_on_node(pid) == node for pid in node)
        assert len({self.nodes[node[0]] for node in driver.nodes()}) == len(driver.nodes())

    @invariant()
    def every_pid_ever_used_is_accounted_for(self) -> None:
        for pid, state in self.states.items():
            assert (self.driver.why_gone(pid) is None) == (state is not State.GONE)
            if state is State.GONE:
                with pytest.raises(ProcessExitedException):
                    self.driver.require(pid)
            else:
                assert self.driver.require(pid).state is state
        with pytest.raises(NoSuchProcessError):
            self.driver.require(max(self.states) + 1)

    @invariant()
    def a_worker_that_was_told_agrees(self) -> None:
        if self.fresh:
            assert self.view.procs() == self.driver.procs()
            assert self.view.nodes() == self.driver.nodes()
            assert self.view.members() == self.driver.members()
            # Of two reasons that know as much, each side keeps the one that it heard first.
            assert self.view.snapshot()["gone"].keys() == self.driver.snapshot()["gone"].keys()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
