"""The function cache of one connection without the connection: a sender and a receiver."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from hybriddist.core import payload
from hybriddist.core.definitions import Definitions
from hybriddist.core.functions import FunctionReceiver, FunctionSender, ReceivedFunction


class Link:
    """A sender, a receiver, and what goes between them."""

    def __init__(self, definitions: Definitions | None = None, **options: Any) -> None:
        self.definitions = Definitions() if definitions is None else definitions
        self.sender = FunctionSender(**options)
        self.receiver = FunctionReceiver()
        self.how = ""

    def name(self, function: Callable[..., Any]) -> int:
        """The key that a call would carry; ``how`` tells how the function went."""
        key = self.sender.key_for(function)
        self.how = "key" if key else "inline"
        if key is None:
            definition = self.definitions.define(function)
            key, is_new = self.sender.adopt(function, definition)
            if is_new:
                assert definition is not None
                self.how = "define"
                self.receiver.define(key, ReceivedFunction(definition.body, definition.buffers))
        for forgotten in self.sender.take_forgotten():
            self.receiver.forget(forgotten)
        return key

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it at the other end."""
        key = self.name(function)
        remote = self.receiver.find(key).load() if key else payload.loads(*payload.dumps(function))
        if key:
            self.sender.release(key)
        return remote(*args)

    def ways(self, function: Callable[..., Any], times: int = 3) -> list[str]:
        return [(self.call(function), self.how)[1] for _ in range(times)]


def closure_over(value: Any) -> Callable[[], Any]:
    """A new function each time."""
    return lambda: value


def define(module: types.ModuleType, code: str) -> None:
    """Run code in a module."""
    exec(code, module.__dict__)
