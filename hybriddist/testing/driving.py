"""Driving a pair of transports inside one process, in one thread or in several: what conformance checks are made of.

What this module does not know: which kind of transport it drives. Nothing here waits for longer than
`PATIENCE_SECONDS`; then an `AssertionError` says what was waited for.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from time import sleep
from typing import Final

from hybriddist import limits
from hybriddist.deadline import Deadline
from hybriddist.errors import TransportBroken, TransportClosed
from hybriddist.transport import Buffer, Frame, Transport

PairMaker = Callable[[], AbstractContextManager[tuple[Transport, Transport]]]
"""Gives a context manager of two connected transports, which ends what was not ended inside."""

PATIENCE_SECONDS: Final = 30.0
"""How long a check waits for what must happen at once: it only has to outlast a busy machine."""

LARGE_BYTES: Final = 3 * limits.MIB + 17
"""Larger than any ring and any socket's buffer at rest, and no multiple of anything."""


def receive_some(transport: Transport) -> list[Frame]:
    """Wait, as the contract tells to, until at least one frame is here. Raises what `Transport.receive` raises."""
    deadline = Deadline(PATIENCE_SECONDS)
    while not (frames := transport.receive()):
        wait(transport, deadline, "a frame")
    return frames


def wait(transport: Transport, deadline: Deadline, for_what: str) -> None:
    """One turn of waiting on the descriptor: for frames, for room, for the end."""
    if not transport.arm():
        descriptor = transport.fileno()
        if descriptor >= 0:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN | (select.POLLOUT if transport.wants_write() else 0))
            left = deadline.remaining()
            assert poller.poll(None if left is None else left * 1000), f"waited in vain for {for_what}"
            transport.acknowledge()
    transport.disarm()
    assert not deadline.expired(), f"waited in vain for {for_what}"


def transfer(sender: Transport, receiver: Transport, count: int) -> list[Frame]:
    """Move what ``sender`` took already, in one thread, until ``count`` frames have arrived."""
    deadline = Deadline(PATIENCE_SECONDS)
    frames: list[Frame] = []
    is_written = False
    while len(frames) < count or not is_written:
        is_written = is_written or sender.flush()
        frames += receiver.receive() if len(frames) < count else []
        assert not deadline.expired(), f"{len(frames)} of {count} frames arrived; all written: {is_written}"
    return frames


def send_all(transport: Transport, head: bytes, buffers: Sequence[Buffer] = ()) -> None:
    """Send, and write until nothing is left, while another thread receives at the other end."""
    deadline = Deadline(PATIENCE_SECONDS)
    is_written = transport.send(head, buffers)
    while not is_written:
        sleep(0.0002)  # This thread is only the sending side; the doorbell belongs to the receiving side.
        is_written = transport.flush()
        assert not deadline.expired(), "there was never room to finish a frame"


def clog(transport: Transport) -> list[bytes]:
    """Send until nothing more fits. Returns the heads that were taken."""
    heads = []
    for number in range(256):
        heads.append(number.to_bytes(4, "little") * (limits.MIB // 4))
        if not transport.send(heads[-1]):
            return heads
    raise AssertionError("256 MiB were written without anybody reading")


def expect_end(transport: Transport, *kinds: type[Exception]) -> None:
    """Receive until the end, which must be one of ``kinds``, then see that it stays so for both sides."""

    def receive_on() -> None:
        while True:
            receive_some(transport)

    for operation in (receive_on, transport.receive, lambda: transport.send(b"too late")):
        end = end_of(operation)
        assert isinstance(end, kinds), f"expected {kinds}, not {end!r}"


def end_of(operation: Callable[[], object]) -> TransportClosed | TransportBroken:
    """The exception with which ``operation`` must tell that the connection is over."""
    try:
        operation()
    except (TransportClosed, TransportBroken) as error:
        return error
    raise AssertionError("an operation succeeded after the end")


@contextmanager
def beside(*functions: Callable[[], object]) -> Iterator[None]:
    """Run functions in threads beside the block; at its end wait for them and raise what they raised."""
    failures: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # Raised again below, in the thread of the check.
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(2 * PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs in the transport"
    if failures:
        raise failures[0]


def data(frame: Frame) -> tuple[bytes, list[bytes]]:
    """A frame's bytes, to compare."""
    return bytes(frame.head), [bytes(buffer) for buffer in frame.buffers]


def is_readable(transport: Transport, seconds: float = 0.0) -> bool:
    """Whether the descriptor is readable, now or within ``seconds``."""
    poller = select.poll()
    poller.register(transport.fileno(), select.POLLIN)
    return bool(poller.poll(seconds * 1000))
