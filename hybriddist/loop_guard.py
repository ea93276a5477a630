"""Refuses a call that blocks the event loop on which what it waits for would have to run: it would never end.

What this module does not know: who calls what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hybriddist.runtime.process import Process


def refuse_on_loop(process: Process, name: str, f: Callable[..., Any]) -> None:
    """Look at this before ``name`` blocks until calls of ``f`` have ended, some of them perhaps in this process.

    Raises:
        RuntimeError: ``f`` is an ``async def``, and this is the thread of the loop that awaits such.
    """
    if process.coroutines.is_own_thread():
        from hybriddist.retrying import is_async  # 5 ms, and rarely needed

        if is_async(f):
            raise RuntimeError(
                f"{name} of an async function would block the event loop that has to run it: "
                f"await asyncio.to_thread(hd.{name}, ...) instead"
            )
