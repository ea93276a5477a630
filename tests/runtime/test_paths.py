"""What all connections of a process share."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from hybriddist.runtime.paths import Paths
from hybriddist.shm import segment


def test_connections_that_are_made_at_once_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would take twice as much, and warn twice."""
    made: list[Any] = []
    second = threading.Event()

    class SlowBudget(segment.Budget):
        """Long in the making, so that the other thread has the time to make one too."""

        def __init__(self, **keywords: Any) -> None:
            made.append(self)
            if len(made) == 1:
                second.wait(0.2)
            else:
                second.set()
            super().__init__(**keywords)

    monkeypatch.setattr(segment, "Budget", SlowBudget)
    paths = Paths()
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(paths._shared_budget())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert found == made * 2
