"""Waiting in tests: look again and again until a deadline, never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

Value = TypeVar("Value")


def poll_for(look: Callable[[], Value], *, timeout: float = 10.0, what: str = "") -> Value:
    """Call ``look`` until it returns something true, and return that; fail the test after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not (value := look()):
        if time.monotonic() > end:
            pytest.fail(f"not within {timeout} s: {what or getattr(look, '__name__', look)}; last seen: {value!r}")
        time.sleep(0.005)
    return value
