"""The state table of a connection: every state, role and message, pairs of ends, and silence on a made-up clock."""

from __future__ import annotations

import contextlib
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybriddist import limits
from hybriddist.core import protocol as module
from hybriddist.core.handshake import Role
from hybriddist.core.messages import (
    Call,
    Cancel,
    Claims,
    Define,
    Forget,
    Heartbeat,
    Identify,
    Join,
    Joined,
    Leave,
    Left,
    Members,
    Message,
    Request,
    Result,
    Started,
)
from hybriddist.core.protocol import MAY_SEND, Protocol, State
from hybriddist.errors import LocalProtocolError, PeerSilent, RemoteProtocolError
from hybriddist.transport import Frame

EXAMPLES: dict[str, Message] = {
    type(message).__name__: message
    for message in (
        Call(7, 0, 0, 1, 3, b"body", [b"buffer"]), Result(7, 0, b"body", [b"buffer"]), Request(8, 3, 1, 4, b"body"),
        Define(1, b"body"), Forget(1), Started(7), Cancel(7), Claims([(1, 2, 3, -1)]),
        Join(b"fields"), Joined(b"fields"), Identify(b"who"), Members(b"all"), Left(b"one"), Leave(), Heartbeat(),
    )
}  # fmt: skip
DATA = "Call Result Request Define Forget Started Claims Cancel Heartbeat"

# Written down a second time, by state and sender: what may be said, and what it leads to.
ALLOWED: dict[tuple[str, str, str], str] = {
    ("INTRODUCING", "CONNECTOR", "Join"): "JOINING",
    ("INTRODUCING", "CONNECTOR", "Identify"): "PEERS",
    ("JOINING", "ACCEPTOR", "Joined"): "CLUSTER",
}
ALLOWED |= {("CLUSTER", "CONNECTOR", name): "CLUSTER" for name in f"{DATA} Members Left Leave".split()}
ALLOWED |= {("CLUSTER", "ACCEPTOR", name): "CLUSTER" for name in DATA.split()}
ALLOWED |= {("PEERS", role, name): "PEERS" for role in ("CONNECTOR", "ACCEPTOR") for name in DATA.split()}

WAYS: dict[str, list[tuple[str, str]]] = {
    "INTRODUCING": [],
    "JOINING": [("CONNECTOR", "Join")],
    "CLUSTER": [("CONNECTOR", "Join"), ("ACCEPTOR", "Joined")],
    "PEERS": [("CONNECTOR", "Identify")],
}


class ConnectionPair:
    """Both ends of a connection with nothing between them: what one sends the other receives at once."""

    def __init__(self, silence_limit_seconds: float | None = None, now: float = 100.0) -> None:
        self.now = now
        self.ends = {role: Protocol(role, silence_limit_seconds) for role in Role}

    def send(self, role: Role, message: Message) -> Message | None:
        head, buffers = self.ends[role].send(message, self.now)
        return self.ends[role.other].receive(Frame(head, buffers), self.now)

    def to(self, state: str) -> ConnectionPair:
        for role, name in WAYS.get(state, []):
            self.send(Role[role], EXAMPLES[name])
        if state == "ENDED":
            for end in self.ends.values():
                end.end()
        assert self.states() == {State[state]}
        return self

    def states(self) -> set[State]:
        return {end.state for end in self.ends.values()}


def frame(message: Message) -> Frame:
    return Frame(message.encode(), getattr(message, "buffers", ()))


every_case = pytest.mark.parametrize(
    ("state", "sender", "name"), [(s.name, r.name, n) for s in State for r in Role for n in EXAMPLES]
)


# ---- the table --------------------------------------------------------------------------------------------------


@every_case
def test_sending(state: str, sender: str, name: str) -> None:
    pair = ConnectionPair().to(state)
    end = pair.ends[Role[sender]]
    message = EXAMPLES[name]
    if (state, sender, name) in ALLOWED:
        assert end.send(message, 0.0) == (message.encode(), getattr(message, "buffers", ()))
        assert end.state.name == ALLOWED[state, sender, name]
    else:
        with pytest.raises(LocalProtocolError, match=f"{name} in state {state}, as {sender.lower()}"):
            end.send(message, 0.0)
        assert end.state.name == state


@every_case
def test_receiving(state: str, sender: str, name: str) -> None:
    pair = ConnectionPair().to(state)
    end = pair.ends[Role[sender].other]
    message = EXAMPLES[name]
    if (state, sender, name) in ALLOWED:
        received = end.receive(frame(message), 0.0)
        assert received == (None if name == "Heartbeat" else message)
        assert end.state.name == ALLOWED[state, sender, name]
    else:
        with pytest.raises(RemoteProtocolError, match=f"{name} in state {state}, as {sender.lower()}"):
            end.receive(frame(message), 0.0)
        assert end.state is State.ENDED


def test_every_message_is_among_the_examples() -> None:
    assert {type(message) for message in EXAMPLES.values()} == set(Message.__args__)  # type: ignore[attr-defined]


def test_the_diagram_in_the_head_is_the_table() -> None:
    drawn: dict[tuple[State, Role], dict[str, State]] = {key: {} for key in MAY_SEND}
    lines = re.findall(r"^([A-Z]{5,}) {2,}(\S.*?) {2,}(\S.*?) {2,}(\S+)$", module.__doc__ or "", re.MULTILINE)
    assert {line[0] for line in lines} == {state.name for state in State}
    for state, connector, acceptor, then in lines:
        for role, names in ((Role.CONNECTOR, connector), (Role.ACCEPTOR, acceptor)):
            for name in names.replace("data", DATA).replace("-", "").split():
                drawn[State[state], role][name] = State[then]
    assert drawn == {key: {c.__name__: after for c, after in row.items()} for key, row in MAY_SEND.items()}


# ---- pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["CLUSTER", "PEERS"])
def test_messages_go_through_unchanged_in_the_open_states(state: str) -> None:
    pair = ConnectionPair().to(state)
    assert all(end.is_open for end in pair.ends.values())
    for sender in Role:
        for name, message in EXAMPLES.items():
            if (state, sender.name, name) in ALLOWED and name != "Heartbeat":
                assert pair.send(sender, message) == message


BEFORE = {"Join": "INTRODUCING", "Identify": "INTRODUCING", "Joined": "JOINING"}


@pytest.mark.parametrize("name", [name for name, message in EXAMPLES.items() if hasattr(message, "body")])
@pytest.mark.parametrize("count", [0, 2, limits.MAX_BUFFERS])
def test_a_large_body_travels_apart(name: str, count: int) -> None:
    """As the last buffer, if there is room for one more; what arrives is the same."""
    buffers = [b"%d" % number for number in range(count)]
    for size in (limits.OUT_OF_BAND_BYTES - 1, limits.OUT_OF_BAND_BYTES):
        message: Any = EXAMPLES[name]._replace(body=bytes(size), buffers=buffers)  # type: ignore[union-attr]
        pair = ConnectionPair().to(BEFORE.get(name, "CLUSTER"))
        sender = Role.ACCEPTOR if name == "Joined" else Role.CONNECTOR
        head, sent = pair.ends[sender].send(message, 0.0)
        apart = size == limits.OUT_OF_BAND_BYTES and count < limits.MAX_BUFFERS
        assert (len(head) < 100, len(sent)) == (apart, count + apart)
        received = pair.ends[sender.other].receive(Frame(head, sent), 0.0)
        assert received == (None if name == "Heartbeat" else message)


@pytest.mark.parametrize(
    ("head", "buffers"),
    [
        (b"\xff" + Result(7, 0, b"").encode(), []),
        (b"\xff" + Result(7, 0, b"a body of its own").encode(), [b"body"]),
        (b"\xff" + Claims([(1, 2, 3, 4)]).encode(), [b"body"]),
        (b"\xff" + Forget(1).encode(), [b"body"]),
        (b"\xff" * 1000, [b"body"] * 1000),
        (b"\xff", [b"body"]),
    ],
    ids=["no body", "two bodies", "claims", "no place for one", "apart from what is apart", "nothing"],
)
def test_what_has_no_body_apart_ends_the_connection(head: bytes, buffers: list[bytes]) -> None:
    end = ConnectionPair().to("PEERS").ends[Role.ACCEPTOR]
    with pytest.raises(RemoteProtocolError):
        end.receive(Frame(head, buffers), 0.0)
    assert end.state is State.ENDED


def test_joining_twice_is_refused_at_both_ends() -> None:
    pair = ConnectionPair().to("CLUSTER")
    with pytest.raises(LocalProtocolError):
        pair.ends[Role.CONNECTOR].send(Join(), 0.0)
    with pytest.raises(RemoteProtocolError):
        pair.ends[Role.ACCEPTOR].receive(frame(Join()), 0.0)


@pytest.mark.parametrize("head", [b"", b"\x00", b"\xff" * 40, b"\x01", Claims([(1, 2, 3, 4)]).encode()[:-1]])
def test_what_is_no_message_ends_the_connection(head: bytes) -> None:
    end = ConnectionPair().to("PEERS").ends[Role.ACCEPTOR]
    with pytest.raises(RemoteProtocolError):
        end.receive(Frame(head), 0.0)
    assert end.state is State.ENDED
    with pytest.raises(RemoteProtocolError):
        end.receive(frame(EXAMPLES["Result"]), 0.0)
    with pytest.raises(LocalProtocolError):
        end.send(EXAMPLES["Result"], 0.0)


@given(st.lists(st.tuples(st.sampled_from(list(Role)), st.sampled_from(sorted(EXAMPLES)))))
def test_two_ends_always_agree(steps: list[tuple[Role, str]]) -> None:
    pair = ConnectionPair(silence_limit_seconds=10.0)
    for sender, name in steps:
        with contextlib.suppress(LocalProtocolError):
            pair.send(sender, EXAMPLES[name])  # never a RemoteProtocolError: what may be sent may be received
        assert len(pair.states()) == 1


def test_ending_twice_is_once() -> None:
    end = Protocol(Role.CONNECTOR, 1.0)
    end.end()
    end.end()
    assert not end.is_open
    assert end.tick(5.0) == []
    assert end.next_wakeup() is None


# ---- silence ----------------------------------------------------------------------------------------------------

LIMIT = 30.0
BEAT = LIMIT / 4


@pytest.fixture
def end() -> Protocol:
    return ConnectionPair(LIMIT, now=100.0).to("PEERS").ends[Role.ACCEPTOR]


def tick_until(end: Protocol, now: float, until: float) -> list[float]:
    """Tick when asked to, send what is due; the times of the heartbeats."""
    beats = []
    while (wakeup := end.next_wakeup()) is not None and wakeup <= until:
        assert wakeup > now
        now = wakeup
        for head, buffers in end.tick(now):
            assert (head, buffers) == (Heartbeat().encode(), ())
            beats.append(now)
    return beats


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_is_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        Protocol(Role.CONNECTOR, limit)


def test_inside_a_node_there_are_no_heartbeats() -> None:
    end = ConnectionPair(None).to("PEERS").ends[Role.CONNECTOR]
    assert end.next_wakeup() is None
    assert end.tick(1e9) == []


@pytest.mark.parametrize("state", ["INTRODUCING", "JOINING"])
def test_before_the_connection_is_open_nobody_is_silent(state: str) -> None:
    for end in ConnectionPair(LIMIT).to(state).ends.values():
        assert end.next_wakeup() is None
        assert end.tick(1e9) == []


def test_an_idle_end_sends_heartbeats_and_a_busy_one_does_not(end: Protocol) -> None:
    beats = tick_until(end, 100.0, 125.0)
    assert len(beats) == 3
    assert all(late - early <= BEAT + 1.0 for early, late in pairwise([100.0, *beats]))
    end.send(EXAMPLES["Result"], 125.0)
    end.receive(frame(Heartbeat()), 125.0)
    assert tick_until(end, 125.0, 125.0 + BEAT - 0.1) == []


@pytest.mark.parametrize("with_time", [True, False])
def test_silence_is_noticed_in_time_and_not_early(end: Protocol, with_time: bool) -> None:
    tick_until(end, 100.0, 110.0)
    end.receive(frame(EXAMPLES["Result"]), 110.5 if with_time else 0.0)
    tick_until(end, 110.0, 140.4)
    with pytest.raises(PeerSilent, match=r"3[01]\.\d seconds \(the limit is 30\)"):
        tick_until(end, 140.4, 142.0)
    assert end.state is State.ENDED


@pytest.mark.parametrize("sign", ["Heartbeat", "Result", "Claims", "bytes"])
def test_anything_that_comes_is_a_sign_of_life(end: Protocol, sign: str) -> None:
    now = 100.0
    for _ in range(10):
        tick_until(end, now, now + LIMIT - 1)
        now += LIMIT - 1
        if sign == "bytes":
            end.heard(now)
        else:
            end.receive(frame(EXAMPLES[sign]), now)
    assert end.is_open


def test_whoever_slept_does_not_blame_the_other(end: Protocol) -> None:
    tick_until(end, 100.0, 105.0)
    assert len(end.tick(10_000.0)) == 1
    tick_until(end, 10_000.0, 10_000.0 + BEAT - 1)
    with pytest.raises(PeerSilent):
        tick_until(end, 10_000.0 + BEAT - 1, 10_000.0 + BEAT + 1)


def test_a_connection_opened_without_a_time_counts_from_the_first_tick() -> None:
    for end in ConnectionPair(LIMIT, now=0.0).to("CLUSTER").ends.values():
        assert end.next_wakeup() is not None
        assert end.tick(5_000.0) == []
        beats = tick_until(end, 5_000.0, 5_000.0 + LIMIT - 1)
        assert len(beats) == 3
        with pytest.raises(PeerSilent):
            tick_until(end, 5_000.0 + LIMIT - 1, 5_000.0 + LIMIT + 1)


@given(st.lists(st.tuples(st.sampled_from(list(Role)), st.floats(0.01, 200.0)), max_size=30), st.booleans())
def test_two_ends_that_tick_as_asked_never_find_each_other_silent(
    traffic: list[tuple[Role, float]], timed: bool
) -> None:
    pair = ConnectionPair(LIMIT).to("PEERS")
    for sender, pause in [*traffic, (Role.CONNECTOR, 500.0)]:
        until = pair.now + pause
        while (wakeup := min(end.next_wakeup() or 0.0 for end in pair.ends.values())) <= until:
            pair.now = max(pair.now, wakeup)
            for role in Role:
                for head, buffers in pair.ends[role].tick(pair.now):
                    assert pair.ends[role.other].receive(Frame(head, buffers), pair.now if timed else 0.0) is None
        pair.now = until
        stamp = pair.now if timed else 0.0
        head, buffers = pair.ends[sender].send(EXAMPLES["Call"], stamp)
        pair.ends[sender.other].receive(Frame(head, buffers), stamp)
    assert pair.states() == {State.PEERS}
