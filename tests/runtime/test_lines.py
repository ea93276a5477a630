"""Bytes into lines, lines into what the driver prints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybriddist.runtime.lines import LineSplitter, decode, label


@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"").rstrip(b"\r"))), st.data())
def test_lines_survive_any_cutting(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    splitter = LineSplitter()
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert found + splitter.finish() == lines


@given(st.binary(max_size=100), st.integers(1, 9), st.integers(1, 30))
def test_long_lines_come_in_pieces_and_lose_nothing(stream: bytes, limit: int, chunk: int) -> None:
    stream = stream.replace(b"\r", b"_")
    splitter = LineSplitter(limit)
    pieces = []
    for start in range(0, len(stream), chunk):
        pieces += splitter.feed(stream[start : start + chunk])
    pieces += splitter.finish()
    assert all(len(piece) <= limit for piece in pieces)
    assert b"".join(pieces) == stream.replace(b"\n", b"")


def test_last_line_without_an_end_and_carriage_returns() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\r\ntwo\n\nthr") == [b"one", b"two", b""]
    assert splitter.finish() == [b"thr"]
    assert splitter.finish() == []


@pytest.mark.parametrize(
    ("line", "pid", "printed"),
    [
        ("hello", 2, "      From worker 2:\thello\n"),
        ("", 13, "      From worker 13:\t\n"),
        ("banner", None, "\tFrom worker startup:\tbanner\n"),
        ("      From worker 5:\trelayed", 2, "      From worker 5:\trelayed\n"),
        ("From worker 5:\tforged", 2, "      From worker 2:\tFrom worker 5:\tforged\n"),
    ],
)
def test_label(line: str, pid: int | None, printed: str) -> None:
    assert label(line, pid) == printed


def test_undecodable_bytes_are_replaced() -> None:
    assert decode(b"caf\xe9 \xc3\xa9") == "caf\ufffd é"
