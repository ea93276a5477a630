"""The handshake: both sides prove that they know the cookie, before anything else is said.

Whoever can send a frame can run code, so the first bytes on a new connection decide who may. This module makes and
judges those bytes. The cookie itself never travels::

    connector                                              acceptor
       | -- hello: magic, versions, "CONN", nonce A  (48) --> |
       |                                                      |  versions differ: hello alone, then the end
       | <-- hello: magic, versions, "ACPT", nonce B  (48) -- |
       | <-- proof (32) ------------------------------------- |
       | -- proof (32) -------------------------------------> |
       | <-- accepted (1) ----------------------------------- |

    hello (48) = magic (8) | protocol version (2) | Python major (1), minor (1) | role (4) | nonce (32)
    proof (32) = HMAC-SHA-256(key: SHA-256(cookie), label of the prover's role | connector's hello | acceptor's hello)

* The label differs by role, so that a proof sent back proves nothing; fresh nonces of both sides make old proofs
  worthless. A peer with our own nonce is our own echo.
* The acceptor proves first: a connector that reached a stranger on a recycled port says nothing more to it. In return
  any stranger can get one proof and try cookies on it at leisure: hopeless for 32 random bytes, not for a short word.
* The hellos are inside the proofs: a changed version, role or nonce is noticed.
* A peer is never told why it is refused: the connection ends. The exception: versions, which the hello shows openly.
* All sizes are fixed and no step reads more than it needs: nothing is allocated on a stranger's word, and the frames
  that follow are left in the stream. A wrong magic is refused at the first byte that differs.

What this module does not know: sockets, time (`greeting.py` brings both), and pickles: it has no use for them.

What it does not prevent: whoever sits between the two can pass the handshake on and then change what follows. Against
that there is encryption between nodes.

Compatibility: the hello's size and its first 12 bytes stay as they are in all versions of the protocol, so that two
versions can always tell each other which they are.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from enum import Enum
from struct import Struct
from typing import Final, NoReturn

from hybriddist.errors import (
    AuthenticationError,
    ConnectError,
    LocalProtocolError,
    RemoteProtocolError,
    VersionMismatchError,
)
from hybriddist.records import Record

PROTOCOL_VERSION: Final = 4
"""Raised with every change of what travels: handshake, path choice, frames or messages."""

MAGIC: Final = b"\x93HYBRID\n"
"""The first byte is neither a letter nor a TLS record type, the last is destroyed by text-mode translation."""

NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
_HELLO: Final = Struct(f"<{len(MAGIC)}sHBB4s{NONCE_BYTES}s")
HELLO_BYTES: Final = _HELLO.size
_ACCEPTED: Final = b"\x06"

_CHECK_COOKIES: Final = "check that both sides use the same cookie"


class Role(Enum):
    """Which side of the handshake we are. The value is the role's name in the hello."""

    CONNECTOR = b"CONN"
    ACCEPTOR = b"ACPT"

    @property
    def other(self) -> Role:
        """The peer's role."""
        return Role.ACCEPTOR if self is Role.CONNECTOR else Role.CONNECTOR


class Step(Enum):
    """What we wait for."""

    START = "our start"
    HELLO = "the peer's hello"
    PROOF = "the peer's proof"
    VERDICT = "the peer's acceptance"
    DONE = "nothing more"


class Handshake:
    """One side of one handshake.

    Send what `start` returns; then, until `done`, read at most `needed` bytes, give them to `receive` and send what it
    returns. If it raises, send `farewell` if there is one, and close.

    Args:
        role: which side we are.
        cookie: the cluster's secret; the empty string is one.
        python_version: (major, minor) of this interpreter. Functions travel as bytecode, so they must agree.
        nonce: for tests only; else 32 fresh random bytes.
    """

    def __init__(
        self,
        role: Role,
        cookie: str,
        *,
        python_version: tuple[int, int] = sys.version_info[:2],
        nonce: bytes | None = None,
    ) -> None:
        if not isinstance(cookie, str):
            raise TypeError(f"the cookie must be a str, not {type(cookie).__name__}")
        nonce = os.urandom(NONCE_BYTES) if nonce is None else nonce
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes, not {len(nonce)}")
        self.role = role
        self.farewell = b""
        """What to send before closing after `receive` raised: our hello, for a peer of another version. Else empty."""
        self._python_version = python_version
        self._nonce = nonce
        self._hello = _HELLO.pack(MAGIC, PROTOCOL_VERSION, *python_version, role.value, nonce)
        self._peer_hello = b""
        # Not the cookie itself: HMAC fills short keys with zeros, so that "abc" and "abc\0" would be one key.
        # surrogatepass: any str will do; an encoding error would show a part of it.
        from hashlib import sha256  # with OpenSSL 3 ms, so not at the top: see `prepare`

        self._key = sha256(cookie.encode("utf-8", "surrogatepass")).digest()
        self._step = Step.START
        self._received = bytearray()
        self._failure: tuple[type[AuthenticationError | RemoteProtocolError], str] | None = None

    @property
    def done(self) -> bool:
        """Whether the peer has proved the cookie and, for the connector, has accepted us."""
        return self._step is Step.DONE

    @property
    def needed(self) -> int:
        """How many bytes to read at most for the next step; 0 if none is expected."""
        row = _ROWS.get((self.role, self._step))
        return row.size - len(self._received) if row is not None and self._failure is None else 0

    def start(self) -> bytes:
        """Begin, once; returns what to send (nothing for the acceptor: it says nothing to a silent stranger)."""
        if self._step is not Step.START:
            raise LocalProtocolError("the handshake was started already")
        self._step = Step.HELLO
        return self._hello if self.role is Role.CONNECTOR else b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes of the peer, at most `needed`, and return what to send, perhaps nothing.

        Raises:
            AuthenticationError: the peer could not prove that it knows the cookie.
            VersionMismatchError: the peer runs another version of the protocol or of Python. See `farewell`.
            RemoteProtocolError: the peer speaks something else.
            LocalProtocolError: not started, or more bytes than `needed`: they belong to what follows.
        """
        if self._failure is not None:
            raise self._failure[0](self._failure[1])
        if len(data) > self.needed:
            raise LocalProtocolError(f"{len(data)} bytes where the handshake needs {self.needed}")
        self._received += data
        try:
            if self._step is Step.HELLO and not MAGIC.startswith(self._received[: len(MAGIC)]):
                beginning = bytes(self._received[: len(MAGIC)])
                raise RemoteProtocolError(f"the peer does not speak this protocol: it began with {beginning!r}")
            if self.needed or self.done:
                return b""
            message = bytes(self._received)
            self._received.clear()
            row = _ROWS[self.role, self._step]
            answer = row.handle(self, message)
        except (AuthenticationError, RemoteProtocolError) as error:
            self._failure = (type(error), str(error))
            raise
        self._step = row.then
        return answer

    def eof(self) -> NoReturn:
        """The peer ended the connection before the handshake was done.

        Raises:
            ConnectError: always; the text tells what was awaited and what to check.
        """
        row = _ROWS.get((self.role, self._step))
        hint = f": {row.closed_early}" if row is not None else ""
        raise ConnectError(f"the connection ended in the handshake, before {self._step.value} came{hint}")

    # ---- what each message means ------------------------------------------------------------------------------------

    def _greeted(self, message: bytes) -> bytes:
        _, protocol, major, minor, role, nonce = _HELLO.unpack(message)
        if (protocol, major, minor) != (PROTOCOL_VERSION, *self._python_version):
            if self.role is Role.ACCEPTOR:
                self.farewell = self._hello
            ours = f"protocol {PROTOCOL_VERSION} and Python {self._python_version[0]}.{self._python_version[1]}"
            raise VersionMismatchError(
                f"this side runs {ours}, the peer runs protocol {protocol} and Python {major}.{minor}; "
                "all processes of a cluster need the same versions"
            )
        if nonce == self._nonce:
            raise AuthenticationError("the peer sent our own nonce back: it is an echo, or wants us to prove for it")
        if role != self.role.other.value:
            raise RemoteProtocolError(f"the peer takes the role {role!r}, not {self.role.other.value!r}")
        self._peer_hello = message
        return self._hello + self._proof(self.role) if self.role is Role.ACCEPTOR else b""

    def _proved(self, message: bytes) -> bytes:
        from hmac import compare_digest

        if not compare_digest(message, self._proof(self.role.other)):
            raise AuthenticationError(f"the peer could not prove that it knows the cookie: {_CHECK_COOKIES}")
        return _ACCEPTED if self.role is Role.ACCEPTOR else self._proof(self.role)

    def _accepted(self, message: bytes) -> bytes:
        if message != _ACCEPTED:
            raise RemoteProtocolError(f"the peer answered {message!r} where it accepts or closes")
        return b""

    def _proof(self, prover: Role) -> bytes:
        hellos = self._hello, self._peer_hello
        connector, acceptor = hellos if self.role is Role.CONNECTOR else hellos[::-1]
        # Fixed sizes throughout: no two different tuples give the same bytes.
        import hmac

        return hmac.digest(self._key, b"hybriddist proof " + prover.value + connector + acceptor, "sha256")


def prepare() -> None:
    """Load what a handshake needs, at a moment in which this process would only wait."""
    importlib.import_module("hmac")
    importlib.import_module("hashlib")


class _Row(Record):
    """One step: how many bytes it takes, what is done with them, what comes then, what an early end means."""

    size: int
    handle: Callable[[Handshake, bytes], bytes]
    then: Step
    closed_early: str


_ROWS: Final[dict[tuple[Role, Step], _Row]] = {
    (Role.CONNECTOR, Step.HELLO): _Row(
        HELLO_BYTES, Handshake._greeted, Step.PROOF, "is it a process of this cluster that listens there?"
    ),
    (Role.CONNECTOR, Step.PROOF): _Row(
        PROOF_BYTES, Handshake._proved, Step.VERDICT, "the peer has died, or is none of this cluster"
    ),
    (Role.CONNECTOR, Step.VERDICT): _Row(
        len(_ACCEPTED), Handshake._accepted, Step.DONE, f"it may have refused our proof; {_CHECK_COOKIES}"
    ),
    (Role.ACCEPTOR, Step.HELLO): _Row(
        HELLO_BYTES, Handshake._greeted, Step.PROOF, "somebody only looked whether the port is open"
    ),
    (Role.ACCEPTOR, Step.PROOF): _Row(
        PROOF_BYTES, Handshake._proved, Step.DONE, f"it may have refused our proof; {_CHECK_COOKIES}"
    ),
}
