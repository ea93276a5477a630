"""The event loop on which a process awaits what its calls' ``async def`` functions return.

One loop on one thread, made when the first coroutine comes: most processes never see one, and asyncio takes 30 ms to
import. What this module does not know: calls and their ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

_CLOSE_SECONDS = 1.0
"""For coroutines to end when they are cancelled."""


class Coroutines:
    """Runs coroutines side by side.

    Args:
        spawn: runs a function on a thread of its own, with a name.
    """

    def __init__(self, spawn: Callable[[Callable[[], None], str], threading.Thread]) -> None:
        self._spawn = spawn
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Begin to await a coroutine; its end is the future's."""
        import asyncio

        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = self._spawn(self._run, "hybriddist-asyncio")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await a coroutine from plain code: block until it has ended.

        Raises:
            RuntimeError: called from a coroutine on the loop itself, which would wait for itself for ever.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError(
                "a coroutine cannot block until another one of its process has ended: await remotecall(...) instead"
            )
        return self.start(coroutine).result()

    def close(self) -> None:
        """Cancel what is under way and end the thread."""
        if self._closing:
            return
        self._closing = True
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            if self._thread is not threading.current_thread():
                self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        import asyncio

        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            while not self._closing:
                try:
                    loop.run_forever()
                except (SystemExit, KeyboardInterrupt):
                    pass  # of one coroutine, whose future has it; the others go on
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=_CLOSE_SECONDS))
        finally:
            loop.close()
