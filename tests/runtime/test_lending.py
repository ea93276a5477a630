"""The finder of a worker: when it asks the driver, and what it makes of the answer."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from hybriddist.core.sources import ModuleSource
from hybriddist.errors import ProcessExitedException
from hybriddist.runtime.interrupts import InterruptGuard
from hybriddist.runtime.lending import Borrower


class Worker:
    """As much of a process as a borrower needs."""

    def __init__(self, answer: Any = None) -> None:
        self.asked: list[str] = []
        self.answer = answer
        self.peers = {1: None}
        self.guard = InterruptGuard([self.receive], [self.user_code])
        self.leaving = types.SimpleNamespace(is_set=lambda: self.is_leaving)
        self.is_leaving = False

    def fetch_call(self, _: Any, pid: int, args: tuple[str], __: Any) -> Any:
        assert pid == 1
        self.asked.append(args[0])
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def receive(self, inner: Any) -> Any:
        return inner()

    def user_code(self, inner: Any) -> Any:
        return inner()


def find(worker: Any, name: str) -> Any:
    return Borrower(worker).find_spec(name)


def test_the_answer_becomes_a_module() -> None:
    worker = Worker(ModuleSource("lent", "x = 1\n", "/project/lent.py", False))
    spec = find(worker, "lent")
    assert (spec.name, spec.origin, worker.asked) == ("lent", "/project/lent.py", ["lent"])
    assert find(Worker(None), "lent") is None
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'lent' here.*cannot lend it: because") as info:
        find(Worker("because"), "lent")
    assert info.value.name == "lent"


def test_a_driver_that_is_gone_lends_nothing() -> None:
    assert find(Worker(ProcessExitedException(1)), "lent") is None


@pytest.mark.parametrize("name", ["winreg", "_winapi", "json.nothing", "pytest.nothing", "hybriddist.nothing"])
def test_what_is_never_lent_is_not_asked_for(name: str) -> None:
    worker = Worker()
    assert find(worker, name) is None
    assert worker.asked == []


def test_parts_of_lent_packages_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("lent")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "lent", package)
    worker = Worker()
    find(worker, "lent.part")
    assert worker.asked == ["lent.part"]


def test_a_thread_that_receives_does_not_ask() -> None:
    """It would wait for an answer that it would have to receive itself."""
    worker = Worker()
    worker.receive(lambda: find(worker, "lent"))
    worker.user_code(lambda: worker.receive(lambda: find(worker, "lent")))
    assert worker.asked == []
    worker.receive(lambda: worker.user_code(lambda: find(worker, "lent")))
    assert worker.asked == ["lent"]


def test_nobody_asks_before_the_driver_has_come_or_while_leaving() -> None:
    worker = Worker()
    worker.is_leaving = True
    find(worker, "lent")
    worker.is_leaving, worker.peers = False, {}
    find(worker, "lent")
    assert worker.asked == []
