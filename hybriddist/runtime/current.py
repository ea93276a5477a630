"""`current`: the process object that the plain functions mean."""

from __future__ import annotations

from hybriddist.ids import DRIVER
from hybriddist.runtime.context import become, known
from hybriddist.runtime.process import Process


def current() -> Process:
    """The process object that this code works for. An interpreter that has none becomes a driver, without workers."""
    process = known()
    if process is None:
        process = Process(DRIVER)
        become(process)
    return process
