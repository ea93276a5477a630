"""The progress bar of maps: tqdm's own choice of a bar where it is installed, else a line; never on stdout."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

import hybriddist as hd


class Bar:
    """What `tqdm.auto` chooses for the place where it is, a notebook for instance."""

    made: list[Bar]

    def __init__(self, **keywords: Any) -> None:
        self.keywords = keywords
        self.count = 0
        self.closed = False
        self.made.append(self)

    def update(self, count: int) -> None:
        self.count += count

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    auto = ModuleType("tqdm.auto")
    auto.tqdm = Bar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm", ModuleType("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    monkeypatch.setattr(Bar, "made", [], raising=False)
    return Bar.made


def check(bar: Bar, count: int, total: int | None) -> None:
    assert (bar.count, bar.closed, bar.keywords) == (count, True, {"total": total, "file": sys.stderr})


def test_tqdm_chooses_the_bar(bars: list[Bar], capsys: pytest.CaptureFixture[str]) -> None:
    assert hd.pmap(abs, range(5), progress=True, distributed=False) == [0, 1, 2, 3, 4]
    assert list(hd.imap(abs, (x for x in range(3)), progress=True, distributed=False)) == [0, 1, 2]
    for bar, count, total in zip(bars, [5, 3], [5, None], strict=True):
        check(bar, count, total)
    assert capsys.readouterr() == ("", "")


def test_the_bar_is_closed_when_the_map_ends_early(bars: list[Bar]) -> None:
    with pytest.raises(hd.RemoteException):
        hd.pmap(abs, [1, "two"], progress=True, distributed=False)
    results = hd.imap(abs, range(9), progress=True, distributed=False)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    for bar, count, total in zip(bars, [1, 1], [2, 9], strict=True):
        check(bar, count, total)


def test_without_tqdm_it_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    hd.pmap(abs, range(5), progress=True, distributed=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\r5/5\n")


def test_without_stderr_there_is_none(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """`print` to no file would be a `print` to stdout."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert hd.pmap(abs, range(5), progress=True, distributed=False) == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")
