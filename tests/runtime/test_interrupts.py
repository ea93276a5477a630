"""Ctrl-C at any moment: never in the middle of a shielded function, never lost, never for the wrong call."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybriddist.runtime import interrupts
from hybriddist.runtime.interrupts import KNOCK, InterruptGuard
from tests.helpers.polling import poll_for

log: list[str] = []


def strike() -> None:
    signal.raise_signal(signal.SIGINT)


def shielded(guard: InterruptGuard, early: bool, late: bool) -> None:
    """As the functions that move frames: it looks for an interrupt as its last act, or nearly so."""
    if early:
        strike()
    log.append("moved")
    if guard.pending:
        guard.deliver()
    if late:
        strike()


def nested(guard: InterruptGuard) -> None:
    shielded(guard, early=True, late=False)
    log.append("still here")
    if guard.pending:
        guard.deliver()


def exposed(function: Callable[[], None]) -> None:
    function()


@pytest.fixture(params=["driver", "worker"])
def guard(request: pytest.FixtureRequest) -> Iterator[InterruptGuard]:
    log.clear()
    guard = InterruptGuard([shielded, nested], [exposed], ignore_unless_exposed=request.param == "worker")
    # In the background of a shell it is ignored.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert guard.install()
    yield guard
    poll_for(lambda: not guard.pending)
    guard.uninstall()
    assert signal.signal(signal.SIGINT, outside) is signal.default_int_handler


def test_user_code_is_struck_at_once(guard: InterruptGuard) -> None:
    with pytest.raises(KeyboardInterrupt):
        exposed(strike)


def test_a_shielded_function_ends_first(guard: InterruptGuard) -> None:
    with pytest.raises(KeyboardInterrupt):
        exposed(lambda: shielded(guard, early=True, late=False))
    assert log == ["moved"]


def test_the_outermost_of_several_ends_first(guard: InterruptGuard) -> None:
    with pytest.raises(KeyboardInterrupt):
        exposed(lambda: nested(guard))
    assert log == ["moved", "still here"]


def test_user_code_below_a_shielded_function_is_struck(guard: InterruptGuard) -> None:
    def outer() -> None:
        exposed(strike)

    inside = InterruptGuard([outer], [exposed])
    assert inside.install()
    try:
        with pytest.raises(KeyboardInterrupt):
            exposed(outer)
    finally:
        inside.uninstall()


def test_one_that_comes_after_the_last_look_is_not_lost(guard: InterruptGuard) -> None:
    """The function leaves without delivering it, and the program waits for something else."""

    def wait() -> None:
        shielded(guard, early=False, late=True)
        log.append("left")
        time.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        exposed(wait)
    assert log == ["moved", "left"]


def test_what_was_meant_for_one_call_does_not_strike_the_next() -> None:
    """A worker's call ends before its interrupt is delivered; another begins at once."""
    log.clear()
    guard = InterruptGuard([shielded], [exposed], ignore_unless_exposed=True)
    assert guard.install()
    try:
        exposed(lambda: shielded(guard, early=False, late=True))
        assert guard.pending
        exposed(lambda: shielded(guard, early=False, late=False))
        exposed(lambda: poll_for(lambda: not guard.pending))
        assert log == ["moved", "moved"]
    finally:
        guard.uninstall()


def test_what_is_pending_in_vain_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that was meant has ended, nobody has knocked since, and the next call is struck as well."""
    monkeypatch.setattr(interrupts, "_KNOCK_SECONDS", 0.1)
    log.clear()
    guard = InterruptGuard([shielded], [exposed], ignore_unless_exposed=True)
    assert guard.install()
    try:
        exposed(lambda: shielded(guard, early=False, late=True))
        with pytest.raises(KeyboardInterrupt):
            exposed(lambda: shielded(guard, early=True, late=False))
        assert log == ["moved", "moved"]
        assert not guard.pending
    finally:
        guard.uninstall()


def test_a_knock_that_comes_late_strikes_nothing(guard: InterruptGuard) -> None:
    """The interrupt was delivered before the last of the helper's signals was handled."""
    with pytest.raises(KeyboardInterrupt):
        exposed(lambda: shielded(guard, early=True, late=False))
    exposed(lambda: signal.raise_signal(KNOCK))


def test_a_strike_at_a_call_that_has_ended_strikes_no_other(guard: InterruptGuard) -> None:
    for _ in range(2):
        guard.strike(lambda: False)
        exposed(lambda: poll_for(lambda: not guard._victims))
    guard.strike(lambda: True)  # between calls: nobody is meant any more
    poll_for(lambda: not guard._victims)
    with pytest.raises(KeyboardInterrupt):
        exposed(lambda: (guard.strike(lambda: True), time.sleep(20))[0])


def test_a_program_that_uses_the_knock_itself_is_told_of_it() -> None:
    told: list[int] = []
    before = signal.signal(KNOCK, lambda number, frame: told.append(number))
    try:
        guard = InterruptGuard([], [exposed])
        assert guard.install()
        signal.raise_signal(KNOCK)
        guard.uninstall()
        signal.raise_signal(KNOCK)
        assert told == [KNOCK, KNOCK]
    finally:
        signal.signal(KNOCK, before)


def test_a_worker_without_a_call_is_not_struck() -> None:
    told: list[int] = []
    guard = InterruptGuard([], [exposed], ignore_unless_exposed=True, also=lambda: told.append(1))
    assert guard.install()
    try:
        strike()
        strike()
    finally:
        guard.uninstall()
    assert told == [1, 1]


def test_a_program_that_ignores_ctrl_c_keeps_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert not InterruptGuard([], []).install()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def worker() -> Iterator[InterruptGuard]:
    guard = InterruptGuard([shielded], [exposed], ignore_unless_exposed=True)
    assert guard.install()
    yield guard
    poll_for(lambda: not guard.pending)
    guard.uninstall()


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(f"import signal, time\nsignal.raise_signal(signal.SIGINT)\n{body}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_on_a_worker_an_import_ends_first(
    worker: InterruptGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, monkeypatch, "hd_struck", "time.sleep(0.02)\nDONE = True")

    def import_and_wait() -> None:
        importlib.import_module("hd_struck")
        log.append("imported")
        time.sleep(20)

    log.clear()
    with pytest.raises(KeyboardInterrupt):
        exposed(import_and_wait)
    assert sys.modules["hd_struck"].DONE
    assert not worker.pending


def test_an_import_without_end_is_struck(
    worker: InterruptGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "_MOST_IMPORT_SECONDS", 0.05)
    module(tmp_path, monkeypatch, "hd_endless", "time.sleep(20)")
    with pytest.raises(KeyboardInterrupt):
        exposed(lambda: importlib.import_module("hd_endless") and None)
    assert "hd_endless" not in sys.modules


def test_an_import_is_no_shield(worker: InterruptGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside it a process can wait for an answer: that is how a worker borrows a module."""

    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            log.append(f"{name} {worker.is_shielded()}")

    log.clear()
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    with pytest.raises(ModuleNotFoundError):
        exposed(lambda: importlib.import_module("hd_nowhere") and None)
    assert log == ["hd_nowhere False"]
