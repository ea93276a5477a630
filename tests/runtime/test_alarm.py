"""Signals that the main thread sleeps through."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hybriddist.runtime.alarm import SignalAlarm
from hybriddist.runtime.interrupts import KNOCK
from tests.helpers.polling import poll_for


@pytest.fixture
def guard() -> Iterator[Any]:
    guard = SimpleNamespace(noticed=False, main=threading.get_ident(), is_installed=lambda: True, knocks=0)

    def on_knock(*_: Any) -> None:
        guard.knocks += 1
        guard.noticed = True

    before = signal.signal(KNOCK, on_knock)
    yield guard
    signal.signal(KNOCK, before)


def test_what_was_noticed_before_is_another_signal(guard: Any) -> None:
    """The last knock for the one before may be noticed when nobody looks any more."""
    outside = signal.set_wakeup_fd(-1)
    alarm = SignalAlarm(guard)
    try:
        guard.noticed = True
        os.write(alarm._writing, bytes([signal.SIGINT]))
        alarm.on_ready()
        poll_for(lambda: guard.knocks)
        poll_for(lambda: not alarm._looking)
    finally:
        signal.set_wakeup_fd(outside)
        for descriptor in (alarm._reading, alarm._writing):
            os.close(descriptor)
