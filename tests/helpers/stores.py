"""Backing stores of a user's own."""

from __future__ import annotations

from typing import Any


class Single:
    """The least that a store has to have, without arguments."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.is_shut = False

    def put(self, item: Any) -> None:
        self.items.append(item)

    def take(self) -> Any:
        return self.items.pop()

    def fetch(self) -> Any:
        return self.items[-1]

    def isready(self) -> bool:
        return bool(self.items)

    def wait(self) -> None:
        pass

    def close(self) -> None:
        self.is_shut = True

    def isopen(self) -> bool:
        return not self.is_shut
