"""The function cache: a key stands for a function only while sending it again would give the same."""

from __future__ import annotations

import functools
import gc
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hybriddist.core import payload
from hybriddist.core.functions import FunctionReceiver, FunctionSender
from hybriddist.errors import DeserializeError, LocalProtocolError, RemoteProtocolError, SerializeError


class Link:
    """A sender, a receiver, and what goes between them."""

    def __init__(self, **options: Any) -> None:
        self.sender = FunctionSender(**options)
        self.receiver = FunctionReceiver()
        self.how = ""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it at the other end; ``how`` tells how the function went."""
        key, definition = self.sender.key_for(function)
        self.how = "inline" if key == 0 else "key" if definition is None else "define"
        if definition is not None:
            self.receiver.define(key, *definition)
        for forgotten in self.sender.take_forgotten():
            self.receiver.forget(forgotten)
        remote = self.receiver.find(key).load() if key else payload.loads(*payload.dumps(function))
        return remote(*args)

    def ways(self, function: Callable[..., Any], times: int = 3) -> list[str]:
        return [(self.call(function), self.how)[1] for _ in range(times)]


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A `__main__` to define things in; both ends are in this process, so it is the receiver's as well."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


CACHED = ["inline", "define", "key"]
INLINE = ["inline", "inline", "inline"]


def closure_over(value: Any) -> Callable[[], Any]:
    return lambda: value


@pytest.mark.parametrize(
    "function",
    [
        gc.isenabled,
        dict,
        Link,
        lambda: 1,
        lambda a=1, *, b=(2, "c"): (a, b, math.pi, len("d")),
        closure_over(5),
        closure_over((1, frozenset([2.0]), None, math, len)),
        closure_over(closure_over(closure_over(int))),
        functools.partial(int, "5"),
        functools.partial(int, "11", base=2),
        functools.partial(closure_over(1)),
    ],
)
def test_what_stays_as_it_is_gets_a_key_at_the_second_call(link: Link, function: Any) -> None:
    assert link.ways(function) == CACHED
    assert link.ways(function) == ["key"] * 3
    assert len(link.receiver) == 1


class Callable_:
    def __call__(self) -> int:
        return 1

    def method(self) -> int:
        return 1


def with_attribute() -> Callable[[], Any]:
    def function() -> int:
        return 1

    function.state = 1  # type: ignore[attr-defined]
    return function


def counting() -> Callable[[], Any]:
    count = 0

    def function() -> int:
        nonlocal count
        count += 1
        return count

    return function


def counting_inside() -> Callable[[], Any]:
    count = 0

    def function() -> int:
        def inner() -> int:
            nonlocal count
            count += 1
            return count

        return inner()

    return function


@pytest.mark.parametrize(
    "function",
    [
        closure_over([1]),
        closure_over(([],)),
        closure_over(Callable_()),
        closure_over(closure_over({})),
        lambda a=[]: a,
        lambda *, a={}: a,
        functools.partial(dict, a=[]),
        Callable_(),
        Callable_().method,
        [].copy,
        type("Local", (), {}),
        closure_over(type("Local", (), {})),
        with_attribute(),
        counting(),
        counting_inside(),
        eval("lambda: [" + "closure, " * 3 + "]", {"closure": closure_over(tuple((n,) for n in range(100)))}),
    ],
)
def test_what_may_change_goes_inline(link: Link, function: Any) -> None:
    assert link.ways(function, 4) == [*INLINE, "inline"]


def test_state_at_the_other_end_does_not_depend_on_the_cache(link: Link) -> None:
    assert [link.call(counting()) for _ in range(3)] == [1, 1, 1]
    function = counting()
    assert [link.call(function) for _ in range(4)] == [1, 1, 1, 1]


def test_a_changed_closure_is_seen(link: Link) -> None:
    value = 1

    def function() -> int:
        return value

    assert [link.call(function) for _ in range(3)] == [1, 1, 1]
    assert link.how == "key"
    value = 2
    assert link.call(function) == 2
    assert link.how == "inline"
    assert len(link.receiver) == 0
    assert link.ways(function, 2) == ["define", "key"]
    value = 3
    assert link.call(function) == 3


def test_a_closure_that_changes_with_each_call_goes_inline(link: Link) -> None:
    function, ways = (lambda: i), []
    for i in range(1000, 1010):
        assert link.call(function) == i
        ways.append(link.how)
    assert ways == ["inline", "define", *["inline"] * 8]


def test_an_unbound_variable_is_not_the_old_one(link: Link) -> None:
    value = 1

    def function() -> int:
        return value  # noqa: F821

    link.ways(function)
    del value
    with pytest.raises(NameError):
        link.call(function)


@pytest.mark.parametrize("change", ["code", "defaults", "kwdefaults", "keyword value", "attribute"])
def test_a_changed_function_is_seen(link: Link, change: str) -> None:
    def function(a: int = 1, *, b: int = 1) -> Any:
        return a, b, 1

    assert link.ways(function) == CACHED
    if change == "code":
        function.__code__ = (lambda a=1, *, b=1: (a, b, 2)).__code__
    elif change == "defaults":
        function.__defaults__ = (2,)
    elif change == "kwdefaults":
        function.__kwdefaults__ = {"b": 2}
    elif change == "keyword value":
        function.__kwdefaults__["b"] = 2
    else:
        function.state = []  # type: ignore[attr-defined]
    assert link.call(function) == function()
    assert link.how == "inline"


def test_a_partial_whose_keywords_were_changed_is_seen(link: Link) -> None:
    function = functools.partial(dict, a=1)
    assert link.ways(function) == CACHED
    function.keywords["b"] = 2
    assert link.call(function) == {"a": 1, "b": 2}


# ---- globals ----------------------------------------------------------------------------------------------------


def define(module: types.ModuleType, code: str) -> None:
    exec(code, module.__dict__)


def test_changed_globals_are_seen_also_through_helpers(link: Link, script: types.ModuleType) -> None:
    define(script, "x = 1\ndef helper(): return x\ndef f(): return helper()")
    function = script.f
    assert link.ways(function) == ["inline", "define", "key"]
    define(script, "x = 2")
    assert (link.call(function), link.how) == (2, "inline")
    define(script, "def helper(): return -x")
    assert (link.call(function), link.how) == (-2, "inline")
    define(script, "def helper(): return len('abc')")
    assert link.call(function) == 3
    assert link.ways(function)[-1] == "key"
    define(script, "def len(x): return 'mine'")
    assert link.call(function) == "mine"


def test_a_global_that_another_function_took_there_is_sent_again(monkeypatch: pytest.MonkeyPatch, link: Link) -> None:
    ours, theirs = types.ModuleType("__main__"), types.ModuleType("__main__")
    define(ours, "x = 1\ndef f(): return x\ndef g(): return x")

    def call(function: Any) -> Any:
        monkeypatch.setitem(sys.modules, "__main__", ours)
        (key, definition), body = link.sender.key_for(function), payload.dumps(function)
        monkeypatch.setitem(sys.modules, "__main__", theirs)
        if definition:
            link.receiver.define(key, *definition)
        return (link.receiver.find(key).load() if key else payload.loads(*body))(), key

    assert [call(ours.f) for _ in range(3)] == [(1, 0), (1, 1), (1, 1)]
    ours.x = 2
    assert call(ours.g) == (2, 0)
    ours.x = 1
    assert call(ours.f) == (1, 0)


def test_functions_that_rebind_their_modules_globals_go_inline(link: Link) -> None:
    module = types.ModuleType("no_such_module")
    define(module, "count = 0\ndef f():\n    global count\n    count += 1\n    return count")
    assert [link.call(module.f) for _ in range(4)] == [1, 1, 1, 1]


def test_recursion_is_no_obstacle(link: Link, script: types.ModuleType) -> None:
    define(script, "def even(n=10): return n == 0 or odd(n - 1)\ndef odd(n): return n > 0 and even(n - 1)")
    assert link.ways(script.even) == CACHED

    def factorial(n: int = 5) -> int:
        return n * factorial(n - 1) if n else 1

    assert link.ways(factorial) == CACHED


# ---- ends -------------------------------------------------------------------------------------------------------


def test_the_key_of_a_dead_function_is_forgotten(link: Link) -> None:
    def make() -> Any:
        def factorial(n: int = 5) -> int:
            return n * factorial(n - 1) if n else 1

        return factorial

    function = make()
    assert link.ways(function) == CACHED
    del function
    gc.collect()
    assert link.sender.take_forgotten() == [1]
    assert link.sender.take_forgotten() == []


def test_an_address_that_is_used_again_is_another_function(link: Link) -> None:
    for number in range(200):
        function = eval(f"lambda: {number}")
        assert [link.call(function) for _ in range(3)] == [number] * 3
        assert link.how == "key"
        del function
    assert len(link.receiver) <= 1


def test_the_cache_is_bounded_and_keeps_the_recently_used() -> None:
    link = Link(capacity=3)
    kept = closure_over("kept")
    functions = [closure_over(n) for n in range(10)]
    for function in functions:
        link.ways(function)
        link.ways(kept)
        assert len(link.receiver) <= 3
    assert link.ways(kept, 1) == ["key"]
    assert link.ways(functions[0], 1) == ["inline"]
    with pytest.raises(LocalProtocolError):
        FunctionSender(capacity=0)


def test_what_cannot_be_pickled_is_reported_by_the_call(link: Link) -> None:
    function = closure_over(x for x in ())
    for _ in range(3):
        with pytest.raises(SerializeError, match="closure variable 'value'"):
            link.call(function)


def test_a_definition_that_cannot_be_unpickled_fails_each_call_that_names_it() -> None:
    receiver = FunctionReceiver()
    receiver.define(1, b"\x80\x05cno_such_thing\nvalue\n.")
    receiver.define(2, *payload.dumps(len))
    errors = []
    for _ in range(2):
        with pytest.raises(DeserializeError, match="no_such_thing") as caught:
            receiver.find(1).load()
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert receiver.find(2).load() is len
    found = receiver.find(2)
    receiver.forget(2)
    receiver.forget(2)
    assert found.load() is len  # by a call that was under way
    with pytest.raises(RemoteProtocolError, match="function 2"):
        receiver.find(2)


# ---- any order of events ----------------------------------------------------------------------------------------


class Cache(RuleBasedStateMachine):
    """Whatever changes between calls, a call gives what the function gives here, and both ends agree on the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Link(capacity=4)
        self.module = types.ModuleType("no_such_module")
        define(self.module, "x = 1\ny = 1\ndef f(): return x\ndef g(): return f(), y\nh = lambda a=1: (a, g())")
        self.made: list[Any] = []

    @rule(name=st.sampled_from("fgh"))
    def call(self, name: str) -> None:
        function = getattr(self.module, name)
        assert self.link.call(function) == function()

    @rule(name=st.sampled_from("xy"), value=st.sampled_from([1, 2, "a", (1, 2)]) | st.lists(st.integers(), max_size=2))
    def rebind(self, name: str, value: Any) -> None:
        setattr(self.module, name, value)

    @rule(name=st.sampled_from("xy"))
    def change_inside(self, name: str) -> None:
        if isinstance(value := getattr(self.module, name), list):
            value.append(1)

    @rule(name=st.sampled_from("fg"))
    def redefine(self, name: str) -> None:
        define(self.module, f"def {name}(): return x, y")

    @rule(value=st.integers(0, 3))
    def make(self, value: int) -> None:
        self.made.append(closure_over(value))

    @rule(index=st.integers(0, 3))
    def call_made(self, index: int) -> None:
        if index < len(self.made):
            assert self.link.call(self.made[index]) == self.made[index]()

    @rule()
    def drop(self) -> None:
        del self.made[:1]

    @invariant()
    def bounded(self) -> None:
        assert len(self.link.receiver) <= 4 + 1  # one may have died since the last call


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=30)
