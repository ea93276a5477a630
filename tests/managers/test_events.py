"""The functions that hear of workers: who may be one, the order, and what becomes of errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from hybriddist.errors import CompositeException
from hybriddist.managers.events import Events
from tests.helpers.printed import Printed


def spawn(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def test_keys_are_new_or_given() -> None:
    events = Events()
    keys = [events.add("started", print), events.add("started", print), events.add("exited", print, "mine")]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"
    with pytest.raises(ValueError, match="key 'mine' is taken, by a function for 'exited'"):
        events.add("started", print, "mine")
    for key in keys:
        events.remove(key)
    with pytest.raises(ValueError, match="no function has the key 'mine'"):
        events.remove("mine")
    assert len(events) == 0


def test_a_wrong_event_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="event must be one of 'starting', 'started', 'exiting', 'exited', not 'left'"):
        Events().add("left", print)


@pytest.mark.parametrize(
    ("event", "function"),
    [
        ("starting", lambda manager: None),
        ("started", lambda: None),
        ("exiting", lambda pid, reason: None),
        ("exited", lambda pid: None),
        ("exited", lambda pid, *, reason: None),
        ("exited", "no function"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused(event: str, function: Any) -> None:
    events = Events()
    with pytest.raises(TypeError, match=rf"on_worker\('{event}', ...\)"):
        events.add(event, function)
    assert len(events) == 0


def test_functions_hear_in_the_order_in_which_they_were_added() -> None:
    events = Events()
    heard: list[Any] = []
    events.add("started", lambda pid: heard.append(("first", pid)))
    events.add("started", lambda pid, more=0: heard.append(("second", pid)))
    events.started([2, 3])
    assert heard == [("first", 2), ("second", 2), ("first", 3), ("second", 3)]


def test_a_failing_start_stops_at_once() -> None:
    events = Events()
    heard: list[Any] = []

    def fail(manager: Any, params: Any) -> None:
        raise OSError("no licence")

    events.add("starting", fail)
    events.add("starting", lambda manager, params: heard.append(params))
    with pytest.raises(OSError, match="no licence"):
        events.starting(None, {})
    assert heard == []


def test_failures_after_a_start_are_raised_when_all_were_called() -> None:
    events = Events()

    def fail(pid: int) -> None:
        raise OSError(f"not {pid}")

    heard: list[int] = []
    events.add("started", fail)
    events.add("started", heard.append)
    with pytest.raises(OSError, match="not 2") as single:
        events.started([2])
    assert "worker 2, which stays" in single.value.__notes__[0]
    with pytest.raises(CompositeException) as several:
        events.started([3, 4])
    assert [str(error) for error in several.value] == ["not 3", "not 4"]
    assert several.value.pids == [3, 4]
    assert heard == [2, 3, 4]


def test_failures_of_the_others_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    events = Events()
    heard: list[Any] = []

    def fail(pid: int, reason: str) -> None:
        raise SystemExit("out of here")

    events.add("exited", fail)
    events.add("exited", lambda pid, reason: heard.append((pid, reason)))
    events.exited(2, "killed", spawn, 10)
    assert heard == [(2, "killed")]
    shown = capsys.readouterr().err
    assert "the on_worker('exited') function" in shown
    assert "fail failed for worker 2" in shown
    assert "SystemExit: out of here" in shown


def test_nobody_waits_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    events = Events()
    events.waiting_seconds = events.slow_seconds = 0.05
    go_on = threading.Event()
    events.add("exiting", lambda pid: go_on.wait(20))
    events.exiting(7, spawn, 10)
    shown = capsys.readouterr().err
    assert "functions for worker 7 take too long" in shown
    go_on.set()


def test_the_slow_are_named() -> None:
    events = Events()
    events.slow_seconds = 0.02
    with Printed() as printed:
        events.add("started", lambda pid: printed.wait_for("<lambda> has been running for 0.02 s", "err"))
        events.started([2])
    assert printed.err.startswith("hybriddist: the on_worker('started') function")
