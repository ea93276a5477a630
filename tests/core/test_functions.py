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

from hybriddist.core import payload
from hybriddist.core.functions import FunctionReceiver, FunctionSender, ReceivedFunction
from hybriddist.errors import DeserializeError, LocalProtocolError, RemoteProtocolError, SerializeError
from tests.helpers.function_link import Link, closure_over, define


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A `__main__` to define things in; both ends are in this process, so it is the receiver's as well."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


CACHED = ["define", "key", "key"]
INLINE = ["inline", "inline", "inline"]


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
def test_what_stays_as_it_is_gets_a_key_at_the_first_call(link: Link, function: Any) -> None:
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
    assert link.how == "define"
    assert len(link.receiver) == 1
    assert link.ways(function, 2) == ["key", "key"]
    value = 3
    assert link.call(function) == 3
    value = [3]  # type: ignore[assignment]
    assert link.call(function) == [3]
    assert link.how == "inline"
    assert len(link.receiver) == 0


def test_a_closure_that_changes_with_each_call_is_defined_with_each(link: Link) -> None:
    function = lambda: i  # noqa: E731
    for i in range(1000, 1010):
        assert link.call(function) == i
        assert link.how == "define"
        assert len(link.receiver) == 1


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
    assert link.how == ("inline" if change == "attribute" else "define")


def test_a_partial_whose_keywords_were_changed_is_seen(link: Link) -> None:
    function = functools.partial(dict, a=1)
    assert link.ways(function) == CACHED
    function.keywords["b"] = 2
    assert link.call(function) == {"a": 1, "b": 2}


# ---- globals ----------------------------------------------------------------------------------------------------


def test_changed_globals_are_seen_also_through_helpers(link: Link, script: types.ModuleType) -> None:
    define(script, "x = 1\ndef helper(): return x\ndef f(): return helper()")
    function = script.f
    assert link.ways(function) == CACHED
    define(script, "x = 2")
    assert (link.call(function), link.how) == (2, "define")
    define(script, "def helper(): return -x")
    assert (link.call(function), link.how) == (-2, "define")
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
        key = link.name(function)
        monkeypatch.setitem(sys.modules, "__main__", theirs)
        value = link.receiver.find(key).load()()
        link.sender.release(key)
        return value, link.how

    assert [call(ours.f) for _ in range(3)] == [(1, "define"), (1, "key"), (1, "key")]
    ours.x = 2
    assert call(ours.g) == (2, "define")
    ours.x = 1
    assert call(ours.f) == (1, "define")


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
    assert link.ways(functions[0], 1) == ["define"]
    with pytest.raises(LocalProtocolError):
        FunctionSender(capacity=0)


def test_a_key_that_a_call_is_about_to_name_is_not_forgotten_yet(link: Link) -> None:
    value = 1

    def function() -> int:
        return value

    first = link.name(function)
    assert link.name(function) == first  # two threads are about to send calls
    value = 2
    second = link.name(function)
    assert second != first
    assert link.receiver.find(first).load()() == 1
    link.sender.release(first)
    assert link.sender.take_forgotten() == []
    link.sender.release(first)
    assert link.sender.take_forgotten() == [first]
    assert link.sender.take_forgotten() == []


def test_what_another_thread_has_defined_meanwhile_is_not_defined_again(link: Link) -> None:
    function = closure_over(1)
    assert link.sender.key_for(function) is None
    key = link.name(function)
    assert link.sender.adopt(function, link.definitions.define(function)) == (key, False)


def test_a_definition_that_is_out_of_date_when_it_would_be_sent_is_not(link: Link) -> None:
    value = 1

    def function() -> int:
        return value

    assert link.sender.key_for(function) is None
    old = link.definitions.define(function)
    value = 2
    assert link.sender.adopt(function, old) == (0, False)
    assert link.call(function) == 2
    assert link.how == "define"


def test_a_definition_that_was_not_sent_counts_for_nothing(link: Link) -> None:
    function = closure_over(1)
    key, is_new = link.sender.adopt(function, link.definitions.define(function))
    assert is_new
    link.sender.withdraw(key)
    assert link.sender.take_forgotten() == [key]
    assert link.ways(function) == CACHED


def test_what_cannot_be_pickled_is_reported_by_the_call(link: Link) -> None:
    function = closure_over(x for x in ())
    for _ in range(3):
        with pytest.raises(SerializeError, match="closure variable 'value'"):
            link.call(function)


def test_a_definition_that_cannot_be_unpickled_fails_each_call_that_names_it() -> None:
    receiver = FunctionReceiver()
    receiver.define(1, ReceivedFunction(b"\x80\x05cno_such_thing\nvalue\n."))
    receiver.define(2, ReceivedFunction(*payload.dumps(len)))
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
