"""The event loop on which a process awaits what its calls' ``async def`` functions return, and those of `asyncmap`.

One loop on one thread, made when the first coroutine comes: most processes never see one, and asyncio takes 30 ms to
import. It is imported on that thread, where no Ctrl-C strikes: a package that is half imported stays broken.

What this module does not know: calls and their ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from functools import partial
from queue import SimpleQueue
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
        loop = self.loop()
        import asyncio

        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, which runs from the first question on."""
        if self._loop is None:
            made: SimpleQueue[BaseException | None] = SimpleQueue()
            self._spawn(partial(self._make_and_run, made), "hybriddist-asyncio")
            error = made.get()
            if error is not None:
                raise error
        assert self._loop is not None
        return self._loop

    def is_own_thread(self) -> bool:
        """Whether this is the loop's thread: then whoever blocks would wait for itself."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await a coroutine from plain code: block until it has ended.

        Raises:
            RuntimeError: called from a coroutine on the loop itself, which would wait for itself for ever.
        """
        if self.is_own_thread():
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

    def _make_and_run(self, made: SimpleQueue[BaseException | None]) -> None:
        """The loop's thread, unless another one, begun at the same time, has been first."""
        try:
            import asyncio

            with self._lock:
                is_first = self._loop is None
                if is_first:
                    self._thread = threading.current_thread()
                    self._loop = asyncio.new_event_loop()
        except BaseException as error:
            made.put(error)
            return
        made.put(None)
        if is_first:
            self._run()

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
