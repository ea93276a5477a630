"""core/handshake.py: two sides that agree, and everybody else."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybriddist.core import handshake as handshake_module
from hybriddist.core.handshake import HELLO_BYTES, MAGIC, NONCE_BYTES, PROOF_BYTES, PROTOCOL_VERSION, Handshake, Role
from hybriddist.errors import (
    AuthenticationError,
    ConnectError,
    HybridDistError,
    LocalProtocolError,
    RemoteProtocolError,
    VersionMismatchError,
)

COOKIE = "correct horse battery staple 0123456789"
A = bytes(range(NONCE_BYTES))
B = bytes(range(100, 100 + NONCE_BYTES))

Change = Callable[[int, bytes], bytes]
"""What a link does to the bytes of one message: (number of the message, bytes) -> bytes."""


class Pair:
    """Two handshakes and the link between them, which may change what passes."""

    def __init__(
        self, connector: Handshake, acceptor: Handshake, *, chunk: int = 1000, change: Change = lambda _, data: data
    ) -> None:
        self.sides = {Role.CONNECTOR: connector, Role.ACCEPTOR: acceptor}
        self.inbox = {Role.CONNECTOR: b"", Role.ACCEPTOR: b""}
        self.errors: dict[Role, HybridDistError] = {}
        self.messages: list[bytes] = []
        self._change = change
        self._chunk = chunk
        for role, side in self.sides.items():
            self._send(role, side.start())

    def _send(self, sender: Role, data: bytes) -> None:
        if data:
            self.messages.append(data)
            self.inbox[sender.other] += self._change(len(self.messages) - 1, data)

    def run(self) -> None:
        """Until nothing moves any more. A side that raised says its farewell and is gone."""
        moving = True
        while moving:
            moving = False
            for role, side in self.sides.items():
                size = min(side.needed, self._chunk, len(self.inbox[role]))
                if role in self.errors or not size:
                    continue
                moving = True
                data, self.inbox[role] = self.inbox[role][:size], self.inbox[role][size:]
                try:
                    self._send(role, side.receive(data))
                except HybridDistError as error:
                    self.errors[role] = error
                    self._send(role, side.farewell)

    @property
    def done(self) -> tuple[bool, bool]:
        return self.sides[Role.CONNECTOR].done, self.sides[Role.ACCEPTOR].done


def make(role: Role, cookie: str = COOKIE, version: tuple[int, int] = (3, 11)) -> Handshake:
    return Handshake(role, cookie, python_version=version, nonce=A if role is Role.CONNECTOR else B)


def pair(connector_cookie: str = COOKIE, acceptor_cookie: str = COOKIE, **options: object) -> Pair:
    result = Pair(make(Role.CONNECTOR, connector_cookie), make(Role.ACCEPTOR, acceptor_cookie), **options)  # type: ignore[arg-type]
    result.run()
    return result


# ---- two sides that agree -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 7, 47, 48, 1000])
@pytest.mark.parametrize("cookie", [COOKIE, "", "x", "c" * 256, "ключ", "\udc80"])
def test_same_cookie(cookie: str, chunk: int) -> None:
    agreed = pair(cookie, cookie, chunk=chunk)
    assert agreed.done == (True, True)
    assert agreed.errors == {}
    assert list(agreed.inbox.values()) == [b"", b""]
    assert [side.needed for side in agreed.sides.values()] == [0, 0]


def test_sizes_on_the_wire() -> None:
    assert [len(message) for message in pair().messages] == [HELLO_BYTES, HELLO_BYTES + PROOF_BYTES, PROOF_BYTES, 1]
    assert (HELLO_BYTES, PROOF_BYTES) == (48, 32)


def test_the_wire_format_stays_as_it_is() -> None:
    """Worked out here from the description, without the module's own helpers."""
    hello, answer, proof, accepted = pair().messages
    key = hashlib.sha256(COOKIE.encode()).digest()
    expected_hello = b"\x93HYBRID\n" + b"\x04\x00" + bytes([3, 11]) + b"CONN" + A
    expected_answer = b"\x93HYBRID\n" + b"\x04\x00" + bytes([3, 11]) + b"ACPT" + B
    both = expected_hello + expected_answer
    assert hello == expected_hello
    assert answer == expected_answer + hmac.new(key, b"hybriddist proof ACPT" + both, hashlib.sha256).digest()
    assert proof == hmac.new(key, b"hybriddist proof CONN" + both, hashlib.sha256).digest()
    assert accepted == b"\x06"


def test_the_cookie_is_not_on_the_wire_nor_in_the_objects_texts() -> None:
    agreed = pair()
    traffic = b"".join(agreed.messages)
    for secret in (COOKIE.encode(), hashlib.sha256(COOKIE.encode()).digest()):
        assert secret not in traffic
    refused = pair(COOKIE, "another")
    texts = [repr(side) for side in agreed.sides.values()] + [str(error) for error in refused.errors.values()]
    assert COOKIE not in "".join(texts)
    assert "another" not in "".join(texts)


def test_nonces_are_fresh() -> None:
    hellos = {Handshake(Role.CONNECTOR, COOKIE).start() for _ in range(50)}
    assert len(hellos) == 50


def test_what_follows_the_handshake_is_not_needed() -> None:
    """`needed` is exactly what is missing for the next step, so frames behind the handshake stay in the stream."""
    connector, acceptor = make(Role.CONNECTOR), make(Role.ACCEPTOR)
    assert (connector.needed, acceptor.needed) == (0, 0)
    hello = connector.start()
    assert acceptor.start() == b""
    assert acceptor.needed == HELLO_BYTES
    assert acceptor.receive(hello[:20]) == b""
    assert acceptor.needed == HELLO_BYTES - 20
    answer = acceptor.receive(hello[20:])
    assert acceptor.needed == PROOF_BYTES
    assert connector.needed == HELLO_BYTES
    assert connector.receive(answer[:HELLO_BYTES]) == b""
    assert connector.needed == PROOF_BYTES
    accepted = acceptor.receive(connector.receive(answer[HELLO_BYTES:]))
    assert (connector.needed, acceptor.needed) == (1, 0)
    assert acceptor.done
    assert not connector.done
    connector.receive(accepted)
    assert (connector.done, connector.needed) == (True, 0)


# ---- wrong use ----------------------------------------------------------------------------------------------------


def test_more_than_needed_is_our_own_mistake() -> None:
    acceptor = make(Role.ACCEPTOR)
    with pytest.raises(LocalProtocolError, match="needs 0"):
        acceptor.receive(b"x")
    acceptor.start()
    with pytest.raises(LocalProtocolError, match="49 bytes where the handshake needs 48"):
        acceptor.receive(bytes(49))
    done = pair().sides[Role.CONNECTOR]
    assert done.receive(b"") == b""
    with pytest.raises(LocalProtocolError, match="needs 0"):
        done.receive(b"x")


def test_start_is_called_once() -> None:
    for role in Role:
        side = make(role)
        side.start()
        with pytest.raises(LocalProtocolError, match="already"):
            side.start()


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="must be a str, not bytes"):
        Handshake(Role.CONNECTOR, b"cookie")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32 bytes, not 3"):
        Handshake(Role.CONNECTOR, COOKIE, nonce=b"abc")


# ---- wrong cookies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize(
    "other", ["", COOKIE[:-1], COOKIE + "x", COOKIE + "\0", COOKIE.upper(), hashlib.sha256(COOKIE.encode()).hexdigest()]
)
@pytest.mark.parametrize("swap", [False, True])
def test_wrong_cookie(other: str, swap: bool, chunk: int) -> None:
    refused = pair(*((other, COOKIE) if swap else (COOKIE, other)), chunk=chunk)
    assert refused.done == (False, False)
    # The connector is the first to notice, and then says nothing more; not even why.
    assert list(refused.errors) == [Role.CONNECTOR]
    assert isinstance(refused.errors[Role.CONNECTOR], AuthenticationError)
    assert "same cookie" in str(refused.errors[Role.CONNECTOR])
    assert [len(message) for message in refused.messages] == [HELLO_BYTES, HELLO_BYTES + PROOF_BYTES]
    with pytest.raises(ConnectError, match=r"before the peer's proof came.* same cookie"):
        refused.sides[Role.ACCEPTOR].eof()


@pytest.mark.parametrize("cookies", list(itertools.permutations(["", "\0", "a", "a\0", "\0a"], 2)))
def test_zeros_at_the_end_count(cookies: tuple[str, str]) -> None:
    assert pair(*cookies).done == (False, False)


def test_long_cookies_are_not_their_digests() -> None:
    """HMAC itself replaces keys over 64 bytes by their digest."""
    long = "c" * 100
    assert pair(long, hashlib.sha256(long.encode()).digest().decode("latin-1")).done == (False, False)


def test_a_connector_that_does_not_check_is_refused_by_the_acceptor() -> None:
    acceptor = make(Role.ACCEPTOR)
    acceptor.start()
    acceptor.receive(make(Role.CONNECTOR).start())
    with pytest.raises(AuthenticationError, match="same cookie"):
        acceptor.receive(bytes(PROOF_BYTES))
    assert acceptor.farewell == b""
    assert not acceptor.done


# ---- replay and reflection ----------------------------------------------------------------------------------------


def test_replayed_connector_is_refused() -> None:
    hello, _, proof, _ = pair().messages
    acceptor = Handshake(Role.ACCEPTOR, COOKIE, python_version=(3, 11))
    acceptor.start()
    acceptor.receive(hello)
    with pytest.raises(AuthenticationError):
        acceptor.receive(proof)


def test_replayed_acceptor_is_refused() -> None:
    _, answer, _, _ = pair().messages
    connector = Handshake(Role.CONNECTOR, COOKIE, python_version=(3, 11))
    connector.start()
    connector.receive(answer[:HELLO_BYTES])
    with pytest.raises(AuthenticationError):
        connector.receive(answer[HELLO_BYTES:])


def test_an_echo_is_refused() -> None:
    connector = make(Role.CONNECTOR)
    with pytest.raises(AuthenticationError, match="own nonce"):
        connector.receive(connector.start())


def test_our_own_nonce_back_is_refused() -> None:
    """With the right role: the nonce alone gives it away."""
    connector = make(Role.CONNECTOR)
    connector.start()
    acceptor = Handshake(Role.ACCEPTOR, COOKIE, python_version=(3, 11), nonce=A)
    with pytest.raises(AuthenticationError, match="own nonce"):
        connector.receive(acceptor._hello)


def test_the_acceptors_proof_sent_back_to_it_is_refused() -> None:
    acceptor = make(Role.ACCEPTOR)
    acceptor.start()
    answer = acceptor.receive(make(Role.CONNECTOR).start())
    with pytest.raises(AuthenticationError):
        acceptor.receive(answer[HELLO_BYTES:])


def test_a_proof_from_a_parallel_connection_is_refused() -> None:
    """The classic: have the victim itself answer, over a second connection, the challenge it made on the first."""
    first, second = make(Role.ACCEPTOR), Handshake(Role.ACCEPTOR, COOKIE, python_version=(3, 11))
    first.start()
    second.start()
    challenge = first.receive(make(Role.CONNECTOR).start())[12 + 4 : HELLO_BYTES]
    disguised = Handshake(Role.CONNECTOR, "not known", python_version=(3, 11), nonce=challenge)
    answer = second.receive(disguised.start())
    with pytest.raises(AuthenticationError):
        first.receive(answer[HELLO_BYTES:])


@pytest.mark.parametrize("role", Role)
def test_two_of_the_same_role(role: Role) -> None:
    one = make(role)
    other = Handshake(role, COOKIE, python_version=(3, 11))
    one.start()
    with pytest.raises(RemoteProtocolError, match="takes the role"):
        one.receive(other._hello)


# ---- changed bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_every_flipped_bit_of_every_message(number: int) -> None:
    size = len(pair().messages[number])
    for bit in range(size * 8):

        def flip(index: int, data: bytes, bit: int = bit) -> bytes:
            changed = bytearray(data)
            if index == number:
                changed[bit // 8] ^= 1 << bit % 8
            return bytes(changed)

        spoiled = pair(change=flip)
        # The last byte is the acceptor's word that it is done; whoever gets it changed must not go on.
        assert spoiled.done == (False, number == 3), bit
        assert spoiled.errors
        for error in spoiled.errors.values():
            assert isinstance(error, AuthenticationError | RemoteProtocolError)


@pytest.mark.parametrize("number", range(4))
def test_truncated_at_every_offset(number: int) -> None:
    size = len(pair().messages[number])
    for kept in range(size):
        cut = pair(change=lambda index, data, kept=kept: data[:kept] if index == number else data)
        assert cut.done == (False, number == 3)
        assert cut.errors == {}
        for side in cut.sides.values():
            if not side.done:
                with pytest.raises(ConnectError, match=r"the connection ended in the handshake, before .* came: "):
                    side.eof()


@given(data=st.binary(min_size=1, max_size=200), role=st.sampled_from(Role), started_with_magic=st.booleans())
def test_noise(data: bytes, role: Role, started_with_magic: bool) -> None:
    side = make(role)
    side.start()
    rest = MAGIC + data if started_with_magic else data
    with pytest.raises((RemoteProtocolError, AuthenticationError, ConnectError)):  # noqa: PT012
        while rest and side.needed:
            size = min(side.needed, len(rest))
            side.receive(rest[:size])
            rest = rest[size:]
        side.eof()
    assert not side.done


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x80\x05K\x01.",
        b"\x00" * 8,
    ],
)
@pytest.mark.parametrize("role", Role)
def test_other_protocols_are_refused_at_their_first_byte(beginning: bytes, role: Role) -> None:
    side = make(role)
    side.start()
    with pytest.raises(RemoteProtocolError, match="does not speak this protocol"):
        side.receive(beginning[:1])
    whole = make(role)
    whole.start()
    with pytest.raises(RemoteProtocolError) as caught:
        whole.receive(beginning[:HELLO_BYTES])
    assert repr(beginning[:8]) in str(caught.value)
    assert whole.farewell == b""


def test_magic_is_refused_at_the_byte_that_differs() -> None:
    for offset in range(len(MAGIC)):
        side = make(Role.ACCEPTOR)
        side.start()
        for i in range(offset):
            side.receive(MAGIC[i : i + 1])
        with pytest.raises(RemoteProtocolError):
            side.receive(bytes([MAGIC[offset] ^ 1]))


@pytest.mark.parametrize("message", [b"\x00", b"\x01", b"\xff"])
def test_acceptance_is_one_certain_byte(message: bytes) -> None:
    spoiled = pair(change=lambda index, data: message if index == 3 else data)
    assert isinstance(spoiled.errors[Role.CONNECTOR], RemoteProtocolError)


def test_a_failed_handshake_stays_failed() -> None:
    side = make(Role.ACCEPTOR)
    side.start()
    with pytest.raises(RemoteProtocolError) as first:
        side.receive(b"G")
    with pytest.raises(RemoteProtocolError) as again:
        side.receive(make(Role.CONNECTOR).start())
    assert str(again.value) == str(first.value)
    assert side.needed == 0
    assert not side.done


# ---- versions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 1000])
@pytest.mark.parametrize(("ours", "theirs"), [((3, 11), (3, 12)), ((3, 13), (3, 11)), ((3, 11), (4, 11))])
def test_python_versions_differ(ours: tuple[int, int], theirs: tuple[int, int], chunk: int) -> None:
    mismatch = Pair(make(Role.CONNECTOR, version=ours), make(Role.ACCEPTOR, version=theirs), chunk=chunk)
    mismatch.run()
    assert mismatch.done == (False, False)
    assert set(mismatch.errors) == set(Role)
    for error in mismatch.errors.values():
        assert isinstance(error, VersionMismatchError)
        assert f"Python {ours[0]}.{ours[1]}" in str(error)
        assert f"Python {theirs[0]}.{theirs[1]}" in str(error)
    # The acceptor gives away its hello and no proof; the connector nothing after its hello.
    assert [len(message) for message in mismatch.messages] == [HELLO_BYTES, HELLO_BYTES]


def test_protocol_versions_differ() -> None:
    def newer(index: int, data: bytes) -> bytes:
        return data[:8] + b"\x03\x01" + data[10:] if index == 0 else data

    mismatch = pair(change=newer)
    error = mismatch.errors[Role.ACCEPTOR]
    assert isinstance(error, VersionMismatchError)
    assert f"this side runs protocol {PROTOCOL_VERSION} and" in str(error)
    assert f"the peer runs protocol {0x0103} and" in str(error)


def test_the_version_is_told_before_role_and_nonce_are_judged() -> None:
    """A later protocol may change what follows the first 12 bytes."""
    acceptor = make(Role.ACCEPTOR)
    acceptor.start()
    with pytest.raises(VersionMismatchError):
        acceptor.receive(MAGIC + b"\x09\x00" + bytes([3, 11]) + b"????" + B)


def test_versions_cannot_be_talked_down() -> None:
    """Someone in between who makes both sides believe they run the same version is noticed by the proofs."""

    def pretend(index: int, data: bytes) -> bytes:
        version = bytes([3, 12]) if index == 0 else bytes([3, 11])
        return data[:10] + version + data[12:] if index < 2 else data

    deceived = Pair(make(Role.CONNECTOR), make(Role.ACCEPTOR, version=(3, 12)), change=pretend)
    deceived.run()
    assert isinstance(deceived.errors[Role.CONNECTOR], AuthenticationError)


# ---- the module ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_every_step_says_what_an_early_end_means(role: Role) -> None:
    hints = {row.closed_early for (row_role, _), row in handshake_module._ROWS.items() if row_role is role}
    assert all(hints)
    side = make(role)
    side.start()
    with pytest.raises(ConnectError, match="before the peer's hello came"):
        side.eof()


def test_errors_survive_pickling() -> None:
    error = pair(COOKIE, "x").errors[Role.CONNECTOR]
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))


def test_no_pickle_in_the_module() -> None:
    assert handshake_module.__file__ is not None
    with open(handshake_module.__file__, encoding="utf-8") as file:
        source = file.read()
    for word in ("import pickle", "cloudpickle", "import marshal", "eval(", "import socket", "monotonic"):
        assert word not in source
