"""What may be said when, on one connection.

A connection has two ends: the *connector*, who made it, and the *acceptor*. Both have proved the cookie before the
first message, so this is not about strangers: it is about one process's bug staying one process's problem. The rules
are a table; `Protocol` is one end of a connection that keeps to it, and does no I/O and reads no clock.

State        Connector may send                    Acceptor may send      Then
-----------  ------------------------------------  ---------------------  -----------
INTRODUCING  Join                                  -                      JOINING
INTRODUCING  Identify                              -                      PEERS
JOINING      -                                     Joined                 CLUSTER
CLUSTER      data Members Left Leave               data                   CLUSTER
PEERS        data                                  data                   PEERS
ENDED        -                                     -                      -

*data* is Call Result Request Define Forget Started Claims Cancel Heartbeat. CLUSTER and PEERS are the two open states:
the driver (always the connector) with a worker, and two workers with each other. Only the driver changes the
membership, so what tells of it is refused between workers. Who hears what the table does not allow raises
`RemoteProtocolError`, and its end of the connection is ENDED.

**Silence.** Between nodes a dead peer says nothing, and a dead network neither; so there each end sends a heartbeat
when it has sent nothing else for a while, and gives the peer up when it has heard nothing for the silence limit. Any
frame is a sign of life, and so are the bytes of a large frame that is still under way (`heard`). Inside a node the
operating system tells of deaths: no limit, no heartbeats, and no time is spent on them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from hybriddist import limits
from hybriddist.core.handshake import Role
from hybriddist.core.messages import (
    BODILESS,
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
    decode,
    encode_apart,
)
from hybriddist.errors import LocalProtocolError, PeerSilent, RemoteProtocolError
from hybriddist.transport import Buffer, Frame


class State(Enum):
    """What has been said so far."""

    INTRODUCING = auto()
    JOINING = auto()
    CLUSTER = auto()
    PEERS = auto()
    ENDED = auto()


_DATA: Final = (Call, Result, Request, Define, Forget, Started, Claims, Cancel, Heartbeat)


def _staying(state: State, *classes: type[Message]) -> dict[type[Message], State]:
    return dict.fromkeys(classes, state)


MAY_SEND: Final[dict[tuple[State, Role], dict[type[Message], State]]] = {
    (State.INTRODUCING, Role.CONNECTOR): {Join: State.JOINING, Identify: State.PEERS},
    (State.INTRODUCING, Role.ACCEPTOR): {},
    (State.JOINING, Role.CONNECTOR): {},
    (State.JOINING, Role.ACCEPTOR): {Joined: State.CLUSTER},
    (State.CLUSTER, Role.CONNECTOR): _staying(State.CLUSTER, *_DATA, Members, Left, Leave),
    (State.CLUSTER, Role.ACCEPTOR): _staying(State.CLUSTER, *_DATA),
    (State.PEERS, Role.CONNECTOR): _staying(State.PEERS, *_DATA),
    (State.PEERS, Role.ACCEPTOR): _staying(State.PEERS, *_DATA),
    (State.ENDED, Role.CONNECTOR): {},
    (State.ENDED, Role.ACCEPTOR): {},
}
"""Who may send what, and the state that it leads to, for both ends alike."""

_NOTHING: Final[frozenset[type[Message]]] = frozenset()

_OPEN: Final = (State.CLUSTER, State.PEERS)

_LARGE_BYTES: Final = limits.OUT_OF_BAND_BYTES
"""A body of so many bytes travels apart. A call with a str of 50 MB takes 150 ms so, instead of 240."""

_HEARTBEATS_PER_LIMIT: Final = 4
"""Erlang's net_ticktime is cut into four as well: three signs of life may be late before the silence is believed."""

_LOOK_SECONDS: Final = 1.0
"""The clock is looked at so often, and twice for each heartbeat: frames without a time count from the look before."""

Out = tuple[bytes, Sequence[Buffer]]
"""A frame to send: the head and its out-of-band buffers."""


class Protocol:
    """One end of a connection.

    The receiving side (`receive`, `heard`, `tick`) and the sending side (`send`) may be used by two threads at once in
    the open states, each side by one at a time; before that, and for `end`, by one alone. All times are seconds of one
    monotonic clock. Where reading it for every frame is too dear, ``now`` may be 0: then it happened since the last
    `tick`, which takes the latest time that it can have been.

    Args:
        role: which end this is.
        silence_limit_seconds: without a sign of life for so long the peer counts as lost; None: no limit and no
            heartbeats (inside a node).
    """

    __slots__ = (
        "_beat_seconds", "_came", "_heard", "_limit_seconds", "_looked", "_receivable", "_sendable", "_sent", "_theirs",
        "_went", "role", "state",
    )  # fmt: skip

    def __init__(self, role: Role, silence_limit_seconds: float | None) -> None:
        if silence_limit_seconds is not None and not silence_limit_seconds > 0:
            raise ValueError(f"a silence limit must be positive, not {silence_limit_seconds}")
        self.role = role
        self.state = State.INTRODUCING
        self._theirs = role.other
        self._limit_seconds = silence_limit_seconds
        self._beat_seconds = 0.0 if silence_limit_seconds is None else silence_limit_seconds / _HEARTBEATS_PER_LIMIT
        self._heard = self._sent = self._looked = 0.0
        # When something came or went since the last tick; None: nothing did. One store, so that it needs no lock.
        self._came: float | None = None
        self._went: float | None = None
        # What needs no second look in this state. Empty until the connection is open.
        self._receivable = self._sendable = _NOTHING

    @property
    def is_open(self) -> bool:
        """Whether the introductions are over and the connection has not ended."""
        return self.state in _OPEN

    # ---- the hot path -----------------------------------------------------------------------------------------

    def receive(self, frame: Frame, now: float) -> Message | None:
        """The message in a frame that came from the peer; None for a heartbeat, which has done its work by coming.

        Raises:
            RemoteProtocolError: the frame holds no message, or one that is not allowed now. This end is ENDED.
        """
        try:
            message = decode(frame)
        except RemoteProtocolError:
            self.end()
            raise
        self._came = now
        if message.__class__ in self._receivable:
            return message
        return self._received_rarely(message, now)

    def send(self, message: Message, now: float) -> Out:
        """The frame that carries a message to the peer.

        Raises:
            LocalProtocolError: it is not allowed now. Nothing has changed.
        """
        if message.__class__ not in self._sendable:
            self._sending_rarely(message, now)
        self._went = now
        if message.__class__ in BODILESS:
            return message.encode(), ()
        buffers: Sequence[Buffer] = message.buffers  # type: ignore[union-attr]
        if len(message.body) >= _LARGE_BYTES and len(buffers) < limits.MAX_BUFFERS:  # type: ignore[union-attr]
            return encode_apart(message)
        return message.encode(), buffers

    # ---- time -------------------------------------------------------------------------------------------------

    def heard(self, now: float) -> None:
        """Bytes came from the peer, though not a whole frame yet."""
        self._came = now

    def tick(self, now: float) -> list[Out]:
        """Look at the clock; first receive what is there.

        Returns:
            Frames to send now: one heartbeat or none.

        Raises:
            PeerSilent: nothing was heard from the peer for the silence limit. This end is ENDED.
        """
        limit = self._limit_seconds
        if limit is None or self.state not in _OPEN:
            return []
        beat, looked = self._beat_seconds, self._looked
        came, self._came = self._came, None
        went, self._went = self._went, None
        if not looked:  # the first look, on a connection that was opened without a time
            self._heard = self._sent = looked = now
        if came is not None:
            self._heard = came or now
        if went is not None:
            self._sent = went or looked
        if now - looked > 2 * beat:
            # This process did not run itself (stopped, or its machine asleep): it cannot tell who was silent
            # meanwhile. The peer gets the time of one heartbeat to prove itself.
            self._heard = max(self._heard, now - limit + beat)
        self._looked = now
        silent = now - self._heard
        if silent >= limit:
            self.end()
            raise PeerSilent(f"nothing was heard from the peer for {silent:.1f} seconds (the limit is {limit:g})")
        return [self.send(Heartbeat(), now)] if now - self._sent >= beat else []

    def next_wakeup(self) -> float | None:
        """When to call `tick` next, at the latest; None: no need."""
        if self._limit_seconds is None or self.state not in _OPEN:
            return None
        return self._looked + min(self._beat_seconds / 2, _LOOK_SECONDS)

    def end(self) -> None:
        """The connection is over: nothing may be sent or received any more. Idempotent."""
        self.state = State.ENDED
        self._receivable = self._sendable = _NOTHING

    # ---- inside -----------------------------------------------------------------------------------------------

    def _received_rarely(self, message: Message, now: float) -> Message | None:
        """Heartbeats, introductions, and what is not allowed."""
        state = MAY_SEND[self.state, self._theirs].get(message.__class__)
        if state is None:
            name, before = message.__class__.__name__, self.state.name
            self.end()
            raise RemoteProtocolError(f"the peer sent {name} in state {before}, as {self._theirs.name.lower()}")
        self._enter(state, now)
        return None if message.__class__ is Heartbeat else message

    def _sending_rarely(self, message: Message, now: float) -> None:
        state = MAY_SEND[self.state, self.role].get(message.__class__)
        if state is None:
            name = message.__class__.__name__
            raise LocalProtocolError(f"cannot send {name} in state {self.state.name}, as {self.role.name.lower()}")
        self._enter(state, now)

    def _enter(self, state: State, now: float) -> None:
        if state is self.state:
            return
        self.state = state
        self._sendable = frozenset(MAY_SEND[state, self.role]) if state in _OPEN else _NOTHING
        self._receivable = frozenset(MAY_SEND[state, self._theirs]) - {Heartbeat} if state in _OPEN else _NOTHING
        self._heard = self._sent = self._looked = now
