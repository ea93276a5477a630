"""What processes ask of each other so that two workers get connected.

Of two workers the higher pid connects. Each function here runs on the process that its docstring names, called from
another::

    lower ── bring_together ──► driver ── connect_back ──► higher ── connects ──► lower
                                driver ── meet ──────────► higher ── connects ──► lower     (all at once, not lazily)

What this module does not know: how a connection is made (``runtime/links.py``).
"""

from __future__ import annotations

from hybriddist.runtime.context import this_process


def bring_together(lower: int, higher: int) -> None:
    """Runs on the driver: have the higher of two workers connect to the lower."""
    this_process().fetch_call(connect_back, higher, (lower,), {})


def connect_back(lower: int) -> None:
    """Runs on the higher of two workers."""
    this_process().peer(lower)


def meet(lower: int) -> None:
    """Runs on the higher of two workers: connect to the lower, and return when that one knows of it too."""
    this_process().fetch_call(int, lower, (), {})  # there is nothing to do there: that it answers is what counts
