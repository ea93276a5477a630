"""The definitions of a process: a function is pickled once, whoever asks and however often, and again if it changed."""

from __future__ import annotations

import functools
import gc
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hybriddist.core import payload
from hybriddist.core.definitions import INLINE, Definition, Definitions
from hybriddist.errors import LocalProtocolError, SerializeError
from tests.helpers.function_link import Link, closure_over, define


class Counting:
    """Pickles, and counts how often."""

    def __init__(self) -> None:
        self.count = 0
        self.meanwhile: Callable[[], Any] = lambda: None

    def __call__(self, value: Any, labels: Sequence[str] = (), /) -> tuple[bytes, list[memoryview]]:
        self.count += 1
        self.meanwhile()
        return payload.dumps(value, labels)


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def definitions(counting: Counting) -> Definitions:
    return Definitions(counting)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A `__main__` to define things in; both ends are in this process, so it is the receiver's as well."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


def defined(definitions: Definitions, function: Any) -> Definition:
    definition = definitions.define(function)
    assert definition is not None
    assert definition.snapshot is not None
    return definition


def value_of(definition: Definition) -> Any:
    return payload.loads(definition.body, definition.buffers)()


# ---- how often --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        closure_over("x" * 100),
        lambda a=1: a,
        functools.partial(int, "5"),
        functools.partial(closure_over(2)),
        gc.isenabled,
    ],
)
def test_it_is_pickled_once_for_all_connections(counting: Counting, definitions: Definitions, function: Any) -> None:
    links = [Link(definitions) for _ in range(3)]
    for _ in range(4):
        for link in links:
            assert link.call(function) == function()
    assert counting.count == 1
    assert Link(definitions).call(function) == function()  # a worker that came later
    assert counting.count == 1


def test_one_that_has_changed_is_pickled_once_more(counting: Counting, definitions: Definitions) -> None:
    links = [Link(definitions) for _ in range(3)]
    value: Any = None

    def function() -> Any:
        return value

    for expected, value in enumerate((1, 2, 1), 1):
        for _ in range(2):
            assert [link.call(function) for link in links] == [value] * 3
        assert counting.count == expected
        assert [len(link.receiver) for link in links] == [1] * 3


def test_functions_of_one_code_are_one(counting: Counting, definitions: Definitions, script: types.ModuleType) -> None:
    define(script, "x = 1\ndef make(): return lambda: x")
    assert len({id(defined(definitions, script.make())) for _ in range(3)}) == 1
    script.x = 2
    assert value_of(defined(definitions, script.make())) == 2
    assert counting.count == 2


def test_one_with_defaults_of_its_own_is_another_function(definitions: Definitions, script: types.ModuleType) -> None:
    define(script, "def f(): return 1\ndef g(a): return a\nh = type(g)(g.__code__, globals(), 'g', (2,))")
    link = Link(definitions)
    assert [link.call(script.g, 1), link.call(script.h), link.call(script.g, 3), link.call(script.h)] == [1, 2, 3, 2]


def test_what_pickling_itself_changes_is_no_change(
    counting: Counting, definitions: Definitions, script: types.ModuleType
) -> None:
    define(
        script,
        """
pickled = 0
class Counted:
    def __getstate__(self):
        global pickled
        pickled += 1
        return {}
v = Counted()
def f(): return v is not None
""",
    )
    links = [Link(definitions) for _ in range(3)]
    for _ in range(3):
        assert all(link.call(script.f) for link in links)
    assert script.pickled == counting.count == 1


def test_what_may_change_unnoticed_is_not_pickled_at_all(counting: Counting, definitions: Definitions) -> None:
    assert definitions.define(closure_over([1])) is INLINE
    assert counting.count == 0


def test_what_must_not_be_shared_is_asked_for_once() -> None:
    asked = []

    def refuse(value: Any, labels: Sequence[str] = (), /) -> None:
        asked.append(value)

    definitions, function = Definitions(refuse), closure_over(1)
    assert [definitions.define(function) for _ in range(3)] == [INLINE] * 3
    assert len(asked) == 1
    assert Link(definitions).ways(function) == ["inline"] * 3


# ---- threads ----------------------------------------------------------------------------------------------------


def test_threads_that_want_the_same_function_wait_for_one_pickle(counting: Counting, definitions: Definitions) -> None:
    function, ready = closure_over(1), threading.Barrier(8)

    def ask(_: int) -> Definition | None:
        ready.wait(10)
        return definitions.define(function)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert len({id(definition) for definition in found}) == 1
    assert counting.count == 1


def test_one_that_takes_long_holds_up_no_other(counting: Counting, definitions: Definitions) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(10)

    counting.meanwhile = wait
    slow, quick = closure_over("slow"), closure_over("quick")
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(definitions.define, slow)
        assert begun.wait(10)
        counting.meanwhile = lambda: None
        assert value_of(defined(definitions, quick)) == "quick"
        assert not future.done()
        go_on.set()
        assert future.result(10) is definitions.define(slow)


def test_pickling_may_ask_for_the_same_function(counting: Counting, definitions: Definitions) -> None:
    function, inner = closure_over(1), []

    def ask_once() -> None:
        counting.meanwhile = lambda: None
        inner.append(definitions.define(function))

    counting.meanwhile = ask_once
    assert value_of(defined(definitions, function)) == 1
    assert value_of(inner[0]) == 1
    assert definitions.kept_bytes == len(defined(definitions, function).body)


def test_what_changes_while_it_is_pickled_has_no_definition_now(counting: Counting, definitions: Definitions) -> None:
    value = 1

    def function() -> int:
        return value

    def change() -> None:
        nonlocal value
        value, counting.meanwhile = 2, lambda: None

    counting.meanwhile = change
    assert definitions.define(function) is None
    assert value_of(defined(definitions, function)) == 2


# ---- bounds -----------------------------------------------------------------------------------------------------


def test_the_number_is_bounded_and_the_recently_used_stay(counting: Counting) -> None:
    definitions = Definitions(counting, capacity=3)
    kept, others = closure_over("kept"), [closure_over(n) for n in range(10)]
    for function in others:
        definitions.define(kept)
        definitions.define(function)
        assert len(definitions) <= 3
    assert counting.count == 11
    definitions.define(others[0])
    assert counting.count == 12
    with pytest.raises(LocalProtocolError):
        Definitions(capacity=0)


def test_the_bytes_are_bounded(counting: Counting) -> None:
    definitions = Definitions(counting, most_bytes=10_000)
    functions = [closure_over("x" * 3000) for _ in range(10)]
    for function in functions:
        assert value_of(defined(definitions, function)) == "x" * 3000
        assert definitions.kept_bytes <= 10_000
    assert definitions.kept_bytes > 6_000
    definitions.define(functions[-1])
    assert counting.count == 10
    definitions.define(functions[0])
    assert counting.count == 11


def test_one_that_is_over_the_bound_is_used_and_not_kept(counting: Counting) -> None:
    definitions = Definitions(counting, most_bytes=10_000)
    small, large = closure_over(1), closure_over("x" * 20_000)
    first, links = defined(definitions, small), [Link(definitions), Link(definitions)]
    for link in links * 3:
        assert link.call(large) == large()
    assert counting.count == 1 + 2  # once for each connection, and not more: what is known there stays so
    assert definitions.define(small) is first
    assert definitions.kept_bytes == len(first.body)


def test_definitions_die_with_their_functions(definitions: Definitions) -> None:
    functions = [closure_over(n) for n in range(5)]
    for function in functions:
        definitions.define(function)
    del function, functions
    gc.collect()
    definitions.define(len)
    assert len(definitions) == 1
    assert definitions.kept_bytes == len(defined(definitions, len).body)


# ---- failures ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_pickled_is_named_and_may_be_later(definitions: Definitions, script: types.ModuleType) -> None:
    define(script, "import threading\nclass Bad:\n    def __hash__(self): return 1\nv = Bad()\ndef f(): return v")
    script.v.lock = threading.Lock()
    for _ in range(2):
        with pytest.raises(
            SerializeError, match=r"cannot pickle the function \(global 'v'\)\.lock \(a _thread\.lock\)"
        ):
            definitions.define(script.f)
    assert definitions.kept_bytes == 0
    del script.v.lock
    assert value_of(defined(definitions, script.f)) is not None


# ---- buffers of the user's --------------------------------------------------------------------------------------


def test_an_array_that_is_changed_in_place_is_sent_again(definitions: Definitions, script: types.ModuleType) -> None:
    define(script, "import numpy\narray = numpy.zeros(10_000)\ndef f(): return array")
    first = defined(definitions, script.f)
    assert len(first.buffers) == 1
    script.array[0] = 1
    second = defined(definitions, script.f)
    assert second is not first
    assert value_of(second)[0] == 1


def test_a_kept_definition_does_not_change_with_the_users_memory(
    definitions: Definitions, script: types.ModuleType
) -> None:
    """Its class says that it is the same: then it is all as it was, not its arrays new and the rest old."""
    define(
        script,
        """
import numpy
class Tagged:
    def __init__(self): self.count, self.array = 0, numpy.zeros(10_000)
    def __hash__(self): return 1
v = Tagged()
def f(): return v.count, v.array[0]
""",
    )
    links = [Link(definitions) for _ in range(2)]
    assert links[0].name(script.f)
    script.v.count = script.v.array[0] = 1
    assert links[1].name(script.f)
    assert [bytes(view) for view in defined(definitions, script.f).buffers] == [bytes(80_000)]


class Growing:
    """Hands out its memory as a buffer, as arrays do."""

    def __init__(self, data: bytearray) -> None:
        self.data = data

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return self is other

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytearray, (pickle.PickleBuffer(self.data),)


def test_the_users_memory_may_still_be_resized(definitions: Definitions, script: types.ModuleType) -> None:
    script.v = Growing(bytearray(100_000))
    define(script, "def f(): return v")
    assert [len(view) for view in defined(definitions, script.f).buffers] == [100_000]
    script.v.data.append(1)


# ---- in memory that others can see ------------------------------------------------------------------------------


class Handle:
    """Stands for a pickle."""

    def __init__(self, body: bytes) -> None:
        self.body = body


def placing(counting: Counting, **options: Any) -> tuple[Definitions, weakref.WeakSet[Handle]]:
    """Definitions that place what has 1000 bytes or more; the handles that live."""
    living: weakref.WeakSet[Handle] = weakref.WeakSet()

    def place(body: bytes, buffers: Sequence[memoryview]) -> Handle | None:
        if len(body) < 1000:
            return None
        handle = Handle(body)
        living.add(handle)
        return handle

    return Definitions(counting, place, **options), living


def test_what_is_placed_is_not_kept_here_too(counting: Counting) -> None:
    definitions, living = placing(counting)
    small, large = closure_over(1), closure_over("x" * 2000)
    assert defined(definitions, small).place is None
    definition = defined(definitions, large)
    assert definition.place is not None
    (handle,) = definition.place
    assert payload.loads(handle.body)() == large()
    assert (definition.body, definition.buffers) == (b"", ())
    assert defined(definitions, large) is definition
    assert len(living) == 1


def test_the_handle_dies_with_the_function_and_not_when_the_next_is_asked_for(counting: Counting) -> None:
    definitions, living = placing(counting)
    large = closure_over("x" * 2000)
    definitions.define(large)
    del large
    assert len(living) == 0


def test_the_handle_dies_with_the_definition(counting: Counting) -> None:
    definitions, living = placing(counting, most_bytes=2000 * 16)
    value = "x" * 2000

    def changing() -> str:
        return value

    definitions.define(changing)
    value = "y" * 2000
    definitions.define(changing)
    assert len(living) == 1
    functions = [closure_over("x" * 2000) for _ in range(20)]
    for function in functions:
        definitions.define(function)
        assert len(living) <= 16
    assert len(living) == 16
    definitions.clear()
    assert (len(living), len(definitions), definitions.kept_bytes) == (0, 0, 0)


def test_there_are_not_very_many(counting: Counting) -> None:
    definitions, living = placing(counting, most_bytes=2000 * 128 * 2)
    functions = [closure_over("x" * 2000) for _ in range(140)]
    for function in functions:
        definitions.define(function)
    assert len(living) == 128


def test_one_that_is_over_the_bound_is_kept_there(counting: Counting) -> None:
    definitions, living = placing(counting, most_bytes=5000)
    small, large = closure_over(1), closure_over("x" * 9000)
    for _ in range(3):
        definitions.define(small)
        definitions.define(large)
    assert (counting.count, len(living)) == (2, 1)
    assert definitions.kept_bytes == len(defined(definitions, small).body) + 5000 // 16
