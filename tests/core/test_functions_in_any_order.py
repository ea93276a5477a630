"""The function cache under any order of calls, changes and deaths, on several connections at once."""

from __future__ import annotations

import types
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hybriddist.core.definitions import Definitions
from tests.helpers.function_link import Link, closure_over, define


class Cache(RuleBasedStateMachine):
    """Whatever changes between calls, on whichever connection, a call gives what the function gives here."""

    def __init__(self) -> None:
        super().__init__()
        definitions = Definitions(capacity=6)
        self.links = [Link(definitions, capacity=4) for _ in range(3)]
        self.module = types.ModuleType("no_such_module")
        define(self.module, "x = 1\ny = 1\ndef f(): return x\ndef g(): return f(), y\nh = lambda a=1: (a, g())")
        self.made: list[Any] = []

    @rule(link=st.integers(0, 2), name=st.sampled_from("fgh"))
    def call(self, link: int, name: str) -> None:
        function = getattr(self.module, name)
        assert self.links[link].call(function) == function()

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

    @rule(link=st.integers(0, 2), index=st.integers(0, 3))
    def call_made(self, link: int, index: int) -> None:
        if index < len(self.made):
            assert self.links[link].call(self.made[index]) == self.made[index]()

    @rule(link=st.integers(0, 2))
    def replace_worker(self, link: int) -> None:
        self.links[link] = Link(self.links[link].definitions, capacity=4)

    @rule()
    def drop(self) -> None:
        del self.made[:1]

    @invariant()
    def bounded(self) -> None:
        for link in self.links:
            assert len(link.receiver) <= 4 + 1  # one may have died since the last call
            assert len(link.definitions) <= 6


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=30)
