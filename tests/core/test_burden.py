"""What functions have captured, as far as arrays go."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hybriddist.core.burden import captured_bytes

ARRAY = np.ones(1000)
SIZE = ARRAY.nbytes


class Holder:
    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def method(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name}: code of the user's must not run")

    def __len__(self) -> int:
        raise AssertionError("code of the user's must not run")

    __hash__ = None  # type: ignore[assignment]


def closure_over(thing: Any) -> Any:
    return lambda: thing


def default(thing: Any = ARRAY) -> None: ...


default.__module__ = default.__qualname__ = "by value"


@pytest.mark.parametrize(
    "function",
    [
        closure_over(ARRAY),
        closure_over([{"a": (ARRAY,)}]),
        closure_over(closure_over(ARRAY)),
        closure_over(SimpleNamespace(x=ARRAY)),
        closure_over([ARRAY, ARRAY]),
        functools.partial(print, ARRAY),
        functools.partial(print, key=ARRAY),
        Holder(ARRAY).method,
        Holder(ARRAY),
        default,
    ],
    ids=range(10),
)
def test_arrays_are_found(function: Any) -> None:
    assert captured_bytes(function) == SIZE


@pytest.mark.parametrize(
    "function",
    [
        len,
        np.sum,
        closure_over(None),
        closure_over(b"x" * 10_000),
        closure_over(np),  # a module is not a part of it
        closure_over(np.array([object()] * 10)),  # goes into the pickle
        test_arrays_are_found,  # found by name: its globals stay at home
        Holder,
    ],
    ids=range(8),
)
def test_what_does_not_count(function: Any) -> None:
    assert captured_bytes(function) == 0


def test_cycles_and_crowds_have_an_end() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    assert captured_bytes(closure_over(cycle)) == 0
    assert captured_bytes(closure_over([[object()] for _ in range(100_000)])) == 0
    assert captured_bytes(closure_over([cycle, ARRAY])) == SIZE


def test_globals_of_the_script_count() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "big": ARRAY, "unused": np.ones(10)}
    exec("def f(): return big", namespace)
    assert captured_bytes(namespace["f"]) == SIZE
