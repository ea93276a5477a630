"""The content of globals of `__main__`: what has changed is told from what has not."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from hybriddist.core import payload
from hybriddist.core.definitions import Definitions
from hybriddist.core.marks import ValueMark
from hybriddist.core.snapshots import Snapshot

SETUP = """
import dataclasses, functools, types
import numpy
class Plain:
    shared = 1
    def __init__(self, x): self.x = x
    def get(self): return self.x
    @property
    def double(self): return 2 * self.x
    @staticmethod
    def three(): return 3
class Slotted:
    __slots__ = ("x", "y")
    def __init__(self, x): self.x = x
class Child(Plain):
    def get(self): return super().get()
@dataclasses.dataclass
class Data:
    x: int
class Hashed:
    def __init__(self, x, rest): self.x, self.rest = x, rest
    def __hash__(self): return hash(self.x)
    def __eq__(self, other): return self.x == other.x
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `__main__` with a function ``f`` that reads the global ``v``."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(SETUP + "def f(): return v\n", main.__dict__)
    return main


CHANGES = [
    ("[1, 2]", "v.append(3)"),
    ("[1, 2]", "v[0] = 5"),
    ("[1, 2]", "v[0] = True"),
    ("[1, [2, [3]]]", "v[1][1][0] = 4"),
    ("{'a': 1}", "v['a'] = 2"),
    ("{'a': 1}", "v['b'] = 2"),
    ("{'a': {'b': [1]}}", "v['a']['b'].append(2)"),
    ("{1, 2}", "v.add(3)"),
    ("([1],)", "v[0].append(2)"),
    ("bytearray(b'ab')", "v[0] = 0"),
    ("numpy.arange(5)", "v[0] = 9"),
    ("numpy.arange(6)", "v.resize(3, refcheck=False)"),
    ("[numpy.arange(5)]", "v[0][4] = 9"),
    ("Plain(1)", "v.x = 2"),
    ("Plain(1)", "v.y = 2"),
    ("Plain([1])", "v.x.append(2)"),
    ("Plain(Plain(1))", "v.x.x = 2"),
    ("Plain(1)", "Plain.shared = 2"),
    ("Plain(1)", "Plain.get = lambda self: 0"),
    ("Plain", "Plain.shared = 2"),
    ("Child(1)", "v.x = 2"),
    ("Child(1)", "Plain.shared = 2"),
    ("Slotted(1)", "v.x = 2"),
    ("Slotted(1)", "v.y = 2"),
    ("Data(1)", "v.x = 2"),
    ("Hashed(1, 2)", "v.x = 2"),
    ("[1]", "v = [1]"),
    ("Plain(1)", "v = Plain(1)"),
    ("Hashed(1, 2)", "v = Hashed(1, 2)"),  # the same hash, another object
]


@pytest.mark.parametrize(("value", "change"), CHANGES)
def test_a_change_is_seen(script: Any, value: str, change: str) -> None:
    exec(f"v = {value}", script.__dict__)
    snapshot, mark = Snapshot.take(script.f), ValueMark(script.v)
    assert snapshot is not None
    assert snapshot.is_current(script.f)
    assert mark.matches(script.v)
    exec(change, script.__dict__)
    assert not snapshot.is_current(script.f)
    # Classes have marks of their own for their attributes.
    assert mark.matches(script.v) == change.startswith("Plain.")


@pytest.mark.parametrize("value", sorted({value for value, _ in CHANGES}))
def test_it_is_defined_once(script: Any, value: str) -> None:
    exec(f"v = {value}", script.__dict__)
    definitions = Definitions()
    first = definitions.define(script.f)
    assert first is not None
    assert first.snapshot is not None
    assert definitions.define(script.f) is first


def test_what_a_class_calls_the_same_is_the_same(script: Any) -> None:
    exec("v = Hashed(1, 2)", script.__dict__)
    snapshot = Snapshot.take(script.f)
    assert snapshot is not None
    script.v.rest = 3
    assert snapshot.is_current(script.f)


@pytest.mark.parametrize(
    "value",
    [
        "list(range(20_000))",
        "numpy.zeros(1 << 18)",
        "numpy.array([object()])",
        "types.SimpleNamespace(x=1)",
        "iter([1])",
        "[iter([1])]",
        "Hashed([], 1)",
        "functools.reduce(lambda inner, _: [inner], range(5000))",
    ],
)
def test_what_is_too_much_or_unknown_has_no_snapshot(script: Any, value: str) -> None:
    exec(f"v = {value}", script.__dict__)
    assert Snapshot.take(script.f) is None
    assert not ValueMark(script.v).matches(script.v)


def test_values_that_refer_to_themselves(script: Any) -> None:
    exec("v = [1]\nv.append(v)", script.__dict__)
    snapshot = Snapshot.take(script.f)
    assert snapshot is not None
    assert snapshot.is_current(script.f)


def test_a_hash_that_raises_is_a_change(script: Any) -> None:
    exec("v = Hashed(1, 2)", script.__dict__)
    snapshot = Snapshot.take(script.f)
    assert snapshot is not None
    script.v.x = []
    assert not snapshot.is_current(script.f)


# ---- how often it is sent -------------------------------------------------------------------------------------------

COUNTED = """
pickled = []
class Counted:
    def __init__(self, x): self.x = x
    def __getstate__(self):
        pickled.append(self.x)
        return self.__dict__
v = w = Counted(1)
"""


class Sender:
    def __init__(self) -> None:
        self._definitions = Definitions()

    def call(self, function: Any) -> None:
        definition = self._definitions.define(function)
        if definition is None or definition.snapshot is None:
            payload.dumps(function)


@pytest.fixture
def counted(script: Any) -> Any:
    exec(COUNTED, script.__dict__)
    return script


def lambda_of(script: Any, code: str) -> Any:
    """A new function of the same code each time, as in a loop."""
    exec(f"def make(): return lambda: {code}" if not hasattr(script, "make") else "pass", script.__dict__)
    return script.make()


def test_an_unchanged_global_is_pickled_once(counted: Any) -> None:
    sender = Sender()
    for _ in range(5):
        sender.call(lambda_of(counted, "v.x"))
    assert counted.pickled == [1]
    counted.pickled.clear()
    for _ in range(5):
        sender.call(counted.f)
    assert counted.pickled == [1]


def test_a_changed_global_is_pickled_each_time(counted: Any) -> None:
    sender = Sender()
    for number in range(5):
        counted.v.x = number
        sender.call(lambda_of(counted, "v.x"))
    assert counted.pickled == [0, 1, 2, 3, 4]


def test_back_to_what_it_was_is_a_change(counted: Any) -> None:
    sender = Sender()
    for number in (1, 1, 2, 2, 1, 1):
        counted.v.x = number
        sender.call(counted.f)
    assert counted.pickled == [1, 2, 1]


def test_several_mentions_and_names_are_one(counted: Any) -> None:
    sender = Sender()
    for _ in range(3):
        sender.call(lambda_of(counted, "(v.x, w.x, v, lambda: v)"))
    assert counted.pickled == [1]


def test_an_unrelated_change_sends_nothing_again(counted: Any) -> None:
    sender = Sender()
    exec("n = 0\ndef g(): return n", counted.__dict__)
    for number in range(5):
        counted.n = number
        sender.call(counted.g)
        sender.call(counted.f)
    assert counted.pickled == [1]


@pytest.mark.parametrize(
    ("value", "there", "back"),
    [
        ("[1]", "v[0] = 2", "v[0] = 1"),
        ("Plain(1)", "v.x = 2", "v.x = 1"),
        ("Plain", "Plain.shared = 2", "Plain.shared = 1"),
    ],
)
def test_content_that_another_function_sent_meanwhile(script: Any, value: str, there: str, back: str) -> None:
    """f sent [1], g sent [2], now it is [1] again: the other end has [2]."""
    exec(f"v = {value}\ndef g(): return v", script.__dict__)
    definitions = Definitions()
    first = definitions.define(script.f)
    assert definitions.define(script.f) is first
    exec(there, script.__dict__)
    definitions.define(script.g)
    exec(back, script.__dict__)
    assert definitions.define(script.f) is not first
