"""Which values are news: labels, their order, and who passes a value on."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import sys
import types
import weakref
from typing import Any

import pytest

from hybriddist.core import books, byvalue, mainspace
from hybriddist.core.books import Book
from hybriddist.core.marks import ValueMark


class Process:
    """One namespace of a process, and its book."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.book = Book()
        self.has: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    def tick(self) -> int:
        return next(self._numbers)

    def send(self, *names: str) -> list[tuple[str, Any, books.Label]]:
        values = {name: self.has[name] for name in names or self.has}
        labels = self.book.outgoing(values, ValueMark, self)
        return [(name, copy.deepcopy(value), labels[name]) for name, value in values.items()]

    def receive(self, sent: list[tuple[str, Any, books.Label]]) -> list[str]:
        """The names that were news."""
        news = [(name, value, label) for name, value, label in sent if self.book.is_news(name, label)]
        for name, value, label in news:
            self.has[name] = value
            self.book.accept(name, value, label, None, self)
        return [name for name, _, _ in news]


@pytest.fixture(autouse=True)
def main(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


def test_what_has_not_changed_is_no_news() -> None:
    driver, worker = Process("d"), Process("w")
    driver.has = {"items": [], "n": 1}
    assert worker.receive(driver.send()) == ["items", "n"]
    worker.has["items"].append(1)
    assert worker.receive(driver.send()) == []
    driver.has["n"] = 2
    assert worker.receive(driver.send()) == ["n"]
    driver.has["items"].append(5)
    assert worker.receive(driver.send()) == ["items"]
    assert worker.has == {"items": [5], "n": 2}


def test_what_overtook_an_older_value_stays() -> None:
    driver, worker = Process("d"), Process("w")
    driver.has = {"n": 1}
    older = driver.send()
    driver.has = {"n": 2}
    assert worker.receive(driver.send()) == ["n"]
    assert worker.receive(older) == []
    driver.has = {"n": 1}
    assert worker.receive(driver.send()) == ["n"]


def test_another_process_knows_what_was_sent_to_it_alone() -> None:
    driver, first, second = Process("d"), Process("1"), Process("2")
    driver.has = {"n": 1}
    first.receive(driver.send())
    driver.has = {"n": 2}
    first.receive(driver.send())
    assert second.receive(driver.send()) == ["n"]
    assert second.has == {"n": 2}


def test_what_cannot_be_compared_is_always_news() -> None:
    driver, worker = Process("d"), Process("w")
    driver.has = {"x": types.SimpleNamespace()}
    assert [worker.receive(driver.send()) for _ in range(3)] == [["x"]] * 3


def test_a_number_that_is_passed_on_keeps_its_label_until_it_changes() -> None:
    driver, first, second = Process("d"), Process("1"), Process("2")
    driver.has = {"n": 1}
    first.receive(driver.send())
    second.receive(driver.send())
    second.has["n"] = 5
    assert second.receive(first.send()) == []
    first.has["n"] = 3
    assert second.receive(first.send()) == ["n"]
    # Back to the driver's value, but it is the first one's own by now.
    first.has["n"] = 1
    assert second.receive(first.send()) == ["n"]
    assert second.has == {"n": 1}
    # The driver's next is the driver's again.
    driver.has["n"] = 7
    first.receive(driver.send())
    second.receive(driver.send())
    second.has["n"] = 8
    assert second.receive(first.send()) == []


def test_a_value_that_came_in_between_is_sent_as_it_is() -> None:
    driver, first, second = Process("d"), Process("1"), Process("2")
    first.has = {"n": 1}
    second.receive(first.send())
    driver.has = {"n": 2}
    second.receive(driver.send())
    driver.has = {"n": 1}
    first.receive(driver.send())
    assert second.receive(first.send()) == ["n"]
    assert second.has == {"n": 1}


def test_what_was_forgotten_is_news() -> None:
    driver, worker = Process("d"), Process("w")
    driver.has = {"x": [1], "y": [2]}
    worker.receive(driver.send())
    worker.book.forget(["x", "unknown"])
    assert worker.receive(driver.send()) == ["x"]


def test_a_forked_child_counts_anew() -> None:
    """A class has its book from its parent."""
    parent, worker = Process("p"), Process("w")
    parent.has = {"n": 1}
    for _ in range(5):
        parent.has["n"] += 1
        worker.receive(parent.send())
    child = Process("c")
    child.book, child.has = parent.book, {"n": 1}
    assert worker.receive(child.send()) == ["n"]
    child.has["n"] = 2
    assert worker.receive(child.send()) == ["n"]


def sent_class() -> type[Any]:
    """A class that refers to itself in every way, after it was pickled."""

    class Local:
        itself: Any = None

        def method(self) -> Any:
            return Local

    Local.itself = [Local]
    byvalue.dumps(Local)
    return Local


def test_a_book_does_not_keep_its_class_alive() -> None:
    alive = weakref.ref(sent_class())
    gc.collect()
    assert alive() is None


def test_books_do_not_travel() -> None:
    cls = sent_class()
    assert books.number_of_class(cls) > 0
    assert pickle.loads(pickle.dumps(books.of_class(cls))).latest == 0
    assert pickle.loads(pickle.dumps(mainspace.ledger())).changes == 0


# ---- what several processes define alike ---------------------------------------------------------------------------


def define(ledger: mainspace.Ledger, announcement: mainspace.Announcement, code: str, main: types.ModuleType) -> None:
    with ledger.defining(announcement, ValueMark):
        exec(code, main.__dict__)


def test_what_is_announced_is_no_news(main: types.ModuleType) -> None:
    ledger, worker = mainspace.ledger(), Book()
    announcement = ledger.announce(["x"])
    assert worker.is_news("x", (ledger.token, announcement.numbers["x"]))
    define(ledger, announcement, "x = []", main)
    labels, _ = ledger.outgoing({"x": main.x}, ValueMark)
    assert labels["x"] == (ledger.token, announcement.numbers["x"])
    main.x.append(1)
    labels, _ = ledger.outgoing({"x": main.x}, ValueMark)
    assert labels["x"][1] > announcement.numbers["x"]


def test_what_is_read_stays_the_same_only_if_it_was(main: types.ModuleType) -> None:
    ledger = mainspace.ledger()
    main.__dict__.update(same=[1], changed=[1])
    before, _ = ledger.outgoing({"same": main.same, "changed": main.changed}, ValueMark)
    main.changed.append(2)
    define(ledger, ledger.announce([], ["same", "changed", "unknown"]), "same.append(3); changed.append(3)", main)
    after, _ = ledger.outgoing({"same": main.same, "changed": main.changed}, ValueMark)
    assert after["same"] == before["same"]
    assert after["changed"] != before["changed"]


def test_code_that_fails_has_defined_nothing(main: types.ModuleType) -> None:
    ledger = mainspace.ledger()
    announcement = ledger.announce(["x"])
    with pytest.raises(ZeroDivisionError):
        define(ledger, announcement, "x = 1; 1 / 0", main)
    labels, _ = ledger.outgoing({"x": 1}, ValueMark)
    assert labels["x"][1] > announcement.numbers["x"]


def test_names_that_others_announce_are_theirs_unless_they_were_here(main: types.ModuleType) -> None:
    ledger = mainspace.ledger()
    main.__dict__["ours"] = 1
    define(ledger, mainspace.Announcement("other", {"ours": 1, "theirs": 2, "gone": 3}, ()), "ours = theirs = 2", main)
    values = {"ours": 2, "theirs": 2}
    labels, foreign = ledger.outgoing(values, ValueMark)
    assert foreign == {"theirs": "other"}
    assert labels == {"ours": ("other", 1), "theirs": ("other", 2)}
    main.__dict__["theirs"] = 5
    ledger.incoming(values, "other", {"ours": ("other", 1), "theirs": ("other", 2)}, {})
    assert main.theirs == 5
    ledger.incoming({"gone": 1}, "other", {"gone": ("other", 3)}, {})
    assert main.gone == 1
