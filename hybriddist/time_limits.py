"""The time limit of a map's items: who is over it, and what is done about that.

An item counts from its own begin, which its worker announces::

    sent ── import ──► begun ── item_timeout ──► interrupted ── reaction ──► its worker is ended and replaced

What this module does not know: what becomes of an item that was ended (``mapping.py``).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from hybriddist.crew import Crew
from hybriddist.lanes import Unit
from hybriddist.runtime.process import Process

_REACTION_SECONDS: Final = 2.0
"""For an interrupted item to end; then its worker is given up. One was not enough on a machine with heavy load."""

_IMPORT_SECONDS: Final = 30.0
"""An item that has not begun: its worker imports what the function needs. That has a limit too."""

_LOOK_SECONDS: Final = 0.1
"""Nobody wakes a map when an item begins: so it is looked for."""


class TimeLimit:
    """The limit of a map.

    Args:
        seconds: for each item.
        process: this process.
        crew: who works.
    """

    def __init__(self, seconds: float, process: Process, crew: Crew) -> None:
        self.seconds = seconds
        self._process = process
        self._crew = crew

    def until_due(self, units: Iterable[Unit]) -> float:
        """Seconds until one of these units has to be looked at."""
        now = time.monotonic()
        return min([self._limit(unit) - now if unit.begun else _LOOK_SECONDS for unit in units], default=_LOOK_SECONDS)

    def enforce(self, units: Iterable[Unit]) -> None:
        """Interrupt those that are over their limit, and give up the workers that do not react."""
        now = time.monotonic()
        for unit in list(units):
            if unit.done or now < self._limit(unit):
                continue
            if unit.overdue:
                unit.overdue = float("inf")  # once
                self._crew.replace(unit.pid, unit)
                continue
            unit.overdue = now + _REACTION_SECONDS
            if unit.peer is None:
                unit.future.cancel()
            else:
                self._process.cancel_calls(unit.peer, (unit,))

    def error(self) -> TimeoutError:
        """What an item that was ended fails with."""
        return TimeoutError(f"the item took longer than {self.seconds} seconds")

    def _limit(self, unit: Unit) -> float:
        """When this unit is to be ended, or its worker."""
        return unit.overdue or (unit.begun or unit.sent + _IMPORT_SECONDS) + self.seconds


__all__ = ["TimeLimit"]
