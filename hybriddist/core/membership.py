"""The processes of a cluster as one of them knows them: who there is, where, and who may talk to whom.

The driver alone changes the membership. It tells the workers by snapshots, which replace what they knew::

                 add              joined              leaving             gone(reason)
      (new pid) -----> LAUNCHING --------> JOINED ------------> LEAVING -------------> GONE
                           |                  |                                          ^
                           +------------------+------------------------------------------+

Only JOINED processes are counted and listed: one that is being set up or shut down takes no work. A pid is never
used again. Of a process that is gone only the reason is kept, for whoever still asks.

A *node* is a set of processes that share memory, as a probe has proved; it is named by the smallest pid that was on
it when the proof was made. A pair of processes is always connected by the higher pid, so that two that want each
other at the same time make one connection. The driver has the lowest pid of all and listens to nobody: it is the
exception, and connects to every worker by itself.

What this module does not know: connections, messages, threads. The caller holds the locks.
"""

from __future__ import annotations

from collections.abc import Container
from enum import StrEnum
from typing import Any, Final

from hybriddist.core.exits import ExitReason
from hybriddist.errors import InternalError, NoSuchProcessError, TopologyError
from hybriddist.ids import DRIVER, as_pid


class State(StrEnum):
    """Where a process is in its life as a member."""

    LAUNCHING = "launching"
    JOINED = "joined"
    LEAVING = "leaving"
    GONE = "gone"


class Topology(StrEnum):
    """Which workers are connected. The driver is connected to all of them in each."""

    ALL_TO_ALL = "all_to_all"
    MASTER_WORKER = "master_worker"
    CUSTOM = "custom"
    """As the idents say: two workers are connected if one of them names the other in ``connect_idents``."""


_NEXT: Final[dict[State, frozenset[State]]] = {
    State.LAUNCHING: frozenset({State.JOINED, State.GONE}),
    State.JOINED: frozenset({State.LEAVING, State.GONE}),
    State.LEAVING: frozenset({State.GONE}),
    State.GONE: frozenset(),
}


class Member:
    """One process of the cluster.

    Attributes:
        pid: its number in the cluster.
        ospid: the operating system's number, 0 until known.
        host: the name of its machine.
        addresses: where it listens, such as "unix:/path" or "tcp:host:port"; the best one first.
        node: the node it is on; 0 until known, then every process has one.
        transport: what connections to it should use: "auto", "shm" or "tcp".
        ident: its name in a custom topology.
        connect_idents: the names it is to be connected to in a custom topology; None is nobody.
        cpus: how many it may use, 0 until known.
        streams: "", or how its manager calls its own connections: it is reached by them, and not at ``addresses``.
        connect_at: what its manager needs to know to make one, pickled: it may be an object of the manager's own.
        state: changed by `Membership` only.
    """

    __slots__ = (
        "addresses", "connect_at", "connect_idents", "cpus", "host", "ident", "node", "ospid", "pid", "state",
        "streams", "transport",
    )  # fmt: skip

    def __init__(
        self,
        pid: int,
        ospid: int = 0,
        host: str = "",
        addresses: list[str] | None = None,
        node: int = 0,
        transport: str = "auto",
        ident: Any = None,
        connect_idents: list[Any] | None = None,
        state: State = State.LAUNCHING,
        cpus: int = 0,
        streams: str = "",
        connect_at: bytes = b"",
    ) -> None:
        self.pid = pid
        self.ospid = ospid
        self.host = host
        self.addresses = [] if addresses is None else addresses
        self.node = node or pid
        self.transport = transport
        self.ident = ident
        self.connect_idents = connect_idents
        self.state = state
        self.cpus = cpus
        self.streams = streams
        self.connect_at = connect_at

    def values(self) -> dict[str, Any]:
        """All attributes by name, as plain data."""
        values = {name: getattr(self, name) for name in self.__slots__}
        # Lists of their own: the snapshot is pickled later, when the member may have changed.
        values["addresses"] = list(self.addresses)
        values["connect_idents"] = None if self.connect_idents is None else list(self.connect_idents)
        values["state"] = str(self.state)
        return values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and other.values() == self.values()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Member({', '.join(f'{name}={value!r}' for name, value in self.values().items())})"


class Membership:
    """All processes, as process ``my_pid`` knows them.

    Args:
        my_pid: this process. It is a member from the start, and always listed by itself.
    """

    __slots__ = ("_gone", "_members", "_next_pid", "lazy", "my_pid", "topology")

    def __init__(self, my_pid: int = DRIVER) -> None:
        self.my_pid = my_pid
        self.topology = Topology.ALL_TO_ALL
        self.lazy = True
        self._next_pid = DRIVER + 1
        self._members = {my_pid: Member(my_pid, state=State.JOINED)}
        self._gone: dict[int, ExitReason] = {}

    # ---- changes ----------------------------------------------------------------------------------------------

    def allocate_pid(self) -> int:
        """A pid that nobody had or will have: 2, 3, 4 and so on, also for workers that never come up."""
        pid = self._next_pid
        self._next_pid += 1
        return pid

    def add(self, member: Member) -> Member:
        """A worker is being launched. Its pid comes from `allocate_pid`."""
        if member.pid in self._members or member.pid in self._gone:
            raise InternalError(f"process {member.pid} cannot be added: the pid is taken")
        if member.state is not State.LAUNCHING:
            raise InternalError(f"process {member.pid} cannot be added as {member.state}")
        self._members[member.pid] = member
        return member

    def joined(self, pid: int, *, same_node_as: int | None = None) -> Member:
        """The worker is up. Write what it told of itself into its `Member` first.

        Args:
            same_node_as: a process with which it was proved to share memory; None for a node of its own.
        """
        member = self._change(pid, State.JOINED)
        member.node = pid if same_node_as is None else self._members[same_node_as].node
        return member

    def leaving(self, pid: int) -> Member:
        """The worker was asked to leave, and gets no more work."""
        return self._change(pid, State.LEAVING)

    def gone(self, pid: int, reason: ExitReason) -> bool:
        """The process is gone, from whatever state.

        A death is often noticed twice: first the connection is lost, then the exit status is there. The reason that
        knows more is kept.

        Returns:
            True the first time.
        """
        earlier = self._gone.get(pid)
        if earlier is not None:
            self._gone[pid] = reason.or_better(earlier)
            return False
        self._change(pid, State.GONE)
        del self._members[pid]
        self._gone[pid] = reason
        return True

    def learn(self, fields: dict[str, Any]) -> None:
        """A worker has asked the driver about one process: these are its `Member.values`.

        The driver's next snapshot is newer. Who is known here to be gone stays gone.
        """
        told = _member_of(fields)
        if told.pid not in self._gone:
            self._members[told.pid] = told

    def choose_topology(self, topology: str, lazy: bool | None = None) -> None:
        """Set the topology, and whether connections between workers are made on first use, for workers to come.

        Args:
            topology: "all_to_all", "master_worker" or "custom".
            lazy: None for the usual: True in all_to_all. The other topologies are never lazy.

        Raises:
            ValueError: no such topology, or ``lazy`` differs from what the living workers were started with.
            TopologyError: there are workers, and they have another topology.
        """
        try:
            wanted = Topology(topology)
        except ValueError:
            names = ", ".join(Topology)
            raise ValueError(f"topology must be one of {names}, not {topology!r}") from None
        if len(self._members) > 1:
            if wanted is not self.topology:
                raise TopologyError(
                    f"workers with topology {self.topology} already exist; "
                    f"the requested topology {wanted} cannot be set before they are removed{self._still_leaving()}"
                )
            if lazy is not None and wanted is Topology.ALL_TO_ALL and lazy != self.lazy:
                text = f"workers with lazy={self.lazy} already exist; lazy={lazy} cannot be set"
                raise ValueError(text + self._still_leaving())
            return
        self.topology = wanted
        self.lazy = wanted is Topology.ALL_TO_ALL and lazy is not False

    # ---- questions --------------------------------------------------------------------------------------------

    def procs(self, pid: int | None = None) -> list[int]:
        """The processes that take work, the driver among them, sorted; those on the node of ``pid`` if it is given."""
        if pid is not None:
            return self.procs_on_node(pid)
        return sorted(member.pid for member in self._listed())

    def workers(self) -> list[int]:
        """The workers, sorted; where there are none, the driver works."""
        return [pid for pid in self.procs() if pid != DRIVER] or [DRIVER]

    def nprocs(self) -> int:
        """How many processes there are, the driver among them."""
        return len(self.procs())

    def nworkers(self) -> int:
        """How many processes work; at least one."""
        return len(self.workers())

    def procs_on_node(self, pid: int | None = None) -> list[int]:
        """The processes that share memory with ``pid`` (default: this one), sorted."""
        node = self.require(self.my_pid if pid is None else pid).node
        return sorted(member.pid for member in self._listed() if member.node == node)

    def nodes(self) -> list[list[int]]:
        """The processes node by node, sorted."""
        by_node: dict[int, list[int]] = {}
        for pid in self.procs():
            by_node.setdefault(self._members[pid].node, []).append(pid)
        return sorted(by_node.values())

    def members(self) -> list[Member]:
        """Every process that is not gone, in whatever state, by pid."""
        return [self._members[pid] for pid in sorted(self._members)]

    def get(self, pid: int) -> Member | None:
        """The member, in whatever state; None if it is gone or never was."""
        return self._members.get(pid)

    def why_gone(self, pid: int) -> ExitReason | None:
        """Why the process is gone; None if it is not."""
        return self._gone.get(pid)

    def is_news(self, pid: int) -> bool:
        """Whether nobody has said of this process that it is up, nor that it is gone."""
        member = self._members.get(pid)
        up = pid == self.my_pid or (member is not None and member.state is not State.LAUNCHING)
        return not up and pid not in self._gone

    def require(self, pid: int) -> Member:
        """The member with this pid, also while it is being set up or shut down.

        Raises:
            TypeError: ``pid`` is not an integer.
            ProcessExitedException: the process is gone.
            NoSuchProcessError: it never was; the text tells which processes there are.
        """
        pid = as_pid(pid)
        member = self._members.get(pid)
        if member is not None:
            return member
        reason = self._gone.get(pid)
        if reason is not None:
            raise reason.exception(pid)
        raise NoSuchProcessError(pid, self._who_there_is())

    # ---- topology ---------------------------------------------------------------------------------------------

    def may_connect(self, a: int, b: int) -> bool:
        """Whether the topology connects these two processes. Both must be members."""
        if a == b or DRIVER in (a, b) or self.topology is Topology.ALL_TO_ALL:
            return True
        if self.topology is Topology.MASTER_WORKER:
            return False
        one, other = self.require(a), self.require(b)
        return _names(one, other) or _names(other, one)

    def check_topology(self, a: int, b: int) -> None:
        """Insist that the topology connects process ``a`` (which wants to send) and process ``b``.

        Raises:
            TopologyError: it does not; the text names both and the topology.
        """
        if not self.may_connect(a, b):
            why = ": neither names the other in connect_idents" if self.topology is Topology.CUSTOM else ""
            raise TopologyError(f"peer {b} is not connected to {a}. Topology: {self.topology}{why}")

    @staticmethod
    def connector(a: int, b: int) -> int:
        """Which of two processes makes the connection: the driver if it is one of them, else the higher pid."""
        return DRIVER if DRIVER in (a, b) else max(a, b)

    def connects_to(self, pid: int) -> list[int]:
        """The workers to which worker ``pid`` makes connections when all are made at once (``lazy`` is False)."""
        return [other for other in self.workers() if DRIVER < other < pid and self.may_connect(pid, other)]

    def missing_idents(self, pid: int, without: Container[int] = ()) -> list[Any]:
        """In a custom topology, the idents that ``pid`` is to be connected to and that no process has yet.

        Args:
            without: processes that do not count.
        """
        if self.topology is not Topology.CUSTOM:
            return []
        present = [member.ident for member in self._listed() if member.pid not in without]
        return [ident for ident in self.require(pid).connect_idents or () if ident not in present]

    # ---- snapshots --------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data, for `replace` on a worker. Lines of stderr stay here: they can be long."""
        return {
            "topology": str(self.topology),
            "lazy": self.lazy,
            "members": [member.values() for member in self.members()],
            "gone": {pid: (reason.text, reason.exitcode, reason.signal) for pid, reason in self._gone.items()},
        }

    def replace(self, snapshot: dict[str, Any]) -> None:
        """Know what the driver knew when it made the snapshot.

        Nobody rises from the dead: who is known here to be gone stays gone, for the reason known here. Who is
        missing in the snapshot is gone. This process itself stays a member.
        """
        self.topology = Topology(snapshot["topology"])
        self.lazy = snapshot["lazy"]
        told_gone = {pid: ExitReason(*reason) for pid, reason in snapshot["gone"].items()}
        told = [_member_of(fields) for fields in snapshot["members"]]
        missing = self._members.keys() - {member.pid for member in told} - told_gone.keys()
        known = {pid: told_gone.get(pid, reason).or_better(reason) for pid, reason in self._gone.items()}
        self._gone = {pid: ExitReason.removed() for pid in missing} | told_gone | known
        self._gone.pop(self.my_pid, None)
        myself = self._members[self.my_pid]
        self._members = {member.pid: member for member in told if member.pid not in self._gone}
        self._members.setdefault(self.my_pid, myself)

    # ---- inside -----------------------------------------------------------------------------------------------

    def _listed(self) -> list[Member]:
        # A worker counts itself even if the snapshot that it has was made before the driver saw it join.
        return [m for m in self._members.values() if m.state is State.JOINED or m.pid == self.my_pid]

    def _change(self, pid: int, state: State) -> Member:
        member = self._members.get(pid)
        if member is None or pid == self.my_pid or state not in _NEXT[member.state]:
            now = "not a member" if member is None else "this process" if pid == self.my_pid else member.state
            raise InternalError(f"process {pid} cannot become {state}: it is {now}")
        member.state = state
        return member

    def _still_leaving(self) -> str:
        pids = ", ".join(str(member.pid) for member in self.members() if member.state is State.LEAVING)
        return f"; still leaving: {pids}. Wait for the removal that rmprocs returned" if pids else ""

    def _who_there_is(self) -> str:
        pids = self.procs()
        if pids == [DRIVER]:
            return "there are no workers yet: addprocs(n) adds some"
        return "the processes are " + ", ".join(map(str, pids))


def _member_of(fields: dict[str, Any]) -> Member:
    return Member(**fields | {"state": State(fields["state"])})


def _names(one: Member, other: Member) -> bool:
    return other.ident is not None and other.ident in (one.connect_idents or ())
