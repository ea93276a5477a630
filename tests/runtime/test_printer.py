"""Printing on a stdout that is slow, blocked, closed, or not made for it."""

from __future__ import annotations

import io
import sys
from threading import Event

import pytest

from hybriddist.runtime.printer import Printer, write
from tests.helpers.polling import poll_for


class BlockedStream(io.StringIO):
    """Blocks in `write` until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = Event()
        self.released = Event()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.released.wait(20)
        return super().write(text)


def test_text_is_printed_in_order_on_the_streams_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    printer = Printer()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for n in range(100):
        printer.put("stdout" if n % 3 else "stderr", f"{n}\n")
    assert printer.mark().wait(10)
    later = io.StringIO()
    monkeypatch.setattr(sys, "stdout", later)
    printer.put("stdout", "later\n")
    printer.close(10)
    assert out.getvalue() == "".join(f"{n}\n" for n in range(100) if n % 3)
    assert err.getvalue() == "".join(f"{n}\n" for n in range(0, 100, 3))
    assert later.getvalue() == "later\n"


def test_slow_reader_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out = BlockedStream()
    monkeypatch.setattr(sys, "stdout", out)
    printer = Printer(capacity=10, stall_seconds=20)
    printer.put("stdout", "x" * 10)
    assert out.reached.wait(10)
    out.released.set()  # while the next one waits for room, or before: it is printed in both cases
    printer.put("stdout", "y" * 10)
    printer.close(10)
    assert out.getvalue() == "x" * 10 + "y" * 10


def test_blocked_reader_drops_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = BlockedStream(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    printer = Printer(capacity=100, stall_seconds=0.01)
    printer.put("stdout", "a" * 60)
    assert out.reached.wait(10)
    for _ in range(7):
        printer.put("stdout", "b" * 60)  # the first has room; the others return although nobody reads
    assert not printer.mark().wait(0.01)
    out.released.set()
    assert poll_for(err.getvalue) == "(6 lines of workers' output were dropped: nobody read them)\n"
    printer.put("stdout", "c")
    printer.close(10)
    assert out.getvalue() == "a" * 60 + "b" * 60 + "c"


def test_close_gives_up_on_a_blocked_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    out = BlockedStream()
    monkeypatch.setattr(sys, "stdout", out)
    printer = Printer()
    printer.put("stdout", "a")
    assert out.reached.wait(10)
    printer.close(0.01)
    printer.put("stdout", "dropped")
    out.released.set()
    printer.close(10)
    assert out.getvalue() == "a"


def test_write_survives_any_stream() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("a widget that is gone")

    closed = io.StringIO()
    closed.close()
    assert not write(None, "x")
    assert not write(closed, "x")
    assert not write(Broken(), "x")
    raw = io.BytesIO()
    ascii_only = io.TextIOWrapper(raw, encoding="ascii")
    assert write(ascii_only, "é\n")
    assert raw.getvalue() == b"\\xe9\n"
